"""Budgets whose past is not known yet: calls wait for it, are refused without it, and never take it for nothing."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from services.core.budgets import EACH, Budget
from services.core.hotstate import Figures
from services.core.ports import UnavailableError
from services.core.snapshot import ANY, RouteRule
from services.core.snapshot import Target as FallbackTarget
from services.core.windows import LifetimeWindow, span_at
from services.gateway import forward, pasts
from services.gateway.pasts import find_pasts, pasts_to_know
from tests.support import growing
from tests.support.asgi import Client, request
from tests.support.budgets import (
    ask,
    budget,
    charged,
    denials,
    held_by,
    hold_of,
    last_settlement,
    priced_world,
    reservations,
    set_budgets,
)
from tests.support.gateway import AWAY, ScriptedAnswer, World, assert_refused, chat, until
from tests.support.reservations import Ledger, reserve

LIMIT = 1_000_000_000
NEW = budget("bud_new", since_version=7)


class Marks:
    """Stands before a world's hot state: what it is asked for marks, and whether it answers."""

    def __init__(self, there: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there = there
        self.asked: list[tuple[str, ...]] = []
        self.failure: Exception | None = None
        self._real = there.hot_state.filled
        monkeypatch.setattr(there.hot_state, "filled", self._filled)

    async def _filled(self, org: str, budget_ids: Sequence[str]) -> Mapping[str, int] | None:
        self.asked.append(tuple(budget_ids))
        if self.failure is not None:
            raise self.failure
        return await self._real(org, budget_ids)

    def set(self, budget_id: str, version: int, spent_nano: int = 0, value: str = "") -> None:
        """What the aggregator does: the present window's past, and the mark."""
        state = self.there.hot_state.store.state("default")
        window = span_at(NEW.window, self.there.clock.now_ms).key()
        figures = state.windows.setdefault((budget_id + value, window), Figures())
        figures.spent_nano += spent_nano
        state.filled[budget_id] = version


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with priced_world(tmp_path, relay_transport=Ledger()) as made:
        await made.assembly.snapshots.view("default")
        yield made


@pytest.fixture
def marks(there: World, monkeypatch: pytest.MonkeyPatch) -> Marks:
    monkeypatch.setattr(pasts, "PATIENCE_S", 60.0)
    monkeypatch.setattr(pasts, "PAUSE_S", 0.005)
    return Marks(there, monkeypatch)


@pytest.fixture
def impatient(marks: Marks, monkeypatch: pytest.MonkeyPatch) -> Marks:
    monkeypatch.setattr(pasts, "PATIENCE_S", 0.03)
    return marks


def start(there: World, **headers: str) -> tuple[Client, asyncio.Task[None]]:
    """A call of `dear` on its way."""
    return growing.begin(there, chat(model="dear"), **headers)


def assert_unknown(client: Client, budget_id: str = "bud_new", scope: str = "org:default") -> None:
    assert_refused(client, 503, "state_rebuilding", f"budget {budget_id} of {scope}", "already spent is not known yet")
    assert client.header("retry-after") == "1"
    assert (client.json()["error"]["budget_id"], client.json()["error"]["scope"]) == (budget_id, scope)


# ---- waiting --------------------------------------------------------------------------------------------------------


async def test_a_call_waits_until_the_past_is_known_and_is_then_held_against_it(there: World, marks: Marks) -> None:
    await set_budgets(there, NEW)
    full, refused = start(there)
    await until(lambda: len(marks.asked) > 3)
    assert (there.vendor.requests, there.events(), refused.done()) == ([], [], False)
    marks.set("bud_new", 7, spent_nano=LIMIT)
    await refused
    assert_refused(full, 402, "budget_exhausted", "bud_new")
    assert denials(there)[0].spent_nano == LIMIT


async def test_a_call_that_there_is_room_for_notices_nothing_but_the_wait(there: World, marks: Marks) -> None:
    await set_budgets(there, NEW)
    there.answer(ScriptedAnswer([b'{"usage":{"prompt_tokens":1,"completion_tokens":1}}']))
    client, waiting = start(there)
    await until(lambda: marks.asked[1:])
    marks.set("bud_new", 7)
    await waiting
    assert client.status == 200
    assert charged(there) == ["bud_new"]
    assert last_settlement(there).facts.flags == ()
    asked = len(marks.asked)
    assert (await ask(there)).status == 200
    assert len(marks.asked) == asked, "what is known is not asked for again"


async def test_all_calls_that_wait_look_together_whoever_goes_away(there: World, marks: Marks) -> None:
    other = budget("bud_team", "team", "ml", since_version=8)
    await set_budgets(there, NEW, other)
    marks.asked.clear()
    calls = [start(there) for _ in range(30)]
    await until(lambda: marks.asked)
    assert marks.asked == [("bud_new", "bud_team")]
    calls[0][1].cancel()
    marks.set("bud_new", 7, spent_nano=LIMIT)
    marks.set("bud_team", 8)
    await asyncio.gather(*(waiting for _, waiting in calls), return_exceptions=True)
    assert {client.status for client, _ in calls[1:]} == {402}
    assert len(marks.asked) < 10


@pytest.mark.parametrize(
    ("others", "new", "named"),
    [
        ([], budget("bud_new", "user", EACH, since_version=7), "bud_new@ada"),
        ([budget("bud_kin", "team", "ml", parent_id="bud_new")], budget("bud_new", "team", "x"), "bud_new"),
        ([], budget("bud_new", when_full="downgrade", downgrade_to="low"), "bud_new"),
        ([budget("bud_old")], budget("bud_new", "team", "ml", parent_id="bud_old", child_mode="fallback"), "bud_new"),
    ],
)
async def test_every_budget_that_can_refuse_is_waited_for(
    there: World, impatient: Marks, others: list[Budget], new: Budget, named: str
) -> None:
    await set_budgets(there, *others, replace(new, since_version=7))
    refused = await ask(there, x_spend_user="ada")
    assert (refused.status, refused.json()["error"]["budget_id"]) == (503, named)
    impatient.set("bud_new", 7)
    assert (await ask(there, x_spend_user="ada")).status == 200


@pytest.mark.parametrize(
    "others",
    [
        budget("bud_new", since_version=0),
        budget("bud_new", enforcement="monitor", since_version=7),
        budget("bud_new", when_full="alert", since_version=7),
        budget("bud_new", "team", "other", since_version=7),
        budget("bud_new", "model", "mid", since_version=7),
    ],
)
async def test_a_call_that_no_such_budget_can_refuse_asks_for_nothing(
    there: World, marks: Marks, others: Budget
) -> None:
    await set_budgets(there, others)
    marks.asked.clear()
    assert (await ask(there)).status == 200
    assert marks.asked == []


# ---- refusing -------------------------------------------------------------------------------------------------------


async def test_a_past_that_stays_unknown_refuses_by_name_and_holds_nothing(there: World, impatient: Marks) -> None:
    await set_budgets(there, NEW)
    assert_unknown(await ask(there))
    assert (there.vendor.requests, there.events(), there.held_nano()) == ([], [], 0)


async def test_calls_that_come_after_the_patience_are_refused_after_one_look(there: World, impatient: Marks) -> None:
    await set_budgets(there, NEW)
    assert_unknown(await ask(there))
    impatient.asked.clear()
    assert_unknown(await ask(there))
    assert impatient.asked == [("bud_new",)]
    impatient.set("bud_new", 7)
    assert (await ask(there)).status == 200


async def test_a_budget_of_nothing_is_full_whatever_its_past_is(there: World, marks: Marks) -> None:
    await set_budgets(there, replace(NEW, limit_nano=0))
    assert_refused(await ask(there), 402, "budget_exhausted", "bud_new")
    await set_budgets(there, replace(NEW, limit_nano=LIMIT))
    assert set((await there.assembly.snapshots.view("default")).pasts.unknown) == {"bud_new"}
    assert marks.asked, "of one that is enlarged it is asked for"


async def test_patience_is_not_begun_anew_by_other_changes(there: World, marks: Marks) -> None:
    await set_budgets(there, NEW, budget("bud_other", since_version=7))
    before = (await there.assembly.snapshots.view("default")).pasts.unknown
    await set_budgets(there, NEW, budget("bud_other", since_version=9), budget("bud_more", since_version=9))
    after = (await there.assembly.snapshots.view("default")).pasts.unknown
    assert after["bud_new"] is before["bud_new"]
    assert after["bud_other"].since_version == 9
    assert after["bud_other"].patience_ends_s > before["bud_other"].patience_ends_s
    assert set(after) == {"bud_new", "bud_other", "bud_more"}


async def test_a_mark_for_an_earlier_window_is_none_for_this_one(there: World, impatient: Marks) -> None:
    impatient.set("bud_new", 6)
    await set_budgets(there, NEW)
    assert_unknown(await ask(there))


async def test_a_mark_for_a_later_window_refuses_at_once_until_the_gateway_knows_of_it(
    there: World, marks: Marks
) -> None:
    await set_budgets(there, NEW)
    marks.set("bud_new", 9)
    assert_unknown(await ask(there))
    await set_budgets(there, replace(NEW, window=LifetimeWindow(), since_version=9))
    assert (await ask(there)).status == 200


async def test_a_cold_org_refuses_as_ever_and_nobody_waits(there: World, marks: Marks) -> None:
    await set_budgets(there, NEW)
    there.hot_state.store.state("default").epoch = None
    marks.set("bud_new", 7)
    assert_refused(await ask(there), 503, "state_rebuilding", "the spend state is being rebuilt")


async def test_a_hot_state_that_is_away_refuses_as_ever_and_nobody_waits(there: World, marks: Marks) -> None:
    await set_budgets(there, NEW)
    marks.failure = AWAY
    assert_refused(await ask(there), 503, "state_rebuilding", "the spend state can't be reached")
    assert there.events() == []


async def test_a_route_that_fails_open_lets_the_call_pass_unheld_and_flagged(there: World, impatient: Marks) -> None:
    await there.org.publish(rules=(RouteRule(ANY, "chat.completions", fail_open=True),))
    await set_budgets(there, NEW)
    client = await ask(there)
    assert (client.status, client.header("x-spend-fail-open")) == (200, "true")
    assert reservations(there)[-1].facts.flags == last_settlement(there).facts.flags == ("fail_open",)
    assert charged(there) == ["bud_new"]
    assert there.held_nano() == 0


# ---- wherever money is held -----------------------------------------------------------------------------------------


async def test_a_cheaper_model_is_no_way_past_a_budget_that_is_not_known(there: World, impatient: Marks) -> None:
    dear = await hold_of(there, "dear")
    wide = budget("bud_org", when_full="downgrade", downgrade_to="low", limit_nano=dear * 3 // 2)
    await set_budgets(there, wide, budget("bud_low", "model", "low", since_version=7))
    assert (await ask(there)).status == 200, "what it asks for needs no other model"
    assert_refused(await ask(there), 402, "budget_exhausted", "bud_org")
    impatient.set("bud_low", 7)
    assert (await ask(there)).status == 200
    assert charged(there) == ["bud_org", "bud_low"]


async def test_a_vendor_whose_budget_is_not_known_is_not_gone_to(
    there: World, impatient: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", (0.0, 0.0))
    fallbacks = (FallbackTarget("other", "far"),)
    await there.org.publish(rules=(RouteRule("openai", "chat.completions", fallbacks=fallbacks),))
    await set_budgets(there, budget("bud_org"), budget("bud_other", "vendor", "other", since_version=7))
    for expected in (503, 200):
        there.vendor.script.clear()
        there.answer(*(ScriptedAnswer([b"down"], 503) for _ in range(3)))
        client = await ask(there)
        assert client.status == expected
        assert last_settlement(there).facts.vendor == ("other" if expected == 200 else "openai")
        assert (held_by(there, "bud_other") > 0) is (expected == 200)
        impatient.set("bud_other", 7)


async def test_a_reservation_waits_and_is_refused_alike_and_its_key_can_be_used_again(
    there: World, impatient: Marks
) -> None:
    await set_budgets(there, NEW)
    refused = await reserve(there, "0.40", key="run-1")
    assert (refused.status, refused.json()["error"], refused.header("retry-after")) == (503, "state_rebuilding", "1")
    assert refused.json()["budget_id"] == "bud_new"
    assert (there.events(), there.held_nano()) == ([], 0)
    impatient.set("bud_new", 7, spent_nano=LIMIT - 400_000_000)
    held = await reserve(there, "0.40", key="run-1")
    assert held.status == 201
    assert (await reserve(there, "0.01")).status == 402


async def test_nothing_is_carved_from_a_budget_that_is_not_known(there: World, impatient: Marks) -> None:
    await set_budgets(there, NEW)
    path, body = "/v1/budgets/bud_new/delegate", {"amount_usd": "0.50"}
    client = await request(there.assembly.app, path, body, headers=there.headers())
    assert (client.status, client.json()["error"], client.json()["budget_id"]) == (503, "state_rebuilding", "bud_new")
    assert there.held_nano() == 0


async def test_a_part_of_a_budget_has_no_past_to_be_waited_for() -> None:
    part = budget("sub_1", "key", "key_sub_1", covers=("bud_new",))
    assert pasts_to_know([part, NEW]) == {"bud_new": 7}


async def test_a_stream_grows_by_no_figures_that_are_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pasts, "PATIENCE_S", 0.03)
    async with priced_world(tmp_path) as there:
        watching = growing.budget(10**12, enforcement="monitor", since_version=3)
        await set_budgets(there, watching, growing.budget(10**12))
        gate = asyncio.Event()
        there.answer(growing.streamed(growing.text(10), gate, growing.text(6_000), growing.usage(2_000), growing.DONE))
        client, calling = growing.begin(there)
        await until(lambda: client.chunks)
        await set_budgets(there, replace(watching, enforcement="enforce"))
        gate.set()
        await calling
        assert f"what budget {watching.budget_id}".encode() in client.content
        assert last_settlement(there).outcome == "cut_off"


async def test_a_reservation_grows_by_no_figures_that_are_not_known(there: World, impatient: Marks) -> None:
    watching = replace(NEW, enforcement="monitor")
    await set_budgets(there, watching)
    held = (await reserve(there, "0.40")).json()["reservation_id"]
    await set_budgets(there, NEW)

    async def extend(amount: str) -> int:
        path = f"/v1/reservations/{held}/extend"
        client = await request(there.assembly.app, path, {"amount_usd": amount}, headers=there.headers())
        assert client.status is not None
        return client.status

    assert await extend("0.50") == 503
    assert await extend("0.40") == 200, "what does not grow needs no figures"
    await set_budgets(there, replace(NEW, window=LifetimeWindow()))
    assert await extend("0.50") == 503, "it would go over to the window that the budget has now"
    await set_budgets(there, NEW)
    impatient.set("bud_new", 7)
    assert await extend("0.60") == 200


# ---- by themselves --------------------------------------------------------------------------------------------------


async def test_the_poll_finds_what_no_call_waits_for(there: World, marks: Marks) -> None:
    await set_budgets(there, NEW, budget("bud_rare", "user", "nobody", since_version=7))
    view = await there.assembly.snapshots.view("default")
    assert set(view.pasts.unknown) == {"bud_new", "bud_rare"}
    marks.set("bud_rare", 7)
    marks.failure = AWAY
    await there.sync()
    assert set(view.pasts.unknown) == {"bud_new", "bud_rare"}
    marks.failure = None
    await there.sync()
    assert set(view.pasts.unknown) == {"bud_new"}
    marks.set("bud_new", 7)
    await there.sync()
    assert view.pasts.unknown == {}
    marks.asked.clear()
    await there.sync()
    assert marks.asked == []


async def test_marks_that_cannot_be_read_with_the_configuration_are_read_by_the_first_call(
    there: World, marks: Marks
) -> None:
    marks.set("bud_new", 7)
    marks.failure = UnavailableError("away for a moment")
    await set_budgets(there, NEW)
    assert set((await there.assembly.snapshots.view("default")).pasts.unknown) == {"bud_new"}
    marks.failure = None
    assert (await ask(there)).status == 200


async def test_what_is_marked_when_the_configuration_is_read_is_known_from_the_start(
    there: World, marks: Marks
) -> None:
    marks.set("bud_new", 7)
    await set_budgets(there, NEW, budget("bud_2", since_version=7))
    assert marks.asked[0] == ("bud_new", "bud_2")
    found = await find_pasts(there.hot_state, "default", {"bud_new": 7, "bud_2": 7}, None)
    assert set(found.unknown) == {"bud_2"}


async def test_a_mark_of_another_version_makes_no_past_known(there: World, marks: Marks) -> None:
    for version, unknown in ((6, {"bud_new"}), (7, set()), (8, {"bud_new"})):
        marks.set("bud_new", version)
        found = await find_pasts(there.hot_state, "default", {"bud_new": 7}, None)
        assert set(found.unknown) == unknown, "a newer one is of yet another window"
