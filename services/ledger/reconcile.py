"""Do hot state, ledger and log say the same? Each is asked on its own, and the figures are laid side by side."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from services.core.backfill import ImpliedBudgets
from services.core.budgets import EACH, Budget, Proposal, Standing, owner_id
from services.core.codec import decode
from services.core.codec_fields import UnreadableEventError
from services.core.events import Denial, Expiry, Reservation, Settlement
from services.core.fold import apply, load, step_of
from services.core.hotstate import OrgImage, OrgState, is_forgotten
from services.core.implied import holds_with_implied, step_with_implied
from services.core.matching import Expressions
from services.core.money import format_usd
from services.core.ports import (
    Directory,
    EventLog,
    GoneError,
    HotState,
    Incoming,
    LedgerImage,
    LedgerStore,
    TopicPartition,
    UnavailableError,
)
from services.core.reserve import peek
from services.core.snapshot import decode_snapshot
from services.core.windows import CalendarSpan, SessionSpan, SessionWindow, Span, format_window, parse_span, span_at
from services.ledger.backfill import call_sums
from services.ledger.errors import ApiError, HotStateUnavailableError
from services.ledger.fences import next_offsets
from services.ledger.image import org_image
from services.ledger.query import count_events

SOURCES: Final = (Reservation.TOPIC, Settlement.TOPIC, Denial.TOPIC)
FOLDED: Final = (Reservation.TOPIC, Settlement.TOPIC)
# How long to wait for ledger and fold to reach the log's end before saying that they lag.
PATIENCE_S: Final = 2.0
# How long a comparison may take in all, waiting for its turn included; a log that is away may go on saying nothing.
DEADLINE_S: Final = 20.0
_PAUSE_S: Final = 0.1
# Windows asked of the hot state at once, and rows told whether they agree or not.
_PEEKED: Final = 1_000
_ROWS: Final = 1_000
_COUNTED: Final = {
    "reservations": Reservation.TYPE,
    "settlements": Settlement.TYPE,
    "expiries": Expiry.TYPE,
    "denials": Denial.TYPE,
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far log, ledger and fold have come, by partition. The fold has no figure for what it does not read."""

    log: Mapping[TopicPartition, int]
    ledger: Mapping[TopicPartition, int]
    fold: Mapping[TopicPartition, int | None]

    def is_level(self) -> bool:
        """Whether ledger and fold have reached the log's end."""
        return all(
            self.ledger.get(place, 0) >= end and (place.topic not in FOLDED or (self.fold.get(place) or 0) >= end)
            for place, end in self.log.items()
        )

    def fields(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [
            {
                "topic": place.topic,
                "partition": place.partition,
                "log_end": end,
                "ledger_next": self.ledger.get(place, 0),
                "fold_next": self.fold.get(place),
            }
            for place, end in sorted(self.log.items())
        ]


@dataclass(slots=True)
class LogReading:
    """One org's events as read from the log, each once, folded into a state of their own.

    `implied` are the budgets that calls are charged to without saying so (BU-8).
    """

    org: str
    now_ms: int
    implied: ImpliedBudgets
    state: OrgState = field(default_factory=lambda: OrgState(epoch="log"))
    counts: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    unreadable: int = 0
    _sequences: dict[tuple[TopicPartition, str], int] = field(default_factory=dict)

    def take(self, message: Incoming) -> None:
        """Folds one more message; those of a partition must come in order."""
        try:
            stamped = decode(message.value)
        except UnreadableEventError:
            self.unreadable += message.key == self.org.encode()
            return
        if stamped.event.facts.identity.org != self.org:
            return
        producer = (message.place, stamped.producer)
        if stamped.sequence <= self._sequences.get(producer, 0):
            self.duplicates += 1
            return
        self._sequences[producer] = stamped.sequence
        self.counts[stamped.event.TYPE] += 1
        step = step_of(stamped, message.offset)
        if step is not None:
            hold = self.state.holds.get(step.reservation_id)
            admitted_ms = None if hold is None else hold.admitted_at_ms
            step = step_with_implied(step, stamped.event, self.implied, admitted_ms)
            apply(self.state, message.topic, message.partition, [step], message.offset + 1, self.now_ms)


class Reconciler:
    """Compares one org at a time; reading the log again is not cheap."""

    def __init__(
        self,
        log: EventLog,
        store: LedgerStore,
        hot: HotState,
        directory: Directory,
        expressions: Expressions | None = None,
    ) -> None:
        self._expressions = expressions
        self._event_log = log
        self._store = store
        self._hot = hot
        self._directory = directory
        self._one_at_a_time = asyncio.Lock()
        self._places: tuple[TopicPartition, ...] = ()

    async def reconcile(self, org: str) -> dict[str, Any]:
        """The comparison as JSON. Raises `UnavailableError` when an engine is away or the org's hot state is cold, and
        `ApiError` (503) when it takes longer than `DEADLINE_S`.

        It is exact while nothing moves. `lagging` says that something did, that ledger or fold are behind the log, or
        that a new budget has not been given yet what its window holds. `log_compared` is false when the log no longer
        reaches back to its beginning: then hot state and ledger alone are compared.
        """
        limit = asyncio.timeout(DEADLINE_S)
        try:
            async with limit, self._one_at_a_time:
                return await self._compare(org)
        except TimeoutError as error:
            if not limit.expired():
                raise
            message = (
                f"the books could not be compared within {DEADLINE_S:g} s: the log, the ledger or the hot state"
                " is slow or away, or others are asking as well; try again later"
            )
            raise ApiError(503, "ledger_unavailable", message) from error

    async def _compare(self, org: str) -> dict[str, Any]:
        before = await self._level_progress()
        now_ms = await self._hot.now_ms()
        filled = (await self._hot.marks(org, ())).filled
        budgets = await self._budgets(org)
        is_filled = [each.since_version in (0, filled.get(each.budget_id)) for each in budgets]
        implied = ImpliedBudgets(
            (each for each, is_done in zip(budgets, is_filled, strict=True) if is_done), self._expressions
        )
        image = await self._image(org, implied, now_ms)
        proposals = tuple(_alive(budgets, image, now_ms))
        standings = await self._standings(org, proposals)
        reading = await self._read_log(LogReading(org, now_ms, implied), before.log)
        counted = await count_events(self._store, org)
        after = await self._progress()
        ledger = OrgState()
        load(ledger, image, "ledger", now_ms)
        found: dict[str, tuple[Standing, ...] | None] = {
            "hot_state": standings,
            "ledger": peek(ledger, proposals, now_ms),
            "log": peek(reading.state, proposals, now_ms) if reading is not None else None,
        }
        windows = {budget.budget_id: format_window(budget.window) for budget in budgets}
        rows = []
        for at, proposal in enumerate(proposals):
            figures = {name: each[at] if each is not None else None for name, each in found.items()}
            row = _row(windows[owner_id(proposal.budget_id)], proposal, figures)
            # Sessions may be many: past these, only what does not agree is told.
            if at < _ROWS or not row["agree"]:
                rows.append(row)
        events = _event_fields(reading, counted)
        return {
            "org": org,
            "agree": events["agree"] and all(row["agree"] for row in rows),
            "log_compared": reading is not None,
            "lagging": not before.is_level() or after.log != before.log or not all(is_filled),
            "budgets": rows,
            "events": events,
            "offsets": before.fields(),
        }

    async def _standings(self, org: str, proposals: Sequence[Proposal]) -> tuple[Standing, ...]:
        """The hot state's figures, a part at a time: gateways wait for it meanwhile."""
        found: list[Standing] = []
        for at in range(0, max(1, len(proposals)), _PEEKED):
            standings = await self._hot.peek(org, tuple(proposals[at : at + _PEEKED]))
            if standings is None:
                raise HotStateUnavailableError(f"the hot state of {org} is being rebuilt")
            found += standings
        return tuple(found)

    async def _budgets(self, org: str) -> tuple[Budget, ...]:
        snapshot = await self._directory.snapshot(org)
        if snapshot is None:
            raise HotStateUnavailableError(f"{org} has not been published to the hot state yet")
        try:
            return decode_snapshot(snapshot).budgets
        except ValueError as error:
            raise HotStateUnavailableError(f"what control has published of {org} can't be read: {error}") from error

    async def _level_progress(self) -> Progress:
        """Progress once ledger and fold have reached the log's end, or as it is when patience runs out."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + PATIENCE_S
        while True:
            progress = await self._progress()
            if progress.is_level() or loop.time() >= deadline_s:
                return progress
            await asyncio.sleep(_PAUSE_S)

    async def _progress(self) -> Progress:
        if not self._places:
            try:
                counts = {topic: await self._event_log.partitions(topic) for topic in SOURCES}
            except GoneError as error:
                raise UnavailableError(f"the log is not set up yet: {error}") from error
            self._places = tuple(TopicPartition(topic, at) for topic, count in counts.items() for at in range(count))
        folded = [place for place in self._places if place.topic in FOLDED]
        ledger, fold = await next_offsets(self._store), await self._hot.fold_fences(folded)
        return Progress(await self._event_log.end_offsets(self._places), ledger, fold)

    async def _image(self, org: str, implied: ImpliedBudgets, now_ms: int) -> OrgImage:
        """The ledger's image, with what its calls have spent, and hold, without saying so."""
        known: LedgerImage = await org_image(self._store, org, now_ms)
        below = {at.partition: end for at, end in known.next_offsets.items() if at.topic == Settlement.TOPIC}
        spent_nano = Counter(known.image.spent_nano)
        for query in implied.queries(now_ms, below):
            spent_nano.update(implied.spent_nano(query, await call_sums(self._store, org, query), now_ms))
        return replace(known.image, spent_nano=spent_nano, holds=holds_with_implied(known.image.holds, implied))

    async def _read_log(self, reading: LogReading, ends: Mapping[TopicPartition, int]) -> LogReading | None:
        """The org's events up to `ends`; None when the log no longer goes back to its beginning."""
        lows = await self._event_log.low_offsets(list(ends))
        if any(lows.values()):
            return None
        try:
            await self._read_up_to(ends, reading)
        except GoneError:
            # Retention has passed the beginning since we looked.
            return None
        return reading

    async def _read_up_to(self, ends: Mapping[TopicPartition, int], reading: LogReading) -> None:
        missing = {place: end for place, end in ends.items() if end > 0}
        if not missing:
            return
        batches = self._event_log.read(dict.fromkeys(missing, 0))
        async with contextlib.aclosing(cast(AsyncGenerator[Sequence[Incoming], None], batches)) as closing:
            async for batch in closing:
                for message in batch:
                    if message.offset < ends[message.place]:
                        reading.take(message)
                    if message.offset >= ends[message.place] - 1:
                        missing.pop(message.place, None)
                if not missing:
                    break
                # Folding is computing: the sink and other callers must have their turn.
                await asyncio.sleep(0)


def _alive(budgets: Sequence[Budget], image: OrgImage, now_ms: int) -> Iterator[Proposal]:
    """Every window that the hot state has figures of: current ones, calendar windows just ended, and sessions.

    A budget of each value has windows for every value that the ledger knows of.
    """
    known: dict[str, dict[str, set[Span]]] = {}
    held = [(each.budget_id, each.window) for hold in image.holds.values() for each in (*hold.charges, *hold.implied)]
    for budget_id, window in {*image.spent_nano, *held}:
        known.setdefault(owner_id(budget_id), {}).setdefault(budget_id, set()).add(parse_span(window))
    for budget in budgets:
        ids = known.get(budget.budget_id, {})
        current = None if isinstance(budget.window, SessionWindow) else span_at(budget.window, now_ms)
        for budget_id in sorted(ids) if budget.scope_value == EACH else (budget.budget_id,):
            if current is not None:
                yield Proposal(budget_id, budget.scope, current, budget.limit_nano)
            for span in sorted(ids.get(budget_id, ()), key=lambda each: each.key()):
                if span != current and _is_kept(span, current, now_ms):
                    yield Proposal(budget_id, budget.scope, span, budget.limit_nano)


def _is_kept(span: Span, current: Span | None, now_ms: int) -> bool:
    """Whether a window that is not the current one has figures of its own still."""
    if isinstance(span, CalendarSpan) and isinstance(current, CalendarSpan):
        return not is_forgotten(span, now_ms)
    return isinstance(span, SessionSpan) and current is None


def _row(window: str, proposal: Proposal, found: Mapping[str, Standing | None]) -> dict[str, Any]:
    told = {
        name: {"spent_usd": format_usd(each.spent_nano), "held_usd": format_usd(each.held_nano)} if each else None
        for name, each in found.items()
    }
    figures = {(each.spent_nano, each.held_nano) for each in found.values() if each is not None}
    return {
        "budget_id": proposal.budget_id,
        "scope": proposal.scope,
        "window": window,
        "span": proposal.span.key(),
        "limit_usd": format_usd(proposal.limit_nano),
        **told,
        "agree": len(figures) == 1,
    }


def _event_fields(reading: LogReading | None, counted: Mapping[str, int]) -> dict[str, Any]:
    ledger = {name: counted.get(kind, 0) for name, kind in _COUNTED.items()}
    if reading is None:
        return {"log": None, "ledger": ledger, "agree": True}
    log = {name: reading.counts[kind] for name, kind in _COUNTED.items()}
    seen_again = {"duplicates": reading.duplicates, "unreadable": reading.unreadable}
    return {"log": {**log, **seen_again}, "ledger": ledger, "agree": log == ledger}
