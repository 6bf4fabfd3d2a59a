"""Which ended holds an image still carries, by when the ledger recorded their ends."""

from dataclasses import replace

from services.adapters.clickhouse import ClickHouse
from services.core.budgets import Charge
from services.core.codec import decode, format_time, to_message
from services.core.events import Event, Expiry, Reservation, Settlement, Stamped
from services.core.hotstate import EXPIRY_PRODUCER, TOMBSTONE_MS
from services.core.ports import Incoming
from services.core.windows import CalendarSpan, RollingSpan
from services.ledger.image import CLOCK_SLACK_MS, org_image
from services.ledger.rows import event_row
from tests.support.examples import FACTS, RESERVATION, SETTLEMENT
from tests.support.ledger import now_ms

LONG_MS = TOMBSTONE_MS + CLOCK_SLACK_MS + 60_000
NOW_MS = now_ms()
ALIVE = Charge("bud_1", "org:default", RollingSpan(60_000, 60, NOW_MS // 60_000).key())
GONE = Charge("bud_2", "org:default", CalendarSpan(0, 1).key())


class Recorder:
    """Puts rows into the ledger as if they had been recorded at another time."""

    def __init__(self, store: ClickHouse) -> None:
        self._store = store
        self._offset = 0

    async def record(self, event: Event, age_ms: int) -> None:
        """One event, recorded `age_ms` ago."""
        self._offset += 1
        producer = EXPIRY_PRODUCER + event.transaction_id if isinstance(event, Expiry) else f"gw_{self._offset}"
        value = to_message(Stamped(event, producer, 1)).value
        row = event_row(Incoming(event.TOPIC, 0, self._offset, b"default", value, (), 0), decode(value))
        row["recorded_at"] = format_time(NOW_MS - age_ms)
        await self._store.insert("events", [row], f"row {self._offset}")


def reservation(name: str, *charges: Charge) -> Reservation:
    return replace(RESERVATION, transaction_id=name, charges=charges)


def settlement(name: str, *charges: Charge) -> Settlement:
    return replace(SETTLEMENT, transaction_id=name, charges=charges)


def expiry(name: str, *charges: Charge) -> Expiry:
    return Expiry(name, RESERVATION.time_ms, FACTS, 5, 5, charges)


async def test_ends_are_remembered_as_long_as_another_event_could_come(ledger_store: ClickHouse) -> None:
    recorder = Recorder(ledger_store)
    for name in ("just_settled", "long_settled", "long_expired", "expired_and_gone", "corrected", "open"):
        await recorder.record(reservation(name, GONE if "gone" in name else ALIVE), LONG_MS)
    await recorder.record(settlement("just_settled", ALIVE), 0)
    await recorder.record(settlement("long_settled", ALIVE), LONG_MS)
    await recorder.record(expiry("long_expired", ALIVE), LONG_MS)
    await recorder.record(expiry("expired_and_gone", GONE), LONG_MS)
    await recorder.record(expiry("corrected", ALIVE), LONG_MS)
    await recorder.record(settlement("corrected", ALIVE), LONG_MS)
    holds = (await org_image(ledger_store, "default", NOW_MS)).image.holds
    assert {name: hold.phase for name, hold in holds.items()} == {
        "open": "held",
        "just_settled": "settled",
        "long_expired": "expired",
        "corrected": "settled",
    }


async def test_an_end_that_may_come_again_is_remembered_until_its_windows_are_gone(ledger_store: ClickHouse) -> None:
    long_window = Charge("bud_3", "org:default", RollingSpan(3_600_000, 60, NOW_MS // 3_600_000).key())
    recorder = Recorder(ledger_store)
    await recorder.record(reservation("settled", long_window), 0)
    await recorder.record(settlement("settled", long_window), 0)
    await recorder.record(reservation("expired", long_window), 0)
    await recorder.record(expiry("expired", long_window), 0)
    holds = (await org_image(ledger_store, "default", NOW_MS)).image.holds
    assert holds["settled"].forget_at_ms == NOW_MS + TOMBSTONE_MS
    assert holds["expired"].forget_at_ms == (NOW_MS // 3_600_000 + 61) * 3_600_000
    assert holds["expired"].booked_nano == 5
    assert (holds["settled"].amount_nano, holds["settled"].charges) == (RESERVATION.held_nano, (long_window,))
    assert holds["settled"].expires_at_ms == RESERVATION.expires_at_ms
