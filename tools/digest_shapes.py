"""Digests a vendor's published API description into the facts its stand-in is checked against.

    python tools/digest_shapes.py openai openapi.yaml --repository openai/openai-openapi --commit f85dbe2…
    python tools/digest_shapes.py google generativelanguage.v1beta.json --repository … --commit …
    python tools/digest_shapes.py anthropic --sdk --repository anthropics/anthropic-sdk-python --commit "package 2.14.0"

Reads a local OpenAPI description (YAML or JSON), a Google discovery document, or with ``--sdk`` the models of the
vendor's installed Python SDK (pydantic or protobuf). Writes ``tests/support/vendors/published/<name>.json``: of each
schema its properties, their types, their enumerated values and which are required. No prose is kept.
"""

import argparse
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PUBLISHED = Path(__file__).resolve().parents[1] / "tests" / "support" / "vendors" / "published"
METHODS = ("get", "post", "delete")
Node = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What to keep of a description: the schemas of answers, by name or as ``POST /v1/rerank 200``.

    `opened` are schemas left open, since only requests have them and answers echo them. `sdk` are the modules and
    classes to read with ``--sdk``.
    """

    roots: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()
    sdk: Mapping[str, tuple[str, ...]] | None = None


OPENAI_ROOTS = (
    *("CreateChatCompletionResponse", "CreateChatCompletionStreamResponse", "CreateCompletionResponse"),
    *("Response", "ResponseStreamEvent", "TokenCountsResource", "CreateEmbeddingResponse"),
    *("ImagesResponse", "ImageGenStreamEvent", "ImageEditStreamEvent", "CreateSpeechResponseStreamEvent"),
    *("CreateTranscriptionResponseJson", "CreateTranscriptionResponseVerboseJson"),
    *("CreateTranscriptionResponseDiarizedJson", "CreateTranscriptionResponseStreamEvent"),
    *("CreateTranslationResponseJson", "CreateTranslationResponseVerboseJson", "CreateModerationResponse"),
    *("Model", "ListModelsResponse", "OpenAIFile", "ListFilesResponse", "DeleteFileResponse"),
    *("Batch", "ListBatchesResponse", "ErrorResponse"),
)
OPENAI_OPENED = (
    *("Tool", "ToolsArray", "ToolChoiceParam", "InputItem", "Prompt", "TextResponseFormatConfiguration", "Moderation"),
    *("ComputerToolCall", "ComputerToolCallOutputResource", "FunctionShellCall", "FunctionShellCallOutput"),
    *("ApplyPatchToolCall", "ApplyPatchToolCallOutput", "MCPListTools", "MCPToolCall", "LocalShellToolCall"),
    *("AdditionalTools", "ToolSearchOutput", "CompactionBody", "FunctionToolCallOutputResource"),
    *("CustomToolCallOutputResource", "ChatCompletionModeration", "PromptCacheOptions"),
)
MISTRAL_ROOTS = (
    *("ChatCompletionResponse", "CompletionChunk", "FIMCompletionResponse", "EmbeddingResponse", "OCRResponse"),
    *("ModerationResponse", "ModelList", "BaseModelCard", "HTTPValidationError"),
)
COHERE_ROOTS = (
    *("NonStreamedChatResponse", "StreamedChatResponse", "ChatResponseV2", "StreamedChatResponseV2"),
    *("EmbedByTypeResponse", "EmbedFloatsResponse", "POST /v1/rerank 200", "POST /v2/rerank 200"),
    *("POST /v1/tokenize 200", "ListModelsResponse", "GetModelResponse", "POST /v2/chat 400", "POST /v2/chat 429"),
)
WANTED = {
    "openai": Wanted(OPENAI_ROOTS, OPENAI_OPENED),
    "openai-sdk": Wanted(sdk={"openai.types.responses": ("ResponseUsage",), "openai.types": ("CompletionUsage",)}),
    "anthropic": Wanted(
        sdk={
            "anthropic.types": ("Message", "RawMessageStreamEvent", "MessageTokensCount", "ModelInfo", "ErrorResponse"),
            "anthropic.types.messages": ("MessageBatch", "MessageBatchIndividualResponse", "DeletedMessageBatch"),
            "anthropic.types.beta": ("BetaUsage", "BetaMessageDeltaUsage"),
        }
    ),
    "google": Wanted(
        (
            *("GenerateContentResponse", "EmbedContentResponse", "BatchEmbedContentsResponse", "CountTokensResponse"),
            *("Model", "ListModelsResponse"),
        ),
        sdk={
            "google.ai.generativelanguage_v1beta": (
                *("GenerateContentResponse", "EmbedContentResponse", "BatchEmbedContentsResponse"),
                *("CountTokensResponse", "Model", "ListModelsResponse"),
            )
        },
    ),
    "mistral": Wanted(MISTRAL_ROOTS),
    "cohere": Wanted(COHERE_ROOTS),
}


def main() -> None:
    """Reads a description and writes its digest."""
    parser = argparse.ArgumentParser(description="Digest a vendor's API description for the checks of its stand-in.")
    parser.add_argument("name", choices=sorted(WANTED), help="whose description it is")
    parser.add_argument("description", nargs="?", type=Path, help="an OpenAPI or Google discovery file")
    parser.add_argument("--sdk", action="store_true", help="read the models of the installed SDK instead")
    parser.add_argument("--repository", required=True, help="where it was published, as owner/name")
    parser.add_argument("--commit", required=True, help="its commit, or the version of a package")
    parser.add_argument("--out", type=Path, default=PUBLISHED, help="the directory to write to")
    given = parser.parse_args()
    if given.sdk == (given.description is not None):
        parser.error("give either a description file or --sdk")
    wanted = WANTED[given.name]
    source = {"repository": given.repository, "commit": given.commit}
    if given.sdk:
        schemas = of_sdk(wanted)
    else:
        source["file"] = given.description.name
        schemas = of_description(load(given.description), wanted)
    given.out.mkdir(parents=True, exist_ok=True)
    target = given.out / f"{given.name}.json"
    target.write_text(json.dumps({"source": source, "schemas": schemas}, indent=1, sort_keys=True) + "\n")
    print(f"{target}: {len(schemas)} schemas, {target.stat().st_size} bytes")


def load(path: Path) -> Node:
    """A description. Raises `ValueError` when the file is none."""
    # The loader in C reads three megabytes in seconds, not in a minute; it is as safe.
    loaded = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    if not isinstance(loaded, dict) or not ("components" in loaded or "schemas" in loaded):
        raise ValueError(f"{path} is neither an OpenAPI description nor a Google discovery document")
    return loaded


def of_description(document: Node, wanted: Wanted) -> Node:
    """The schemas that answers are made of, out of an OpenAPI or a discovery document."""
    all_schemas = document["components"]["schemas"] if "components" in document else document["schemas"]
    named = {root: named_schema(document, all_schemas, root) for root in wanted.roots}
    return reachable(named, lambda name: all_schemas[name], set(wanted.opened))


def named_schema(document: Node, all_schemas: Node, root: str) -> Node:
    """A schema by its name, or that of an operation's answer. Raises `KeyError` for one that is not there."""
    if " " not in root:
        return dict(all_schemas[root])
    method, path, status = root.split(" ")
    answer = document["paths"][path][method.lower()]["responses"][status]
    if "$ref" in answer:
        answer = document["components"]["responses"][last(answer["$ref"])]
    return dict(answer["content"]["application/json"]["schema"])


