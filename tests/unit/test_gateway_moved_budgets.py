"""What a call is charged to when it goes on to another vendor."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.core.budgets import EACH
from services.core.snapshot import RouteRule
from services.core.snapshot import Target as FallbackTarget
from services.core.vendor_port import VendorRequest
from services.core.windows import CalendarWindow, SessionWindow, span_at
from services.gateway import forward
from services.gateway.admit import AdmittedCall
from services.gateway.move import Mover
from services.gateway.snapshots import OrgView
from tests.support.budgets import (
    DAY,
    OK,
    budget,
    charged,
    held_by,
    hold_of,
    last_settlement,
    priced_world,
    reservations,
    resizes,
    set_budgets,
)
from tests.support.gateway import ScriptedAnswer, ScriptedVendor, SettableClock, World, chat

BIG = 10**15
DAY_MS = 86_400_000


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with priced_world(tmp_path) as made:
        yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", (0.0, 0.0))


async def fall_back(there: World, model: str = "far", asked: str = "dear", **headers: str) -> int:
    """A call whose vendor is down and which may go on to another; the status of its answer."""
    there.answer(*(ScriptedAnswer([b"down"], 503) for _ in range(3)), ScriptedAnswer([OK]))
    await there.org.publish(
        rules=(RouteRule("openai", "chat.completions", fallbacks=(FallbackTarget("other", model),)),)
    )
    await there.sync()
    status = (await there.call(chat(model=asked), **headers)).status
    there.vendor.script.clear()
    return status


@pytest.mark.usefixtures("quick")
async def test_a_call_that_goes_to_another_vendor_is_charged_to_that_vendors_budgets(there: World) -> None:
    await set_budgets(
        there,
        budget("bud_org"),
        budget("bud_openai", "vendor", "openai"),
        budget("bud_other", "vendor", "other"),
        budget("bud_class", "billing_class", EACH),
        budget("bud_dear", "model", "dear"),
        budget("bud_far", "model", "far"),
    )
    assert await fall_back(there) == 200
    before = ["bud_org", "bud_class@metered.openai", "bud_openai", "bud_dear"]
    after = ["bud_org", "bud_class@metered.other", "bud_other", "bud_dear", "bud_far"]
    assert charged(there) == before
    (resized,) = resizes(there)
    assert [each.budget_id for each in resized.charges] == after
    assert there.settlement().charges == resized.charges
    assert {name for name in {*before, *after} if held_by(there, name)} == set(after)


@pytest.mark.usefixtures("quick")
async def test_a_vendor_whose_budget_is_full_is_not_gone_to(there: World) -> None:
    await set_budgets(there, budget("bud_org"), budget("bud_other", "vendor", "other", limit_nano=1))
    assert await fall_back(there) == 503
    assert resizes(there) == []
    assert held_by(there, "bud_other") == 0
    assert held_by(there, "bud_org") == reservations(there)[-1].held_nano, "as it was, until it is settled"


@pytest.mark.usefixtures("quick")
async def test_a_vendor_whose_budget_caps_each_session_is_not_gone_to_by_a_call_of_none(there: World) -> None:
    await set_budgets(there, budget("bud_org"), budget("bud_other", "vendor", "other", window=SessionWindow()))
    assert await fall_back(there) == 503
    assert resizes(there) == []
    assert await fall_back(there, x_spend_session="s1") == 200
    (resized,) = resizes(there)
    assert [each.budget_id for each in resized.charges] == ["bud_org", "bud_other"]


class NightVendor(ScriptedVendor):
    """Takes a day to answer."""

    clock: SettableClock

    async def send(self, request: VendorRequest) -> ScriptedAnswer:
        self.clock.now_ms += DAY_MS
        return await super().send(request)


@pytest.mark.usefixtures("quick")
async def test_a_charge_keeps_its_window_when_its_call_goes_to_another_vendor(tmp_path: Path) -> None:
    vendor = NightVendor()
    async with priced_world(tmp_path, vendors=vendor) as there:
        vendor.clock, vendor.script = there.clock, there.vendor.script
        await set_budgets(there, budget("bud_org"), budget("bud_other", "vendor", "other"))
        today = there.clock.now_ms // DAY_MS * DAY_MS
        assert await fall_back(there) == 200
        (resized,) = resizes(there)
        assert [(each.budget_id, each.window) for each in resized.charges] == [
            ("bud_org", f"c:{today}:{today + DAY_MS}"),
            ("bud_other", f"c:{today + 3 * DAY_MS}:{today + 4 * DAY_MS}"),
        ]


@pytest.mark.usefixtures("quick")
async def test_a_budget_that_has_another_window_by_then_is_charged_in_that_one(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows is of the configuration with the new window, which implies nothing any more."""
    kept, old = budget("bud_kept"), budget("bud_1", "team", "ml", limit_nano=BIG)
    await set_budgets(there, kept, old)
    since_version = there.org.snapshot.version + 2  # the rule that it may go on comes before
    changed = replace(old, window=CalendarWindow("week", "UTC"), since_version=since_version)
    real = Mover.move

    async def move(self: Mover, call: AdmittedCall, view: OrgView, to: FallbackTarget) -> AdmittedCall | None:
        there.hot_state.store.state("default").filled["bud_1"] = since_version
        await set_budgets(there, kept, changed)
        return await real(self, call, await there.assembly.snapshots.view("default"), to)

    monkeypatch.setattr(Mover, "move", move)
    assert await fall_back(there, "further") == 200
    (resized,) = resizes(there)
    now_ms = there.clock.now_ms
    spans = [("bud_kept", span_at(DAY, now_ms).key()), ("bud_1", span_at(changed.window, now_ms).key())]
    assert [(each.budget_id, each.window) for each in resized.charges] == spans
    settlement = last_settlement(there)
    assert settlement.charges == resized.charges
    assert settlement.facts.config_version == since_version
    assert held_by(there, "bud_1") == resized.held_nano, "in the old window it holds nothing more"


