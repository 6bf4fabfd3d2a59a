"""What a ledger says of ended calls, worked out from the messages one by one: a model of the ledger's own statement."""

from collections.abc import Iterable

from services.core.backfill import CallQuery, CallSum
from services.core.codec import decode
from services.core.codec_fields import UnreadableEventError
from services.core.events import Expiry, Settlement
from services.core.ports import Incoming


def call_sums(org: str, messages: Iterable[Incoming], query: CallQuery) -> list[CallSum]:
    """One sum a call, of those that `query` asks for. The callers' transaction ids are no ULIDs."""
    endings: dict[str, Settlement | Expiry] = {}
    sequences: dict[tuple[int, str], int] = {}
    for message in sorted(messages, key=lambda each: (each.place, each.offset)):
        if message.topic != Settlement.TOPIC or message.offset >= query.below.get(message.partition, 0):
            continue
        try:
            stamped = decode(message.value)
        except UnreadableEventError:
            continue
        event, producer = stamped.event, (message.partition, stamped.producer)
        if not isinstance(event, Settlement | Expiry) or event.facts.identity.org != org:
            continue
        if stamped.sequence <= sequences.get(producer, 0):
            continue
        sequences[producer] = stamped.sequence
        known = endings.get(event.transaction_id)
        if known is None or (isinstance(known, Expiry) and isinstance(event, Settlement)):
            endings[event.transaction_id] = event
    return [each for event in endings.values() for each in _sum(event, query)]


def _sum(event: Settlement | Expiry, query: CallQuery) -> list[CallSum]:
    at_ms = event.admitted_at_ms or event.time_ms
    if event.facts.config_version >= query.before_version or at_ms < query.since_ms:
        return []
    charged = tuple(
        (each.budget_id, each.window) for each in event.charges if each.budget_id.partition("@")[0] in query.budget_ids
    )
    amount_nano = event.cost_nano if isinstance(event, Settlement) else event.booked_nano
    return [CallSum(event.facts, at_ms - at_ms % query.grain_ms, charged, amount_nano, event.time_ms)]
