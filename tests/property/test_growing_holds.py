"""A stream held step by step never takes its budgets above their limits, however it comes and whatever else goes on."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.budgets import Budget, propose
from services.core.codec import decode
from services.core.events import HoldResized, Settlement
from services.core.fold import step_of
from services.core.hotstate import Admitted, HoldRequest
from services.core.ports import TopicPartition
from services.gateway import sizing
from tests.support.asgi import Client
from tests.support.gateway import EVENT_STREAM, World, world
from tests.support.growing import DONE, OUTPUT_NANO, SlowHotState, asking, begin, budget, set_budgets, text, usage

Action = Callable[[], Awaitable[None]]


@dataclass
class Acting:
    """`vendor_port.VendorResponse` that sends bytes and, between them, lets other things happen."""

    pieces: Sequence[bytes | Action]
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = EVENT_STREAM
    closed: bool = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for piece in self.pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                await piece()

    async def close(self) -> None:
        self.closed = True


@dataclass
class Play:
    """One stream and what goes on beside it; the budget is looked at after everything that happens."""

    there: World
    budget: Budget
    taken: list[str] = field(default_factory=list)
    folded: int = 0

    def check(self) -> None:
        """The promise (P1)."""
        state = self.there.hot_state.store.state("default")
        total_nano = sum(each.spent_nano + each.held_nano for each in state.windows.values())
        assert total_nano <= self.budget.limit_nano

    async def take(self, tokens: int) -> None:
        """Another call is held, if there is room."""
        name = f"txn_other{len(self.taken)}"
        proposals = propose((self.budget,), self.there.clock.now_ms)
        request = HoldRequest("default", name, tokens * OUTPUT_NANO, proposals, 900_000, "{}")
        if isinstance(await self.there.hot_state.reserve(request), Admitted):
            self.taken.append(name)
        self.check()

    async def free(self) -> None:
        """Another call ends at nothing."""
        if self.taken:
            await self.there.hot_state.release("default", self.taken.pop())
        self.check()

    async def turn(self) -> None:
        """Everything under way goes on."""
        for _ in range(8):
            await asyncio.sleep(0)
        self.check()

    async def shut(self) -> None:
        """The hot state answers no resize."""
        self.slow.gate.clear()

    async def open(self) -> None:
        """And answers again."""
        self.slow.gate.set()
        await self.turn()

    async def fold(self, last: type = Settlement) -> None:
        """Folds what is on record, events of type `last` after all others."""
        stamped = [decode(row.message.value) for row in self.there.outbox.oldest(1000)]
        for each in sorted(stamped, key=lambda each: isinstance(each.event, last)):
            self.folded += 1
            step = step_of(replace(each, producer=f"p{self.folded}"), self.folded)
            assert step is not None
            await self.there.hot_state.apply("default", TopicPartition("t", 0), [step], self.folded + 1)
            self.check()

    @property
    def slow(self) -> SlowHotState:
        """The hot state, as one that can be made to wait."""
        assert isinstance(self.there.hot_state, SlowHotState)
        return self.there.hot_state


ACTIONS = st.one_of(
    st.integers(1, 3_000).map(lambda tokens: lambda play: play.take(tokens)),
    st.just(lambda play: play.free()),
    st.just(lambda play: play.turn()),
    st.just(lambda play: play.shut()),
    st.just(lambda play: play.open()),
)
STREAMS = st.lists(st.one_of(st.integers(0, 2_500), ACTIONS), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    step=st.sampled_from([64, 300, 4_096]),
    stream=STREAMS,
    room_tokens=st.integers(0, 20_000),
    share=st.integers(0, 100),
    cut=st.integers(1, 4_000),
    leaves_after=st.one_of(st.none(), st.integers(0, 12)),
    last=st.sampled_from([Settlement, HoldResized]),
)
def test_spent_and_held_never_pass_the_limit_and_the_client_gets_what_the_vendor_sent(
    step: int,
    stream: list[int | Callable[[Play], Awaitable[None]]],
    room_tokens: int,
    share: int,
    cut: int,
    leaves_after: int | None,
    last: type,
) -> None:
    """`share` is how many hundredths of the bytes were tokens; `cut` how long the pieces are that the stream comes in;
    `leaves_after` how many of them its client waits for.
    """

    async def play_it() -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with world(Path(directory), hot_state_type=SlowHotState) as there:
                await play_in(there)

    async def play_in(there: World) -> None:
        # Room for an input of some hundred tokens, a step, and more.
        limit_nano = (step + room_tokens) * OUTPUT_NANO + 1_000 * 150
        play = Play(there, budget(limit_nano))
        await set_budgets(there, play.budget)
        written = sum(each for each in stream if isinstance(each, int))
        pieces: list[bytes | Action] = []
        for each in stream:
            if isinstance(each, int):
                whole = text(each)
                pieces += [whole[at : at + cut] for at in range(0, len(whole), cut)]
            else:
                pieces.append(lambda act=each: act(play))  # type: ignore[misc]
        pieces += [play.open, usage(written * share // 100), DONE]
        answer = Acting(pieces)
        there.vendor.script.append(answer)  # type: ignore[arg-type]
        client, calling = begin(there, asking())
        leaving = asyncio.create_task(leave(client, play)) if leaves_after is not None else None
        opening = asyncio.create_task(open_soon(play))
        await calling
        for task in (leaving, opening):
            if task is not None:
                task.cancel()
        await play.open()
        sent = b"".join(each for each in pieces if isinstance(each, bytes))
        settlements = [each for each in there.events() if isinstance(each, Settlement)]
        if client.status == 402:
            assert settlements == []
            return
        (settlement,) = settlements
        assert settlement.cost_nano <= settlement.held_nano
        told = client.content.find(b'data: {"type":"error"')
        assert sent.startswith((client.content if told < 0 else client.content[:told]).rstrip(b"\n"))
        assert (settlement.outcome == "completed") <= (client.content == sent)
        play.check()
        await play.fold(last)
        await play.free()
        spent_nano = sum(each.spent_nano for each in there.hot_state.store.state("default").windows.values())
        assert spent_nano == settlement.cost_nano

    async def leave(client: Client, play: Play) -> None:
        while len(client.chunks) <= (leaves_after or 0):  # noqa: ASYNC110 - every turn of the loop counts
            await asyncio.sleep(0)
        client.hang_up()

    async def open_soon(play: Play) -> None:
        """A hot state that never answers would be waited for for ever: its port gives up after a while."""
        while True:
            for _ in range(60):
                await asyncio.sleep(0)
            play.slow.gate.set()

    with patch.object(sizing, "STEP_TOKENS", step):
        asyncio.run(play_it())
