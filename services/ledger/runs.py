"""One partition's messages into runs: what one insert can take. Pure."""

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal

from services.core.codec import decode
from services.core.codec_fields import UnreadableEventError, format_time
from services.core.dead_letters import dead_letter
from services.core.events import Stamped
from services.core.ports import Incoming, Outgoing
from services.ledger.rows import Row, event_row

RUN_BYTES: Final = 16 * 1024 * 1024
_CONSUMER: Final = "ledger"


@dataclass(frozen=True, slots=True)
class Read:
    """A message and the event it carries, or why it carries none."""

    message: Incoming
    event: Stamped | UnreadableEventError


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a message's row goes. `day` is the table's partition, `kind` an event type or why there is no event."""

    read: Read
    table: Literal["events", "skipped"]
    day: str
    kind: str
    row: Row


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive messages of a partition whose rows go into one partition of one table, by one insert."""

    table: Literal["events", "skipped"]
    placed: tuple[Placed, ...]

    @property
    def token(self) -> str:
        """Names this very set of rows, so that inserting it twice adds it once."""
        first, last = self.placed[0].read.message, self.placed[-1].read.message
        return f"{first.topic}/{first.partition}/{first.offset}-{last.offset}"

    def letters(self) -> list[Outgoing]:
        """What of it must be in the dead-letter topic before its offsets count as done."""
        return [
            dead_letter(each.read.message, _CONSUMER, str(each.read.event))
            for each in self.placed
            if isinstance(each.read.event, UnreadableEventError)
        ]


def read_messages(messages: Sequence[Incoming]) -> list[Read]:
    """Decodes messages."""
    return [Read(message, _decode(message)) for message in messages]


def split_runs(reads: Sequence[Read], sequences: MutableMapping[str, int]) -> Iterator[Run]:
    """The runs of a partition's messages, in offset order.

    `sequences` has the last sequence of every producer among them and is moved on. An event whose sequence its producer
    has passed is a duplicate. A run never spans two days, two tables or more than `RUN_BYTES`.
    """
    placed = [_place(read, sequences) for read in reads]
    for (table, _day), group in groupby(placed, key=lambda each: (each.table, each.day)):
        run: list[Placed] = []
        size = 0
        for each in group:
            size += len(each.read.message.value)
            if run and size > RUN_BYTES:
                yield Run(table, tuple(run))
                run, size = [], len(each.read.message.value)
            run.append(each)
        yield Run(table, tuple(run))


def _decode(message: Incoming) -> Stamped | UnreadableEventError:
    try:
        return decode(message.value)
    except UnreadableEventError as error:
        return error


def _place(read: Read, sequences: MutableMapping[str, int]) -> Placed:
    stamped = read.event
    if isinstance(stamped, UnreadableEventError):
        return _skipped(read, "quarantined", str(stamped))
    if stamped.sequence <= sequences[stamped.producer]:
        return _skipped(read, "duplicate", f"{stamped.producer}/{stamped.sequence}")
    sequences[stamped.producer] = stamped.sequence
    row = event_row(read.message, stamped)
    return Placed(read, "events", format_time(stamped.event.time_ms)[:10], stamped.event.TYPE, row)


def _skipped(read: Read, reason: str, detail: str) -> Placed:
    row: Row = {
        "topic": read.message.topic,
        "partition": read.message.partition,
        "offset": read.message.offset,
        "reason": reason,
        "detail": detail,
    }
    return Placed(read, "skipped", "", reason, row)
