"""Upkeep of the hot state: both implementations, asked the same, end in the same state."""

import random

from services.adapters.memory import MemoryHotState, MemoryStore
from services.adapters.memory_upkeep import MemoryUpkeep
from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.adapters.valkey_upkeep import KEYS_AT_ONCE, PRODUCERS_AT_ONCE, ValkeyUpkeep
from services.core.budgets import Charge
from services.core.fold import image_of
from services.core.hotstate import Applied, Backfill, FoldStep, OrgImage
from services.core.ports import TopicPartition
from services.core.upkeep import DAY_MS, SILENT_DAYS, Endless, Page, Upkeep, forget_silent
from services.core.windows import LifetimeSpan, RollingSpan, SessionSpan
from tests.support.hot_rig import CHARGE, EMPTY, NOW_MS, ORG, PLACE, Rig, settle
from tests.support.hot_state import read_expiries, read_state, turn_clock, with_turned_clock

OTHER = TopicPartition(PLACE.topic, 1)
LIFETIME = Charge("bud_9", "org", LifetimeSpan().key())
# Such a session's name must not be taken for a window's key.
SESSION = Charge("bud_8", "org", SessionSpan("a:b:c:l").key())


def upkeep_of(rig: Rig) -> Upkeep:
    if rig.connection is None:
        assert isinstance(rig.hot, MemoryHotState)
        return MemoryUpkeep(lambda: rig.now_ms, rig.hot.store)
    upkeep = ValkeyUpkeep(rig.connection)
    assert isinstance(rig.hot, ValkeyHotState)
    upkeep._scripts = rig.hot._scripts  # those whose clock is turned
    return upkeep


async def pages(upkeep: Upkeep) -> list[Page]:
    """All that one round sees."""
    seen = []
    for server in await upkeep.servers():
        cursor: str | None = ""
        while cursor is not None:
            seen.append(await upkeep.look(server, cursor))
            cursor = seen[-1].cursor
    return seen


async def endless(upkeep: Upkeep) -> list[Endless]:
    return sorted({each for page in await pages(upkeep) for each in page.endless}, key=lambda each: each.key)


async def forget_all(upkeep: Upkeep, org: str = ORG, place: TopicPartition = PLACE) -> int:
    """Every producer of a partition; answers in how many steps."""
    cursor: str | None = ""
    steps = 0
    while cursor is not None:
        cursor = await upkeep.forget_silent(org, place, cursor)
        steps += 1
    return steps


def by(producer: str, sequence: int, offset: int) -> FoldStep:
    return FoldStep("settle", offset, producer, sequence, f"txn_{producer}_{sequence}", 5, (CHARGE,))


# ---- producers ------------------------------------------------------------------------------------------------------


async def test_a_producer_is_forgotten_when_it_has_been_silent_for_long(rig: Rig) -> None:
    upkeep = upkeep_of(rig)
    await rig.hot.apply(ORG, PLACE, [by("gw_1", 7, 0), by("gw_2", 3, 1)], 2)
    await rig.hot.apply(ORG, OTHER, [by("gw_1", 9, 0)], 1)
    await forget_all(upkeep)
    day = NOW_MS // DAY_MS
    assert (await rig.state()).silent == {(*_key(PLACE), "gw_1"): day, (*_key(PLACE), "gw_2"): day}

    await rig.turn_to(NOW_MS + SILENT_DAYS * DAY_MS)
    await forget_all(upkeep)
    await rig.hot.apply(ORG, PLACE, [by("gw_2", 4, 2)], 3)
    assert (await rig.state()).silent == {(*_key(PLACE), "gw_1"): day}, "gw_2 was heard of again"

    await rig.turn_to(NOW_MS + (SILENT_DAYS + 1) * DAY_MS)
    await forget_all(upkeep)
    state = await rig.state()
    assert state.producers == {(*_key(PLACE), "gw_2"): 4, (*_key(OTHER), "gw_1"): 9}
    assert state.silent == {(*_key(PLACE), "gw_2"): day + SILENT_DAYS + 1}


