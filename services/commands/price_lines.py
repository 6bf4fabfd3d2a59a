"""Answers to be priced, a line of JSON each."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import orjson

from services.commands.price_answer import Answer, NoPriceError, instant, priced
from services.core.catalog import Catalog

_TEXTS: Final = ("vendor", "route", "model", "service_tier")

# How the line of an answer without a price begins.
FAILED: Final = b'{"error":'


def price_lines(prices: Catalog, lines: Iterable[bytes], defaults: Mapping[str, Any]) -> Iterator[bytes]:
    """A line of JSON for each line: an answer's price, or ``{"error", "message", "id"}``; blank lines are passed over.

    An answer's ``id`` is given back, its line's number where it has none.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name: object = number
        try:
            fields = _line(line)
            name = fields.get("id", number)
            said = {each: value for each, value in fields.items() if value is not None}
            answer = read_answer({**defaults, **said})
            found: dict[str, Any] = {"id": name, **priced(prices, answer, now_ms())}
        except NoPriceError as error:
            found = {"error": error.code, "message": str(error), "id": name}
        except Exception as error:
            # A reader that fails is an error of ours, but no reason to leave the other lines unpriced.
            found = {"error": "internal_error", "message": f"this answer can't be read: {error!r}", "id": name}
        yield orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE)


def read_answer(fields: Mapping[str, Any]) -> Answer:
    """The answer that a line's fields are about; raises `NoPriceError`."""
    for name in _TEXTS:
        if fields.get(name) is not None and not isinstance(fields[name], str):
            raise NoPriceError("invalid_field", f"{name} must be text")
    if not fields.get("vendor"):
        raise NoPriceError("invalid_field", "whose answer it is must be said (vendor)")
    body, stream, at = fields.get("body"), fields.get("stream"), fields.get("at")
    if (body is None) == (stream is None):
        raise NoPriceError("invalid_field", "an answer has either a body or a stream")
    if isinstance(stream, str):
        stream = stream.encode("utf-8", "surrogatepass")
    if stream is not None and not isinstance(stream, bytes):
        raise NoPriceError("invalid_field", "stream must be the transcript's text")
    at_ms = None if at is None else instant(at)
    if at is not None and at_ms is None:
        raise NoPriceError(
            "invalid_field", f"at must be a moment such as 2026-10-14 or 2026-10-14T09:30:00Z, not {at!r}"
        )
    context = {"service_tier": fields["service_tier"]} if fields.get("service_tier") else {}
    batch = fields.get("batch")
    if batch is not None and not isinstance(batch, bool):
        raise NoPriceError("invalid_field", "batch must be true or false")
    if batch:
        context["processing"] = "batch"
    body = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    return Answer(fields["vendor"], body, stream, fields.get("route"), fields.get("model"), at_ms, context)


def _line(line: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise NoPriceError("invalid_line", f"the line is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise NoPriceError("invalid_line", "the line is not a JSON object")
    return fields


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000
