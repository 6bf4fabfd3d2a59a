"""The reservation API: what spends without a proxied call is held, settled and told once, whatever is asked again."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.adapters.memory import MemoryHotState
from services.adapters.outbox import SqliteOutbox
from services.core.events import Denial, HoldResized, Reservation, Settlement
from services.core.hotstate import HoldRequest, ReserveAnswer
from services.core.ports import TimedOutError
from services.core.windows import CalendarWindow
from tests.support.asgi import request
from tests.support.gateway import AWAY, RefusingOutbox, ScriptedAnswer, World, until, world
from tests.support.reservations import USAGE, Ledger, get, post, reserve


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
async def there(tmp_path: Path, ledger: Ledger) -> AsyncIterator[World]:
    async with world(tmp_path, relay_transport=ledger) as made:
        yield made


# ---- from reservation to end ----------------------------------------------------------------------------------------


async def test_an_amount_is_held_and_settled_at_its_cost(there: World) -> None:
    budget_id = await there.org.set_budget("1.00")
    await there.sync()
    held = await post(there, body={"amount_usd": "0.40", "vendor": "tavily"}, x_spend_agent="ada")
    assert held.status == 201
    told = held.json()
    assert told["state"] == "held"
    assert told["held_usd"] == "0.400000000"
    assert [each["budget_id"] for each in told["charges"]] == [budget_id]
    assert there.held_nano() == 400_000_000
    (reservation,) = there.events()
    assert isinstance(reservation, Reservation)
    assert (reservation.facts.vendor, reservation.facts.route, reservation.estimate_mode) == (
        "tavily",
        "reservation",
        "stated",
    )
    assert reservation.facts.identity.agent == "ada"
    settled = await post(there, f"/{told['reservation_id']}/settle", {"cost_usd": "0.25"})
    assert settled.status == 200
    assert settled.json()["state"] == "settled"
    assert settled.json()["cost_usd"] == "0.250000000"
    settlement = there.settlement()
    assert (settlement.cost_nano, settlement.held_nano) == (250_000_000, 400_000_000)
    assert settlement.charges == reservation.charges
    assert sum(each.cost_nano for each in settlement.components) == 250_000_000
    assert settlement.admitted_at_ms == reservation.time_ms
    assert (await get(there, told["reservation_id"])).json()["state"] == "settled"


async def test_usage_is_held_and_settled_at_the_models_prices(there: World) -> None:
    held = await post(there, body={"usage": USAGE, "vendor": "openai", "model": "gpt-4o-mini"})
    # 1,000 tokens in at $0.15 a million, and 500 out at $0.60.
    assert held.json()["held_usd"] == "0.000450000"
    path = f"/{held.json()['reservation_id']}/settle"
    settled = await post(there, path, {"usage": {**USAGE, "output_tokens": 100}, "outcome": "partial"})
    assert settled.json()["cost_usd"] == "0.000210000"
    settlement = there.settlement()
    assert (settlement.usage_source, settlement.outcome) == ("reported", "partial")
    assert settlement.facts.model_priced == "gpt-4o-mini"


async def test_what_no_budget_has_room_for_is_refused_by_name(there: World) -> None:
    budget_id = await there.org.set_budget("1.00")
    await there.sync()
    refused = await reserve(there, "1.01")
    assert refused.status == 402
    assert refused.json()["error"] == "budget_exhausted"
    assert refused.json()["budget_id"] == budget_id
    assert refused.json()["estimate_usd"] == "1.010000000"
    assert refused.json()["remaining_usd"] == "1.000000000"
    assert "cap" not in refused.json()
    assert there.held_nano() == 0
    (denial,) = there.events()
    assert isinstance(denial, Denial)
    assert denial.transaction_id == refused.json()["reservation_id"]


async def test_of_many_at_once_no_more_are_held_than_fit(there: World) -> None:
    await there.org.set_budget("1.00")
    await there.sync()
    answers = await asyncio.gather(*(reserve(there, "0.30") for _ in range(20)))
    assert sorted(each.status for each in answers) == [201] * 3 + [402] * 17


async def test_a_hold_grows_as_far_as_there_is_room(there: World) -> None:
    await there.org.set_budget("1.00")
    await there.sync()
    reservation_id = (await reserve(there)).json()["reservation_id"]
    grown = await post(there, f"/{reservation_id}/extend", {"amount_usd": "0.90", "hold_seconds": 3_600})
    assert grown.status == 200
    assert grown.json()["held_usd"] == "0.900000000"
    assert there.held_nano() == 900_000_000
    resized = there.events()[-1]
    assert isinstance(resized, HoldResized)
    assert resized.expires_at_ms == there.clock.now_ms + 3_600_000
    refused = await post(there, f"/{reservation_id}/extend", {"amount_usd": "1.10"})
    assert refused.status == 402
    assert there.held_nano() == 900_000_000
    await post(there, f"/{reservation_id}/settle", {"cost_usd": "0.95"})
    assert there.settlement().held_nano == 900_000_000
    assert (await post(there, f"/{reservation_id}/extend", {"amount_usd": "0.10"})).status == 409


async def test_a_hold_that_outlives_its_window_does_not_grow_into_it_again(there: World) -> None:
    """The day's figures are gone a day after it, and what was spent beside this hold is not known any more."""
    await there.org.set_budget("1.00", window=CalendarWindow("day", "UTC"))
    await there.sync()
    reservation_id = (await reserve(there, hold_seconds=10 * 86_400)).json()["reservation_id"]
    assert (await reserve(there, "0.60", hold_seconds=60)).status == 201
    there.clock.now_ms += 2 * 86_400_000
    await there.sync()
    assert (await reserve(there, "0.90", hold_seconds=60)).status == 201, "today's window has room"
    refused = await post(there, f"/{reservation_id}/extend", {"amount_usd": "0.41", "hold_seconds": 60})
    assert refused.status == 402
    assert refused.json()["remaining_usd"] == "0.000000000"
    same = await post(there, f"/{reservation_id}/extend", {"amount_usd": "0.40", "hold_seconds": 3_600})
    assert (same.status, same.json()["held_usd"]) == (200, "0.400000000")
    less = await post(there, f"/{reservation_id}/extend", {"amount_usd": "0.10", "hold_seconds": 3_600})
    assert (less.status, less.json()["held_usd"]) == (200, "0.100000000")


