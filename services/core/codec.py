"""Events to bytes and back. The bytes on the wire are the bytes that are stored and hashed; nothing re-serialises them.

JSON, keys sorted, no white space, UTF-8. Money is a decimal string with nine decimals; instants are RFC 3339 with
milliseconds. A reader ignores fields it does not know (changes within a version are additive) and refuses everything
else it can't read with `UnreadableEventError`, whose text names the field.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn, TypeVar, cast

from services.core.budgets import Charge
from services.core.events import (
    EVENT_TYPES,
    OUTCOMES,
    USAGE_SOURCES,
    CallFacts,
    ComponentCost,
    Denial,
    Event,
    Expiry,
    Match,
    Outcome,
    Reservation,
    Settlement,
    Stamped,
    UsageSource,
)
from services.core.identity import DIMENSIONS, Identity, IdentityError, check_name
from services.core.money import MoneyError, format_usd, parse_usd
from services.core.ports import Outgoing
from services.core.windows import parse_span

Fields = dict[str, Any]
_T = TypeVar("_T")

MAX_EVENT_BYTES: Final = 262_144
# Every consumer keeps counts and amounts in signed 64 bits.
MAX_INTEGER: Final = 2**63 - 1
_to_canonical = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
).encode
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIME: Final = re.compile(r"(?:19[789]|2[01]\d)\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_WINDOW: Final = re.compile(r"c:\d{1,15}:\d{1,15}|r:\d{1,15}:\d{1,9}:\d{1,15}", re.ASCII)


class UnreadableEventError(ValueError):
    """These bytes are not an event of a known type and shape; they belong in the dead-letter topic."""


def format_time(time_ms: int) -> str:
    """RFC 3339 text of an instant, in UTC, with milliseconds."""
    return (_EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds")[:23] + "Z"


def parse_time(text: str) -> int:
    """Unix milliseconds of `format_time` text, 1970 to 2199; raises `ValueError` on any other text."""
    if _TIME.fullmatch(text) is None:
        raise ValueError("not an RFC 3339 time in UTC with milliseconds, from 1970 to 2199")
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(milliseconds=1)


def encode(stamped: Stamped) -> bytes:
    """The wire bytes of an event; raises `ValueError` when they would be more than a reader takes."""
    fields = event_fields(stamped.event)
    fields["producer"] = stamped.producer
    fields["sequence"] = stamped.sequence
    value = _to_canonical(fields).encode()
    if len(value) > MAX_EVENT_BYTES:
        raise ValueError(f"an event of {len(value)} bytes; at most {MAX_EVENT_BYTES} can be read")
    return value


def decode(value: bytes) -> Stamped:
    """The event of wire bytes; raises `UnreadableEventError`."""
    if len(value) > MAX_EVENT_BYTES:
        raise UnreadableEventError(f"{len(value)} bytes; an event has at most {MAX_EVENT_BYTES}")
    fields = _parse_object(value)
    event = event_from_fields(fields)
    sequence = _count(fields, "sequence")
    if sequence < 1:
        raise UnreadableEventError("field 'sequence' must be 1 or more")
    return Stamped(event, _name(fields, "producer"), sequence)


def cloud_event_headers(stamped: Stamped) -> tuple[tuple[str, bytes], ...]:
    """The headers of an event's message: CloudEvents 1.0, Kafka binding, binary mode."""
    texts = (
        ("ce_specversion", "1.0"),
        ("ce_id", f"{stamped.producer}/{stamped.sequence}"),
        ("ce_source", f"/farthing/{stamped.producer}"),
        ("ce_type", stamped.event.TYPE),
        ("ce_time", format_time(stamped.event.time_ms)),
        ("ce_subject", stamped.event.transaction_id),
        ("content-type", "application/json"),
    )
    return tuple((name, text.encode()) for name, text in texts)


def to_message(stamped: Stamped, trace_headers: tuple[tuple[str, bytes], ...] = ()) -> Outgoing:
    """An event as it goes onto its topic; all events of an org share a key, so they stay in order."""
    return Outgoing(
        topic=stamped.event.TOPIC,
        key=stamped.event.facts.identity.org.encode(),
        value=encode(stamped),
        headers=cloud_event_headers(stamped) + trace_headers,
    )


