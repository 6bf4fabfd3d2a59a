"""The reservation API asked again: after crashes, forgotten answers and other changes, told once and held once."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.adapters.memory_answers import MemoryAnswers
from services.adapters.outbox import SqliteOutbox
from services.core.answers import ANSWER_MS, CLAIM_MS, Answer
from services.core.budgets import Budget
from services.core.codec import decode
from services.core.events import Denial, Event, HoldResized, Reservation, Settlement
from services.core.ports import NotSentError
from services.core.windows import SessionWindow
from services.gateway.reservations.told import held
from tests.support.asgi import Client
from tests.support.gateway import AWAY, DAY, RefusingOutbox, World, world
from tests.support.reservations import USAGE, Ledger, get, post, reserve

HOUR_MS = 3_600_000
# The status of an end that is decided, and not recorded yet.
DECIDED = 2


class Forgetful(MemoryAnswers):
    """Answers to what was done are not kept while it `fails`: whoever wrote them is as good as gone.

    While it `is_full`, what is only decided is not kept either.
    """

    fails = False
    is_full = False

    async def finish(self, org: str, name: str, answer: Answer, keep_ms: int) -> Answer:
        if self.is_full:
            raise NotSentError("it takes no more")
        if self.fails and answer.status != DECIDED:
            raise AWAY
        return await super().finish(org, name, answer, keep_ms)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
async def there(tmp_path: Path, ledger: Ledger) -> AsyncIterator[World]:
    built: World
    answers = Forgetful(lambda: built.clock.now_ms)
    async with world(tmp_path, relay_transport=ledger, answers=answers) as built:
        await built.org.set_budget("1.00")
        await built.sync()
        yield built


def answers_of(there: World) -> Forgetful:
    assert isinstance(there.ports.answers, Forgetful)
    return there.ports.answers


def of_kind(there: World, kind: type[Event]) -> list[Any]:
    return [each for each in there.events() if isinstance(each, kind)]


async def turn(there: World, by_ms: int) -> None:
    there.clock.now_ms += by_ms
    await there.sync()


async def test_a_claim_that_a_crash_left_behind_is_taken_over_and_the_hold_told_as_it_was(there: World) -> None:
    answers_of(there).fails = True
    assert (await reserve(there, "0.60", "order-1")).status == 503, "what can't be kept is not told"
    answers_of(there).fails = False
    again = asyncio.create_task(reserve(there, "0.60", "order-1"))
    await asyncio.sleep(0.1)
    assert not again.done(), "whoever has the claim may still be at it"
    there.clock.now_ms += CLAIM_MS
    first, *_ = of_kind(there, Reservation)
    assert ((await again).status, (await again).json()) == (201, held(first))
    assert there.held_nano() == 600_000_000
    assert len({json.dumps(str(each)) for each in of_kind(there, Reservation)}) == 1, "one event, if twice"


async def test_a_hold_that_is_found_again_is_recorded_by_the_configuration_it_was_made_under(there: World) -> None:
    answers_of(there).fails = True
    assert (await reserve(there, "0.60", "order-1")).status == 503
    answers_of(there).fails = False
    await there.org.set_budget("2.00")
    await turn(there, CLAIM_MS)
    assert (await reserve(there, "0.60", "order-1")).status == 201
    first, again = of_kind(there, Reservation)
    assert again == first


async def test_another_body_for_a_hold_that_is_found_again_is_a_conflict(there: World) -> None:
    answers_of(there).fails = True
    assert (await reserve(there, "0.60", "order-1")).status == 503
    answers_of(there).fails = False
    await turn(there, CLAIM_MS)
    assert (await reserve(there, "0.70", "order-1")).status == 409
    assert (await reserve(there, "0.60", "order-1")).status == 201, "the first body's answer is still to be had"
    assert there.held_nano() == 600_000_000


async def test_another_body_under_way_does_not_turn_away_the_one_that_was_first(there: World, ledger: Ledger) -> None:
    first = await reserve(there, "0.60", "order-1")
    ledger.events = there.events()
    await turn(there, 30 * 24 * HOUR_MS)
    name = first.json()["reservation_id"]
    assert await answers_of(there).claim("default", name, "another body's", CLAIM_MS) is None
    again = asyncio.create_task(reserve(there, "0.60", "order-1"))
    await asyncio.sleep(0.1)
    assert not again.done(), "the other one may yet find that it came too late"
    await answers_of(there).drop("default", name, "another body's")
    assert ((await again).status, (await again).json()) == (201, first.json())


async def test_what_was_recorded_and_not_kept_is_asked_the_ledger_for_and_not_held_again(
    there: World, ledger: Ledger
) -> None:
    answers_of(there).fails = True
    assert (await reserve(there, "0.60", "order-1")).status == 503
    answers_of(there).fails = False
    ledger.events = there.events()
    there.hot_state.store.state("default").holds.clear()  # it ended long ago, and is forgotten
    await turn(there, CLAIM_MS)
    (first,) = of_kind(there, Reservation)
    assert (await reserve(there, "0.60", "order-1")).json() == held(first)
    assert len(there.events()) == 1


async def test_another_body_spoils_no_key_that_only_the_ledger_knows(there: World, ledger: Ledger) -> None:
    first = await reserve(there, "0.60", "order-1")
    ledger.events = there.events()
    await turn(there, 30 * 24 * HOUR_MS)
    assert (await reserve(there, "0.70", "order-1")).status == 409
    again = await reserve(there, "0.6000", "order-1")
    assert (again.status, again.json()) == (201, first.json())


async def test_the_first_answer_is_the_first_one_after_it_was_extended_too(there: World, ledger: Ledger) -> None:
    first = await reserve(there, "0.40", "order-1", hold_seconds=60)
    path = f"/{first.json()['reservation_id']}"
    await turn(there, 1_000)
    assert (await post(there, path + "/extend", {"amount_usd": "0.90", "hold_seconds": 600})).status == 200
    assert (await reserve(there, "0.40", "order-1", hold_seconds=60)).json() == first.json()
    ledger.events = there.events()
    await turn(there, 30 * 24 * HOUR_MS)
    assert (await reserve(there, "0.40", "order-1", hold_seconds=60)).json() == first.json()
    settled = await post(there, path + "/settle", {"cost_usd": "0.10"})
    assert settled.json()["held_usd"] == "0.900000000"


async def test_the_end_of_a_long_hold_is_known_as_long_as_its_beginning(there: World) -> None:
    path = f"/{(await reserve(there, hold_seconds=20 * 86_400)).json()['reservation_id']}"
    assert (await post(there, path + "/extend", {"amount_usd": "0.50", "hold_seconds": 60})).status == 200
    ended = await post(there, path + "/settle", {"cost_usd": "0.10"})
    await turn(there, ANSWER_MS + HOUR_MS)
    assert (await post(there, path + "/settle", {"cost_usd": "0.10"})).json() == ended.json()
    assert (await post(there, path + "/settle", {"cost_usd": "0.20"})).status == 409
    assert len(of_kind(there, Settlement)) == 1


class Late(MemoryAnswers):
    """What is kept `late` takes so long that its writer gives up."""

    def __init__(self, clock: Callable[[], int]) -> None:
        super().__init__(clock)
        self.late: list[tuple[str, str, Answer, int]] | None = None
        self.lands_first: list[tuple[str, str, Answer, int]] = []

    async def finish(self, org: str, name: str, answer: Answer, keep_ms: int) -> Answer:
        if self.late is not None:
            self.late.append((org, name, answer, keep_ms))
            raise AWAY
        while self.lands_first:
            await super().finish(*self.lands_first.pop())
        return await super().finish(org, name, answer, keep_ms)


@pytest.mark.parametrize("deed", ["settle", "extend"])
async def test_a_try_that_was_given_up_takes_no_answers_place_when_it_is_kept_late(tmp_path: Path, deed: str) -> None:
    built: World
    answers = Late(lambda: built.clock.now_ms)
    async with world(tmp_path, relay_transport=Ledger(), answers=answers) as built:
        await built.org.set_budget("1.00")
        await built.sync()
        path = f"/{(await reserve(built)).json()['reservation_id']}/{deed}"
        body = {"cost_usd": "0.25"} if deed == "settle" else {"amount_usd": "0.30", "hold_seconds": 60}
        keyed = {} if deed == "settle" else {"idempotency_key": "more"}
        answers.late = late = []
        assert (await post(built, path, body, **keyed)).status == 503
        answers.late = None
        await turn(built, CLAIM_MS)
        told = await post(built, path, body, **keyed)
        assert told.status == 200
        for each in late:
            await answers.finish(*each)
        await turn(built, CLAIM_MS)
        assert (await post(built, path, body, **keyed)).json() == told.json()


async def test_an_end_that_was_given_up_counts_when_it_is_kept_before_another(tmp_path: Path) -> None:
    built: World
    answers = Late(lambda: built.clock.now_ms)
    async with world(tmp_path, relay_transport=Ledger(), answers=answers) as built:
        await built.org.set_budget("1.00")
        await built.sync()
        path = f"/{(await reserve(built)).json()['reservation_id']}/settle"
        answers.late = late = []
        assert (await post(built, path, {"cost_usd": "0.25"})).status == 503
        answers.late, answers.lands_first = None, late
        await turn(built, CLAIM_MS)
        assert (await post(built, path, {"cost_usd": "0.30"})).status == 409
        assert [each.cost_nano for each in of_kind(built, Settlement)] == [250_000_000]
        assert (await post(built, path, {"cost_usd": "0.25"})).status == 200


async def test_the_end_of_a_hold_that_grew_past_a_child_says_that_the_parent_paid(there: World) -> None:
    parent = there.org.snapshot.budgets[0].budget_id
    child = Budget("bud_child", "team", "ml", DAY, 500_000_000, parent_id=parent, child_mode="fallback")
    await there.org.publish(budgets=(*there.org.snapshot.budgets, child))
    await there.sync()
    path = f"/{(await reserve(there, '0.40')).json()['reservation_id']}"
    assert (await post(there, path + "/extend", {"amount_usd": "0.90"})).status == 200
    assert (await post(there, path + "/settle", {"cost_usd": "0.70"})).status == 200
    (ending,) = of_kind(there, Settlement)
    assert ([each.budget_id for each in ending.charges], ending.parent_charged) == ([parent], ("bud_child",))


async def test_a_hold_that_grew_past_a_child_is_told_as_it_is_charged_now(there: World) -> None:
    parent = there.org.snapshot.budgets[0].budget_id
    child = Budget("bud_child", "team", "ml", DAY, 500_000_000, parent_id=parent, child_mode="fallback")
    await there.org.publish(budgets=(*there.org.snapshot.budgets, child))
    await there.sync()
    first = (await reserve(there, "0.40", "order-1")).json()
    path = f"/{first['reservation_id']}"
    grown = (await post(there, path + "/extend", {"amount_usd": "0.90"})).json()
    assert ([each["budget_id"] for each in grown["charges"]], grown["parent_charged"]) == ([parent], ["bud_child"])
    assert (await get(there, path[1:])).json() == grown
    again = (await reserve(there, "0.40", "order-1")).json()
    assert again == first, "the first answer is for ever"
    assert ({each["budget_id"] for each in again["charges"]}, again["parent_charged"]) == ({parent, "bud_child"}, [])


async def test_a_hold_whose_answer_can_not_be_kept_and_that_nobody_can_ask_for_again_is_ended(there: World) -> None:
    answers_of(there).fails = True
    assert (await reserve(there, "0.60")).status == 503
    (ending,) = of_kind(there, Settlement)
    assert (ending.outcome, ending.cost_nano) == ("cancelled", 0)


async def test_an_end_that_was_not_kept_is_asked_the_ledger_for(there: World, ledger: Ledger) -> None:
    path = f"/{(await reserve(there, hold_seconds=86_400)).json()['reservation_id']}"
    answers_of(there).fails = True
    ended = await post(there, path + "/settle", {"cost_usd": "0.10"})
    answers_of(there).fails = False
    await turn(there, 2 * HOUR_MS)
    ledger.is_away = True
    assert (await post(there, path + "/settle", {"cost_usd": "0.10"})).status == 503
    ledger.is_away, ledger.events = False, there.events()
    assert (await post(there, path + "/release")).status == 409
    assert (await post(there, path + "/settle", {"cost_usd": "0.10"})).json() == ended.json()
    assert len(of_kind(there, Settlement)) == 1


async def test_an_end_is_decided_once_whoever_dies_before_it_is_kept(there: World) -> None:
    name = (await reserve(there)).json()["reservation_id"]
    answers_of(there).fails = True
    ended = await post(there, f"/{name}/settle", {"cost_usd": "0.25"})
    answers_of(there).fails = False
    await turn(there, CLAIM_MS + 1_000)
    assert (await post(there, f"/{name}/settle", {"cost_usd": "0.50"})).status == 409
    again = await post(there, f"/{name}/settle", {"cost_usd": "0.25"})
    assert (ended.status, again.status, again.json()) == (200, 200, ended.json())
    assert (await get(there, name)).json() == ended.json()
    rows = [decode(row.message.value) for row in there.outbox.oldest(100)]
    ends = [each for each in rows if isinstance(each.event, Settlement)]
    assert {(each.producer, each.sequence) for each in ends} == {(f"expiry:end:{name}", 1)}, "consumers drop the second"
    assert {each.event.cost_nano for each in ends if isinstance(each.event, Settlement)} == {250_000_000}


async def test_an_end_that_can_not_be_decided_for_all_is_not_recorded(there: World) -> None:
    name = (await reserve(there)).json()["reservation_id"]
    answers_of(there).is_full = True
    assert (await post(there, f"/{name}/settle", {"cost_usd": "0.25"})).status == 503
    assert of_kind(there, Settlement) == []
    answers_of(there).is_full = False
    assert (await post(there, f"/{name}/settle", {"cost_usd": "0.30"})).status == 200, "and at once"
    assert [each.cost_nano for each in of_kind(there, Settlement)] == [300_000_000]


async def test_usage_is_the_same_end_whatever_its_price_is_by_now(there: World) -> None:
    held = await post(there, body={"usage": USAGE, "vendor": "openai", "model": "gpt-4o-mini"})
    path = f"/{held.json()['reservation_id']}/settle"
    ended = await post(there, path, {"usage": USAGE})
    await there.org.disconnect("openai")
    await there.org.connect("openai", "https://vendor.test/v1", prices_as="nobody")
    await there.sync()
    assert (await post(there, path, {"usage": USAGE})).json() == ended.json()
    assert (await post(there, path, {"usage": {**USAGE, "output_tokens": 1}})).status == 409
    assert (await post(there, path, {"cost_usd": ended.json()["cost_usd"]})).status == 409


async def test_different_ends_at_once_are_one_end(there: World) -> None:
    path = f"/{(await reserve(there)).json()['reservation_id']}"
    answers = await asyncio.gather(
        *(post(there, path + "/settle", {"cost_usd": f"0.0{number}"}) for number in range(1, 6)),
        post(there, path + "/release"),
    )
    assert sorted(each.status for each in answers) == [200] + [409] * 5
    assert len(of_kind(there, Settlement)) == 1


async def extend(there: World, path: str, key: str, **body: object) -> Client:
    return await post(there, path + "/extend", body, idempotency_key=key)


async def test_an_extension_under_a_key_is_done_once(there: World) -> None:
    path = f"/{(await reserve(there)).json()['reservation_id']}"
    first = await extend(there, path, "more-1", amount_usd="0.60", hold_seconds=600)
    assert (await extend(there, path, "more-2", amount_usd="0.70")).status == 200
    refused = await extend(there, path, "more-3", amount_usd="1.70")
    assert refused.status == 402
    await turn(there, 5_000)
    again = await extend(there, path, "more-1", amount_usd="0.60", hold_seconds=600)
    assert (again.status, again.json()) == (200, first.json())
    assert (await extend(there, path, "more-3", amount_usd="1.70")).json() == refused.json()
    assert (await extend(there, path, "more-1", amount_usd="0.61")).status == 409
    assert (there.held_nano(), len(of_kind(there, HoldResized))) == (700_000_000, 2)
    await post(there, path + "/release")
    assert (await extend(there, path, "more-1", amount_usd="0.60", hold_seconds=600)).json() == first.json()
    assert (await extend(there, path, "more-4", amount_usd="0.10")).status == 409


async def test_an_extension_under_a_key_is_known_for_longer_than_it_has_made_the_hold(
    there: World, ledger: Ledger
) -> None:
    """Done again, it would undo what another has changed since."""
    path = f"/{(await reserve(there, hold_seconds=60)).json()['reservation_id']}"
    first = await extend(there, path, "more-1", amount_usd="0.60", hold_seconds=20 * 86_400)
    assert (await extend(there, path, "more-2", amount_usd="0.70")).status == 200
    refused = await extend(there, path, "more-3", amount_usd="1.70")
    ledger.events = there.events()
    await turn(there, ANSWER_MS + HOUR_MS)
    assert (await extend(there, path, "more-3", amount_usd="1.70")).json() == refused.json()
    again = await extend(there, path, "more-1", amount_usd="0.60", hold_seconds=20 * 86_400)
    assert (again.json(), there.held_nano()) == (first.json(), 700_000_000)


async def test_the_same_key_of_two_api_keys_is_two_reservations(there: World) -> None:
    other = await there.org.make_key(team="ml")
    await there.sync()
    first = await reserve(there, "0.30", "step-1")
    second = await post(there, body={"amount_usd": "0.20"}, idempotency_key="step-1", authorization=f"Bearer {other}")
    assert (first.status, second.status) == (201, 201)
    assert there.held_nano() == 500_000_000


async def test_whoever_can_not_record_lets_go_of_no_hold_that_another_has_recorded(
    tmp_path: Path, ledger: Ledger
) -> None:
    outbox = SqliteOutbox(tmp_path / "other.sqlite", 100)
    is_down = False
    recorder = RefusingOutbox(outbox, lambda _: AWAY if is_down else None)
    built: World
    answers = Forgetful(lambda: built.clock.now_ms)
    async with world(tmp_path, relay_transport=ledger, answers=answers, recorder=recorder) as built:
        await built.org.set_budget("1.00")
        await built.sync()
        answers.fails = True
        assert (await reserve(built, "0.60", "order-1")).status == 503
        is_down = True
        await turn(built, CLAIM_MS)
        assert (await reserve(built, "0.60", "order-1")).status == 503
        assert built.held_nano() == 600_000_000
    outbox.close()


async def test_refusals_name_the_cap_the_header_and_the_fix(there: World, ledger: Ledger) -> None:
    cap = Budget("cap_1", "billing_class", "metered.tavily", DAY, 100_000_000, is_cap=True)
    session = Budget("bud_session", "agent", "ada", SessionWindow(), 100_000_000)
    crowd = [Budget(f"bud_{number}", "agent", "bob", DAY, 10**9) for number in range(70)]
    await there.org.publish(budgets=(cap, session, *crowd))
    await there.sync()
    refused = await post(there, body={"amount_usd": "0.20", "vendor": "tavily"}, idempotency_key="search-1")
    told = refused.json()
    assert (refused.status, told["error"]) == (402, "BudgetCapExceeded")
    assert (told["cap"], told["billingClass"], told["remaining_usd"]) == ("daily", "metered.tavily", "0.100000000")
    assert "the daily cap on metered.tavily has $0.100000000 left" in told["message"]
    assert told["resets_at"].endswith("T00:00:00.000Z")
    assert "retry_at" not in told, "no waiting brings $0.20 of $0.10"
    ledger.events = there.events()
    await turn(there, 30 * 24 * HOUR_MS)
    again = await post(there, body={"amount_usd": "0.20", "vendor": "tavily"}, idempotency_key="search-1")
    assert (again.status, again.json()) == (402, told), "as the ledger tells it"
    await there.org.publish(budgets=(replace(cap, limit_nano=0), session, *crowd))
    await there.sync()
    refused = await post(there, body={"amount_usd": "0", "vendor": "tavily"})
    assert (refused.status, refused.json()["error"]) == (402, "BudgetCapExceeded")
    nameless = await post(there, body={"amount_usd": "0.01"}, x_spend_agent="ada")
    assert (nameless.status, nameless.json()["error"]) == (400, "session_required")
    assert nameless.json()["field"] == "x-spend-session"
    many = await post(there, body={"amount_usd": "0.01"}, x_spend_agent="bob")
    assert (many.status, many.json()["error"]) == (400, "too_many_budgets")
    assert "narrow their scopes" in many.json()["message"]


async def test_a_reservation_of_which_the_ledger_knows_only_the_end_is_waited_for(there: World, ledger: Ledger) -> None:
    name = (await reserve(there)).json()["reservation_id"]
    await post(there, f"/{name}/settle", {"cost_usd": "0.10"})
    ledger.events = of_kind(there, Settlement)
    await turn(there, 30 * 24 * HOUR_MS)
    assert (await get(there, name)).status == 503, "its reservation is still on its way to the ledger"
    ledger.events = there.events()
    assert (await get(there, name)).json()["state"] == "settled"


async def test_a_refusal_that_can_not_be_kept_is_not_recorded_and_the_next_try_decides(
    there: World, ledger: Ledger
) -> None:
    """Recorded, it would be what the ledger tells, whatever was told meanwhile."""
    answers_of(there).is_full = True
    assert (await reserve(there, "1.10", "order-1")).status == 503
    assert of_kind(there, Denial) == []
    answers_of(there).is_full = False
    await there.org.set_budget("1.05")
    await turn(there, CLAIM_MS)
    told = await reserve(there, "1.10", "order-1")
    assert told.status == 402
    ledger.events = there.events()
    await turn(there, 30 * 24 * HOUR_MS)
    assert (await reserve(there, "1.10", "order-1")).json() == told.json()


async def test_a_refusal_that_is_kept_is_recorded_by_whoever_asks_next(tmp_path: Path, ledger: Ledger) -> None:
    outbox, is_down = SqliteOutbox(tmp_path / "other.sqlite", 100), True
    recorder = RefusingOutbox(outbox, lambda event: AWAY if is_down and isinstance(event, Denial) else None)
    async with world(tmp_path, relay_transport=ledger, recorder=recorder) as built:
        built.outbox = outbox
        await built.org.set_budget("1.00")
        await built.sync()
        assert (await reserve(built, "1.10", "order-1")).status == 503
        is_down = False
        await built.org.publish(budgets=())
        await built.sync()
        told = await reserve(built, "1.10", "order-1")
        assert told.status == 402, "it was decided, and may have been told"
        assert (await reserve(built, "1.10", "order-1")).json() == told.json()
        assert [type(each) for each in built.events()] == [Denial], "once it is recorded it is only told"
        ledger.events = built.events()
        await turn(built, 30 * 24 * HOUR_MS)
        assert (await reserve(built, "1.10", "order-1")).json() == told.json()
    outbox.close()