def reachable(named: Mapping[str, Node], find: Callable[[str], Node], opened: set[str]) -> Node:
    """The named schemas, and all they refer to, reduced to facts; `opened` ones allow anything."""
    done: Node = {}
    waiting = dict(named)
    while waiting:
        name, schema = waiting.popitem()
        done[name] = {} if name in opened else facts(schema, find)
        waiting |= {other: find(other) for other in references(done[name]) if other not in done}
    return done


def references(node: Any) -> Iterable[str]:
    """The names a reduced schema refers to."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield last(node["$ref"])
        for part in node.values():
            yield from references(part)
    elif isinstance(node, list):
        for part in node:
            yield from references(part)


def facts(schema: Node, find: Callable[[str], Node]) -> Node:
    """A schema without its prose: types, properties, required, enumerated values, items, alternatives."""
    nullable = bool(schema.get("nullable"))
    if "$ref" in schema:
        return optional({"$ref": f"#/schemas/{last(schema['$ref'])}"}, nullable)
    for choice in ("oneOf", "anyOf"):
        if choice in schema:
            return optional({"anyOf": [facts(part, find) for part in schema[choice]]}, nullable)
    if "allOf" in schema:
        return optional(merged([*schema["allOf"], without_all_of(schema)], find), nullable)
    kept: Node = {name: schema[name] for name in ("enum", "const") if name in schema}
    kind = schema.get("type")
    if kind is not None and not kept and kind != "any":
        kept["type"] = kind
    if "properties" in schema:
        kept |= {
            "type": "object",
            "properties": {name: facts(part, find) for name, part in schema["properties"].items()},
        }
        kept["required"] = sorted(name for name in schema.get("required", ()) if name in schema["properties"])
    if "items" in schema:
        kept["items"] = facts(schema["items"], find)
    if schema.get("additionalProperties"):
        more = schema["additionalProperties"]
        kept["additionalProperties"] = facts(more, find) if isinstance(more, dict) else True
    return optional(kept, nullable)


def merged(parts: list[Node], find: Callable[[str], Node]) -> Node:
    """One object out of several that an ``allOf`` puts together; the last of a name wins, as its refinement."""
    whole: Node = {"type": "object", "properties": {}, "required": []}
    reduced = [facts(find(last(part["$ref"])) if "$ref" in part else part, find) for part in parts if part]
    objects = [part for part in reduced if "properties" in part]
    if len(objects) < len(reduced) == 1:
        return reduced[0]
    for part in objects:
        whole["properties"] |= part["properties"]
        whole["required"] = sorted({*whole["required"], *part["required"]})
    return whole


def without_all_of(schema: Node) -> Node:
    """What stands beside an ``allOf``."""
    return {
        name: schema[name] for name in ("type", "properties", "required") if name in schema and "properties" in schema
    }


def optional(node: Node, nullable: bool) -> Node:
    """A schema that may be null too."""
    return {"anyOf": [node, {"type": "null"}]} if nullable else node


def last(reference: str) -> str:
    """The name a reference ends in."""
    return reference.rpartition("/")[2]


def of_sdk(wanted: Wanted) -> Node:
    """The schemas of an installed SDK's models."""
    found: Node = {}
    for module, names in (wanted.sdk or {}).items():
        loaded = importlib.import_module(module)
        for name in names:
            model = getattr(loaded, name)
            found |= of_message(model.pb().DESCRIPTOR) if hasattr(model, "pb") else of_model(name, model)
    return found


