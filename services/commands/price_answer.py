"""The price of one vendor's answer, by the gateway's own readers, catalog and arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from services.commands.price_routes import UnknownRouteError, route_of, values_of
from services.core.catalog import Catalog, Found
from services.core.components import BY_COUNT, COMPONENTS
from services.core.events import ComponentCost
from services.core.money import format_usd
from services.core.pricing import Price, price_usage, unpriced_contexts, unpriced_counts
from services.core.usage.reading import BodyReader, Framing, Reading, StreamReader
from services.gateway.vendors.registry import DIALECTS, framing_of, routes_of, shape_of

# Instants past this many seconds (in the year 5138) are milliseconds; none is past the year 9999.
_MOST_SECONDS: Final = 100_000_000_000
_MOST_MS: Final = 253_402_300_799_000


class NoPriceError(ValueError):
    """An answer that can't be priced. `code` says why in a word, the text in a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Answer:
    """A vendor's answer, and what its caller knows of it.

    One of `body` (JSON, as bytes or decoded) and `stream` (a transcript) is there. `route`, `model` and `at_ms` are
    found from the answer where they are None; `context` is what picks the rates besides the model, over what the answer
    says of it.
    """

    vendor: str
    body: object = None
    stream: bytes | None = None
    route: str | None = None
    model: str | None = None
    at_ms: int | None = None
    context: Mapping[str, str] = field(default_factory=dict)


def priced(catalog: Catalog, answer: Answer, now_ms: int) -> dict[str, Any]:
    """What an answer used and cost, for JSON; raises `NoPriceError`."""
    if answer.vendor not in DIALECTS and answer.vendor not in catalog.models:
        raise NoPriceError("unknown_vendor", f"there is no vendor {answer.vendor!r} with prices or a protocol")
    values = _values(answer)
    route = _route(answer, values)
    reading = _reading(answer, route)
    if reading.failed is not None and not reading.usage:
        raise NoPriceError("vendor_error", f"the vendor answered with an error ({reading.failed}), which costs nothing")
    model = answer.model or reading.model
    if model is None:
        raise NoPriceError("model_missing", "the answer does not name its model: say which (model)")
    at_ms = answer.at_ms if answer.at_ms is not None else _own_time(values)
    at_ms = now_ms if at_ms is None else at_ms
    found = catalog.find(answer.vendor, model, at_ms)
    if found is None:
        raise NoPriceError("unknown_model", f"the catalog has no price for {answer.vendor}'s {model!r}")
    context = {**reading.context, **answer.context}
    costs = _costs(answer.vendor, route, found, reading, context)
    return {
        "vendor": answer.vendor,
        "route": route,
        "model": model,
        "model_priced": found.model_priced,
        "match": found.match,
        "catalog_version": catalog.version,
        "at": datetime.fromtimestamp(at_ms / 1000, UTC).isoformat().replace("+00:00", "Z"),
        "context": context,
        "complete": reading.complete,
        "usage": dict(reading.usage),
        "components": [_fields(each) for each in costs],
        "cost_usd": format_usd(sum(each.cost_nano for each in costs)),
    }


def _costs(
    vendor: str, route: str, found: Found, reading: Reading, context: Mapping[str, str]
) -> tuple[ComponentCost, ...]:
    missing = [
        count for count in shape_of(vendor, route).needed if count not in reading.usage and _counts(found.price, count)
    ]
    if missing or not reading.usage:
        names = ", ".join(missing) or "anything"
        raise NoPriceError("usage_not_reported", f"the answer does not say what it used: {names} is not in it")
    unpriced = unpriced_counts(found.price, reading.usage, context)
    if unpriced:
        names = ", ".join(f"{count} ({reading.usage[count]})" for count in unpriced)
        raise NoPriceError("unpriced_component", f"{found.model_priced} has no price for {names}")
    contexts = unpriced_contexts(found.price, context)
    if contexts:
        names = ", ".join(contexts)
        raise NoPriceError("unpriced_context", f"{found.model_priced} has no price for {names} at that time")
    return price_usage(found.price, reading.usage, context)


def _counts(price: Price, count: str) -> bool:
    """Whether a count makes a difference here: of transcripts, some models charge the hour and others the token."""
    component = BY_COUNT.get(count)
    if component is None:
        return False
    of_tree = (name for name in price.rates if COMPONENTS[name].tree is not None)
    return component.name in price.rates or any(COMPONENTS[name].tree == component.tree for name in of_tree)


def _fields(each: ComponentCost) -> dict[str, Any]:
    return {
        "component": each.component,
        "quantity": each.quantity,
        "price_usd": format_usd(each.price_nano),
        "per": each.per,
        "cost_usd": format_usd(each.cost_nano),
    }


def _values(answer: Answer) -> list[Any]:
    if answer.stream is not None:
        return values_of(answer.stream)
    body = answer.body
    if isinstance(body, bytes):
        try:
            body = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise NoPriceError("unreadable_answer", f"the answer is not JSON: {error}") from error
    if isinstance(body, list):
        return body
    if not isinstance(body, dict):
        raise NoPriceError("unreadable_answer", "the answer is not a JSON object")
    return [body]


def _route(answer: Answer, values: list[Any]) -> str:
    routes = routes_of(answer.vendor)
    if answer.route is not None:
        if answer.route not in routes:
            raise NoPriceError(
                "unknown_route", f"{answer.vendor} has no priced route {answer.route!r}; it has {', '.join(routes)}"
            )
        return answer.route
    try:
        return route_of(routes, values, is_stream=answer.stream is not None)
    except UnknownRouteError as error:
        raise NoPriceError("unknown_route", f"{error}; {answer.vendor} has {', '.join(routes)}") from error


def _reading(answer: Answer, route: str) -> Reading:
    shape = shape_of(answer.vendor, route)
    if answer.stream is None and isinstance(answer.body, dict):
        return shape.whole(answer.body)
    if answer.stream is None and isinstance(answer.body, bytes) and not answer.body.lstrip().startswith(b"["):
        body = BodyReader(shape, orjson.loads)
        body.feed(answer.body)
        return body.finish()
    transcript = answer.stream if answer.stream is not None else _bytes(answer.body)
    stream = StreamReader(shape, _framing(answer.vendor, route, transcript), orjson.loads)
    stream.feed(transcript)
    return stream.finish()[2]


def _bytes(body: object) -> bytes:
    return body if isinstance(body, bytes) else orjson.dumps(body)


def _framing(vendor: str, route: str, transcript: bytes) -> Framing:
    """How a transcript is cut: a vendor's route may stream in more than one way, and its head says in which."""
    begin = transcript.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if begin == b"[":
        return "json_array"
    if begin == b"{":
        return "lines"
    return "sse" if begin else framing_of(vendor, route)


def _own_time(values: list[Any]) -> int | None:
    """When an answer says it was made: the first ``created`` or ``created_at`` in it."""
    for value in values[:8]:
        for holder in (value, value.get("response")) if isinstance(value, dict) else ():
            for name in ("created", "created_at", "createTime"):
                found = holder.get(name) if isinstance(holder, dict) else None
                if found is not None:
                    return instant(found)
    return None


def instant(value: object) -> int | None:
    """Unix milliseconds of a day or moment in ISO 8601 (UTC unless it says otherwise), or of a number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_MS:
        return round(value * 1000) if value < _MOST_SECONDS else round(value)
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    at_ms = round(aware.timestamp() * 1000)
    return at_ms if 0 <= at_ms <= _MOST_MS else None