async def test_of_a_silent_producer_the_same_is_known_as_before(rig: Rig) -> None:
    upkeep = upkeep_of(rig)
    for sequence in (9, 10, 2**31, 2**52):
        await rig.hot.apply(ORG, PLACE, [by("gw_1", sequence, sequence)], sequence + 1)
        await forget_all(upkeep)
        assert len((await rig.state()).silent) == 1
        for known in (sequence, sequence - 1):
            again = [by("gw_1", known, sequence + 1)]
            assert await rig.hot.apply(ORG, PLACE, again, sequence + 2) == Applied(0, 1), known
        fresh = [by("gw_1", sequence + 1, sequence + 2)]
        assert await rig.hot.apply(ORG, PLACE, fresh, sequence + 3) == Applied(1, 0)
        assert (await rig.state()).silent == {}


async def test_what_a_forgotten_producer_publishes_is_new(rig: Rig) -> None:
    """Nothing is left out; what was folded before it fell silent would count again, where its window is not over."""
    upkeep = upkeep_of(rig)
    await rig.hot.apply(ORG, PLACE, [by("gw_1", 7, 0)], 1)
    await forget_all(upkeep)
    await rig.turn_to(NOW_MS + (SILENT_DAYS + 1) * DAY_MS)
    await forget_all(upkeep)
    assert await rig.hot.apply(ORG, PLACE, [by("gw_1", 8, 1)], 2) == Applied(1, 0)
    assert (await rig.state()).producers == {(*_key(PLACE), "gw_1"): 8}


async def test_a_rebuild_counts_the_days_anew(rig: Rig) -> None:
    upkeep = upkeep_of(rig)
    await rig.hot.apply(ORG, PLACE, [by("gw_1", 7, 0)], 1)
    await forget_all(upkeep)
    image = image_of(await rig.state())
    await rig.go_cold()
    assert await rig.hot.load(ORG, image, "epoch-2")
    state = await rig.state()
    assert (state.producers, state.silent) == ({(*_key(PLACE), "gw_1"): 7}, {})


async def test_many_producers_are_seen_to_in_steps(rig: Rig) -> None:
    upkeep = upkeep_of(rig)
    producers = {(*_key(PLACE), f"gw_{number}"): number + 1 for number in range(5 * PRODUCERS_AT_ONCE)}
    await rig.go_cold()
    await rig.hot.load(ORG, OrgImage({}, {}, {}, producers), "epoch-2")
    steps = await forget_all(upkeep)
    assert rig.connection is None or steps >= 4
    state = await rig.state()
    assert (state.producers, state.silent.keys()) == (producers, producers.keys())
    await rig.turn_to(NOW_MS + (SILENT_DAYS + 1) * DAY_MS)
    await forget_all(upkeep)
    state = await rig.state()
    assert (state.producers, state.silent) == ({}, {})


async def test_both_forget_alike(valkey_url: str) -> None:
    """Producers that come and go, known sequences and new ones, for two years of days drawn at random."""
    connection = ValkeyConnection(valkey_url)
    lua = with_turned_clock(ValkeyHotState(connection))
    upkeep = ValkeyUpkeep(connection)
    upkeep._scripts = lua._scripts
    for seed in range(8):
        chance = random.Random(seed)
        await connection.execute("FLUSHALL")
        now_ms, store = NOW_MS, MemoryStore()
        await turn_clock(connection, now_ms)
        twin = MemoryHotState(lambda: now_ms, store)  # noqa: B023 - meant to see the clock turn
        for hot in (lua, twin):
            await hot.load(ORG, EMPTY, "epoch-1")
        dropped = 0
        for offset in range(120):
            now_ms += chance.randrange(12 * DAY_MS)
            await turn_clock(connection, now_ms)
            place = chance.choice((PLACE, OTHER))
            producer = chance.choice(("gw_1", "gw_2", "gw_3", "expiry:txn_1"))
            step = by(producer, chance.randrange(1, offset + 2), offset)
            answers = [await hot.apply(ORG, place, [step], offset + 1) for hot in (lua, twin)]
            assert answers[0] == answers[1]
            if chance.random() < 0.7:
                state = store.state(ORG)
                before = len(state.producers)
                await forget_all(upkeep, place=place)
                forget_silent(state, *_key(place), now_ms)
                dropped += before - len(state.producers)
            found, expected = await read_state(connection, ORG), store.state(ORG)
            assert (found.producers, found.silent) == (expected.producers, expected.silent)
        assert dropped, "it would show nothing"
    await connection.close()