def of_model(name: str, model: Any) -> Node:
    """The schemas of a pydantic model, or of a union of them, and of the models in it."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(model).json_schema()
    # SDKs take fields they do not know yet; what is published is what they name.
    known = {other: {**found, "additionalProperties": None} for other, found in schema.pop("$defs", {}).items()}
    return reachable({name: {**schema, "additionalProperties": None}}, lambda other: known[other], set())


def of_message(message: Any) -> Node:
    """The schemas of a protocol buffer's message, as its JSON has them: nothing is required."""
    found: Node = {}
    waiting = [message]
    while waiting:
        one = waiting.pop()
        if (name := message_name(one)) in found:
            continue
        fields = {field.json_name: of_field(field) for field in one.fields}
        found[name] = {"type": "object", "properties": fields, "required": []}
        waiting += [field.message_type for field in one.fields if own_message(field)]
    return found


def message_name(message: Any) -> str:
    """A message's name without its package: nested ones are joined by dots."""
    return str(message.full_name.removeprefix(message.file.package + "."))


def own_message(field: Any) -> bool:
    """Whether a field holds a message that is written as an object of its properties."""
    return field.message_type is not None and not field.message_type.full_name.startswith("google.protobuf.")


def of_field(field: Any) -> Node:
    """The JSON type of a field."""
    if own_message(field):
        node: Node = {"$ref": f"#/schemas/{message_name(field.message_type)}"}
    elif field.message_type is not None:
        node = {} if field.message_type.full_name.endswith(("Struct", "Value")) else {"type": "string"}
    elif field.enum_type is not None:
        node = {"enum": [value.name for value in field.enum_type.values]}
    else:
        # Numbers of the field types of protocol buffers; 64-bit integers and bytes are strings in JSON.
        kinds = {1: "number", 2: "number", 5: "integer", 8: "boolean", 13: "integer"}
        node = {"type": kinds.get(field.type, "string")}
    return {"type": "array", "items": node} if field.is_repeated else node


if __name__ == "__main__":
    main()
