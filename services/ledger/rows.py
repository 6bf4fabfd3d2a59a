"""An event as a row of the ledger's `events` table."""

from services.core.codec_fields import format_time
from services.core.components import MILLION
from services.core.events import CallFacts, Denial, Event, Expiry, HoldResized, Reservation, Settlement, Stamped
from services.core.identity import DIMENSIONS
from services.core.money import divide_half_even
from services.core.ports import Incoming

Row = dict[str, object]


def event_row(message: Incoming, stamped: Stamped) -> Row:
    """The row of an event that came in `message`. A column this kind of event does not have is left out: empty or 0."""
    event = stamped.event
    return {
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "producer": stamped.producer,
        "sequence": stamped.sequence,
        "type": event.TYPE,
        "transaction_id": event.transaction_id,
        "time": format_time(event.time_ms),
        **_facts_columns(event.facts),
        **_kind_columns(event),
        "trace_id": trace_id(message.headers),
        "raw": message.value.decode(),
    }


def trace_id(headers: tuple[tuple[str, bytes], ...]) -> str:
    """The W3C trace id that a message's ``traceparent`` header carries; empty when there is none."""
    parts = dict(headers).get("traceparent", b"").decode("ascii", "replace").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""


def _facts_columns(facts: CallFacts) -> Row:
    identity = facts.identity
    return {
        "org": identity.org,
        **{name: getattr(identity, name) or "" for name in DIMENSIONS},
        "key_id": identity.key_id,
        "tags": identity.tags,
        "vendor": facts.vendor,
        "route": facts.route,
        "model_requested": facts.model_requested,
        "model_priced": facts.model_priced,
        "match": facts.match,
        "catalog_version": facts.catalog_version,
        "config_version": facts.config_version,
        "auth_mode": facts.auth_mode,
    }


def _kind_columns(event: Event) -> Row:
    match event:
        case Reservation():
            return {
                "estimate_mode": event.estimate_mode,
                "input_tokens_bound": event.input_tokens_bound,
                "output_tokens_bound": event.output_tokens_bound,
                "held_nano": event.held_nano,
                "expires_at": format_time(event.expires_at_ms),
                **_charge_columns(event),
            }
        case HoldResized():
            return {
                "held_nano": event.held_nano,
                "expires_at": format_time(event.expires_at_ms),
                **_charge_columns(event),
            }
        case Settlement():
            return {
                "estimate_mode": event.estimate_mode,
                "outcome": event.outcome,
                "usage_source": event.usage_source,
                "usage": event.usage,
                "components.component": [each.component for each in event.components],
                "components.quantity": [each.quantity for each in event.components],
                "components.price_nano_per_million": [
                    divide_half_even(each.price_nano * MILLION, each.per) for each in event.components
                ],
                "components.cost_nano": [each.cost_nano for each in event.components],
                "cost_nano": event.cost_nano,
                "held_nano": event.held_nano,
                "http_status": event.http_status,
                "retry_count": event.retry_count,
                "latency_us": event.latency_us,
                **_charge_columns(event),
            }
        case Expiry():
            return {"held_nano": event.held_nano, "booked_nano": event.booked_nano, **_charge_columns(event)}
        case Denial():
            return {
                "denial_code": event.code,
                "denial_reason": event.reason,
                "estimate_nano": event.estimate_nano,
                "budget_id": event.budget_id or "",
                "budget_scope": event.scope or "",
                "budget_limit_nano": event.limit_nano or 0,
                "budget_spent_nano": event.spent_nano or 0,
                "budget_held_nano": event.held_nano or 0,
            }


def _charge_columns(event: Reservation | HoldResized | Settlement | Expiry) -> Row:
    return {
        "charges.budget_id": [each.budget_id for each in event.charges],
        "charges.scope": [each.scope for each in event.charges],
        "charges.window": [each.window for each in event.charges],
    }
