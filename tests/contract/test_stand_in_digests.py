"""The check of the stand-ins' shapes finds faults, and the digests it checks against hold facts only."""

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from openai.types import CompletionUsage

from tests.support.vendors import anthropic, cohere, google, mistral, openai
from tests.support.vendors.shapes import data_of, digest, problems
from tools import digest_shapes

DIGESTS = ("openai", "anthropic", "google", "mistral", "cohere", "openai-sdk")
PLANTED = [
    (
        "openai",
        "CreateChatCompletionResponse",
        openai.completion(used=openai.usage(100, 50, 40, cache_write=7)),
        "usage",
    ),
    ("openai", "Response", openai.response(), "usage"),
    ("anthropic", "Message", anthropic.message(used=anthropic.usage()), "usage"),
    ("google", "GenerateContentResponse", google.generated(used=google.usage(100, 20, 30, 5, 7)), "usageMetadata"),
    ("mistral", "ChatCompletionResponse", mistral.completion(used=mistral.usage(audio_seconds=3, cached=4)), "usage"),
    ("cohere", "ChatResponseV2", cohere.chat_v2(), "usage"),
    ("cohere", "NonStreamedChatResponse", cohere.chat_v1(), "meta"),
]


@pytest.mark.parametrize(("vendor", "schema", "answer", "report"), PLANTED)
def test_a_planted_fault_is_found(vendor: str, schema: str, answer: dict[str, Any], report: str) -> None:
    assert problems(vendor, schema, answer) == []
    outside = copy.deepcopy(answer) | {"planted": 1}
    assert any("'planted' was unexpected" in line for line in problems(vendor, schema, outside))
    inside = copy.deepcopy(answer)
    inside[report]["planted"] = 1
    assert any("'planted' was unexpected" in line for line in problems(vendor, schema, inside))
    for name in digest(vendor)["schemas"][schema]["required"]:
        short = {known: value for known, value in answer.items() if known != name}
        assert any(f"'{name}' is a required property" in line for line in problems(vendor, schema, short))
    for name in answer[report]:
        wrong = copy.deepcopy(answer)
        wrong[report][name] = {"not": "this"}
        assert problems(vendor, schema, wrong) != [], name


def test_a_planted_fault_in_one_of_several_kinds_is_named() -> None:
    step = openai.response_steps(openai.response())[4]
    assert step["type"] == "response.output_text.delta"
    lines = problems("openai", "ResponseStreamEvent", step | {"planted": 1})
    assert lines == ["$: Additional properties are not allowed ('planted' was unexpected)"]


@pytest.mark.parametrize("piece", [b"data: 1\n", b"event: a\n\n", b'event: a\ndata: {"type":"b"}\n\n'])
def test_what_is_no_event_is_refused(piece: bytes) -> None:
    with pytest.raises(ValueError, match="event"):
        data_of([piece])


@pytest.mark.parametrize("name", DIGESTS)
def test_a_digest_holds_facts_only(name: str) -> None:
    source = digest(name)["source"]
    assert set(source) <= {"repository", "commit", "file"}
    assert source["repository"].count("/") == 1

    def keys(node: Any, named: bool) -> Iterable[str]:
        for key, value in node.items() if isinstance(node, dict) else ():
            if not named:
                yield key
            yield from keys(value, not named and key == "properties")
        for value in node if isinstance(node, list) else ():
            yield from keys(value, False)

    allowed = {"type", "enum", "const", "properties", "required", "items", "anyOf", "additionalProperties", "$ref"}
    assert set(keys(digest(name)["schemas"], True)) <= allowed


DESCRIPTION = """
openapi: 3.1.0
paths:
  /v1/things:
    get: {responses: {"200": {content: {application/json: {schema: {$ref: "#/components/schemas/Thing"}}}}}}
components:
  schemas:
    Base: {type: object, description: prose, required: [id], properties: {id: {type: string, description: prose}}}
    Kind: {type: string, enum: [a, b], nullable: true}
    Thing:
      description: prose
      allOf:
        - $ref: "#/components/schemas/Base"
        - type: object
          required: [size]
          properties:
            size: {type: integer, format: int64}
            kind: {$ref: "#/components/schemas/Kind"}
            tags: {type: object, additionalProperties: {type: string}}
"""


def test_a_description_is_digested(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(DESCRIPTION)
    document = digest_shapes.load(tmp_path / "a.yaml")
    schemas = digest_shapes.of_description(document, digest_shapes.Wanted(("Thing",)))
    assert schemas["Kind"] == {"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]}
    assert schemas["Thing"] == {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "size": {"type": "integer"},
            "kind": {"$ref": "#/schemas/Kind"},
            "tags": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "required": ["id", "size"],
    }
    named = digest_shapes.of_description(document, digest_shapes.Wanted(("GET /v1/things 200",)))
    assert named["Thing"] == schemas["Thing"]


def test_a_discovery_document_is_digested(tmp_path: Path) -> None:
    whole = {
        "schemas": {
            "Answer": {
                "id": "Answer",
                "type": "object",
                "properties": {"parts": {"type": "array", "items": {"$ref": "Part"}}},
            },
            "Part": {"type": "object", "properties": {"size": {"type": "string", "format": "int64"}}},
        }
    }
    (tmp_path / "a.json").write_text(json.dumps(whole))
    schemas = digest_shapes.of_description(digest_shapes.load(tmp_path / "a.json"), digest_shapes.Wanted(("Answer",)))
    assert schemas["Answer"]["properties"] == {"parts": {"type": "array", "items": {"$ref": "#/schemas/Part"}}}
    assert schemas["Part"] == {"type": "object", "properties": {"size": {"type": "string"}}, "required": []}


def test_what_is_no_description_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("just: this")
    with pytest.raises(ValueError, match="neither an OpenAPI description nor a Google discovery document"):
        digest_shapes.load(tmp_path / "a.yaml")


def test_an_installed_model_is_digested() -> None:
    used = digest_shapes.of_model("CompletionUsage", CompletionUsage)["CompletionUsage"]
    assert used["properties"]["prompt_tokens"] == {"type": "integer"}
    assert set(used["required"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
