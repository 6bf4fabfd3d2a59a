"""Bugs planted on purpose, each where someone could make it, to see that the rig notices.

Each is a context manager that has the services do one thing wrong for as long as its block lasts.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from services.adapters.memory_answers import MemoryAnswers
from services.aggregator import reaper
from services.core import fold, reserve
from services.core.answers import Answer
from services.core.budgets import Charge
from services.core.hotstate import FoldStep, HoldRequest, OrgState
from services.core.implied import HeldBackfills
from services.core.snapshot import decode_snapshot
from services.gateway import settle, snapshots
from services.gateway.pasts import Charged, Pasts
from services.gateway.settle import Settler
from tests.support.simulation import growing
from tests.support.simulation.ports import SimHotState


@contextmanager
def fence_not_moved() -> Iterator[None]:
    """The fold of an org forgets how far it has come."""
    real = fold.apply

    def apply(state: OrgState, topic: str, partition: int, steps: Iterable[FoldStep], *rest: Any) -> Any:
        before = dict(state.fences)
        answer = real(state, topic, partition, steps, *rest)
        state.fences = before
        return answer

    with patch.object(fold, "apply", apply):
        yield


@contextmanager
def hold_dropped_before_fold() -> Iterator[None]:
    """The gateway gives a hold back when it settles, and not the fold when it has counted the cost."""
    reserve, settle = SimHotState.reserve, Settler.settle
    hot_states: dict[str, SimHotState] = {}

    async def reserving(self: SimHotState, request: HoldRequest) -> Any:
        hot_states[request.reservation_id] = self
        return await reserve(self, request)

    def settling(self: Any, call: Any, *arguments: Any, **options: Any) -> Any:
        settled = settle(self, call, *arguments, **options)
        hot = hot_states[call.transaction_id]
        task = asyncio.ensure_future(hot.release(call.facts.identity.org, call.transaction_id))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return settled

    with patch.object(SimHotState, "reserve", reserving), patch.object(Settler, "settle", settling):
        yield


@contextmanager
def window_decided_twice() -> Iterator[None]:
    """The fold takes the window of its own time, and not the one that the call was admitted to."""
    real = fold._apply_step

    def apply_step(state: OrgState, step: FoldStep, now_ms: int) -> bool:
        if step.kind in ("settle", "expire"):
            step = replace(step, charges=tuple(_at(each, now_ms) for each in step.charges))
        return real(state, step, now_ms)

    with patch.object(fold, "_apply_step", apply_step):
        yield


def _at(charge: Charge, now_ms: int) -> Charge:
    kind, *numbers = charge.window.split(":")
    if kind == "c":
        start, end = map(int, numbers)
        turns = (now_ms - start) // (end - start) * (end - start)
        return replace(charge, window=f"c:{start + turns}:{end + turns}")
    if kind == "r":
        return replace(charge, window=f"r:{numbers[0]}:{numbers[1]}:{now_ms // int(numbers[0])}")
    return charge


@contextmanager
def expiry_without_state_check() -> Iterator[None]:
    """An expiry books its hold whether it has been settled meanwhile or not."""
    real = fold._apply_step

    def apply_step(state: OrgState, step: FoldStep, now_ms: int) -> bool:
        hold = state.holds.get(step.reservation_id)
        if step.kind == "expire" and hold is not None and hold.phase != "held":
            del state.holds[step.reservation_id]
        return real(state, step, now_ms)

    with patch.object(fold, "_apply_step", apply_step):
        yield


@contextmanager
def refund_twice() -> Iterator[None]:
    """What an expiry had booked is given back twice when the call settles late."""
    real = fold._apply_step

    def apply_step(state: OrgState, step: FoldStep, now_ms: int) -> bool:
        hold = state.holds.get(step.reservation_id)
        if step.kind == "settle" and hold is not None and hold.phase == "expired":
            for charge in hold.charges:
                fold._add_spent(state, charge, -hold.booked_nano, now_ms)
        return real(state, step, now_ms)

    with patch.object(fold, "_apply_step", apply_step):
        yield


@contextmanager
def part_given_back_whole() -> Iterator[None]:
    """A part of a budget ends at nothing, whatever its calls have spent."""
    real = reaper.spent_by

    def spent_by(*arguments: Any) -> int | None:
        return None if real(*arguments) is None else 0

    with patch.object(reaper, "spent_by", spent_by):
        yield


@contextmanager
def part_charged_twice() -> Iterator[None]:
    """The calls of a part are charged to what it was carved from, too, where the whole part is held already."""

    def decode(published: bytes) -> Any:
        snapshot = decode_snapshot(published)
        return replace(snapshot, budgets=tuple(replace(each, covers=()) for each in snapshot.budgets))

    with patch.object(snapshots, "decode_snapshot", decode):
        yield


@contextmanager
def answer_forgotten() -> Iterator[None]:
    """What an idempotency key was answered is kept for half a second."""
    real = MemoryAnswers.finish

    async def finish(self: MemoryAnswers, org: str, name: str, answer: Answer, _: int) -> Answer:
        return await real(self, org, name, answer, 500)

    with patch.object(MemoryAnswers, "finish", finish):
        yield


@contextmanager
def past_not_waited_for() -> Iterator[None]:
    """The gateway checks a budget whose past is not made up for yet."""

    async def wait(self: Pasts, charged: Collection[Charged]) -> None:
        return None

    with patch.object(Pasts, "wait", wait):
        yield


@contextmanager
def open_holds_left_out() -> Iterator[None]:
    """A backfill makes up for what calls have spent, and not for what those under way hold."""
    with patch.object(HeldBackfills, "of", lambda self, holds: {}):
        yield


@contextmanager
def ending_beyond_its_hold() -> Iterator[None]:
    """A stream that is ended early costs what its vendor counts, however little was held for it."""

    def within_hold(call: Any, _outcome: str, metered: Any) -> Any:
        return metered, call.bound

    with patch.object(settle, "_within_hold", within_hold):
        yield


@contextmanager
def left_before_it_is_told() -> Iterator[None]:
    """A full child lets a growing hold go at once, whether anybody lives to record that or not. Every seed has one."""
    real = reserve.resize

    def resize(state: OrgState, request: HoldRequest, now_ms: int) -> Any:
        answer = real(state, request, now_ms)
        hold = state.holds.get(request.reservation_id)
        if hold is not None:
            for charge, amount_nano in hold.left:
                reserve.add_held(state, charge, -amount_nano, now_ms)
            hold.left = ()
        return answer

    with patch.object(reserve, "resize", resize), patch.object(growing, "GROWING", 100):
        yield


@contextmanager
def endings_forgotten_after_an_hour() -> Iterator[None]:
    """The hot state remembers no ended hold for longer than any of them, whatever may still come of it."""
    real = fold._forget_at_ms

    def forget_at_ms(charges: Any, _phase: Any, _may_end_again: bool, now_ms: int) -> int:
        return real(charges, "settled", False, now_ms)

    with patch.object(fold, "_forget_at_ms", forget_at_ms):
        yield


# Each bug, with the promises that it breaks: the first finding of a failing run must be of one of them.
MUTATIONS: Mapping[str, tuple[Callable[[], AbstractContextManager[None]], tuple[str, ...]]] = {
    # The fold sees that the org has not kept what it has just folded, and goes no further.
    "fence not moved": (fence_not_moved, ("P4", "P10")),
    "hold dropped before fold": (hold_dropped_before_fold, ("P1",)),
    "window decided twice": (window_decided_twice, ("P4", "P5")),
    "expiry without state check": (expiry_without_state_check, ("P4", "P5")),
    "refund twice": (refund_twice, ("P4",)),
    "part given back whole": (part_given_back_whole, ("BU-9",)),
    "part charged twice": (part_charged_twice, ("BU-9",)),
    "answer forgotten": (answer_forgotten, ("P2",)),
    # The log's reading of it fails first: no ending of a call that may cost more than it held has a meaning.
    "ending beyond its hold": (ending_beyond_its_hold, ("P1", "P3")),
    "left before it is told": (left_before_it_is_told, ("P1",)),
    "endings forgotten after an hour": (endings_forgotten_after_an_hour, ("P4", "P5")),
}
# The same of seeds in which budgets are made in the midst of calls.
BACKFILL_MUTATIONS: Mapping[str, tuple[Callable[[], AbstractContextManager[None]], tuple[str, ...]]] = {
    "past not waited for": (past_not_waited_for, ("P1",)),
    "open holds left out": (open_holds_left_out, ("P1",)),
}
