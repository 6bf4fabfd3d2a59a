"""What is published about events (JSON Schemas, examples, AsyncAPI, topics) against what the codec writes and reads."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from jsonschema import Draft202012Validator, ValidationError

from services.adapters.schemas import schemas_folder
from services.adapters.topics import TopicDocument, load_topics, read_documents
from services.core.alerts import ALERT_TYPES, ThresholdCrossed, alert_message, decode_alert, encode_alert
from services.core.codec import cloud_event_headers, decode, encode
from services.core.events import EVENT_TYPES, Settlement, Stamped
from tests.support.examples import EXAMPLES, FOLDER, SETTLEMENT
from tests.support.schemas import event_schemas, validate_event
from tests.support.strategies import stamped_events

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # The package's own models shadow a method of pydantic's.
    from asyncapi3.models import AsyncAPI3

FILES = {
    path.relative_to(FOLDER).as_posix(): path.read_bytes()
    for path in FOLDER.rglob("*")
    if path.is_file() and ThresholdCrossed.TOPIC not in path.parts
}
CROSSED = ThresholdCrossed(
    org="default",
    budget_id="bud_ml_month",
    scope="team:ml",
    window="c:1717200000000:1719792000000",
    percent=85,
    limit_nano=500_000_000_000,
    spent_nano=425_013_370_000,
    config_version=7,
    time_ms=1_718_028_219_188,
)
ASYNCAPI: dict[str, Any] = yaml.safe_load((FOLDER.parent / "asyncapi.yaml").read_bytes())
DOCUMENTS = {document.name: document for document in read_documents(schemas_folder("topics"))}


@pytest.mark.parametrize("name", event_schemas())
def test_the_schemas_are_schemas(name: str) -> None:
    schema = event_schemas()[name]
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == name


def test_every_event_type_has_a_schema() -> None:
    assert event_schemas().keys() == {f"{kind}.schema.json" for kind in {**EVENT_TYPES, **ALERT_TYPES}} | {
        "common.v1.schema.json"
    }


def test_the_examples_are_the_documented_ones() -> None:
    assert FILES.keys() == EXAMPLES.keys()
    assert {decode(value).event.TYPE for value in FILES.values()} == EVENT_TYPES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_the_codec_writes_and_reads(name: str) -> None:
    value = FILES[name]
    validate_event(value)
    assert decode(value) == EXAMPLES[name]
    assert encode(decode(value)) == value
    assert Path(name).parts[0] == decode(value).event.TOPIC


@given(stamped_events)
def test_whatever_the_codec_writes_is_valid(stamped: Stamped) -> None:
    validate_event(encode(stamped))


def required_paths(schema: dict[str, Any], path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every field that the schemas require, as far as the example at hand has it."""
    if "$ref" in schema:
        yield from required_paths(
            event_schemas()["common.v1.schema.json"]["$defs"][schema["$ref"].rpartition("/")[2]], path
        )
    for part in schema.get("allOf", []) + [each for each in schema.get("oneOf", []) if each.get("type") == "object"]:
        yield from required_paths(part, path)
    for name, inner in schema.get("properties", {}).items():
        if name in schema["required"]:
            yield (*path, name)
        yield from required_paths(inner, (*path, name))
    if "items" in schema:
        yield from required_paths(schema["items"], (*path, 0))


REQUIRED = [
    (name, path)
    for name in (
        "spend.reservations.v1/1/three-budgets.json",
        "spend.reservations.v1/1/resized.json",
        "spend.settlements.v1/1/completed.json",
        "spend.settlements.v1/1/hold-expired.json",
        "spend.decisions.v1/1/budget-exhausted.json",
    )
    for path in dict.fromkeys(required_paths(event_schemas()[f"{EXAMPLES[name].event.TYPE}.schema.json"]))
    if path[0] != "attempts"
]