def event_fields(event: Event) -> Fields:
    """The JSON fields of an event, without producer and sequence."""
    common: Fields = {
        "type": event.TYPE,
        "transaction_id": event.transaction_id,
        "time": format_time(event.time_ms),
        **facts_fields(event.facts),
    }
    match event:
        case Reservation():
            return common | {
                "estimate": {
                    "mode": event.estimate_mode,
                    "input_tokens": event.input_tokens_bound,
                    "output_tokens": event.output_tokens_bound,
                },
                "held_usd": format_usd(event.held_nano),
                "charges": charges_fields(event.charges),
                "expires_at": format_time(event.expires_at_ms),
            }
        case Settlement():
            return common | {
                "outcome": event.outcome,
                "usage_source": event.usage_source,
                "usage": dict(event.usage),
                "components": [
                    {
                        "component": each.component,
                        "quantity": each.quantity,
                        "price_usd_per_million": format_usd(each.price_nano_per_million),
                        "cost_usd": format_usd(each.cost_nano),
                    }
                    for each in event.components
                ],
                "cost_usd": format_usd(event.cost_nano),
                "held_usd": format_usd(event.held_nano),
                "charges": charges_fields(event.charges),
                "http_status": event.http_status,
                "retry_count": event.retry_count,
                "latency_us": dict(event.latency_us),
            }
        case Expiry():
            return common | {
                "held_usd": format_usd(event.held_nano),
                "booked_usd": format_usd(event.booked_nano),
                "charges": charges_fields(event.charges),
            }
        case Denial():
            return common | {
                "code": event.code,
                "reason": event.reason,
                "estimate_usd": format_usd(event.estimate_nano),
                "budget": None
                if event.budget_id is None
                else {
                    "budget_id": event.budget_id,
                    "scope": event.scope,
                    "limit_usd": format_usd(event.limit_nano or 0),
                    "spent_usd": format_usd(event.spent_nano or 0),
                    "held_usd": format_usd(event.held_nano or 0),
                },
            }


def facts_fields(facts: CallFacts) -> Fields:
    """The JSON fields that every event of a call repeats."""
    identity = facts.identity
    return {
        "identity": {
            "org": identity.org,
            "key_id": identity.key_id,
            **{name: getattr(identity, name) for name in DIMENSIONS},
            "tags": list(identity.tags),
        },
        "vendor": facts.vendor,
        "route": facts.route,
        "model_requested": facts.model_requested,
        "model_priced": facts.model_priced,
        "match": facts.match,
        "catalog_version": facts.catalog_version,
        "config_version": facts.config_version,
        "auth_mode": facts.auth_mode,
    }


def encode_facts(facts: CallFacts) -> str:
    """Call facts as the opaque context of a hold, so that its expiry can be told without a look-up."""
    return _to_canonical(facts_fields(facts))


def decode_facts(context: str) -> CallFacts:
    """The call facts of a hold's context; raises `UnreadableEventError`."""
    return facts_from_fields(_parse_object(context.encode()))


def charges_fields(charges: tuple[Charge, ...]) -> list[Fields]:
    """Charges as JSON."""
    return [{"budget_id": each.budget_id, "scope": each.scope, "window": each.window} for each in charges]


def event_from_fields(fields: Fields) -> Event:
    """The event of parsed JSON; raises `UnreadableEventError`."""
    kind = _take(fields, "type", str)
    if kind not in EVENT_TYPES:
        raise UnreadableEventError(f"field 'type' is {kind[:80]!r}, which is not a known event")
    head = (_name(fields, "transaction_id"), _instant(fields, "time"), facts_from_fields(fields))
    if kind == Reservation.TYPE:
        estimate = _take(fields, "estimate", dict)
        return Reservation(
            *head,
            estimate_mode=_take(estimate, "mode", str),
            input_tokens_bound=_count(estimate, "input_tokens"),
            output_tokens_bound=_count(estimate, "output_tokens"),
            held_nano=_usd(fields, "held_usd"),
            charges=charges_from_fields(fields),
            expires_at_ms=_instant(fields, "expires_at"),
        )
    if kind == Settlement.TYPE:
        return Settlement(
            *head,
            outcome=cast(Outcome, _one_of(fields, "outcome", OUTCOMES)),
            usage_source=cast(UsageSource, _one_of(fields, "usage_source", USAGE_SOURCES)),
            usage=_counts(fields, "usage"),
            components=tuple(_component(each) for each in _take(fields, "components", list)),
            cost_nano=_usd(fields, "cost_usd"),
            held_nano=_usd(fields, "held_usd"),
            charges=charges_from_fields(fields),
            http_status=_count(fields, "http_status"),
            retry_count=_count(fields, "retry_count"),
            latency_us=_counts(fields, "latency_us"),
        )
    if kind == Expiry.TYPE:
        return Expiry(
            *head,
            held_nano=_usd(fields, "held_usd"),
            booked_nano=_usd(fields, "booked_usd"),
            charges=charges_from_fields(fields),
        )
    denial = Denial(
        *head,
        code=_take(fields, "code", str),
        reason=_take(fields, "reason", str),
        estimate_nano=_usd(fields, "estimate_usd"),
    )
    if _take(fields, "budget", object) is None:
        return denial
    refused = _take(fields, "budget", dict)
    return replace(
        denial,
        budget_id=_name(refused, "budget_id"),
        scope=_take(refused, "scope", str),
        limit_nano=_usd(refused, "limit_usd"),
        spent_nano=_usd(refused, "spent_usd", signed=True),
        held_nano=_usd(refused, "held_usd"),
    )