async def test_what_is_released_has_cost_nothing(there: World) -> None:
    reservation_id = (await reserve(there)).json()["reservation_id"]
    released = await post(there, f"/{reservation_id}/release")
    assert released.status == 200
    assert released.json()["state"] == "released"
    assert released.json()["cost_usd"] == "0.000000000"
    assert (there.settlement().cost_nano, there.settlement().outcome) == (0, "cancelled")
    assert (await post(there, f"/{reservation_id}/release")).json() == released.json()
    assert (await post(there, f"/{reservation_id}/settle", {"cost_usd": "0.10"})).status == 409
    assert len([each for each in there.events() if isinstance(each, Settlement)]) == 1


async def test_an_expired_reservation_can_still_be_settled(there: World) -> None:
    reservation_id = (await reserve(there, hold_seconds=60)).json()["reservation_id"]
    there.clock.now_ms += 61_000
    await there.sync()
    assert (await get(there, reservation_id)).json()["state"] == "expired"
    assert (await post(there, f"/{reservation_id}/settle", {"cost_usd": "0.10"})).status == 200


# ---- told once, told for ever ---------------------------------------------------------------------------------------


async def test_the_same_key_and_body_are_answered_alike_and_held_once(there: World) -> None:
    await there.org.set_budget("1.00")
    await there.sync()
    first = await reserve(there, "0.60", "order-1")
    again = await reserve(there, "0.60", "order-1")
    assert (again.status, again.json()) == (first.status, first.json()) == (201, first.json())
    assert there.held_nano() == 600_000_000
    assert len(there.events()) == 1
    other = await reserve(there, "0.70", "order-1")
    assert (other.status, other.json()["error"]) == (409, "idempotency_conflict")
    assert there.held_nano() == 600_000_000


