"""Budgets for a gateway in this process, and models of one vendor at three prices."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.adapters.memory import MemoryHotState
from services.core.budgets import Budget, ScopeKind
from services.core.events import Denial, HoldResized, Reservation, Settlement
from services.core.hotstate import HoldRequest, ReserveAnswer
from services.core.snapshot import Connection, Overrides
from services.core.windows import CalendarWindow
from tests.support.asgi import Client
from tests.support.gateway import ScriptedAnswer, World, chat, world

DAY = CalendarWindow("day", "UTC")
# 15 tokens: $0.0015 of `dear`, a tenth of it of `mid`, a hundredth of `low`.
OK = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}'
PRICES = {
    ("openai", "dear"): "100.000000000",
    ("openai", "mid"): "10.000000000",
    ("openai", "low"): "1.000000000",
    ("other", "far"): "100.000000000",
    ("other", "further"): "200.000000000",
}
ENTRIES = tuple(
    {
        "vendor": vendor,
        "model": model,
        "prices": [{"usd": {"input": usd, "output": usd}}],
        "max_output_tokens": 100,
    }
    for (vendor, model), usd in PRICES.items()
)


class SeenHotState(MemoryHotState):
    """Keeps what it is asked to hold."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[HoldRequest] = []

    async def reserve(self, request: HoldRequest) -> ReserveAnswer:
        self.asked.append(request)
        return await super().reserve(request)


@asynccontextmanager
async def priced_world(tmp_path: Path, **changes: Any) -> AsyncIterator[World]:
    """A world of the models of `PRICES`, with a connection to the vendor ``other``, and no budgets."""
    async with world(tmp_path, hot_state_type=SeenHotState, **changes) as there:
        other = Connection("other", "openai", "https://other.test/v1", "sealed:sk-other", "other")
        await there.org.publish(
            connections={**there.org.snapshot.connections, "other": other}, overrides=Overrides("own", ENTRIES)
        )
        await there.sync()
        yield there


def budget(budget_id: str, kind: ScopeKind = "org", value: str = "default", **changes: Any) -> Budget:
    """A budget of a dollar a day, for the whole org, unless told otherwise."""
    limit_nano = changes.pop("limit_nano", 1_000_000_000)
    return Budget(budget_id, kind, value, changes.pop("window", DAY), limit_nano, **changes)


async def set_budgets(there: World, *budgets: Budget) -> None:
    """Makes these the org's budgets."""
    await there.org.publish(budgets=budgets)
    await there.sync()


async def ask(there: World, model: str = "dear", **headers: str) -> Client:
    """A chat call, which its vendor answers if it comes so far."""
    sent = len(there.vendor.requests)
    there.answer(ScriptedAnswer([OK]))
    client = await there.call(chat(model=model), **headers)
    if len(there.vendor.requests) == sent:
        there.vendor.script.pop()
    return client


async def hold_of(there: World, model: str) -> int:
    """What a chat call of a model holds, by a call that no budget sees."""
    budgets = there.org.snapshot.budgets
    await set_budgets(there)
    assert (await ask(there, model)).status == 200
    held_nano = reservations(there)[-1].held_nano
    await set_budgets(there, *budgets)
    return held_nano


def reservations(there: World) -> list[Reservation]:
    """Every reservation so far."""
    return [each for each in there.events() if isinstance(each, Reservation)]


def resizes(there: World) -> list[HoldResized]:
    """Every change of a hold so far."""
    return [each for each in there.events() if isinstance(each, HoldResized)]


def last_settlement(there: World) -> Settlement:
    """What the last call came to."""
    return [each for each in there.events() if isinstance(each, Settlement)][-1]


def denials(there: World) -> list[Denial]:
    """Every refusal on record so far."""
    return [each for each in there.events() if isinstance(each, Denial)]


def charged(there: World) -> list[str]:
    """What the last call was charged to."""
    return [each.budget_id for each in reservations(there)[-1].charges]


def held_by(there: World, budget_id: str) -> int:
    """What one budget holds, over all of its windows."""
    state = there.hot_state.store.state(there.org.name)
    in_windows = sum(each.held_nano for (name, _), each in state.windows.items() if name == budget_id)
    return in_windows + sum(each.held_nano for (name, _, _), each in state.rings.items() if name == budget_id)


def spend(there: World, budget_id: str, spent_nano: int) -> None:
    """Takes what a budget's windows hold as spent, and adds `spent_nano`."""
    for (name, _), figures in there.hot_state.store.state(there.org.name).windows.items():
        if name == budget_id:
            figures.spent_nano, figures.held_nano = figures.spent_nano + figures.held_nano + spent_nano, 0


def chain(length: int, limits: list[int], **changes: Any) -> list[Budget]:
    """Budgets of the org, each the parent of the one before; the first is its team's, and only it matches itself."""
    found = []
    for depth in range(length):
        parent_id = f"bud_{depth + 1}" if depth + 1 < length else None
        kind: ScopeKind = "team"
        value = "ml" if depth == 0 else "none"
        found.append(budget(f"bud_{depth}", kind, value, limit_nano=limits[depth], parent_id=parent_id, **changes))
    return [replace(found[-1], child_mode="isolated"), *found[:-1]]
