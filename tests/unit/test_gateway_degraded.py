"""What is away, and what becomes of calls meanwhile: refused at once, or let through and on record (GW-9)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.adapters.memory import MemoryHotState
from services.core.codec import decode
from services.core.events import Reservation, Settlement
from services.core.fold import step_of
from services.core.hotstate import FoldStep, HoldRequest, OrgState, ReserveAnswer
from services.core.ports import NotSentError, TopicPartition, UnavailableError
from services.core.snapshot import ANY, RouteRule
from services.core.windows import RollingWindow
from services.gateway import assemble, identify, releasing
from tests.support.gateway import (
    AWAY,
    EVENT_STREAM,
    WHOLE_ANSWER,
    ScriptedAnswer,
    World,
    asking,
    assert_refused,
    stream_events,
    until,
    world,
)

NOWHERE = NotSentError("nothing listens there")


class SwitchedHotState(MemoryHotState):
    """The memory twin, away while `failure` is set; it may hold first and not tell. It counts what is taken back."""

    failure: Exception | None = None
    takes_it_first = False
    released = 0

    async def reserve(self, request: HoldRequest) -> ReserveAnswer:
        if self.failure is not None:
            if self.takes_it_first:
                await super().reserve(request)
            raise self.failure
        return await super().reserve(request)

    async def release(self, org: str, reservation_id: str) -> bool:
        self.released += 1
        return await super().release(org, reservation_id)

    async def epochs(self, orgs: Sequence[str]) -> Any:
        if self.failure is not None:
            raise self.failure
        return await super().epochs(orgs)


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, hot_state_type=SwitchedHotState) as made:
        await made.org.set_budget("1.00")
        await made.sync()
        yield made


def fail(there: World, failure: Exception | None, *, takes_it_first: bool = False) -> SwitchedHotState:
    assert isinstance(there.hot_state, SwitchedHotState)
    there.hot_state.failure, there.hot_state.takes_it_first = failure, takes_it_first
    return there.hot_state


async def fail_open(there: World, route: str = "chat.completions") -> None:
    await there.org.publish(rules=(RouteRule(ANY, route, fail_open=True),))
    await there.sync()


def go_cold(there: World) -> OrgState:
    state = there.hot_state.store.state(there.org.name)
    state.epoch = None
    return state


async def fold_all(there: World) -> None:
    """What the aggregator does with what is recorded."""
    place = {topic: TopicPartition(topic, 0) for topic in (Reservation.TOPIC, Settlement.TOPIC)}
    for row in there.outbox.oldest(1000):
        stamped = decode(row.message.value)
        step: FoldStep | None = step_of(stamped, row.sequence)
        if step is not None:
            await there.hot_state.apply(there.org.name, place[row.message.topic], [step], row.sequence + 1)


@pytest.mark.parametrize("failure", [AWAY, NOWHERE])
async def test_an_enforced_route_is_refused_at_once_and_told_when_to_come_back(
    there: World, failure: Exception
) -> None:
    fail(there, failure)
    client = await there.call()
    assert_refused(client, 503, "state_rebuilding", "try again")
    assert client.header("retry-after") == "1"
    assert there.vendor.requests == []
    assert there.events() == []


async def test_only_a_hold_that_may_have_been_made_is_taken_back(there: World) -> None:
    hot = fail(there, AWAY, takes_it_first=True)
    await there.call()
    await until(lambda: hot.released == 1)
    assert there.held_nano() == 0
    fail(there, NOWHERE)
    await there.call()
    await asyncio.sleep(0.05)
    assert hot.released == 1, "nothing was sent, so there is nothing to take back"


class LateHotState(MemoryHotState):
    """Does not answer a reserve in time, and does it only after so many releases have come."""

    overtaken_by = 1
    late: HoldRequest | None = None
    answers: list[bool]

    async def reserve(self, request: HoldRequest) -> ReserveAnswer:
        self.late, self.answers = request, []
        raise AWAY

    async def release(self, org: str, reservation_id: str) -> bool:
        self.answers.append(await super().release(org, reservation_id))
        if len(self.answers) == self.overtaken_by:
            assert self.late is not None
            await super().reserve(self.late)
        return self.answers[-1]


async def test_a_release_that_overtakes_its_hold_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releasing, "_FIRST_PAUSE_S", 0.001)
    async with world(tmp_path, hot_state_type=LateHotState) as there:
        await there.org.set_budget("1.00")
        await there.sync()
        assert_refused(await there.call(), 503, "state_rebuilding")
        hot = there.hot_state
        assert isinstance(hot, LateHotState)
        await until(lambda: len(hot.answers) == 2)
        assert (hot.answers, there.held_nano()) == ([False, True], 0)
        hot.overtaken_by = 9
        await there.call()
        await asyncio.sleep(0.05)
        assert hot.answers == [False, False], "a hold that was never made is not looked for without end"


async def test_an_org_that_is_cold_is_refused_where_nothing_else_is_ruled(there: World) -> None:
    go_cold(there)
    assert_refused(await there.call(), 503, "state_rebuilding", "rebuilt")


@pytest.mark.parametrize("reason", ["away", "nowhere", "cold"])
async def test_a_route_that_fails_open_passes_flagged_and_in_full(there: World, reason: str) -> None:
    await fail_open(there)
    if reason == "cold":
        go_cold(there)
    else:
        fail(there, AWAY if reason == "away" else NOWHERE)
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    client = await there.call()
    assert (client.status, client.content) == (200, WHOLE_ANSWER)
    assert client.header("x-spend-fail-open") == "true"
    assert client.header("x-spend-budget-remaining") is None, "nobody knows what is left"
    assert client.header("x-spend-cost") is not None
    reservation, settlement = there.events()
    assert isinstance(reservation, Reservation)
    assert isinstance(settlement, Settlement)
    assert reservation.facts.flags == settlement.facts.flags == ("fail_open",)
    assert reservation.charges == settlement.charges
    (charge,) = reservation.charges
    assert charge.budget_id == there.org.snapshot.budgets[0].budget_id
    start, end = (int(each) for each in charge.window.split(":")[1:])
    assert start <= there.clock.now_ms < end, "its window is that of the hot state's clock, as estimated"
    assert abs(reservation.time_ms - there.clock.now_ms) < 60_000
    assert reservation.expires_at_ms == reservation.time_ms + there.org.snapshot.hold_ms
    assert 0 < settlement.cost_nano < reservation.held_nano == settlement.held_nano


async def test_a_call_that_is_answered_as_usual_has_no_mark(there: World) -> None:
    await fail_open(there)
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    client = await there.call()
    assert client.header("x-spend-fail-open") is None
    assert client.header("x-spend-budget-remaining") is not None
    assert there.settlement().facts.flags == ()


async def test_a_full_budget_refuses_on_a_route_that_fails_open_while_the_state_is_there(there: World) -> None:
    await fail_open(there)
    await there.org.set_budget("0.00")
    await there.sync()
    assert (await there.call()).status == 402


@pytest.mark.parametrize(
    ("rules", "passes"),
    [
        ((RouteRule(ANY, ANY, fail_open=True),), True),
        ((RouteRule(ANY, ANY, fail_open=True), RouteRule("openai", ANY, fail_open=False)), False),
        ((RouteRule(ANY, ANY, fail_open=False), RouteRule("openai", "chat.completions", fail_open=True)), True),
        ((RouteRule(ANY, ANY, fail_open=True), RouteRule("openai", ANY, timeout_ms=5000)), True),
        ((RouteRule(ANY, "embeddings", fail_open=True),), False),
    ],
)
async def test_the_most_particular_rule_that_says_so_decides(
    there: World, rules: tuple[RouteRule, ...], passes: bool
) -> None:
    await there.org.publish(rules=rules)
    await there.sync()
    fail(there, AWAY)
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    assert (await there.call()).status == (200 if passes else 503)


async def test_what_was_let_through_folds_into_what_is_spent_and_holds_nothing(there: World) -> None:
    await there.org.set_budget("1.00", "team", "ml", RollingWindow(3_600_000))
    await fail_open(there)
    fail(there, AWAY)
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    await there.call()
    fail(there, None)
    await fold_all(there)
    state = there.hot_state.store.state(there.org.name)
    cost_nano = there.settlement().cost_nano
    assert [(each.spent_nano, each.held_nano) for each in state.windows.values()] == [(cost_nano, 0)]
    assert [(each.total_nano, each.held_nano) for each in state.rings.values()] == [(cost_nano, 0)]
    await fold_all(there)
    assert [each.spent_nano for each in state.windows.values()] == [cost_nano]


async def test_a_reservation_that_is_folded_after_its_settlement_brings_no_hold_back(there: World) -> None:
    await fail_open(there)
    fail(there, AWAY)
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    await there.call()
    reservation, settlement = (decode(row.message.value) for row in there.outbox.oldest(10))
    for offset, stamped in enumerate((settlement, reservation)):
        step = step_of(stamped, offset)
        assert step is not None
        await there.hot_state.apply(there.org.name, TopicPartition(stamped.event.TOPIC, 0), [step], offset + 1)
    state = there.hot_state.store.state(there.org.name)
    assert [(each.spent_nano, each.held_nano) for each in state.windows.values()] == [(there.settlement().cost_nano, 0)]


async def test_a_hold_whose_answer_was_lost_ends_with_the_settlement_of_the_call_that_passed(there: World) -> None:
    await fail_open(there)
    hot = fail(there, AWAY, takes_it_first=True)
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    assert (await there.call()).status == 200
    assert there.held_nano() > 0
    assert hot.released == 0, "it is the hold of a call that is under way"
    fail(there, None)
    await fold_all(there)
    assert there.held_nano() == 0
    (figures,) = there.hot_state.store.state(there.org.name).windows.values()
    assert figures.spent_nano == there.settlement().cost_nano


async def test_a_stream_that_passed_is_never_cut_off_for_want_of_a_hold(there: World) -> None:
    budgets = [each.__class__(**{**_fields(each), "extend": True}) for each in there.org.snapshot.budgets]
    await there.org.publish(budgets=tuple(budgets), rules=(RouteRule(fail_open=True),))
    await there.sync()
    fail(there, AWAY)
    there.answer(ScriptedAnswer(stream_events(), headers=EVENT_STREAM))
    request = asking()
    del request["max_tokens"]
    client = await there.call(request)
    assert client.content == b"".join(stream_events())
    assert client.header("x-spend-fail-open") == "true"
    reservation = there.events()[0]
    assert isinstance(reservation, Reservation)
    assert reservation.estimate_mode == "strict", "it is on record at all that it could cost, not at a step"
    assert there.settlement().outcome == "completed"


async def test_a_job_never_passes_as_what_is_kept_of_it_would_be_kept_nowhere(there: World) -> None:
    await there.org.publish(rules=(RouteRule(fail_open=True),))
    await there.sync()
    fail(there, AWAY)
    body = {"model": "gpt-4o-mini", "input": "How much is a farthing?", "background": True, "max_output_tokens": 50}
    assert (await there.call(body, path="/v1/responses")).status == 503


async def test_a_key_that_was_good_stays_good_while_nobody_can_say_otherwise(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fail_open(there)
    monkeypatch.setattr(identify, "CACHE_S", 0.0)
    there.answer(*(ScriptedAnswer([WHOLE_ANSWER]) for _ in range(3)))
    assert (await there.call()).status == 200
    monkeypatch.setattr(there.directory, "find_key", _away)
    fail(there, AWAY)
    assert (await there.call()).status == 200, "its record is old, and the best there is"
    stranger = await there.call(authorization=f"Bearer {await _unseen_key(there)}")
    assert_refused(stranger, 503, "state_rebuilding", "keys")
    await there.org.revoke_key(there.key)
    await there.sync()  # what is known to have changed is not gone by any longer
    assert_refused(await there.call(), 503, "state_rebuilding", "keys")


async def test_a_bare_state_takes_nothing_from_what_calls_go_on_by(there: World) -> None:
    await fail_open(there)
    there.answer(ScriptedAnswer([WHOLE_ANSWER]), ScriptedAnswer([WHOLE_ANSWER]))
    assert (await there.call()).status == 200
    there.directory.store.generation = None
    there.directory.store.keys.clear()
    go_cold(there)
    await there.sync()
    client = await there.call()
    assert (client.status, client.header("x-spend-fail-open")) == (200, "true")


async def test_readiness_goes_with_the_spend_state_unless_a_route_fails_open(there: World) -> None:
    reason = there.assembly.app._surface.readiness
    assert await reason() is None
    fail(there, AWAY)
    assert await reason() == "the hot state can't be reached"
    await fail_open(there)
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    await there.call()
    assert await reason() is None, "calls of that route are served"


async def test_a_gateway_stays_ready_while_one_server_of_several_is_away(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    await there.call()
    monkeypatch.setattr(there.directory, "orgs", _away)  # it is on the server that is away, and so may other orgs be
    reason = there.assembly.app._surface.readiness
    assert await reason() is None, "its own org is on another"
    monkeypatch.setattr(assemble, "_STALE_S", -1.0)
    assert await reason() is None, "however long that takes"
    go_cold(there)
    assert await reason() == "the hot state can't be reached"


async def test_the_last_configuration_serves_and_says_how_old_it_is(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.answer(ScriptedAnswer([WHOLE_ANSWER]), ScriptedAnswer([WHOLE_ANSWER]))
    assert (await there.call()).status == 200
    await there.sync()
    age_s = there.assembly.snapshots.config_age_s()
    assert age_s is not None
    assert age_s < 5
    monkeypatch.setattr(there.directory, "pulse", _away)
    before_s = there.assembly.snapshots._current_s
    with pytest.raises(UnavailableError):
        await there.sync()
    assert there.assembly.snapshots._current_s == before_s, "it grows older"
    assert (await there.call()).status == 200


async def test_a_publication_that_cannot_be_read_makes_the_configuration_older(there: World) -> None:
    there.answer(ScriptedAnswer([WHOLE_ANSWER]))
    await there.call()
    await there.sync()
    before_s = there.assembly.snapshots._current_s
    assert await there.directory.publish_org(there.org.name, 1000, b"{}", {}, [])
    await there.sync()
    await there.sync()
    assert there.assembly.snapshots._current_s == before_s


async def _away(*_arguments: object) -> Any:
    raise UnavailableError("it is away")


async def _unseen_key(there: World) -> str:
    return "fk_live_" + there.key.removeprefix("fk_live_")[::-1]


def _fields(budget: Any) -> dict[str, Any]:
    return {name: getattr(budget, name) for name in budget.__dataclass_fields__}


async def test_what_cannot_be_recorded_is_not_made_even_where_the_route_fails_open(tmp_path: Path) -> None:
    async with world(tmp_path, hot_state_type=SwitchedHotState, outbox_limit=3) as there:
        await fail_open(there)
        fail(there, AWAY)
        there.answer(*(ScriptedAnswer([WHOLE_ANSWER]) for _ in range(2)))
        statuses = [(await there.call()).status for _ in range(4)]
        assert statuses == [200, 200, 503, 503], "two events a call; what ends a call is always kept"
        assert_refused(await there.call(), 503, "ledger_backlog", "try again")
        assert len(there.vendor.requests) == 2
