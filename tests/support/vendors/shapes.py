"""Checks an answer against a digest of the vendor's published description: nothing more, nothing less, right types."""

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

PUBLISHED = Path(__file__).parent / "published"


@functools.cache
def digest(name: str) -> dict[str, Any]:
    """A digest as `tools/digest_shapes.py` wrote it: ``source`` and ``schemas``."""
    loaded: dict[str, Any] = json.loads((PUBLISHED / f"{name}.json").read_text())
    return loaded


@functools.cache
def validator(name: str, schema: str) -> Any:
    """The check of one schema. Raises `KeyError` for a schema that the digest does not have."""
    schemas = {known: closed(node) for known, node in digest(name)["schemas"].items()}
    return Draft202012Validator({**schemas[schema], "schemas": schemas})


def closed(node: Any) -> Any:
    """A schema in which an object has no other properties than it names."""
    if isinstance(node, list):
        return [closed(part) for part in node]
    if not isinstance(node, dict):
        return node
    # A property may be called "properties" or "items": only the values of the map are schemas there.
    inner = {
        key: {name: closed(part) for name, part in value.items()} if key == "properties" else closed(value)
        for key, value in node.items()
        if key not in ("enum", "const", "required")
    }
    kept = {key: node[key] for key in ("enum", "const", "required") if key in node}
    shut = {"additionalProperties": False} if "properties" in node and "additionalProperties" not in node else {}
    return {**inner, **kept, **shut}


def problems(name: str, schema: str, value: Any) -> list[str]:
    """What is wrong with an answer, a line each with its place; nothing when it is as published."""
    return [line for error in validator(name, schema).iter_errors(value) for line in explained(error)]


def explained(error: Any) -> Iterable[str]:
    """An error in words. Of alternatives none of which fits, the one that comes nearest: of the same ``type``."""
    if error.validator not in ("anyOf", "oneOf") or not error.context:
        yield f"{error.json_path}: {error.message}"
        return
    branches: dict[int, list[Any]] = {}
    for inner in error.context:
        branches.setdefault(inner.schema_path[0], []).append(inner)

    def distance(errors: list[Any]) -> tuple[int, int]:
        wrong_kind = sum(inner.validator in ("const", "enum", "type") for inner in errors)
        return wrong_kind, len(errors)

    nearest = min(branches.values(), key=distance)
    for inner in nearest:
        yield from explained(inner)


def data_of(pieces: Iterable[bytes]) -> list[Any]:
    """The data of a stream's events, decoded; ``[DONE]`` left out. Raises `ValueError` for a piece that is no event."""
    found = []
    for piece in pieces:
        event = re.fullmatch(rb"(?:event: ([^\r\n]+)\n)?data: ([^\r\n]*)(?:\n\n|\r\n\r\n)", piece)
        if event is None:
            raise ValueError(f"not an event: {piece!r}")
        if event[2] == b"[DONE]":
            continue
        value = json.loads(event[2])
        if event[1] is not None and event[1].decode() != value["type"]:
            raise ValueError(f"an event called {event[1].decode()} holds a {value['type']}")
        found.append(value)
    return found


def unmarked(steps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps of a v1 stream as far as the description describes them.

    It has `is_finished` in its prose only, and the event of tool calls in the union but not among the names.
    """
    kept = [{name: value for name, value in step.items() if name != "is_finished"} for step in steps]
    return [
        {**step, "event_type": "text-generation", "text": ""} if step["event_type"] == "tool-calls-generation" else step
        for step in kept
    ]


def shown(values: Iterable[Any], **instead: Any) -> list[Any]:
    """Answers in which nulls that OpenAI's own examples show, but its schemas forbid, are taken out.

    These are the `usage` of a response or a chunk that has not ended, and what `instead` names: a null is replaced.
    """

    def without(value: Any) -> Any:
        if isinstance(value, list):
            return [without(one) for one in value]
        if not isinstance(value, dict):
            return value
        kept = {name: one for name, one in value.items() if not (name == "usage" and one is None)}
        return {name: instead[name] if one is None and name in instead else without(one) for name, one in kept.items()}

    return [without(value) for value in values]


def assert_fits(vendor: str, schema: str, values: Iterable[Any]) -> None:
    """Fails unless there are values, and each fits its schema."""
    checked = list(values)
    assert checked, "nothing to check"
    assert [problem for value in checked for problem in problems(vendor, schema, value)] == []
