"""Delegations as control keeps them, on a real PostgreSQL and a real Valkey, asked as the gateway asks."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import pytest

from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.control.budgets import queries as budget_queries
from services.control.context import Context
from services.control.delegations import service
from services.control.delegations.service import end_due
from services.core.budgets import Budget
from services.core.identity import hash_key
from services.core.parts import part_key
from services.core.ports import UnavailableError
from services.core.snapshot import decode_snapshot
from services.core.windows import CalendarWindow, IntervalWindow
from services.gateway.delegations.carved import Carved, DeclinedError
from services.gateway.delegations.control import ControlDelegations
from tests.support.control import Control, running_control

DAY = CalendarWindow("day", "UTC")
# By a configuration that is later than all here.
CARVED = Carved(
    reservation_id="dlg_1",
    budget_id="sub_1",
    parent_budget_id="bud_1",
    limit_nano=5_000_000_000,
    covers=("bud_1", "bud_2@ada"),
    starts_ms=1_000_000,
    ends_ms=9_000_000,
    pins={"team": "ml", "session": "run-7"},
    made_by="key_maker",
    config_version=1_000,
)


@pytest.fixture
async def control(postgres_dsn: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Control]:
    connection = ValkeyConnection(valkey_url)
    async with running_control(
        postgres_dsn, tmp_path, ValkeyHotState(connection), ValkeyDirectory(connection)
    ) as control:
        async with control.context.change("default", "test") as change:
            for name in ("bud_1", "bud_2"):
                budget = Budget(name, "project", name, DAY, 9_000_000_000, since_version=change.config_version)
                await budget_queries.insert(change.connection, "default", budget)
        yield control
    await connection.close()


def asking(control: Control, token: str | None = None) -> ControlDelegations:
    transport = httpx.ASGITransport(control.client._transport.app)  # type: ignore[attr-defined]
    return ControlDelegations("http://control", token or control.secrets.internal_token, transport)


async def test_a_part_has_a_key_and_a_budget_until_it_ends(control: Control) -> None:
    key = await asking(control).delegate("default", CARVED)
    record = await control.directory.find_key(hash_key(key, control.secrets.pepper))
    assert record is not None
    assert (record.role, record.pins) == ("agent", {"team": "ml", "session": "run-7"})
    body = await control.directory.snapshot("default")
    assert body is not None
    (part,) = (each for each in decode_snapshot(body).budgets if each.budget_id == "sub_1")
    assert (part.scope_kind, part.scope_value, part.limit_nano) == ("key", record.key_id, 5_000_000_000)
    assert part.window == IntervalWindow(8_000_000, 1_000_000)
    assert (part.covers, part.ends_at_ms) == (("bud_1", "bud_2@ada"), 9_000_000)
    known = await asking(control).find("default", "sub_1")
    assert known is not None
    assert (known["key_id"], known["made_by"], known["has_ended"]) == (record.key_id, "key_maker", False)
    for _ in range(2):
        assert await asking(control).end("default", "sub_1", "key_maker") == ["dlg_1"]
    assert await control.directory.find_key(hash_key(key, control.secrets.pepper)) is None
    body = await control.directory.snapshot("default")
    assert body is not None
    assert "sub_1" not in {each.budget_id for each in decode_snapshot(body).budgets}
    entries = (await control.ask("GET", "audit"))["entries"]
    told = [each["action"] for each in entries if each["target"] == "sub_1"]
    assert sorted(told) == ["budget.delegate", "budget.delegation_end"]
    assert key not in str(entries)


async def test_a_part_that_is_held_no_more_ends_and_that_is_told_for_ever(control: Control) -> None:
    key = await asking(control).delegate("default", CARVED)
    await asking(control).delegate("default", replace(CARVED, reservation_id="dlg_2", budget_id="sub_2"))
    await asking(control).end("default", "sub_2", "key_maker")
    for name, has_lapsed in (("sub_1", True), ("sub_1", True), ("sub_2", False)):
        told = await asking(control).lapse("default", name, "key_maker")
        assert (told["budget_id"], told["has_ended"], told["has_lapsed"]) == (name, True, has_lapsed)
        assert await asking(control).find("default", name) == told
    assert await control.directory.find_key(hash_key(key, control.secrets.pepper)) is None
    body = await control.directory.snapshot("default")
    assert body is not None
    assert not {"sub_1", "sub_2"} & {each.budget_id for each in decode_snapshot(body).budgets}
    with pytest.raises(UnavailableError):
        await asking(control).lapse("default", "sub_3", "key_maker")
    entries = (await control.ask("GET", "audit"))["entries"]
    ended = [each for each in entries if each["action"] == "budget.delegation_end"]
    assert sorted((each["target"], each["after"]) for each in ended) == [
        ("sub_1", {"has_lapsed": True}),
        ("sub_2", None),
    ]


async def test_a_part_ends_at_its_time(control: Control) -> None:
    await asking(control).delegate("default", CARVED)
    assert await end_due(control.context, 8_999_999) == 0
    assert await end_due(control.context, 9_000_000) == 1
    assert await end_due(control.context, 9_000_000) == 0
    known = await asking(control).find("default", "sub_1")
    assert known is not None
    assert known["has_ended"]


async def test_a_part_is_made_once_and_by_our_own_services_only(control: Control) -> None:
    await asking(control).delegate("default", CARVED)
    with pytest.raises(DeclinedError, match="delegated already") as declined:
        await asking(control).delegate("default", CARVED)
    assert (declined.value.status, declined.value.code) == (409, "already_delegated")
    with pytest.raises(UnavailableError, match="401"):
        await asking(control, control.admin_key).delegate("default", CARVED)
    assert await asking(control).find("default", "sub_2") is None


async def test_a_part_that_is_asked_for_once_brings_its_key_and_what_it_was_asked_for_with(control: Control) -> None:
    key = part_key(control.secrets.pepper, control.agent_key, "sub_1")
    once = replace(CARVED, request_hash="a" * 64, key=key)
    assert await asking(control).delegate("default", once) == key
    record = await control.directory.find_key(hash_key(key, control.secrets.pepper))
    assert record is not None
    known = await asking(control).find("default", "sub_1")
    assert known is not None
    assert (known["request_hash"], known["reservation_id"], "key" in known) == ("a" * 64, "dlg_1", False)
    with pytest.raises(DeclinedError) as declined:
        await asking(control).delegate("default", replace(once, reservation_id="dlg_2"))
    assert declined.value.code == "already_delegated"
    with pytest.raises(DeclinedError, match="form of a key") as declined:
        await asking(control).delegate("default", replace(once, budget_id="sub_2", key="fk_live_short"))
    assert "fk_live_short" not in str(declined.value)
    async with control.context.database.snapshot() as connection:
        rows = await connection.fetch("SELECT * FROM audit")
        assert key not in str(rows) + str(await connection.fetch("SELECT * FROM delegations"))
    await asking(control).delegate("default", replace(CARVED, reservation_id="dlg_3", budget_id="sub_3"))
    without = await asking(control).find("default", "sub_3")
    assert without is not None
    assert without["request_hash"] == ""


async def test_a_part_ends_with_the_key_that_has_made_it_and_so_do_its_own_parts(control: Control) -> None:
    made = await control.ask("POST", "keys", {"agent": "boss"})
    outer = await asking(control).delegate("default", replace(CARVED, made_by=made["key_id"]))
    record = await control.directory.find_key(hash_key(outer, control.secrets.pepper))
    assert record is not None
    inner = replace(CARVED, reservation_id="dlg_2", budget_id="sub_2", made_by=record.key_id)
    key = await asking(control).delegate("default", inner)
    assert await end_due(control.context, 2_000_000) == 0
    await control.ask("DELETE", f"keys/{made['key_id']}")
    assert [await end_due(control.context, 2_000_000) for _ in range(2)] == [1, 0]
    assert await control.directory.find_key(hash_key(key, control.secrets.pepper)) is None


async def test_live_parts_of_a_key_and_of_an_org_are_bounded(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_LIVE_PER_KEY", 2)
    monkeypatch.setattr(service, "MAX_LIVE_PER_ORG", 3)

    async def made(number: int, made_by: str) -> str:
        carved = replace(CARVED, reservation_id=f"dlg_{number}", budget_id=f"sub_{number}", made_by=made_by)
        return await asking(control).delegate("default", carved)

    await made(1, "key_a")
    await made(2, "key_a")
    with pytest.raises(DeclinedError, match="this key has 2 live parts") as declined:
        await made(3, "key_a")
    assert (declined.value.status, declined.value.code) == (409, "too_many_parts")
    await made(3, "key_b")
    with pytest.raises(DeclinedError, match="this org has 3 live parts"):
        await made(4, "key_b")
    await asking(control).end("default", "sub_1", "key_a")
    await made(5, "key_a")


async def test_a_part_that_can_not_be_ended_holds_up_neither_the_others_nor_control(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asking(control).delegate("default", replace(CARVED, ends_ms=8_000_000))
    await asking(control).delegate("default", replace(CARVED, reservation_id="dlg_2", budget_id="sub_2"))
    end = service.end

    async def failing(context: Context, org: str, budget_id: str, actor: str) -> service.EndedAnswer:
        if budget_id == "sub_1":
            raise ValueError("a row that nobody has thought of")
        return await end(context, org, budget_id, actor)

    monkeypatch.setattr(service, "end", failing)
    assert await service.end_due(control.context, 9_000_000) == 1
    known = await asking(control).find("default", "sub_2")
    assert known is not None
    assert known["has_ended"]

    looks, has_gone_on = 0, asyncio.Event()

    async def broken(_context: Context, _now_ms: int) -> int:
        nonlocal looks
        looks += 1
        if looks == 2:
            has_gone_on.set()
        raise ValueError("whatever it is")

    monkeypatch.setattr(service, "end_due", broken)
    monkeypatch.setattr(service, "_LOOK_S", 0.0)
    looking = asyncio.create_task(service.end_due_for_ever(control.context))
    async with asyncio.timeout(5):
        await has_gone_on.wait()
    looking.cancel()


async def test_a_budget_that_a_part_was_carved_from_keeps_its_window(control: Control) -> None:
    """What a part spends is charged to the window in which it was made: another would never hear of it."""
    made = await control.ask("PUT", "budgets", {"limit_usd": "5", "window": "day"})
    other = await control.ask("PUT", "budgets", {"team": "ml", "limit_usd": "5", "window": "day"})
    covers = (f"{made['budget_id']}@ada",)
    await asking(control).delegate("default", replace(CARVED, covers=covers))
    for _ in range(2):
        refused = await control.call("PATCH", f"/api/v1/budgets/{made['budget_id']}", {"window": "month"})
        assert (refused.status_code, refused.json()["error"], refused.json()["field"]) == (409, "has_parts", "window")
        await asking(control).end("default", "sub_1", "key_maker")  # it may not be settled yet
    assert "sub_1" in refused.json()["message"]
    await control.ask("PATCH", f"budgets/{made['budget_id']}", {"window": "day", "limit_usd": "6"})
    await control.ask("PATCH", f"budgets/{other['budget_id']}", {"window": "month"})
    async with control.context.change("default", "test") as change:
        await change.connection.execute("UPDATE delegations SET ended_at = now() - interval '2 minutes'")
    await control.ask("PATCH", f"budgets/{made['budget_id']}", {"window": "week"})


async def version_of(control: Control) -> int:
    return (await control.context.publisher.published_versions())["default"]


@pytest.mark.parametrize("change", ["window", "gone"])
@pytest.mark.parametrize("value", ["", "@ada"])
async def test_a_part_that_was_carved_before_a_budget_has_changed_is_not_made(
    control: Control, change: str, value: str
) -> None:
    """A gateway that has not heard of the change holds it in a window that its calls would be missing from."""
    made = await control.ask("PUT", "budgets", {"team": "ml", "limit_usd": "5", "window": "day"})
    budget_id, version = made["budget_id"], await version_of(control)
    carved = replace(CARVED, covers=("bud_1", budget_id + value, "bud_2@ada"), config_version=version)
    if change == "gone":
        await control.call("DELETE", f"/api/v1/budgets/{budget_id}")
    else:
        await control.ask("PATCH", f"budgets/{budget_id}", {"window": "lifetime"})
    for late in (carved, replace(carved, config_version=version - 1)):
        with pytest.raises(DeclinedError, match=budget_id) as declined:
            await asking(control).delegate("default", late)
        assert (declined.value.status, declined.value.code) == (409, "budget_changed")
    assert await asking(control).find("default", "sub_1") is None
    assert "sub_1" not in str(await control.ask("GET", "audit"))
    if change == "window":
        now = replace(carved, config_version=version + 1)
        await asking(control).delegate("default", now)
        refused = await control.call("PATCH", f"/api/v1/budgets/{budget_id}", {"window": "month"})
        assert refused.json()["error"] == "has_parts"


async def test_a_part_is_made_whatever_else_has_changed_since_it_was_carved(control: Control) -> None:
    made = await control.ask("PUT", "budgets", {"team": "ml", "limit_usd": "5", "window": "day"})
    other = await control.ask("PUT", "budgets", {"team": "tools", "limit_usd": "5", "window": "day"})
    version = await version_of(control)
    await control.ask("PATCH", f"budgets/{made['budget_id']}", {"limit_usd": "6", "extend": True})
    await control.ask("PATCH", f"budgets/{other['budget_id']}", {"window": "lifetime"})
    await control.ask("PUT", "budgets", {"team": "ml", "limit_usd": "5", "window": "month"})
    await asking(control).delegate("default", replace(CARVED, covers=(made["budget_id"],), config_version=version))
    sent = json.loads(json.dumps(asdict(replace(CARVED, budget_id="sub_2"))))
    del sent["request_hash"], sent["key"], sent["config_version"]
    own = {"authorization": f"Bearer {control.secrets.internal_token}"}
    refused = await control.client.post("/internal/v1/orgs/default/delegations", json=sent, headers=own)
    assert (refused.status_code, refused.json()["field"]) == (400, "config_version")


async def test_a_part_of_a_part_is_made_while_that_lives_though_what_that_was_carved_from_is_gone(
    control: Control,
) -> None:
    """Another part's calls are charged to it all the same, and a window can't have changed under it."""
    made = await control.ask("PUT", "budgets", {"team": "ml", "limit_usd": "5", "window": "day"})
    gone = made["budget_id"]
    await asking(control).delegate("default", replace(CARVED, covers=(gone,)))
    await control.call("DELETE", f"/api/v1/budgets/{gone}")
    inner = replace(CARVED, reservation_id="dlg_2", budget_id="sub_2", covers=("sub_1", gone))
    await asking(control).delegate("default", inner)
    with pytest.raises(DeclinedError, match=gone):
        await asking(control).delegate("default", replace(inner, budget_id="sub_3", covers=(gone,)))
    await asking(control).end("default", "sub_1", "key_maker")
    with pytest.raises(DeclinedError, match="sub_1") as declined:
        await asking(control).delegate("default", replace(inner, budget_id="sub_3", covers=("sub_1",)))
    assert declined.value.code == "budget_changed"


async def test_the_calls_of_a_part_are_held_as_what_it_was_carved_from_says_now(control: Control) -> None:
    asked = {"limit_usd": "5", "extend": True, "estimate": "calibrated"}
    one = await control.ask("PUT", "budgets", {"window": "day", **asked})
    two = await control.ask("PUT", "budgets", {"window": "month", **asked})
    await control.ask("PUT", "budgets", {"window": "week", "limit_usd": "5"})
    await asking(control).delegate("default", replace(CARVED, covers=(one["budget_id"], two["budget_id"])))

    async def told() -> tuple[str, bool]:
        body = await control.directory.snapshot("default")
        assert body is not None
        (part,) = (each for each in decode_snapshot(body).budgets if each.budget_id == "sub_1")
        return part.estimate, part.extend

    assert await told() == ("calibrated", True)
    await control.ask("PATCH", f"budgets/{two['budget_id']}", {"extend": False, "estimate": "strict"})
    assert await told() == ("strict", False)
    await control.ask("DELETE", f"budgets/{two['budget_id']}")
    assert await told() == ("calibrated", True)
