"""What Farthing tells people of: events that nobody folds. So far, that a budget has spent a percentage of its limit.

A crossing is told once for each budget, window and percent; of a rolling window, once each time its spend climbs past
the percent after it has been below. It is published first and marked as told afterwards, so whoever is cut off between
the two publishes it once more: under the same producer, sequence and id, by which a reader knows it.

JSON as in `core.codec`: keys sorted, no white space, UTF-8, money as decimal strings with nine decimals.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from services.core.budgets import Charge
from services.core.codec_fields import (
    UnreadableEventError,
    count_in,
    format_time,
    instant_in,
    name_in,
    parse_object,
    take,
    usd_in,
)
from services.core.hotstate import SESSION_IDLE_MS, WINDOW_GRACE_MS
from services.core.identity import IdentityError, check_name
from services.core.money import format_usd
from services.core.ports import Outgoing
from services.core.windows import CalendarSpan, LifetimeSpan, RollingSpan, SessionSpan, Span, parse_span

PRODUCER: Final = "threshold:"
_to_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode

Slot = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ThresholdCrossed:
    """A budget's settled spend has reached `percent` of its limit, in nano-dollars both.

    `window` is the key of its span; of a rolling window, of the bucket that the spend came into. `time_ms` is of the
    hot state's clock, `config_version` the configuration that has this limit.
    """

    TYPE: ClassVar[str] = "spend.threshold.crossed.v1"
    TOPIC: ClassVar[str] = "spend.alerts.v1"

    org: str
    budget_id: str
    scope: str
    window: str
    percent: int
    limit_nano: int
    spent_nano: int
    config_version: int
    time_ms: int

    @property
    def producer(self) -> str:
        """Each crossing has a producer of its own, with the one sequence 1. Where its text is too long, by its hash."""
        told = f"{self.budget_id}:{self.window}:{self.percent}"
        try:
            return check_name("producer", f"{PRODUCER}{told}")
        except IdentityError:
            return f"{PRODUCER}{hashlib.sha256(told.encode()).hexdigest()}"


ALERT_TYPES: Final = {ThresholdCrossed.TYPE: ThresholdCrossed}


def encode_alert(event: ThresholdCrossed) -> bytes:
    """The wire bytes."""
    fields = {
        "type": event.TYPE,
        "producer": event.producer,
        "sequence": 1,
        "time": format_time(event.time_ms),
        "org": event.org,
        "budget_id": event.budget_id,
        "scope": event.scope,
        "window": event.window,
        "percent": event.percent,
        "limit_usd": format_usd(event.limit_nano),
        "spent_usd": format_usd(event.spent_nano),
        "config_version": event.config_version,
    }
    return _to_canonical(fields).encode()


def decode_alert(value: bytes) -> ThresholdCrossed:
    """The event of wire bytes; raises `UnreadableEventError` naming the field."""
    fields = parse_object(value)
    kind = take(fields, "type", str)
    if kind not in ALERT_TYPES:
        raise UnreadableEventError(f"field 'type' is {kind[:80]!r}, which is not a known alert")
    window = take(fields, "window", str)
    try:
        parse_span(window)
    except ValueError as error:
        raise UnreadableEventError(f"field 'window': {error}") from error
    event = ThresholdCrossed(
        org=name_in(fields, "org"),
        budget_id=name_in(fields, "budget_id"),
        scope=take(fields, "scope", str),
        window=window,
        percent=count_in(fields, "percent"),
        limit_nano=usd_in(fields, "limit_usd"),
        spent_nano=usd_in(fields, "spent_usd"),
        config_version=count_in(fields, "config_version"),
        time_ms=instant_in(fields, "time"),
    )
    if name_in(fields, "producer") != event.producer or count_in(fields, "sequence") != 1:
        raise UnreadableEventError("field 'producer' is not that of this crossing, or field 'sequence' not 1")
    return event


def alert_message(event: ThresholdCrossed) -> Outgoing:
    """The event as it goes onto its topic: CloudEvents 1.0, Kafka binding, binary mode."""
    texts = (
        ("ce_specversion", "1.0"),
        ("ce_id", f"{event.producer}/1"),
        ("ce_source", f"/farthing/{event.producer}"),
        ("ce_type", event.TYPE),
        ("ce_time", format_time(event.time_ms)),
        ("ce_subject", event.budget_id),
        ("content-type", "application/json"),
    )
    headers = tuple((name, text.encode()) for name, text in texts)
    return Outgoing(event.TOPIC, event.org.encode(), encode_alert(event), headers)


def crossed_percents(thresholds: Sequence[int], limit_nano: int, spent_nano: int) -> frozenset[int]:
    """The thresholds, in percent of the limit, that this spend has reached. Nothing spent has reached none."""
    if spent_nano <= 0:
        return frozenset()
    return frozenset(percent for percent in thresholds if spent_nano * 100 >= limit_nano * percent)


def slot_of(charge: Charge) -> Slot:
    """What crossings are remembered by: a budget's window; or its ring, whatever the bucket."""
    span = parse_span(charge.window)
    if isinstance(span, RollingSpan):
        return charge.budget_id, f"r:{span.bucket_ms}:{span.count}"
    return charge.budget_id, charge.window


def forget_at_ms(span: Span, now_ms: int) -> int | None:
    """When it no longer matters what was told of a span; None: never."""
    match span:
        case CalendarSpan():
            return span.end_ms + WINDOW_GRACE_MS
        case RollingSpan():
            return now_ms + (span.count + 1) * span.bucket_ms + WINDOW_GRACE_MS
        case SessionSpan():
            return now_ms + SESSION_IDLE_MS
        case LifetimeSpan():
            return None