# ---- keys without an end --------------------------------------------------------------------------------------------


async def test_a_round_sees_all_that_has_no_end(rig: Rig) -> None:
    upkeep = upkeep_of(rig)
    ring = Charge("bud_7", "org", RollingSpan(1_000, 60, NOW_MS // 1_000).key())
    await rig.hot.apply(ORG, PLACE, [settle(0, 5, "txn_1", (LIFETIME, SESSION, ring, CHARGE))], 1)
    await rig.hot.set_crossed(ORG, ("bud_9", "l"), [60], None)
    await rig.hot.set_crossed(ORG, ("bud_8", SESSION.window), [60], NOW_MS + DAY_MS)
    await rig.hot.backfill(ORG, Backfill({}, {}, {"bud_9": 1}, "token-1"))
    seen = await pages(upkeep)
    assert {(each.org, each.budget_id, each.has_end) for page in seen for each in page.endless} == {
        (ORG, "bud_9", False)
    }
    assert len(await endless(upkeep)) == 2, "figures, and what was told"
    assert {org for page in seen for org in page.marked} == {ORG}
    assert {each for page in seen for each in page.producers} == {(ORG, PLACE)}


async def test_an_end_is_set_once_and_taken_back(rig: Rig) -> None:
    upkeep = upkeep_of(rig)
    await rig.hot.apply(ORG, PLACE, [settle(0, 5, "txn_1", (LIFETIME,))], 1)
    await rig.hot.set_crossed(ORG, ("bud_9", "l"), [60], None)
    await upkeep.end_soon(await endless(upkeep))
    keys = await endless(upkeep)
    assert [each.has_end for each in keys] == [True, True]
    # A late settlement changes the figures, and not when they go.
    await rig.hot.apply(ORG, PLACE, [settle(1, 6, "txn_2", (LIFETIME,))], 2)
    assert [each.has_end for each in await endless(upkeep)] == [True, True]
    assert (await rig.state()).windows["bud_9", "l"].spent_nano == 11
    if rig.connection is not None:
        before = await read_expiries(rig.connection, ORG)
        await upkeep.end_soon(keys)
        assert await read_expiries(rig.connection, ORG) == before, "the end does not move away"
    await upkeep.keep(keys)
    assert [each.has_end for each in await endless(upkeep)] == [False, False]
    assert (await rig.state()).windows["bud_9", "l"].spent_nano == 11


async def test_what_is_gone_and_charged_again_is_seen_again(rig: Rig) -> None:
    """A settlement that comes when the figures have gone makes new ones, which have no end until the next round."""
    upkeep = upkeep_of(rig)
    await rig.hot.apply(ORG, PLACE, [settle(0, 5, "txn_1", (LIFETIME,))], 1)
    await upkeep.end_soon(await endless(upkeep))
    if rig.connection is not None:
        await rig.connection.execute("DEL", f"{{{ORG}}}:b:bud_9:l")
    else:
        (await rig.state()).windows.clear()
    await rig.hot.apply(ORG, PLACE, [settle(1, 6, "txn_2", (LIFETIME,))], 2)
    assert [each.has_end for each in await endless(upkeep)] == [False]
    await upkeep.end_soon(await endless(upkeep))
    assert [each.has_end for each in await endless(upkeep)] == [True]


async def test_a_large_server_is_looked_at_page_by_page(rig: Rig) -> None:
    upkeep = upkeep_of(rig)
    budgets = [f"bud_{number}" for number in range(3 * KEYS_AT_ONCE)]
    image = OrgImage({(each, "l"): 1 for each in budgets}, {}, {}, {})
    await rig.go_cold()
    await rig.hot.load(ORG, image, "epoch-2")
    seen = await pages(upkeep)
    assert rig.connection is None or len(seen) >= 3
    assert {each.budget_id for page in seen for each in page.endless} == set(budgets)


async def test_one_takes_the_turn_for_all(rig: Rig) -> None:
    upkeep = upkeep_of(rig)
    assert [await upkeep.take_turn(60_000) for _ in range(3)] == [True, False, False]
    if rig.connection is not None:
        assert 0 < await rig.connection.execute("PTTL", "upkeep:turn") <= 60_000


def _key(place: TopicPartition) -> tuple[str, int]:
    return place.topic, place.partition
