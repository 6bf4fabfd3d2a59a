"""Telling when a budget has spent a percentage of its limit (BU-4), once each time it does."""

from collections.abc import Iterable, Sequence
from typing import Final

import structlog

from services.aggregator.configs import Configs, OrgConfig
from services.aggregator.snapshots import UnreadableSnapshotError
from services.core.alerts import (
    Slot,
    ThresholdCrossed,
    alert_message,
    crossed_percents,
    forget_at_ms,
    slot_of,
)
from services.core.backfill import is_span_of
from services.core.budgets import EACH, Budget, Charge, Proposal, Standing
from services.core.matching import Applicable, Matching, proposals_for
from services.core.ports import EventLog, HotState, UnavailableError
from services.core.windows import RollingSpan, SessionWindow, parse_span

_log = structlog.get_logger("farthing.aggregator")

PEEKED_AT_ONCE: Final = 500
MAX_KNOWN: Final = 200_000


Noted = dict[str, dict[Slot, Charge]]


class _NotPublishedError(UnavailableError):
    """The log did not take what was to be told."""


class Thresholds:
    """Looks at what a budget has spent whenever a batch has changed it.

    It publishes first and marks afterwards. The fold waits until the hot state has answered, without which it could not
    go on anyhow, and never for the log: what can't be published now is looked at again by `look_again`. So is what an
    org has spent whose configuration can't be read.
    """

    def __init__(self, log: EventLog, hot: HotState, configs: Configs) -> None:
        self._event_log = log
        self._hot = hot
        self._configs = configs
        # The last charge of each changed slot, by org; and what is known to have been told of each.
        self._changed: Noted = {}
        self._later: Noted = {}
        # Rebuilt orgs whose present windows are still to be looked at.
        self._rebuilt: set[str] = set()
        self._told: dict[tuple[str, Slot], frozenset[int]] = {}
        # Rings that have told something, and the bucket it was when they were looked at.
        self._rings: dict[tuple[str, Slot], tuple[Charge, int]] = {}
        self._busy: set[tuple[str, Slot]] = set()

    def note(self, org: str, charges: Iterable[Charge]) -> None:
        """These charges have changed what their budgets have spent."""
        _add(self._changed, org, charges)

    def rebuilt(self, org: str, charges: Iterable[Charge]) -> None:
        """The org was rebuilt, and these charges of the log's tail went into it: `look_again` tells what it crossed."""
        _add(self._later, org, charges)
        self._rebuilt.add(org)

    async def look_at_all(self) -> None:
        """Tells what the noted changes have crossed. What can't be published is left to `look_again`.

        Raises `UnavailableError` when the hot state does not answer: the changes stay noted, to be looked at when this
        is called again. Of a window that is over, or a session, nobody would know any more once the process has died.
        """
        while self._changed:
            org, changed = next(iter(self._changed.items()))
            try:
                await self._look(org, tuple(changed.values()))
            except (_NotPublishedError, UnreadableSnapshotError) as error:
                self._put_off(org, changed.values(), error)
            del self._changed[org]

    async def look_again(self) -> None:
        """Looks at what failed before, and at rings that have told something: their spend falls without an event."""
        # Asked before anything is taken, which a failure would drop.
        now_ms = await self._hot.now_ms() if self._rings or self._rebuilt else 0
        for org in sorted(self._rebuilt):
            try:
                await self.look_at_current(org)
            except UnavailableError as error:
                _tell(org, error)
            else:
                self._rebuilt.discard(org)
        noted, self._later = self._later, {}
        if self._rings:
            for name, (charge, bucket) in tuple(self._rings.items()):
                span = parse_span(charge.window)
                assert isinstance(span, RollingSpan)
                # What a ring has spent falls when a bucket leaves it, and at no other time.
                if now_ms // span.bucket_ms != bucket:
                    self._rings[name] = charge, now_ms // span.bucket_ms
                    _add(noted, name[0], (charge,))
        await self._look_at(noted)

    async def _look_at(self, noted: Noted) -> None:
        for org, changed in noted.items():
            try:
                await self._look(org, tuple(changed.values()))
            except UnavailableError as error:
                self._put_off(org, changed.values(), error)

    def _put_off(self, org: str, charges: Iterable[Charge], error: UnavailableError) -> None:
        _tell(org, error)
        if len(self._later.get(org, ())) < MAX_KNOWN:  # what is left out is told with its budget's next spend
            _add(self._later, org, charges)

    async def look_at_current(self, org: str) -> None:
        """Looks at the present window of every budget, as after a change of limits. Raises `UnavailableError`.

        Budgets of each value, and sessions, are left until they are spent from.
        """
        config = await self._configs.lately(org)
        now_ms = await self._hot.now_ms()
        matches = tuple(
            Applicable(each, each.budget_id, each.scope)
            for each in config.budgets.values()
            if each.thresholds and each.scope_value != EACH and not isinstance(each.window, SessionWindow)
        )
        await self._look(org, [each.charge() for each in proposals_for(Matching(matches), None, now_ms)])

    async def _look(self, org: str, charges: Sequence[Charge]) -> None:
        config = await self._configs.lately(org)
        asked = [(charge, budget) for charge in charges if (budget := self._to_ask(org, config, charge)) is not None]
        for first in range(0, len(asked), PEEKED_AT_ONCE):
            some = asked[first : first + PEEKED_AT_ONCE]
            proposals = [
                Proposal(charge.budget_id, charge.scope, parse_span(charge.window), budget.limit_nano)
                for charge, budget in some
            ]
            standings = await self._hot.peek(org, proposals)
            if standings is None:
                return  # its rebuild folds what was noted, and what comes after it is noted again
            for (charge, budget), standing in zip(some, standings, strict=True):
                name = org, slot_of(charge)
                if name in self._busy:
                    _add(self._later, org, (charge,))
                    continue
                self._busy.add(name)
                try:
                    await self._compare(org, config, charge, budget, standing)
                finally:
                    self._busy.discard(name)

    def _to_ask(self, org: str, config: OrgConfig, charge: Charge) -> Budget | None:
        budget = config.find(charge.budget_id)
        span = parse_span(charge.window)
        if budget is None or not budget.thresholds or not is_span_of(budget, span):
            self._rings.pop((org, slot_of(charge)), None)
            return None
        told = self._told.get((org, slot_of(charge)), frozenset())
        return None if not isinstance(span, RollingSpan) and told.issuperset(budget.thresholds) else budget

    async def _compare(self, org: str, config: OrgConfig, charge: Charge, budget: Budget, standing: Standing) -> None:
        slot, span = slot_of(charge), parse_span(charge.window)
        name = org, slot
        crossed = crossed_percents(budget.thresholds, budget.limit_nano, standing.spent_nano)
        is_ring = isinstance(span, RollingSpan)
        told = self._told.get(name)
        if told is None and not crossed and not is_ring:
            return
        if told is None or crossed - told:
            # Another process may have told it meanwhile.
            [told] = await self._hot.crossed(org, [slot])
        left = told & crossed if is_ring else told
        fresh = crossed - told
        if fresh or left != told:
            now_ms = await self._hot.now_ms()
            events = [
                ThresholdCrossed(
                    org,
                    charge.budget_id,
                    charge.scope,
                    charge.window,
                    percent,
                    budget.limit_nano,
                    standing.spent_nano,
                    config.version,
                    now_ms,
                )
                for percent in sorted(fresh)
            ]
            if events:
                await self._publish(events)
            told = left | fresh
            await self._hot.set_crossed(org, slot, sorted(told), forget_at_ms(span, now_ms))
        self._remember(name, charge, told, is_ring)

    async def _publish(self, events: Sequence[ThresholdCrossed]) -> None:
        try:
            await self._event_log.publish([alert_message(each) for each in events])
        except UnavailableError as error:
            raise _NotPublishedError(str(error)) from error

    def _remember(self, name: tuple[str, Slot], charge: Charge, told: frozenset[int], is_ring: bool) -> None:
        if len(self._told) >= MAX_KNOWN:
            self._told.clear()  # it is all in the hot state
        while len(self._rings) >= MAX_KNOWN:
            del self._rings[next(iter(self._rings))]  # armed again when it is spent from
        self._told[name] = told
        if is_ring and told:
            self._rings.setdefault(name, (charge, -1))
        else:
            self._rings.pop(name, None)


def _tell(org: str, error: UnavailableError) -> None:
    if not isinstance(error, UnreadableSnapshotError):  # which has an alarm of its own, and lasts
        _log.warning("thresholds_wait", org=org, reason=str(error))


def _add(noted: Noted, org: str, charges: Iterable[Charge]) -> None:
    changed = noted.setdefault(org, {})
    for charge in dict.fromkeys(charges):
        slot = slot_of(charge)
        known = changed.get(slot)
        if known is None or _bucket(known) < _bucket(charge):
            changed[slot] = charge


def _bucket(charge: Charge) -> int:
    span = parse_span(charge.window)
    return span.bucket if isinstance(span, RollingSpan) else 0
