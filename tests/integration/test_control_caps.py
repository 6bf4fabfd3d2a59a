"""The cap matrix of the management API on a real PostgreSQL: what it takes, keeps, tells and publishes."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.control.cap_policies import service
from services.control.errors import ErrorAnswer
from services.control.keys.service import NewKey, make_key
from services.control.orgs import queries as org_queries
from services.core.budgets import Budget
from services.core.codec_fields import format_time
from services.core.hotstate import OrgImage
from services.core.snapshot import Snapshot, decode_snapshot
from services.core.windows import CalendarSpan, CalendarWindow, SessionWindow, span_at
from tests.support.control import Control, running_control

POLICY = "/api/admin/billing/cap-policy/default"


@pytest.fixture
async def control(postgres_dsn: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Control]:
    connection = ValkeyConnection(valkey_url)
    async with running_control(
        postgres_dsn, tmp_path, ValkeyHotState(connection), ValkeyDirectory(connection)
    ) as control:
        yield control
    await connection.close()


async def patch(control: Control, caps: Any) -> Any:
    """The matrix after a change that has to succeed."""
    return (await control.ask("PATCH", POLICY, {"caps": caps}))["caps"]


async def refused(control: Control, caps: Any, status: int = 400) -> ErrorAnswer:
    """The error of a change that has to fail, and that must have changed nothing."""
    before = await control.ask("GET", POLICY)
    response = await control.call("PATCH", POLICY, {"caps": caps})
    assert response.status_code == status, response.text
    assert await control.ask("GET", POLICY) == before
    return ErrorAnswer.model_validate_json(response.content, strict=True)


async def published(control: Control) -> Snapshot:
    """What gateways have of the org."""
    snapshot = await control.directory.snapshot("default")
    assert snapshot is not None
    return decode_snapshot(snapshot)


async def caps_of(control: Control) -> dict[str, Budget]:
    """The caps that gateways have, by id."""
    return {each.budget_id: each for each in (await published(control)).budgets if each.is_cap}


# ---- what it takes and tells ----------------------------------------------------------------------------------------


async def test_an_org_begins_without_caps(control: Control) -> None:
    version = (await control.ask("GET", "org"))["config_version"]
    told = await control.ask("GET", POLICY)
    assert told == {"orgId": "default", "configVersion": version, "caps": {}, "standings": {}}


async def test_null_is_kept_and_told_and_what_was_not_named_is_not_there(control: Control) -> None:
    caps = await patch(control, {"metered.openai": {"daily": "10.00", "monthly": None}, "byok.anthropic": {"daily": 3}})
    assert caps == {
        "byok.anthropic": {"daily": "3.000000000"},
        "metered.openai": {"daily": "10.000000000", "monthly": None},
    }
    assert (await control.ask("GET", POLICY))["caps"] == caps


async def test_the_matrix_tells_where_its_days_and_months_stand(control: Control) -> None:
    await patch(
        control,
        {
            "metered.openai": {"daily": "10.00", "monthly": "100", "perSession": "1"},
            "byok.openai": {"daily": None, "monthly": 0},
            "local.vllm": {"perSession": 0},
        },
    )
    hot = control.context.hot
    assert (await control.ask("GET", POLICY))["standings"] is None, "the spend state is being rebuilt"
    daily = next(name for name in await caps_of(control) if name.startswith("cap_daily_metered.openai"))
    day = span_at(CalendarWindow("day", "UTC"), await hot.now_ms())
    assert isinstance(day, CalendarSpan)
    assert await hot.load("default", OrgImage({(daily, day.key()): 2_500_000_000}, {}, {}, {}), "epoch-1")
    standings = (await control.ask("GET", POLICY))["standings"]
    assert {name: sorted(cell) for name, cell in standings.items()} == {
        "byok.openai": ["monthly"],
        "metered.openai": ["daily", "monthly"],
    }
    assert standings["metered.openai"]["daily"] == {
        "spentUsd": "2.500000000",
        "heldUsd": "0.000000000",
        "remainingUsd": "7.500000000",
        "resetsAt": format_time(day.end_ms),
    }
    assert standings["byok.openai"]["monthly"]["remainingUsd"] == "0.000000000"
    assert "standings" not in await control.ask("PATCH", POLICY, {"caps": {"byok.openai": {"monthly": "1"}}})


async def test_a_change_is_merged_cap_by_cap(control: Control) -> None:
    await patch(control, {"metered.openai": {"daily": "10", "monthly": "100"}, "local.vllm": {"perSession": 0}})
    caps = await patch(control, {"metered.openai": {"daily": None, "perSession": "0.000000001"}})
    assert caps == {
        "local.vllm": {"perSession": "0.000000000"},
        "metered.openai": {"daily": None, "monthly": "100.000000000", "perSession": "0.000000001"},
    }


async def test_a_cell_that_is_null_is_removed(control: Control) -> None:
    kept = {name: {"daily": "1.000000000"} for name in ("byok.openai", "metered.google", "shared.openai")}
    await patch(control, {**kept, "metered.openai": {"daily": "10", "monthly": None}})
    assert await patch(control, {"metered.openai": None, "byok.google": None}) == kept


@pytest.mark.parametrize(
    "caps",
    [
        {"byok.nothere": None},
        {"metered.openai": {"daily": "10.0"}},
        {"metered.openai": {"daily": 10, "monthly": None}, "local.vllm": None},
    ],
)
async def test_a_change_that_changes_nothing_makes_no_version(control: Control, caps: Any) -> None:
    before = await control.ask("PATCH", POLICY, {"caps": {"metered.openai": {"daily": "10", "monthly": None}}})
    audit = await control.ask("GET", "audit")
    assert await control.ask("PATCH", POLICY, {"caps": caps}) == before
    assert (await control.ask("GET", POLICY))["configVersion"] == before["configVersion"]
    assert await control.ask("GET", "audit") == audit
    assert (await published(control)).version == before["configVersion"]
    after = await control.ask("PATCH", POLICY, {"caps": {**caps, "metered.openai": {"monthly": 0}}})
    assert after["configVersion"] == before["configVersion"] + 1 == (await published(control)).version


async def test_a_change_answers_with_the_version_it_made(control: Control) -> None:
    before = (await control.ask("GET", POLICY))["configVersion"]
    answer = await control.ask("PATCH", POLICY, {"caps": {"metered.openai": {"daily": "1"}}})
    assert answer["configVersion"] == before + 1 == (await published(control)).version


@pytest.mark.parametrize(
    ("caps", "field", "says"),
    [
        ({"metered.openai": {"daily": 12.5}}, "caps.metered.openai.daily", 'write it like "12.50"'),
        ({"metered.openai": {"daily": 1.0}}, "caps.metered.openai.daily", "not exact"),
        ({"metered.openai": {"daily": True}}, "caps.metered.openai.daily", "a string"),
        ({"metered.openai": {"monthly": {}}}, "caps.metered.openai.monthly", "a string"),
        ({"metered.openai": {"perSession": "-1"}}, "caps.metered.openai.perSession", "negative"),
        ({"metered.openai": {"perSession": -1}}, "caps.metered.openai.perSession", "negative"),
        ({"metered.openai": {"daily": "1e3"}}, "caps.metered.openai.daily", "12.50"),
        ({"metered.openai": {"daily": "$5"}}, "caps.metered.openai.daily", "12.50"),
        ({"metered.openai": {"daily": 10**20}}, "caps.metered.openai.daily", "more than"),
        ({"metered.openai": {"daily": "2000000000"}}, "caps.metered.openai.daily", "at most"),
        ({"metered.openai": {}}, "caps.metered.openai", "remove the cell with null"),
        ({"metered.openai": "10"}, "caps.metered.openai", "JSON object"),
        ({"metered.openai": {"weekly": "1"}}, "caps.metered.openai.weekly", "not a field"),
        ({"metered.openai": {"per_session": "1"}}, "caps.metered.openai.per_session", "not a field"),
        ({"openai": {"daily": "1"}}, "caps.openai", "byok, metered, shared, host-session, local"),
        ({"Metered.openai": {"daily": "1"}}, "caps.Metered.openai", "byok, metered"),
        ({"prepaid.openai": {"daily": "1"}}, "caps.prepaid.openai", "byok, metered"),
        ({"metered.*": {"daily": "1"}}, "caps.metered.*", "one vendor"),
        ({"metered.OpenAI": {"daily": "1"}}, "caps.metered.OpenAI", "vendor's name"),
        ({"metered.": {"daily": "1"}}, "caps.metered.", "vendor's name"),
        ({"metered.v1": {"daily": "1"}}, "caps.metered.v1", "vendor's name"),
        ({"x" * 500: {"daily": "1"}}, "caps." + "x" * 64, "metered.openai"),
        ({}, "caps", "name a cell"),
        (None, "caps", "JSON object"),
    ],
)
async def test_what_is_wrong_is_named(control: Control, caps: Any, field: str, says: str) -> None:
    error = await refused(control, caps)
    assert (error.error, error.field) == ("invalid_request", field)
    assert says in error.message


async def test_a_change_is_made_whole_or_not_at_all(control: Control) -> None:
    await patch(control, {"byok.openai": {"daily": "1"}})
    before = await published(control)
    await refused(control, {"metered.openai": {"daily": "1"}, "metered.google": {"daily": "no"}})
    assert await published(control) == before


async def test_the_matrix_has_a_bound(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_CELLS", 2)
    await patch(control, {"metered.one": {"daily": "1"}, "metered.two": {"daily": "1"}})
    error = await refused(control, {"metered.three": {"daily": "1"}}, 409)
    assert error.error == "too_many_caps"
    await patch(control, {"metered.three": {"daily": "1"}, "metered.one": None})


# ---- who may --------------------------------------------------------------------------------------------------------


async def test_only_an_admin_of_the_org_may(control: Control) -> None:
    async with control.postgres.transaction() as connection:
        await org_queries.insert(connection, "other", control.context.prices.shipped_version, 1000)
    async with control.context.change("other", "test") as change:
        other = (await make_key(change, control.secrets, NewKey(role="org_admin"))).key
    body = {"caps": {"metered.openai": {"daily": "1"}}}
    for path, key, status, code in (
        (POLICY, control.agent_key, 403, "forbidden"),
        (POLICY, "fk_live_" + "x" * 40, 401, "invalid_key"),
        (POLICY, other, 403, "forbidden"),
        ("/api/admin/billing/cap-policy/other", None, 403, "forbidden"),
        ("/api/admin/billing/cap-policy/nobody", None, 404, "not_found"),
        ("/api/admin/billing/cap-policy/no%00body", None, 400, "invalid_request"),
        ("/api/admin/billing/cap-policy", None, 404, "not_found"),
    ):
        for method, sent in (("GET", None), ("PATCH", body)):
            response = await control.call(method, path, sent, key=key)
            assert (response.status_code, response.json()["error"]) == (status, code), (method, path)
    assert (await control.ask("GET", POLICY))["caps"] == {}
    theirs = "/api/admin/billing/cap-policy/other"
    await control.ask("PATCH", theirs, {"caps": {"metered.openai": {"daily": "7"}}}, key=other)
    assert await patch(control, {"metered.openai": {"daily": "1"}}) == {"metered.openai": {"daily": "1.000000000"}}
    assert await patch(control, {"metered.openai": None}) == {}
    assert (await control.ask("GET", theirs, key=other))["caps"] == {"metered.openai": {"daily": "7.000000000"}}


async def test_every_change_is_audited_with_the_cells_it_was_about(control: Control) -> None:
    await patch(control, {"metered.openai": {"daily": "10"}, "byok.openai": {"daily": "1"}})
    await patch(control, {"metered.openai": {"daily": None}, "local.vllm": None})
    [entry] = (await control.ask("GET", "audit?limit=1"))["entries"]
    assert (entry["action"], entry["target"]) == ("cap_policy.update", "default")
    assert entry["before"] == {"caps": {"metered.openai": {"daily": "10.000000000"}}}
    assert entry["after"] == {"caps": {"metered.openai": {"daily": None}}}
    assert entry["actor"].startswith("key_")


# ---- what gateways get ----------------------------------------------------------------------------------------------


async def test_caps_are_published_as_budgets(control: Control) -> None:
    answer = await control.ask(
        "PATCH",
        POLICY,
        {"caps": {"metered.openai": {"daily": "10", "monthly": None, "perSession": 0}, "byok.google": {"monthly": 7}}},
    )
    version = answer["configVersion"]
    assert {(each.scope, each.window, each.limit_nano) for each in (await caps_of(control)).values()} == {
        ("billing_class:metered.openai", CalendarWindow("day", "UTC"), 10 * 10**9),
        ("billing_class:metered.openai", SessionWindow(), 0),
        ("billing_class:byok.google", CalendarWindow("month", "UTC"), 7 * 10**9),
    }
    for each in (await caps_of(control)).values():
        assert (each.since_version, each.enforcement, each.when_full) == (version, "enforce", "block")


async def test_a_limit_that_changes_keeps_the_budget_and_one_that_was_off_gets_another(control: Control) -> None:
    await patch(control, {"metered.openai": {"daily": "10"}})
    [first] = (await caps_of(control)).values()
    await patch(control, {"metered.openai": {"daily": "20"}, "metered.google": {"daily": "1"}})
    second = (await caps_of(control))[first.budget_id]
    assert (second.limit_nano, second.since_version) == (20 * 10**9, first.since_version)
    await patch(control, {"metered.openai": {"daily": None}, "metered.google": None})
    assert await caps_of(control) == {}
    await patch(control, {"metered.openai": {"daily": "20"}})
    [third] = (await caps_of(control)).values()
    assert third.budget_id != first.budget_id
    assert third.since_version == (await published(control)).version > first.since_version
    await patch(control, {"metered.openai": None})
    await patch(control, {"metered.openai": {"daily": "20"}})
    [fourth] = (await caps_of(control)).values()
    assert fourth.budget_id not in (first.budget_id, third.budget_id)


# ---- how a connection's calls are paid for --------------------------------------------------------------------------


async def test_a_connection_says_how_its_calls_are_paid_for(control: Control) -> None:
    new = await control.ask("PUT", "connections/openai", {"api_key": "sk-1"})
    assert new["auth_mode"] == "metered"
    changed = await control.ask("PUT", "connections/openai", {"api_key": "sk-1", "auth_mode": "shared"})
    assert changed["auth_mode"] == "shared"
    assert (await published(control)).connections["openai"].auth_mode == "shared"
    renewed = await control.ask("PUT", "connections/openai", {"api_key": "sk-2"})
    assert renewed["auth_mode"] == "shared", "a key that is renewed must not slip past the caps of shared.openai"
    assert [each["auth_mode"] for each in (await control.ask("GET", "connections"))["connections"]] == ["shared"]
    for mode in ("host-session", "local", "metered"):
        assert (await control.ask("PUT", "connections/openai", {"api_key": "k", "auth_mode": mode}))[
            "auth_mode"
        ] == mode


@pytest.mark.parametrize("mode", ["byok", "Shared", "", "x" * 80])
async def test_an_auth_mode_that_no_connection_has_is_refused(control: Control, mode: str) -> None:
    response = await control.call("PUT", "connections/openai", {"api_key": "sk-1", "auth_mode": mode})
    assert response.status_code == 400
    assert response.json()["field"] == "auth_mode"
    assert (await control.ask("GET", "connections"))["connections"] == []


async def test_the_matrix_survives_what_json_can_say(control: Control) -> None:
    for text in ('{"caps": {"metered.openai": {"daily": NaN}}}', '{"caps": {"metered.openai": {"daily": Infinity}}}'):
        response = await control.client.request(
            "PATCH",
            POLICY,
            content=text,
            headers={"authorization": f"Bearer {control.admin_key}", "content-type": "application/json"},
        )
        assert (response.status_code, json.loads(response.text)["field"]) == (400, "caps.metered.openai.daily")