async def test_a_refusal_is_the_answer_for_ever_too(there: World) -> None:
    await there.org.set_budget("0.50")
    await there.sync()
    first = await reserve(there, "0.60", "order-1")
    assert first.status == 402
    await there.org.publish(budgets=())
    await there.sync()
    again = await reserve(there, "0.60", "order-1")
    assert (again.status, again.json()) == (402, first.json())
    assert (await reserve(there, "0.60", "order-2")).status == 201


async def test_the_same_key_at_once_is_one_reservation(there: World) -> None:
    answers = await asyncio.gather(*(reserve(there, "0.60", "order-1") for _ in range(10)))
    assert {each.status for each in answers} == {201}
    assert len({json.dumps(each.json()) for each in answers}) == 1
    assert len(there.events()) == 1


async def test_an_end_at_once_is_one_settlement(there: World) -> None:
    path = f"/{(await reserve(there)).json()['reservation_id']}/settle"
    answers = await asyncio.gather(*(post(there, path, {"cost_usd": "0.10"}) for _ in range(10)))
    assert {each.status for each in answers} == {200}
    assert len({json.dumps(each.json()) for each in answers}) == 1
    there.settlement()


async def test_the_ledger_tells_what_is_forgotten_beside_the_hot_state(there: World, ledger: Ledger) -> None:
    await there.org.set_budget("1.00")
    await there.sync()
    held, refused = await reserve(there, "0.60", "order-1"), await reserve(there, "0.60", "order-2")
    ended = await post(there, f"/{held.json()['reservation_id']}/settle", {"cost_usd": "0.10"})
    ledger.events = there.events()
    there.clock.now_ms += 30 * 86_400_000
    await there.sync()
    again = await reserve(there, "0.60", "order-1")
    assert (again.status, again.json()) == (201, held.json())
    again = await reserve(there, "0.60", "order-2")
    assert (again.status, again.json()) == (402, refused.json())
    assert (await reserve(there, "0.61", "order-2")).status == 409
    again = await post(there, f"/{held.json()['reservation_id']}/settle", {"cost_usd": "0.10"})
    assert (again.status, again.json()) == (200, ended.json())
    assert (await post(there, f"/{held.json()['reservation_id']}/settle", {"cost_usd": "0.11"})).status == 409
    assert len(there.events()) == 3


async def test_without_the_ledger_a_key_that_may_be_old_is_not_taken_for_new(there: World, ledger: Ledger) -> None:
    ledger.is_away = True
    assert (await reserve(there, "0.60", "order-1")).status == 503
    assert there.events() == []
    assert (await reserve(there, "0.60")).status == 201, "without a key there is nothing to look up"
    ledger.is_away = False
    assert (await reserve(there, "0.60", "order-1")).status == 201


async def test_what_was_not_decided_is_tried_again(tmp_path: Path, ledger: Ledger) -> None:
    class Failing(MemoryHotState):
        fails = True

        async def reserve(self, request: HoldRequest) -> ReserveAnswer:
            if self.fails:
                raise AWAY
            return await super().reserve(request)

    async with world(tmp_path, hot_state_type=Failing, relay_transport=ledger) as made:
        assert (await reserve(made, "0.60", "order-1")).status == 503
        assert isinstance(made.hot_state, Failing)
        made.hot_state.fails = False
        assert (await reserve(made, "0.60", "order-1")).status == 201


async def test_a_hold_that_was_not_answered_is_taken_back_unless_it_can_be_asked_for_again(
    tmp_path: Path, ledger: Ledger
) -> None:
    class Silent(MemoryHotState):
        fails = False

        async def reserve(self, request: HoldRequest) -> ReserveAnswer:
            answer = await super().reserve(request)
            if self.fails:
                raise TimedOutError("too slow")
            return answer

    async with world(tmp_path, hot_state_type=Silent, relay_transport=ledger) as made:
        await made.org.set_budget("1.00")
        await made.sync()
        assert isinstance(made.hot_state, Silent)
        made.hot_state.fails = True
        assert (await reserve(made, "0.60")).status == 503
        await until(lambda: made.held_nano() == 0)
        assert (await reserve(made, "0.70", "order-1")).status == 503
        await asyncio.sleep(0.05)
        assert made.held_nano() == 700_000_000, "the next try finds it"
        made.hot_state.fails = False
        assert (await reserve(made, "0.70", "order-1")).status == 201
        assert made.held_nano() == 700_000_000


