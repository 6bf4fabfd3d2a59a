"""An org too large for one script: its pages come one by one, of one load alone, and it is cold until the last."""

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from services.adapters import valkey_loading
from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import Argument, ValkeyConnection
from services.core import fold
from services.core.budgets import Charge
from services.core.hotstate import Admitted, Cold, Hold, OrgImage, OrgState
from services.core.ports import UnavailableError
from services.core.windows import SessionSpan
from tests.support.hot_rig import CHARGE, EMPTY, NOW_MS, ORG, PLACE, SPAN, proposal, request_of, settle
from tests.support.hot_state import read_all, read_state, turn_clock, with_turned_clock
from tests.support.valkey import ValkeyServer

LOADING = f"{{{ORG}}}:loading"
BUCKET = NOW_MS // 1000
Before = Callable[[int], Awaitable[None]]


async def _nothing(number: int) -> None:
    """Before any step."""


class SteppedConnection(ValkeyConnection):
    """Does `before`, given its number, before each step of a load; the first one is 1."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.steps: list[tuple[Argument, ...]] = []
        self.before: Before = _nothing

    async def execute(self, *command: Argument) -> object:
        """See `HotConnection`."""
        at = 3 + int(command[2]) if command[0] == "EVALSHA" else 0
        if at and LOADING in command[3:at]:
            self.steps.append(command)
            await self.before(int(command[at + 1]))
        return await super().execute(*command)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some twenty pages for `image_of`."""
    monkeypatch.setattr(valkey_loading, "PAGE_ARGUMENTS", 40)


@pytest.fixture
async def aggregators(valkey_url: str) -> AsyncIterator[list[SteppedConnection]]:
    """Connections of two aggregators to a server whose clock stands."""
    connections = [SteppedConnection(valkey_url), SteppedConnection(valkey_url)]
    await turn_clock(connections[0], NOW_MS)
    yield connections
    for each in connections:
        await each.close()


def hot(connection: ValkeyConnection) -> ValkeyHotState:
    return with_turned_clock(ValkeyHotState(connection))


def image_of(name: str, count: int = 60) -> OrgImage:
    """An image whose every entry tells whose it is; budgets are spent from and held by what lies pages apart."""
    session, life = Charge(f"bud_s_{name}", "", SessionSpan("s1").key()), Charge("bud_l", "", "l")
    ring = Charge("bud_r", "", f"r:1000:60:{BUCKET}")
    spent = {(each.budget_id, each.window): 7 + len(name) for each in (CHARGE, session, life)}
    spent |= {(ring.budget_id, f"r:1000:60:{BUCKET - back}"): 3 + back for back in range(70)}
    holds = {}
    for number in range(count):
        charges = (CHARGE, session, life, ring)[number % 3 :]
        held = Hold(10 + number, charges, f"{name} {number}", NOW_MS + number, admitted_at_ms=NOW_MS - number)
        if number % 4 == 1:
            held = replace(held, implied=(Charge("bud_i", "", ring.window), life), resized_at_ms=NOW_MS - 1, option=2)
        elif number % 4:
            phase, forget_ms = ("settled", NOW_MS + 99_999) if number % 4 == 2 else ("expired", None)
            held = replace(held, phase=phase, booked_nano=number, forget_at_ms=forget_ms, context="")
        holds[f"txn_{name}_{number}"] = held
    fences = {(PLACE.topic, partition): 40 + partition for partition in range(30)}
    producers = {(PLACE.topic, 0, f"gw_{name}_{number}"): 17 + number for number in range(30)}
    filled = {f"bud_{number}": number for number in range(30)}
    return OrgImage(spent, holds, fences, {**producers, (PLACE.topic, 0, "expiry:x"): 1}, filled)


def expected(image: OrgImage, epoch: str) -> OrgState:
    state = OrgState()
    assert fold.load(state, copy.deepcopy(image), epoch, NOW_MS)
    return state


async def is_cold(connection: ValkeyConnection) -> bool:
    return isinstance(await hot(connection).reserve(request_of(1, proposal(2**62))), Cold)


def decisive(state: OrgState) -> OrgState:
    """The state but for what the two twins write in different ways: when sessions go."""
    return replace(state, windows={slot: replace(each, forget_at_ms=None) for slot, each in state.windows.items()})


