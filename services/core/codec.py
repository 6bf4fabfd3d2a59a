"""Events to bytes and back. The bytes on the wire are the bytes that are stored and hashed; nothing re-serialises them.

JSON, keys sorted, no white space, UTF-8. Money is a decimal string with nine decimals; instants are RFC 3339 with
milliseconds. A reader ignores fields it does not know (changes within a version are additive) and refuses everything
else it can't read with `UnreadableEventError`, whose text names the field.
"""

import json
import re
from dataclasses import replace
from typing import Final, cast

from services.core.budgets import Charge
from services.core.codec_fields import (
    Fields,
    UnreadableEventError,
    checked,
    count_in,
    counts_in,
    format_time,
    instant_if_there,
    instant_in,
    name_in,
    one_of,
    parse_object,
    take,
    texts_if_there,
    texts_in,
    typed,
    usd_in,
)
from services.core.components import MILLION
from services.core.events import (
    ATTEMPT_OUTCOMES,
    EVENT_TYPES,
    MATCHES,
    OUTCOMES,
    USAGE_SOURCES,
    Attempt,
    AttemptOutcome,
    CallFacts,
    ComponentCost,
    Denial,
    Event,
    Expiry,
    HoldResized,
    Match,
    Outcome,
    Reservation,
    Settlement,
    Stamped,
    UsageSource,
)
from services.core.identity import DIMENSIONS, Identity
from services.core.money import divide_half_even, format_usd
from services.core.ports import Outgoing
from services.core.windows import parse_span

