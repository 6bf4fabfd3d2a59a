"""A part (BU-9) that has ended takes nothing more, whatever was held against it while it was live."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from services.core.budgets import Budget
from services.core.snapshot import RouteRule, Target
from services.gateway import forward
from services.gateway.admit import AdmittedCall
from services.gateway.move import Mover
from services.gateway.snapshots import OrgView
from tests.support import budgets, growing
from tests.support.asgi import request
from tests.support.budgets import OK, held_by, priced_world, reservations, resizes, set_budgets
from tests.support.gateway import ScriptedAnswer, World, chat, until, world
from tests.support.growing import DONE, begin, streamed, text, usage
from tests.support.reservations import post, reserve

PLENTY = 10**12


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def part(**fields: object) -> Budget:
    """A part that this world's calls fall under, which lets streams be held by steps."""
    return replace(growing.budget(PLENTY), budget_id="sub_1", covers=("bud_org",), **fields)


def parent() -> Budget:
    return replace(growing.budget(PLENTY), budget_id="bud_org")


async def end(there: World, how: str) -> None:
    """Ends the part: its budget is taken away, or its time is over."""
    ended = () if how == "gone" else (part(ends_at_ms=there.clock.now_ms - 1),)
    await set_budgets(there, parent(), *ended)


@pytest.mark.parametrize("how", ["gone", "past its time"])
async def test_a_stream_is_ended_where_it_would_need_more_of_a_part_that_has_ended(there: World, how: str) -> None:
    await set_budgets(there, parent(), part())
    gate = asyncio.Event()
    there.answer(streamed(text(10), gate, text(6_000), usage(2_000), DONE))
    client, calling = begin(there)
    await until(lambda: client.chunks)
    await end(there, how)
    gate.set()
    await calling
    settlement = there.settlement()
    assert settlement.outcome == "cut_off"
    assert settlement.cost_nano <= settlement.held_nano == reservations(there)[-1].held_nano
    error = orjson.loads(client.content[len(text(10)) :].strip().removeprefix(b"data: "))["error"]
    assert (error["code"], error["budget_id"], error["limit_usd"]) == ("budget_exhausted", "sub_1", "0.000000000")


async def test_a_stream_within_its_hold_does_not_mind_that_its_part_has_ended(there: World) -> None:
    await set_budgets(there, parent(), part())
    gate = asyncio.Event()
    there.answer(streamed(text(10), gate, usage(5), DONE))
    client, calling = begin(there)
    await until(lambda: client.chunks)
    await end(there, "gone")
    gate.set()
    await calling
    assert there.settlement().outcome == "completed"


@pytest.mark.parametrize("how", ["gone", "past its time"])
async def test_a_reservation_grows_no_more_once_its_part_has_ended(there: World, how: str) -> None:
    await set_budgets(there, parent(), part())
    path = f"/{(await reserve(there, '0.40')).json()['reservation_id']}/extend"
    assert (await post(there, path, {"amount_usd": "0.50"})).status == 200
    await end(there, how)
    refused = await post(there, path, {"amount_usd": "500.00"})
    assert refused.status != 200, refused.content
    assert held_by(there, "sub_1") == 500_000_000
    assert held_by(there, "bud_org") == 0


async def test_a_reservation_outgrows_a_budget_that_is_gone_and_no_part(there: World) -> None:
    await set_budgets(there, parent(), budgets.budget("bud_gone", limit_nano=400_000_000))
    path = f"/{(await reserve(there, '0.40')).json()['reservation_id']}/extend"
    assert (await post(there, path, {"amount_usd": "0.50"})).status == 402
    await set_budgets(there, parent())
    assert (await post(there, path, {"amount_usd": "0.50"})).status == 200
    assert held_by(there, "bud_gone") == 500_000_000


async def test_a_reservation_that_outgrows_a_fallback_child_is_paid_by_the_parent(there: World) -> None:
    child = budgets.budget("bud_c", "team", "ml", limit_nano=500_000_000, parent_id="bud_org", child_mode="fallback")
    await set_budgets(there, parent(), child)
    reservation_id = (await reserve(there, "0.40")).json()["reservation_id"]
    assert (held_by(there, "bud_org"), held_by(there, "bud_c")) == (400_000_000, 400_000_000)
    grown = await post(there, f"/{reservation_id}/extend", {"amount_usd": "0.90"})
    assert grown.status == 200, grown.content
    assert (held_by(there, "bud_org"), held_by(there, "bud_c")) == (900_000_000, 400_000_000), "not folded yet"
    assert (await post(there, f"/{reservation_id}/settle", {"cost_usd": "0.80"})).status == 200
    assert [each.budget_id for each in there.settlement().charges] == ["bud_org"]


@pytest.mark.parametrize(("ends", "status"), [(True, 503), (False, 200)])
async def test_a_call_goes_to_no_other_vendor_once_its_part_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool, status: int
) -> None:
    """The other model costs the same: its hold would not grow, but fall under what the part was carved from."""
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", (0.0, 0.0))
    real = Mover.move
    async with priced_world(tmp_path) as there:
        await there.org.publish(rules=(RouteRule("openai", "chat.completions", fallbacks=(Target("other", "far"),)),))
        await set_budgets(there, parent(), part())

        async def move(self: Mover, call: AdmittedCall, view: OrgView, to: Target) -> AdmittedCall | None:
            if ends:
                await end(there, "gone")
            return await real(self, call, await there.assembly.snapshots.view("default"), to)

        monkeypatch.setattr(Mover, "move", move)
        there.answer(*(ScriptedAnswer([b"down"], 503) for _ in range(3)), ScriptedAnswer([OK]))
        assert (await there.call(chat(model="dear"))).status == status
        assert len(resizes(there)) == (not ends)
        assert [each.budget_id for each in there.settlement().charges] == ["sub_1"]
        assert held_by(there, "bud_org") == 0


async def test_what_was_carved_from_an_ended_part_can_still_be_settled_soon(there: World) -> None:
    """A hold that stays as it is, for less long: `/end` of a part has the reaper look at those within it."""
    await set_budgets(there, parent(), part())
    path = f"/{(await reserve(there, '0.40')).json()['reservation_id']}/extend"
    await end(there, "gone")
    shorter = await request(
        there.assembly.app, f"/v1/reservations{path}", {"amount_usd": "0.40", "hold_seconds": 60},
        headers=there.headers(),
    )  # fmt: skip
    assert shorter.status == 200, shorter.content