def facts_from_fields(fields: Fields) -> CallFacts:
    """The call facts of parsed JSON; raises `UnreadableEventError`."""
    who = _take(fields, "identity", dict)
    tags = tuple(_checked("tags", tag) for tag in _take(who, "tags", list))
    open_or_named = {name: None if _take(who, name, object) is None else _name(who, name) for name in DIMENSIONS}
    return CallFacts(
        identity=Identity(org=_name(who, "org"), key_id=_name(who, "key_id"), tags=tags, **open_or_named),
        vendor=_take(fields, "vendor", str),
        route=_take(fields, "route", str),
        model_requested=_take(fields, "model_requested", str),
        model_priced=_take(fields, "model_priced", str),
        match=cast(Match, _one_of(fields, "match", ("exact", "normalised", "none"))),
        catalog_version=_take(fields, "catalog_version", str),
        config_version=_count(fields, "config_version"),
        auth_mode=_take(fields, "auth_mode", str),
    )


def charges_from_fields(fields: Fields) -> tuple[Charge, ...]:
    """The charges of parsed JSON; raises `UnreadableEventError`."""
    charges = []
    for each in _take(fields, "charges", list):
        item = _typed("charges", each, dict)
        charges.append(Charge(_name(item, "budget_id"), _take(item, "scope", str), _window(item)))
    return tuple(charges)


def _window(item: Fields) -> str:
    text = _take(item, "window", str)
    try:
        # Budgets are found by this text, so it has one form only: 'c:01:2' is not 'c:1:2'.
        if _WINDOW.fullmatch(text) is None or parse_span(text).key() != text:
            raise ValueError(f"{text[:60]!r} is not a window key")
    except ValueError as error:
        raise UnreadableEventError(f"field 'window': {error}") from error
    return text


def _parse_object(value: bytes) -> Fields:
    try:
        text = value.decode()
        fields = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:
            # An escaped lone surrogate is a string that can never be written as UTF-8 again.
            json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UnreadableEventError("not JSON in UTF-8") from error
    if not isinstance(fields, dict):
        raise UnreadableEventError("not a JSON object")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _component(each: object) -> ComponentCost:
    item = _typed("components", each, dict)
    return ComponentCost(
        component=_take(item, "component", str),
        quantity=_count(item, "quantity"),
        price_nano_per_million=_usd(item, "price_usd_per_million"),
        cost_nano=_usd(item, "cost_usd"),
    )


def _typed(name: str, value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UnreadableEventError(f"field {name!r} is not a {kind.__name__}")
    return value


def _take(fields: Fields, name: str, kind: type[_T]) -> _T:
    if name not in fields:
        raise UnreadableEventError(f"field {name!r} is missing")
    return _typed(name, fields[name], kind)


def _name(fields: Fields, name: str) -> str:
    return _checked(name, _take(fields, name, str))


def _checked(name: str, value: object) -> str:
    try:
        return check_name(name, _typed(name, value, str))
    except IdentityError as error:
        raise UnreadableEventError(f"field {name!r}: {error}") from error


def _count(fields: Fields, name: str) -> int:
    value = _take(fields, name, int)
    if not 0 <= value <= MAX_INTEGER:
        raise UnreadableEventError(f"field {name!r} is not from 0 to {MAX_INTEGER}")
    return value


def _counts(fields: Fields, name: str) -> Mapping[str, int]:
    item = _take(fields, name, dict)
    return {key: _count(item, key) for key in item}


def _usd(fields: Fields, name: str, *, signed: bool = False) -> int:
    text = _take(fields, name, str)
    try:
        nano = parse_usd(text)
    except MoneyError as error:
        raise UnreadableEventError(f"field {name!r}: {error}") from error
    if format_usd(nano) != text or abs(nano) > MAX_INTEGER:
        raise UnreadableEventError(f"field {name!r}: {text!r} is not an amount with nine decimals that fits 64 bits")
    if nano < 0 and not signed:
        raise UnreadableEventError(f"field {name!r} is negative")
    return nano


def _instant(fields: Fields, name: str) -> int:
    text = _take(fields, name, str)
    try:
        return parse_time(text)
    except ValueError as error:
        raise UnreadableEventError(f"field {name!r}: {text[:40]!r} is {error}") from error


def _one_of(fields: Fields, name: str, allowed: tuple[str, ...]) -> str:
    value = _take(fields, name, str)
    if value not in allowed:
        raise UnreadableEventError(f"field {name!r} is {value[:40]!r}; one of {', '.join(allowed)} was expected")
    return value