async def test_many_pages_bring_what_one_brings(
    aggregators: list[SteppedConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, image = aggregators[0], image_of("a")
    assert await hot(connection).load(ORG, image, "e1")
    assert len(connection.steps) > 20
    paged, paged_expiries = await read_all(connection, ORG)
    await connection.execute("FLUSHALL")
    await turn_clock(connection, NOW_MS)
    monkeypatch.setattr(valkey_loading, "PAGE_ARGUMENTS", 1_000_000)
    del connection.steps[:]
    assert await hot(connection).load(ORG, image, "e1")
    assert len(connection.steps) == 3, "two clear, and one loads"
    assert (paged, paged_expiries) == await read_all(connection, ORG)
    assert decisive(paged) == decisive(expected(image, "e1"))


async def test_the_org_is_cold_until_the_last_page(aggregators: list[SteppedConnection]) -> None:
    loader, gateway = aggregators

    async def look(number: int) -> None:
        assert await is_cold(gateway)
        assert await hot(gateway).apply(ORG, PLACE, [settle(40, 5)], 41) == Cold()
        assert await hot(gateway).claim_due(ORG, 9) == ()
        assert await hot(gateway).peek(ORG, [proposal(100)]) is None
        assert await hot(gateway).filled(ORG, ["bud_1"]) is None
        marks = await hot(gateway).marks(ORG, [PLACE])
        assert marks.token == "" or len(marks.filled) == 30
        if marks.fences[PLACE.topic, PLACE.partition]:
            assert len(await hot(gateway).open_holds(ORG)) == 30, "whoever backfills compares the fences"

    loader.before = look
    assert await hot(loader).load(ORG, image_of("a"), "e1")
    assert not await is_cold(gateway)


async def test_who_comes_while_another_loads_changes_nothing(aggregators: list[SteppedConnection]) -> None:
    first, second = aggregators
    answers: list[bool] = []

    async def try_beside(number: int) -> None:
        if number > 1:
            answers.append(await hot(second).load(ORG, image_of("b"), "e2"))

    first.before = try_beside
    assert await hot(first).load(ORG, image_of("a"), "e1")
    assert set(answers) == {False}
    assert decisive(await read_state(first, ORG)) == decisive(expected(image_of("a"), "e1"))


async def test_of_two_that_begin_at_once_one_loads(aggregators: list[SteppedConnection]) -> None:
    names = ("a", "bb")
    loaded = await asyncio.gather(
        *(hot(each).load(ORG, image_of(name), name) for each, name in zip(aggregators, names, strict=True))
    )
    assert sorted(loaded) == [False, True]
    winner = names[loaded.index(True)]
    assert decisive(await read_state(aggregators[0], ORG)) == decisive(expected(image_of(winner), winner))


@pytest.mark.parametrize("lapsed_at", [2, 3, 12, 22])
async def test_a_load_that_was_given_up_changes_nothing_when_it_goes_on(
    aggregators: list[SteppedConnection], lapsed_at: int
) -> None:
    """Its token has lapsed, and another loads when it comes: between two pages of that, and when that is done."""
    late, other = aggregators
    paused, go_on = asyncio.Event(), asyncio.Event()

    async def stall(number: int) -> None:
        if number == lapsed_at:
            paused.set()
            await go_on.wait()

    late.before = stall
    stalled = asyncio.create_task(hot(late).load(ORG, image_of("a"), "e1"))
    await paused.wait()
    await other.execute("DEL", LOADING)  # as if its life were over

    async def meet(number: int) -> None:
        if number == 9:
            go_on.set()
            assert not await stalled

    other.before = meet
    assert await hot(other).load(ORG, image_of("b"), "e2")
    assert decisive(await read_state(other, ORG)) == decisive(expected(image_of("b"), "e2"))
    for command in late.steps:
        assert await other.execute(*command) == 0, "nor do commands of a connection that broke"
    assert decisive(await read_state(other, ORG)) == decisive(expected(image_of("b"), "e2"))


async def test_a_step_is_taken_once_and_in_its_turn(aggregators: list[SteppedConnection]) -> None:
    loader, other = aggregators

    async def repeat(number: int) -> None:
        if number > 1:
            earlier = loader.steps[number // 2 - 1 : number - 1]
            assert [await other.execute(*command) for command in earlier] == [0] * len(earlier)

    loader.before = repeat
    assert await hot(loader).load(ORG, image_of("a"), "e1")
    assert decisive(await read_state(loader, ORG)) == decisive(expected(image_of("a"), "e1"))


async def test_a_server_that_has_lost_its_last_writes_takes_no_further_page(
    aggregators: list[SteppedConnection],
) -> None:
    """A replica took over, or the server has restarted from its disk: the token may be there, and a page may not."""
    loader, server = aggregators

    async def lose(number: int) -> None:
        if number == 12:
            await server.execute("SET", LOADING, "e1@10", "PX", 10_000)

    loader.before = lose
    assert not await hot(loader).load(ORG, image_of("a"), "e1")
    assert len(loader.steps) == 12
    assert await is_cold(server)


async def test_after_a_loader_has_died_another_loads(
    aggregators: list[SteppedConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    dying, other = aggregators
    monkeypatch.setattr(valkey_loading, "LOADING_MS", 400)

    async def die(number: int) -> None:
        if number == 15:
            raise asyncio.CancelledError

    dying.before = die
    with pytest.raises(asyncio.CancelledError):
        await hot(dying).load(ORG, image_of("a"), "e1")
    assert await is_cold(other)
    assert not await hot(other).load(ORG, image_of("b"), "e2"), "it might be alive"
    assert (await read_state(other, ORG)).holds
    async with asyncio.timeout(10):
        while not await hot(other).load(ORG, image_of("b", 20), "e3"):
            assert await is_cold(other)
            await asyncio.sleep(0.05)
    assert decisive(await read_state(other, ORG)) == decisive(expected(image_of("b", 20), "e3"))


async def test_a_long_search_for_what_was_left_keeps_the_others_out(
    aggregators: list[SteppedConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of this org nothing is left, but the server has many keys."""
    loader, other = aggregators
    await other.execute("EVAL", "for n = 1, 200 do redis.call('SET', 'k' .. n, n) end", 0)
    monkeypatch.setattr(valkey_loading, "_SCANNED", 10)
    monkeypatch.setattr(valkey_loading, "_RENEWED_S", -1.0)
    assert await hot(loader).load(ORG, EMPTY, "e1")
    assert len(loader.steps) > 12


async def test_a_server_without_memory_midway_leaves_the_org_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey_loading, "LOADING_MS", 300)
    with ValkeyServer(tmp_path / "valkey") as server:
        loader, operator = SteppedConnection(server.url), ValkeyConnection(server.url)

        async def fill_up(number: int) -> None:
            if number == 12:
                await operator.execute("CONFIG", "SET", "maxmemory", 1)

        loader.before = fill_up
        await turn_clock(operator, NOW_MS)
        with pytest.raises(UnavailableError, match="OOM"):
            await hot(loader).load(ORG, image_of("a"), "e1")
        assert (await read_state(operator, ORG)).holds
        loader.before = _nothing
        # What the first has left is cleared all the same: it may be what the memory is full of.
        await _until_lapsed(operator)
        with pytest.raises(UnavailableError, match="OOM"):
            await hot(loader).load(ORG, image_of("a"), "e2")
        assert not (await read_state(operator, ORG)).holds
        await operator.execute("CONFIG", "SET", "maxmemory", 0)
        assert await is_cold(operator)
        await _until_lapsed(operator)
        assert await hot(loader).load(ORG, image_of("a"), "e3")
        assert decisive(await read_state(operator, ORG)) == decisive(expected(image_of("a"), "e3"))
        await loader.close()
        await operator.close()


async def test_a_hold_that_is_released_midway_stays_released(aggregators: list[SteppedConnection]) -> None:
    """A gateway gives a hold back whether or not the org is cold."""
    loader, gateway = aggregators
    released: list[bool] = []

    async def release(number: int) -> None:
        if not any(released):
            released.append(await hot(gateway).release(ORG, "txn_a_0"))

    loader.before = release
    image = image_of("a")
    assert await hot(loader).load(ORG, image, "e1")
    assert released.count(True) == 1
    assert len(released) < len(loader.steps) - 5, "midway"
    without = replace(image, holds={name: each for name, each in image.holds.items() if name != "txn_a_0"})
    assert decisive(await read_state(gateway, ORG)) == decisive(expected(without, "e1"))


async def test_what_is_written_behind_the_search_is_found_by_the_next(
    aggregators: list[SteppedConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the release of a hold that was left: the pages would add to figures that hold less than nothing."""
    loader, other = aggregators
    monkeypatch.setattr(valkey_loading, "_SCANNED", 10_000)  # all keys at one go, so that the rest of it is none
    await other.execute("HSET", f"{{{ORG}}}:left", "spent", 1)

    async def write_behind(number: int) -> None:
        if number == 3:  # the keys were looked through once, and what was found is cleared
            await other.execute("HSET", f"{{{ORG}}}:b:{CHARGE.budget_id}:{CHARGE.window}", "held", -40)

    loader.before = write_behind
    assert await hot(loader).load(ORG, OrgImage({(CHARGE.budget_id, CHARGE.window): 5}, {}, {}, {}), "epoch-1")
    assert len(loader.steps) > 4
    window = (await read_state(other, ORG)).windows[CHARGE.budget_id, CHARGE.window]
    assert (window.spent_nano, window.held_nano) == (5, 0)


async def test_a_loaded_org_takes_calls(aggregators: list[SteppedConnection]) -> None:
    connection = aggregators[0]
    assert await hot(connection).load(ORG, image_of("a"), "e1")
    spent = (await read_state(connection, ORG)).windows[CHARGE.budget_id, SPAN.key()]
    total = spent.spent_nano + spent.held_nano
    answer = await hot(connection).reserve(request_of(2, proposal(total + 2)))
    assert isinstance(answer, Admitted)


async def _until_lapsed(connection: ValkeyConnection) -> None:
    # No less than nothing, as when the key is gone.
    await asyncio.sleep(max(0, await connection.execute("PTTL", LOADING)) / 1000 + 0.01)
