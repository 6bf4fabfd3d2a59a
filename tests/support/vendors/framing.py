"""How bodies and streams are framed, as bytes: JSON, server-sent events, JSON lines, and Google's streamed array."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

DONE = b"data: [DONE]\n\n"


def dump(value: object) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def data_events(values: Iterable[object], newline: bytes = b"\n", done: bool = True) -> list[bytes]:
    """Events with data only, one a piece; with `done`, the closing ``[DONE]`` too."""
    events = [b"data: " + dump(value) + newline * 2 for value in values]
    return [*events, b"data: [DONE]" + newline * 2] if done else events


def named_events(values: Iterable[dict[str, Any]]) -> list[bytes]:
    """Events that carry the `type` of their data as their name too, one a piece."""
    return [f"event: {value['type']}\n".encode() + b"data: " + dump(value) + b"\n\n" for value in values]


def json_lines(values: Iterable[object]) -> list[bytes]:
    """A JSON text a line, one a piece."""
    return [dump(value) + b"\n" for value in values]


def json_array(values: Sequence[object]) -> list[bytes]:
    """An array an element a piece, as Google's front end frames it: ``[{…}``, ``\\n,\\r\\n{…}``, ``\\n]\\n``."""
    pieces = [(b"\n,\r\n" if place else b"[") + pretty(value) for place, value in enumerate(values)]
    return [*pieces, b"\n]\n"] if pieces else [b"[]\n"]


def pretty(value: object) -> bytes:
    """JSON indented by two spaces, as Google sends whole answers."""
    return json.dumps(value, ensure_ascii=False, indent=2).encode()