@pytest.mark.usefixtures("quick")
async def test_a_budget_that_got_a_parent_meanwhile_lets_it_pay(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dear = await hold_of(there, "dear")
    alone = budget("bud_c", "team", "ml", limit_nano=dear)
    await set_budgets(there, alone)
    real = Mover.move

    async def move(self: Mover, call: AdmittedCall, view: OrgView, to: FallbackTarget) -> AdmittedCall | None:
        parent = budget("bud_p", "team", "none", limit_nano=BIG)
        await set_budgets(there, parent, replace(alone, parent_id="bud_p", child_mode="fallback"))
        return await real(self, call, await there.assembly.snapshots.view("default"), to)

    monkeypatch.setattr(Mover, "move", move)
    assert await fall_back(there, "further") == 200
    (resized,) = resizes(there)
    assert [each.budget_id for each in resized.charges] == ["bud_p"]
    assert last_settlement(there).parent_charged == ("bud_c",)


@pytest.mark.usefixtures("quick")
async def test_a_budget_that_has_been_removed_stays_charged_and_is_in_nobodys_way(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(
        there, budget("bud_kept"), budget("bud_gone", "team", "ml", limit_nano=dear), budget("bud_openai", "vendor")
    )
    real = Mover.move

    async def move(self: Mover, call: AdmittedCall, view: OrgView, to: FallbackTarget) -> AdmittedCall | None:
        await set_budgets(there, budget("bud_kept"), budget("bud_openai", "vendor", "openai"))
        return await real(self, call, await there.assembly.snapshots.view("default"), to)

    monkeypatch.setattr(Mover, "move", move)
    assert await fall_back(there, "further") == 200
    (resized,) = resizes(there)
    assert [each.budget_id for each in resized.charges] == ["bud_kept", "bud_gone"]
    assert held_by(there, "bud_gone") == resized.held_nano > dear


@pytest.mark.usefixtures("quick")
async def test_parents_that_pay_are_named_anew_when_a_call_goes_to_another_vendor(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(
        there,
        budget("bud_p", limit_nano=BIG),
        budget("bud_c", "team", "ml", limit_nano=dear, parent_id="bud_p", child_mode="fallback"),
    )
    before = len(reservations(there))
    assert await fall_back(there, "further") == 200
    assert reservations(there)[before].parent_charged == ()
    (resized,) = resizes(there)
    assert [each.budget_id for each in resized.charges] == ["bud_p"]
    assert last_settlement(there).parent_charged == ("bud_c",)
    assert held_by(there, "bud_c") == dear, "until it is folded that it has left"


@pytest.mark.usefixtures("quick")
async def test_a_call_stays_charged_to_the_model_that_was_asked_for_by_another_name(there: World) -> None:
    await set_budgets(there, budget("bud_dear", "model", "dear"))
    assert await fall_back(there, asked="dear-2026-01-01") == 200
    (resized,) = resizes(there)
    assert [each.budget_id for each in resized.charges] == ["bud_dear"]