MAX_EVENT_BYTES: Final = 262_144
_to_canonical = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
).encode
_WINDOW: Final = re.compile(
    r"c:\d{1,15}:\d{1,15}|r:\d{1,15}:\d{1,9}:\d{1,15}|s:[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}|l", re.ASCII
)


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
    fields = parse_object(value)
    event = event_from_fields(fields)
    sequence = count_in(fields, "sequence")
    if sequence < 1:
        raise UnreadableEventError("field 'sequence' must be 1 or more")
    return Stamped(event, name_in(fields, "producer"), sequence)


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
                "parent_charged": list(event.parent_charged),
                "would_block": list(event.would_block),
            }
        case HoldResized():
            return common | {
                "held_usd": format_usd(event.held_nano),
                "charges": charges_fields(event.charges),
                "expires_at": format_time(event.expires_at_ms),
            }
        case Settlement():
            return common | _settlement_fields(event)
        case Expiry():
            return common | {
                "held_usd": format_usd(event.held_nano),
                "booked_usd": format_usd(event.booked_nano),
                "charges": charges_fields(event.charges),
                "admitted_at": format_time(event.admitted_at_ms),
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


def _settlement_fields(event: Settlement) -> Fields:
    return {
        "outcome": event.outcome,
        "usage_source": event.usage_source,
        "usage": dict(event.usage),
        "components": [_component_fields(each) for each in event.components],
        "cost_usd": format_usd(event.cost_nano),
        "held_usd": format_usd(event.held_nano),
        "charges": charges_fields(event.charges),
        "http_status": event.http_status,
        "retry_count": event.retry_count,
        "latency_us": dict(event.latency_us),
        "estimate_mode": event.estimate_mode,
        "price_context": dict(event.price_context),
        "unpriced": list(event.unpriced),
        "attempts": [_attempt_fields(each) for each in event.attempts],
        "parent_charged": list(event.parent_charged),
        "admitted_at": format_time(event.admitted_at_ms),
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
        "billing_class": facts.billing_class,
        "flags": list(facts.flags),
        **({"request_hash": facts.request_hash} if facts.request_hash else {}),
    }


def encode_facts(facts: CallFacts) -> str:
    """Call facts as the opaque context of a hold, so that its expiry can be told without a look-up."""
    return _to_canonical(facts_fields(facts))


def decode_facts(context: str) -> CallFacts:
    """The call facts of a hold's context; raises `UnreadableEventError`."""
    return facts_from_fields(parse_object(context.encode()))


def charges_fields(charges: tuple[Charge, ...]) -> list[Fields]:
    """Charges as JSON."""
    return [{"budget_id": each.budget_id, "scope": each.scope, "window": each.window} for each in charges]


def event_from_fields(fields: Fields) -> Event:
    """The event of parsed JSON; raises `UnreadableEventError`."""
    kind = take(fields, "type", str)
    if kind not in EVENT_TYPES:
        raise UnreadableEventError(f"field 'type' is {kind[:80]!r}, which is not a known event")
    head = (name_in(fields, "transaction_id"), instant_in(fields, "time"), facts_from_fields(fields))
    if kind == Reservation.TYPE:
        estimate = take(fields, "estimate", dict)
        return Reservation(
            *head,
            estimate_mode=take(estimate, "mode", str),
            input_tokens_bound=count_in(estimate, "input_tokens"),
            output_tokens_bound=count_in(estimate, "output_tokens"),
            held_nano=usd_in(fields, "held_usd"),
            charges=charges_from_fields(fields),
            expires_at_ms=instant_in(fields, "expires_at"),
            parent_charged=texts_if_there(fields, "parent_charged"),
            would_block=texts_if_there(fields, "would_block"),
        )
    if kind == HoldResized.TYPE:
        return HoldResized(
            *head,
            held_nano=usd_in(fields, "held_usd"),
            charges=charges_from_fields(fields),
            expires_at_ms=instant_in(fields, "expires_at"),
        )
    if kind == Settlement.TYPE:
        return _settlement(head, fields)
    if kind == Expiry.TYPE:
        return Expiry(
            *head,
            held_nano=usd_in(fields, "held_usd"),
            booked_nano=usd_in(fields, "booked_usd"),
            charges=charges_from_fields(fields),
            admitted_at_ms=instant_if_there(fields, "admitted_at"),
        )
    return _denial(head, fields)


_Head = tuple[str, int, CallFacts]


def _settlement(head: _Head, fields: Fields) -> Settlement:
    return Settlement(
        *head,
        outcome=cast(Outcome, one_of(fields, "outcome", OUTCOMES)),
        usage_source=cast(UsageSource, one_of(fields, "usage_source", USAGE_SOURCES)),
        usage=counts_in(fields, "usage"),
        components=tuple(_component(each) for each in take(fields, "components", list)),
        cost_nano=usd_in(fields, "cost_usd"),
        held_nano=usd_in(fields, "held_usd"),
        charges=charges_from_fields(fields),
        http_status=count_in(fields, "http_status"),
        retry_count=count_in(fields, "retry_count"),
        latency_us=counts_in(fields, "latency_us"),
        # Events of earlier releases do not have what follows.
        estimate_mode=take(fields, "estimate_mode", str) if "estimate_mode" in fields else "strict",
        price_context=texts_in(fields, "price_context") if "price_context" in fields else {},
        unpriced=texts_if_there(fields, "unpriced"),
        attempts=tuple(_attempt(each) for each in take(fields, "attempts", list)) if "attempts" in fields else (),
        parent_charged=texts_if_there(fields, "parent_charged"),
        admitted_at_ms=instant_if_there(fields, "admitted_at"),
    )


def _denial(head: _Head, fields: Fields) -> Denial:
    denial = Denial(
        *head,
        code=take(fields, "code", str),
        reason=take(fields, "reason", str),
        estimate_nano=usd_in(fields, "estimate_usd"),
    )
    if take(fields, "budget", object) is None:
        return denial
    refused = take(fields, "budget", dict)
    return replace(
        denial,
        budget_id=name_in(refused, "budget_id"),
        scope=take(refused, "scope", str),
        limit_nano=usd_in(refused, "limit_usd"),
        spent_nano=usd_in(refused, "spent_usd", signed=True),
        held_nano=usd_in(refused, "held_usd"),
    )


def facts_from_fields(fields: Fields) -> CallFacts:
    """The call facts of parsed JSON; raises `UnreadableEventError`."""
    who = take(fields, "identity", dict)
    tags = tuple(checked("tags", tag) for tag in take(who, "tags", list))
    open_or_named = {name: None if take(who, name, object) is None else name_in(who, name) for name in DIMENSIONS}
    return CallFacts(
        identity=Identity(org=name_in(who, "org"), key_id=name_in(who, "key_id"), tags=tags, **open_or_named),
        vendor=take(fields, "vendor", str),
        route=take(fields, "route", str),
        model_requested=take(fields, "model_requested", str),
        model_priced=take(fields, "model_priced", str),
        match=cast(Match, one_of(fields, "match", MATCHES)),
        catalog_version=take(fields, "catalog_version", str),
        config_version=count_in(fields, "config_version"),
        auth_mode=take(fields, "auth_mode", str),
        flags=texts_if_there(fields, "flags"),
        request_hash=take(fields, "request_hash", str) if "request_hash" in fields else "",
    )


def charges_from_fields(fields: Fields) -> tuple[Charge, ...]:
    """The charges of parsed JSON; raises `UnreadableEventError`."""
    charges = []
    for each in take(fields, "charges", list):
        item = typed("charges", each, dict)
        charges.append(Charge(name_in(item, "budget_id"), take(item, "scope", str), _window(item)))
    return tuple(charges)


def _window(item: Fields) -> str:
    text = take(item, "window", str)
    try:
        # Budgets are found by this text, so it has one form only: 'c:01:2' is not 'c:1:2'.
        if _WINDOW.fullmatch(text) is None or parse_span(text).key() != text:
            raise ValueError(f"{text[:60]!r} is not a window key")
    except ValueError as error:
        raise UnreadableEventError(f"field 'window': {error}") from error
    return text


def _component_fields(each: ComponentCost) -> Fields:
    fields: Fields = {
        "component": each.component,
        "quantity": each.quantity,
        "price_usd_per_million": format_usd(divide_half_even(each.price_nano * MILLION, each.per)),
        "cost_usd": format_usd(each.cost_nano),
    }
    if each.per != MILLION:
        # A price by the hour is no whole number of nano-dollars a million: the exact one stands beside it.
        fields |= {"price_usd": format_usd(each.price_nano), "per": each.per}
    return fields


def _component(each: object) -> ComponentCost:
    item = typed("components", each, dict)
    per = count_in(item, "per") if "per" in item else MILLION
    if per == 0:
        raise UnreadableEventError("field 'per' must be 1 or more")
    return ComponentCost(
        component=take(item, "component", str),
        quantity=count_in(item, "quantity"),
        price_nano=usd_in(item, "price_usd_per_million" if per == MILLION else "price_usd"),
        cost_nano=usd_in(item, "cost_usd"),
        per=per,
    )


def _attempt_fields(each: Attempt) -> Fields:
    return {
        "vendor": each.vendor,
        "model": each.model,
        "outcome": each.outcome,
        "http_status": each.http_status,
        "duration_us": each.duration_us,
    }


def _attempt(each: object) -> Attempt:
    item = typed("attempts", each, dict)
    return Attempt(
        vendor=take(item, "vendor", str),
        model=take(item, "model", str),
        outcome=cast(AttemptOutcome, one_of(item, "outcome", ATTEMPT_OUTCOMES)),
        http_status=count_in(item, "http_status"),
        duration_us=count_in(item, "duration_us"),
    )
