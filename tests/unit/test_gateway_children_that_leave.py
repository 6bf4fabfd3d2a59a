"""A full fallback child leaves a growing stream's hold, and the gateway does not hear of it: its cap still holds.

What the child has held of the call stays held until the change, or the call's settlement, is folded (P1, BU-3).
"""

import asyncio
from pathlib import Path

from services.adapters.memory import MemoryHotState
from services.core.events import Settlement
from services.core.hotstate import HoldRequest, ReserveAnswer
from services.core.ports import UnavailableError
from tests.support.gateway import World, until, world
from tests.support.growing import (
    DONE,
    SlowHotState,
    asking,
    begin,
    budget,
    fold_all,
    reservation,
    resizes,
    set_budgets,
    streamed,
    text,
    usage,
)


class SlowToTell(SlowHotState):
    """Changes a hold at once, and says so when the gate opens; or never, while it is away."""

    async def resize(self, request: HoldRequest) -> ReserveAnswer | None:
        answer = await MemoryHotState.resize(self, request)
        self.resized.append(request)
        await self.gate.wait()
        if self.is_away:
            raise UnavailableError("its answer was lost")
        return answer


def figures(there: World, budget_id: str) -> tuple[int, int]:
    windows = there.hot_state.store.state(there.org.name).windows
    ((spent_nano, held_nano),) = [
        (each.spent_nano, each.held_nano) for (name, _), each in windows.items() if name == budget_id
    ]
    return spent_nano, held_nano


async def leave(there: World) -> tuple[str, int]:
    """A stream whose child has room for its first step alone; it has left, and the gateway waits to be told.

    The child's id, and its limit.
    """
    there.answer(streamed(usage(1), DONE))
    await set_budgets(there, budget(10**12))
    await there.call(asking())
    step = reservation(there).held_nano
    there.outbox.forget(1_000)
    state = there.hot_state.store.state(there.org.name)
    state.holds.clear()
    state.due.clear()
    parent = budget(10**12)
    child = budget(step, "team", "ml", parent_id=parent.budget_id, child_mode="fallback")
    await set_budgets(there, parent, child)
    assert isinstance(there.hot_state, SlowToTell)
    there.hot_state.gate.clear()
    return child.budget_id, step


async def end_amid_growth(there: World, *, is_lost: bool) -> None:
    """The stream ends while the answer to its growth is under way."""
    hot_state = there.hot_state
    assert isinstance(hot_state, SlowToTell)
    end = asyncio.Event()
    there.answer(streamed(text(3000), end, usage(3900), DONE))
    _, calling = begin(there)
    await until(lambda: hot_state.resized)
    hot_state.is_away = is_lost
    if is_lost:
        hot_state.gate.set()
    end.set()
    await calling
    hot_state.gate.set()
    hot_state.is_away = False
    await there.assembly.holds.finish()


async def check_cap(there: World, child: str, limit_nano: int) -> None:
    settled = [each for each in there.events() if isinstance(each, Settlement)][-1]
    assert child in {each.budget_id for each in settled.charges}, "or this would prove nothing"
    assert not resizes(there)
    assert figures(there, child) == (0, limit_nano), "what is not folded yet is held"
    there.answer(streamed(text(10), usage(100), DONE))
    assert (await there.call(asking())).status == 200
    await fold_all(there)
    spent_nano, held_nano = figures(there, child)
    assert held_nano == 0
    assert 0 < settled.cost_nano == spent_nano <= limit_nano


async def test_a_stream_that_ends_before_it_is_told_that_its_child_has_left(tmp_path: Path) -> None:
    async with world(tmp_path, hot_state_type=SlowToTell) as there:
        child, limit_nano = await leave(there)
        await end_amid_growth(there, is_lost=False)
        await check_cap(there, child, limit_nano)


async def test_a_stream_that_is_never_told_that_its_child_has_left(tmp_path: Path) -> None:
    async with world(tmp_path, hot_state_type=SlowToTell) as there:
        child, limit_nano = await leave(there)
        await end_amid_growth(there, is_lost=True)
        await check_cap(there, child, limit_nano)