async def test_what_can_not_be_recorded_is_not_held(tmp_path: Path, ledger: Ledger) -> None:
    refusing = SqliteOutbox(tmp_path / "other.sqlite", 10)
    recorder = RefusingOutbox(refusing, lambda _: AWAY)
    async with world(tmp_path, relay_transport=ledger, recorder=recorder) as made:
        assert (await reserve(made, "0.60", "order-1")).status == 503
        assert made.held_nano() == 0
    refusing.close()


# ---- who may, and what is wrong -------------------------------------------------------------------------------------


async def test_a_reservation_is_seen_by_its_own_callers_only(there: World) -> None:
    reservation_id = (await reserve(there)).json()["reservation_id"]
    other = await there.org.make_key(team="web")
    await there.sync()
    for path, body in (("/settle", {"cost_usd": "0"}), ("/release", {}), ("/extend", {"amount_usd": "1"})):
        client = await post(there, f"/{reservation_id}{path}", body, authorization=f"Bearer {other}")
        assert client.status == 404, path
    assert len(there.events()) == 1


async def test_a_proxied_call_is_not_settled_by_hand(there: World, ledger: Ledger) -> None:
    there.answer(ScriptedAnswer([b'{"usage":{"prompt_tokens":10,"completion_tokens":5}}']))
    await there.call()
    ledger.events = [each for each in there.events() if isinstance(each, Reservation)]
    client = await post(there, f"/{ledger.events[0].transaction_id}/settle", {"cost_usd": "0"})
    assert (client.status, client.json()["error"]) == (409, "not_a_reservation")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, None),
        ({"amount_usd": 0.5}, "amount_usd"),
        ({"amount_usd": "-1"}, "amount_usd"),
        ({"amount_usd": "1e3"}, "amount_usd"),
        ({"amount_usd": "1", "usage": USAGE}, None),
        ({"usage": USAGE}, None),
        ({"usage": {"tokens": 5}, "model": "gpt-4o-mini"}, "usage"),
        ({"usage": {"input_tokens": -5}, "model": "gpt-4o-mini"}, "usage"),
        ({"amount_usd": "1", "hold_seconds": 0}, "hold_seconds"),
        ({"amount_usd": "1", "vendor": "no such name"}, "vendor"),
        ({"amount_usd": "1", "auth_mode": "free"}, "auth_mode"),
        ({"amount_usd": "1", "amount": "1"}, "amount"),
    ],
)
async def test_a_body_that_is_wrong_is_refused_by_its_field(there: World, body: object, field: str | None) -> None:
    client = await post(there, body=body)
    assert (client.status, client.json()["error"]) == (400, "invalid_request")
    assert client.json().get("field") == field
    assert there.events() == []


async def test_prices_that_are_not_known_are_refused(there: World) -> None:
    client = await post(there, body={"usage": USAGE, "vendor": "openai", "model": "gpt-nonesuch"})
    assert (client.status, client.json()["error"]) == (400, "unknown_model")
    client = await post(there, body={"usage": {"pages": 3}, "vendor": "openai", "model": "gpt-4o-mini"})
    assert (client.status, client.json()["error"]) == (400, "unpriced_feature")


async def test_other_paths_and_methods_are_refused(there: World) -> None:
    assert (await get(there, "rsv_unknown")).status == 404
    assert (await post(there, "/rsv_unknown/pay", {})).status == 404
    client = await request(there.assembly.app, "/v1/reservations", headers=there.headers(), method="GET")
    assert (client.status, client.header("allow")) == (405, "POST")
    client = await request(there.assembly.app, "/v1/reservations", {"amount_usd": "1"})
    assert client.status == 401