def every_field(fields: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(fields, dict) and path[-1:] not in (("usage",), ("latency_us",)):
        for name, value in fields.items():
            yield (*path, name)
            yield from every_field(value, (*path, name))
    elif isinstance(fields, list) and fields and isinstance(fields[0], dict):
        yield from every_field(fields[0], (*path, 0))


# Fields that a later release has added: events of the first do without them, and are read as these.
ADDED: dict[str, Any] = {
    "estimate_mode": "strict",
    "price_context": {},
    "unpriced": (),
    "attempts": (),
    "parent_charged": (),
    "would_block": (),
    "admitted_at": 0,
    "flags": (),
    "billing_class": "metered.sandbox",
}


def test_the_schemas_require_every_field_that_is_written_but_for_later_ones() -> None:
    for name in {name for name, _ in REQUIRED}:
        written = {path for path in every_field(json.loads(FILES[name])) if path[0] not in ADDED}
        assert {path for each, path in REQUIRED if each == name and path[0] not in ADDED} == written


def test_an_event_of_the_first_release_is_read() -> None:
    name = "spend.settlements.v1/1/completed.json"
    fields = {key: value for key, value in json.loads(FILES[name]).items() if key not in ADDED}
    value = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    validate_event(value)
    read = decode(value).event
    assert isinstance(read, Settlement)
    seen = {
        **{key: getattr(read, key) for key in ("estimate_mode", "price_context", "unpriced", "attempts")},
        "parent_charged": read.parent_charged,
        "would_block": (),
        "admitted_at": read.admitted_at_ms,
        "flags": read.facts.flags,
        "billing_class": read.facts.billing_class,
    }
    assert seen == ADDED
    assert replace(read, attempts=SETTLEMENT.attempts, admitted_at_ms=SETTLEMENT.admitted_at_ms) == SETTLEMENT


@pytest.mark.parametrize(("name", "path"), REQUIRED, ids=str)
def test_a_missing_field_is_invalid_and_unreadable(name: str, path: tuple[str | int, ...]) -> None:
    fields = json.loads(FILES[name])
    holder = fields
    for step in path[:-1]:
        holder = holder[step]
    del holder[path[-1]]
    value = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    with pytest.raises((ValidationError, KeyError)):
        validate_event(value)
    with pytest.raises(ValueError, match=f"field '{path[-1]}' is missing"):
        decode(value)


def test_the_topics_are_those_the_events_go_to() -> None:
    sources = {event.TOPIC for event in {**EVENT_TYPES, **ALERT_TYPES}.values()}
    assert {topic.name for topic in load_topics()} == sources | {f"{name}.dlq" for name in sources}


@pytest.mark.parametrize("name", sorted({event.TOPIC for event in EVENT_TYPES.values()}))
def test_the_declared_headers_are_those_a_message_carries(name: str) -> None:
    required = [header.name for header in DOCUMENTS[name].headers if header.required]
    optional = [header.name for header in DOCUMENTS[name].headers if not header.required]
    for stamped in EXAMPLES.values():
        assert [header for header, _ in cloud_event_headers(stamped)] == required
    assert optional == ["traceparent", "tracestate"]


def test_an_alert_is_what_is_published_about_it() -> None:
    file = FOLDER / "spend.alerts.v1/1/threshold-crossed.json"
    assert [each for each in file.parent.parent.rglob("*") if each.is_file()] == [file]
    validate_event(file.read_bytes())
    assert decode_alert(file.read_bytes()) == CROSSED
    assert encode_alert(CROSSED) == file.read_bytes()
    message = alert_message(CROSSED)
    headers = DOCUMENTS[message.topic].headers
    assert [header for header, _ in message.headers] == [header.name for header in headers if header.required]
    assert all(header.required for header in headers)
    assert dict(message.headers)["ce_id"] == b"threshold:bud_ml_month:c:1717200000000:1719792000000:85/1"
    assert message.key == b"default"


def test_an_alert_with_a_long_name_is_valid_and_still_its_own() -> None:
    long = replace(CROSSED, budget_id="bud_1@" + "a" * 90, window="s:" + "b" * 128)
    validate_event(encode_alert(long))
    assert decode_alert(encode_alert(long)) == long
    assert long.producer != replace(long, percent=60).producer


@pytest.mark.parametrize("field", json.loads(encode_alert(CROSSED)))
def test_an_alert_without_a_field_is_invalid_and_unreadable(field: str) -> None:
    fields = {name: value for name, value in json.loads(encode_alert(CROSSED)).items() if name != field}
    value = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises((ValidationError, KeyError)):
        validate_event(value)
    with pytest.raises(ValueError, match=f"field '{field}' is missing"):
        decode_alert(value)


def resolved(reference: str) -> Any:
    """What a reference of the AsyncAPI document points at, in the document or in a file beside it."""
    file, _, pointer = reference.partition("#")
    target = json.loads((FOLDER.parent / file).read_bytes()) if file else ASYNCAPI
    for step in pointer.strip("/").split("/") if pointer else []:
        target = target[step]
    return target


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for inner in part.values():
            yield from references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from references(inner)


def test_the_asyncapi_document_has_the_structure_of_version_3() -> None:
    AsyncAPI3.model_validate(ASYNCAPI)


def test_every_asyncapi_reference_leads_somewhere() -> None:
    found = set(references(ASYNCAPI))
    assert f"./events/{next(iter(EVENT_TYPES))}.schema.json" in found
    for reference in found:
        assert resolved(reference), reference


def test_the_asyncapi_channels_are_the_declared_topics() -> None:
    channels = {channel["address"]: channel for channel in ASYNCAPI["channels"].values()}
    assert channels.keys() == DOCUMENTS.keys()
    for name, document in DOCUMENTS.items():
        assert channels[name]["description"] == document.description
        assert channels[name]["bindings"]["kafka"] == {
            "topic": name,
            "partitions": document.partitions,
            "topicConfiguration": {
                "cleanup.policy": [document.cleanup],
                "retention.ms": document.retention_ms,
                "max.message.bytes": document.max_message_bytes,
            },
            "bindingVersion": "0.5.0",
        }
        messages = [resolved(each["$ref"]) for each in channels[name]["messages"].values()]
        assert [message["name"] for message in messages] == (list(document.events) or ["unreadable"])
        for message in messages:
            check_message(document, message)


def check_message(document: TopicDocument, message: dict[str, Any]) -> None:
    """That a message's headers are those of its topic, and that an event's payload is its own schema."""
    headers = resolved(message["headers"]["$ref"])
    assert headers["required"] == [header.name for header in document.headers if header.required]
    assert {name: each["description"] for name, each in headers["properties"].items()} == {
        header.name: header.description for header in document.headers
    }
    if document.events:
        assert resolved(message["payload"]["schema"]["$ref"])["properties"]["type"]["const"] == message["name"]
    assert message["bindings"]["kafka"]["key"]["type"] == "string"


def test_every_asyncapi_channel_has_an_operation() -> None:
    operations = [operation["channel"]["$ref"] for operation in ASYNCAPI["operations"].values()]
    assert sorted(operations) == sorted(f"#/channels/{name}" for name in ASYNCAPI["channels"])
