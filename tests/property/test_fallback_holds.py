"""P1 with fallbacks: whatever vendors do, what is spent and held of a budget never passes its cap, at any step."""

import asyncio
import tempfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Literal

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from services.core import fold
from services.core.codec import decode
from services.core.events import HoldResized, Reservation, Settlement
from services.core.money import format_usd
from services.core.ports import NotSentError, TimedOutError
from services.core.snapshot import Connection, Overrides, RouteRule, Target
from services.core.vendor_port import VendorRequest
from services.gateway import forward
from tests.support.gateway import ScriptedAnswer, World, chat, world

Fate = Literal["answered", "failed", "unreachable", "timed_out"]

RATES = {"a": "3.000000000", "b": "40.000000000", "c": "0.500000000", "d": "900.000000000"}
ENTRIES = tuple(
    {"vendor": name, "model": "m", "prices": [{"usd": {"input": rate, "output": rate}}]} for name, rate in RATES.items()
)
fates: st.SearchStrategy[Fate] = st.sampled_from(("answered", "failed", "failed", "failed", "unreachable", "timed_out"))


class FatefulVendor:
    """Every vendor at once: each try meets the next fate. Checks the budget whenever it is asked."""

    def __init__(self, drawn: Iterator[Fate], check: "Check") -> None:
        self._drawn = drawn
        self._check = check

    async def send(self, request: VendorRequest) -> ScriptedAnswer:
        await asyncio.sleep(0)
        self._check()
        match next(self._drawn):
            case "failed":
                return ScriptedAnswer([b"down"], 500)
            case "unreachable":
                raise NotSentError("refused")
            case "timed_out":
                raise TimedOutError("late")
            case _:
                most = orjson.loads(request.body)["max_tokens"]
                usage = {"prompt_tokens": 10, "completion_tokens": most}
                return ScriptedAnswer([orjson.dumps({"object": "chat.completion", "choices": [], "usage": usage})])

    async def close(self) -> None:
        pass


class Check:
    """That the cap holds, by the hot state's own figures and by summing up what is on record."""

    def __init__(self, cap_nano: int) -> None:
        self.cap_nano = cap_nano
        self.there: World | None = None
        self.taken = 0
        self.checks = 0

    def __call__(self) -> None:
        assert self.there is not None
        self.checks += 1
        state = self.there.hot_state.store.state("default")
        for figures in state.windows.values():
            assert figures.held_nano >= 0
            assert figures.spent_nano + figures.held_nano <= self.cap_nano
        held: dict[str, int] = {}
        settled_nano = 0
        for event in self.there.events():
            if isinstance(event, Reservation | HoldResized):
                held[event.transaction_id] = event.held_nano
            elif isinstance(event, Settlement):
                assert event.cost_nano <= held.pop(event.transaction_id) == event.held_nano
                settled_nano += event.cost_nano
        assert settled_nano + sum(held.values()) <= self.cap_nano

    def fold(self) -> None:
        """What an aggregator would do with the events so far."""
        assert self.there is not None
        state = self.there.hot_state.store.state("default")
        for row in self.there.outbox.oldest(100_000)[self.taken :]:
            step = fold.step_of(decode(row.message.value), self.taken)
            self.taken += 1
            if step is not None:
                fold.apply(state, row.message.topic, 0, [step], self.taken, self.there.clock.now_ms)
        self()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", (0.0, 0.0))


@settings(deadline=None, max_examples=40)
@given(
    drawn=st.lists(fates, min_size=1, max_size=40),
    order=st.permutations(list(RATES)),
    rounds=st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=4), min_size=1, max_size=5),
    cap_nano=st.integers(1_000_000, 1_000_000_000),
)
async def test_settled_and_held_never_pass_the_cap(
    drawn: list[Fate], order: list[str], rounds: list[list[int]], cap_nano: int
) -> None:
    check = Check(cap_nano)
    with tempfile.TemporaryDirectory() as directory, capture_logs():
        vendors = FatefulVendor(cycle(drawn), check)
        async with world(Path(directory), vendors=vendors, outbox_limit=100_000) as there:
            check.there = there
            first, *rest = order
            await there.org.publish(
                connections={name: Connection(name, "openai", f"https://{name}.test/v1", None, name) for name in RATES},
                overrides=Overrides("own", ENTRIES),
                rules=(RouteRule(first, fallbacks=tuple(Target(name, "m") for name in rest)),),
            )
            await there.org.set_budget(format_usd(cap_nano))
            await there.sync()
            for sizes in rounds:
                bodies = [chat(model="m", max_tokens=most) for most in sizes]
                clients = await asyncio.gather(*(there.call(body, x_spend_vendor=first) for body in bodies))
                assert {client.status for client in clients} <= {200, 402, 500, 502, 504}
                check.fold()
            state = there.hot_state.store.state("default")
            assert there.held_nano() == 0, "every call has ended"
            spent_nano = sum(each.spent_nano for each in state.windows.values())
            assert spent_nano == sum(each.cost_nano for each in there.events() if isinstance(each, Settlement))
            reserved = [each for each in there.events() if isinstance(each, Reservation)]
            assert len([each for each in there.events() if isinstance(each, Settlement)]) == len(reserved)
            assert check.checks >= len(rounds)
