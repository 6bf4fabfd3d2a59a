"""The published schemas as a judge: whether bytes are an event as `schemas/events` describes it."""

import json
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from services.adapters.schemas import schemas_folder


@cache
def event_schemas() -> dict[str, Any]:
    """Every file of `schemas/events`, by name."""
    return {path.name: json.loads(path.read_bytes()) for path in sorted(schemas_folder("events").glob("*.json"))}


@cache
def validator(event_type: str) -> Draft202012Validator:
    """The judge of one event type; `KeyError` when it has no schema."""
    resources = [(name, Resource.from_contents(schema)) for name, schema in event_schemas().items()]
    schema = event_schemas()[f"{event_type}.schema.json"]
    return Draft202012Validator(schema, registry=Registry().with_resources(resources))


def validate_event(value: bytes) -> dict[str, Any]:
    """The fields of an event's bytes; fails unless they are canonical JSON that its type's schema accepts."""
    fields: dict[str, Any] = json.loads(value)
    validator(fields["type"]).validate(fields)
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert value == canonical, "an event's bytes must be canonical: sorted keys, no white space, UTF-8 as it is"
    return fields
