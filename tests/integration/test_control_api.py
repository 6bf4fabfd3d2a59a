"""The management API on a real PostgreSQL and a real Valkey."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.control.errors import ErrorAnswer
from services.control.keys.service import NewKey, make_key
from services.control.orgs import queries as org_queries
from services.core.budgets import Charge
from services.core.hotstate import Hold, OrgImage
from services.core.identity import hash_key
from services.core.windows import CalendarWindow, span_at
from tests.support.control import Away, Control, running_control


@pytest.fixture
async def control(postgres_dsn: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Control]:
    connection = ValkeyConnection(valkey_url)
    async with running_control(
        postgres_dsn, tmp_path, ValkeyHotState(connection), ValkeyDirectory(connection)
    ) as control:
        yield control
    await connection.close()


async def refused(control: Control, status: int, method: str, path: str, body: Any = None) -> ErrorAnswer:
    """The error of a call that has to fail with a status."""
    response = await control.call(method, path, body)
    assert response.status_code == status, response.text
    return ErrorAnswer.model_validate_json(response.content, strict=True)


async def other_org(control: Control) -> str:
    """An admin key of a second org."""
    async with control.postgres.transaction() as connection:
        await org_queries.insert(connection, "other", control.context.prices.shipped_version, 1000)
    async with control.context.change("other", "test") as change:
        return (await make_key(change, control.secrets, NewKey(role="org_admin"))).key


# ---- who may manage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer fk_live_wrong"},
        {"authorization": "Bearer fk_live_" + "x" * 40},
        {"authorization": "Bearer " + "ü" * 10},
        {"authorization": "Basic ZmFydGhpbmc6eA=="},
        {"x-spend-key": "fk_live_" + "x" * 40},
    ],
)
async def test_without_a_live_key_every_path_answers_401(control: Control, headers: dict[str, str]) -> None:
    encoded = {name.encode(): value.encode() for name, value in headers.items()}
    for method, path in [("GET", "org"), ("PUT", "budgets"), ("POST", "keys"), ("DELETE", "keys/key_1")]:
        response = await control.client.request(method, f"/api/v1/{path}", headers=encoded)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"] == "invalid_key"


async def test_an_agent_key_may_not_manage(control: Control) -> None:
    response = await control.call("GET", "budgets", key=control.agent_key)
    assert (response.status_code, response.json()["error"]) == (403, "forbidden")


async def test_an_org_sees_and_touches_only_its_own(control: Control) -> None:
    other = await other_org(control)
    budget = (await control.ask("GET", "budgets"))["budgets"][0]["budget_id"]
    key_id = (await control.ask("GET", "keys"))["keys"][0]["key_id"]
    await control.ask("PUT", "connections/openai", {"api_key": "sk-ours"})
    assert (await control.ask("GET", "org", key=other))["name"] == "other"
    for path in ("teams", "agents", "budgets", "connections"):
        assert (await control.ask("GET", path, key=other))[path] == []
    assert [each["action"] for each in (await control.ask("GET", "audit", key=other))["entries"]] == ["key.create"]
    for method, path in [
        ("GET", f"budgets/{budget}"),
        ("DELETE", f"budgets/{budget}"),
        ("DELETE", f"keys/{key_id}"),
        ("DELETE", "connections/openai"),
    ]:
        assert (await control.call(method, path, key=other)).status_code == 404
    assert (await control.ask("GET", f"budgets/{budget}"))["budget_id"] == budget


# ---- keys -----------------------------------------------------------------------------------------------------------


async def test_a_key_is_shown_once_and_works_until_it_is_revoked(control: Control) -> None:
    made = await control.ask("POST", "keys", {"role": "org_admin", "user": "ann", "environment": "prod"})
    assert made["key"].startswith("fk_live_")
    assert len(made["key"]) == 48
    assert made["hint"] == made["key"][-4:]
    assert (await control.call("GET", "org", key=made["key"])).status_code == 200
    listed = (await control.ask("GET", "keys"))["keys"]
    [ours] = [each for each in listed if each["key_id"] == made["key_id"]]
    assert ours == {name: value for name, value in made.items() if name not in ("key", "made")}
    assert (ours["user"], ours["environment"], ours["team"], ours["revoked_at"]) == ("ann", "prod", None, None)
    revoked = await control.ask("DELETE", f"keys/{made['key_id']}")
    assert revoked["revoked_at"] is not None
    response = await control.call("GET", "org", key=made["key"])
    assert (response.status_code, response.json()["error"]) == (401, "invalid_key")
    assert await control.ask("DELETE", f"keys/{made['key_id']}") == revoked


async def test_teams_and_agents_a_key_names_are_made_on_the_way(control: Control) -> None:
    first = await control.ask("POST", "keys", {"team": "ml", "agent": "ada"})
    assert (first["team"], first["agent"], first["role"]) == ("ml", "ada", "agent")
    assert first["made"] == {"team": True, "agent": True}
    second = await control.ask("POST", "keys", {"team": "ml", "agent": "bob"})
    assert second["made"] == {"team": False, "agent": True}
    teams = [each["name"] for each in (await control.ask("GET", "teams"))["teams"]]
    agents = {each["name"]: each["team"] for each in (await control.ask("GET", "agents"))["agents"]}
    assert teams == ["default", "ml"]
    assert agents == {"ada": "ml", "bob": "ml", "default": "default"}


async def test_an_agents_keys_follow_it_into_its_team(control: Control) -> None:
    made = await control.ask("POST", "keys", {"agent": "bot", "environment": "prod"})
    revoked = await control.ask("POST", "keys", {"agent": "bot"})
    await control.ask("DELETE", f"keys/{revoked['key_id']}")
    unconcerned = [await control.ask("POST", "keys", body) for body in ({"agent": "ada"}, {"user": "bot"})]
    other = await other_org(control)
    theirs = await control.ask("POST", "keys", {"agent": "bot"}, key=other)
    hashed = hash_key(made["key"], control.secrets.pepper)
    before = await control.directory.find_key(hashed)
    assert before is not None
    assert before.pins == {"agent": "bot", "environment": "prod"}

    await control.ask("PUT", "budgets", {"team": "ml", "agent": "bot", "limit_usd": "5", "window": "day"})
    after = await control.directory.find_key(hashed)
    assert after is not None
    assert after.pins == {"team": "ml", "agent": "bot", "environment": "prod"}
    keys = {each["key_id"]: each for each in (await control.ask("GET", "keys"))["keys"]}
    assert keys[made["key_id"]]["team"] == "ml"
    assert keys[revoked["key_id"]]["team"] is None
    assert [keys[each["key_id"]]["team"] for each in unconcerned] == [None, None]
    assert [each["team"] for each in (await control.ask("GET", "keys", key=other))["keys"]] == [None, None]
    assert theirs["team"] is None
    entries = (await control.ask("GET", "audit"))["entries"]
    joined = [each for each in entries if each["action"] == "key.join_team"]
    assert [(each["target"], each["before"], each["after"]) for each in joined] == [
        (made["key_id"], {**before.pins, "team": None}, dict(after.pins))
    ]
    (placed,) = [each for each in entries if each["action"] == "agent.join_team"]
    assert joined[0]["config_version"] == placed["config_version"], "one change"


async def test_an_agents_key_is_pinned_to_its_team_and_to_no_other(control: Control) -> None:
    await control.ask("POST", "agents", {"name": "ada", "team": "ml"})
    assert (await control.ask("POST", "keys", {"agent": "ada"}))["team"] == "ml"
    error = await refused(control, 409, "POST", "keys", {"agent": "ada", "team": "ops"})
    assert (error.error, error.field) == ("agent_in_other_team", "team")
    assert "'ml'" in error.message
    # Nothing of the refused request is left, the team it named included.
    assert [each["name"] for each in (await control.ask("GET", "teams"))["teams"]] == ["default", "ml"]


async def test_an_agent_without_a_team_joins_the_first_it_is_named_with(control: Control) -> None:
    budget = await control.ask("PUT", "budgets", {"agent": "ada", "limit_usd": "1", "window": "day"})
    assert budget["made"] == {"team": False, "agent": True}
    assert (await control.ask("POST", "keys", {"agent": "ada"}))["team"] is None
    assert (await control.ask("POST", "keys", {"agent": "ada", "team": "ml"}))["made"] == {"team": True, "agent": False}
    assert (await control.ask("POST", "keys", {"agent": "ada"}))["team"] == "ml"
    assert (await refused(control, 409, "POST", "keys", {"agent": "ada", "team": "ops"})).field == "team"


async def test_the_last_admin_key_can_not_be_revoked(control: Control) -> None:
    [admin] = [each for each in (await control.ask("GET", "keys"))["keys"] if each["role"] == "org_admin"]
    assert (await refused(control, 409, "DELETE", f"keys/{admin['key_id']}")).error == "last_admin_key"
    await control.ask("POST", "keys", {"role": "org_admin"})
    await control.ask("DELETE", f"keys/{admin['key_id']}")
    assert (await control.call("GET", "org")).status_code == 401


async def test_no_secret_is_ever_in_the_database_in_clear(control: Control, postgres_dsn: str) -> None:
    made = await control.ask("POST", "keys", {"agent": "ada"})
    await control.ask("PUT", "connections/openai", {"api_key": "sk-proj-very-secret-text"})
    connection = await asyncpg.connect(postgres_dsn)
    rows = [
        str(dict(row))
        for table in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for row in await connection.fetch(f"SELECT * FROM {table['tablename']}")
    ]
    await connection.close()
    text = "\n".join(rows)
    assert made["key_id"] in text
    for secret in (made["key"], control.admin_key, control.agent_key, "sk-proj-very-secret-text"):
        assert secret not in text
        assert secret.removeprefix("fk_live_")[:12] not in text


# ---- teams and agents -----------------------------------------------------------------------------------------------


async def test_teams_and_agents_are_made_once(control: Control) -> None:
    assert (await control.ask("POST", "teams", {"name": "ml"}))["name"] == "ml"
    assert (await refused(control, 409, "POST", "teams", {"name": "ml"})).error == "already_exists"
    made = await control.ask("POST", "agents", {"name": "ada", "team": "ops"})
    assert (made["team"], made["made"]) == ("ops", {"team": True, "agent": False})
    assert (await refused(control, 409, "POST", "agents", {"name": "ada"})).error == "already_exists"


# ---- budgets --------------------------------------------------------------------------------------------------------


async def test_a_budget_is_made_changed_read_and_removed(control: Control) -> None:
    body = {"team": "ml", "limit_usd": "50.00", "window": "day", "zone": "Europe/Berlin"}
    response = await control.call("PUT", "budgets", body)
    assert response.status_code == 201
    made = response.json()
    assert made["scope"] == {"kind": "team", "value": "ml"}
    assert (made["limit_usd"], made["window"], made["zone"]) == ("50.000000000", "day", "Europe/Berlin")
    assert made["estimate"] == "strict"
    assert made["made"] == {"team": True, "agent": False}
    response = await control.call("PUT", "budgets", body | {"limit_usd": "0"})
    assert response.status_code == 200
    changed = response.json()
    assert (changed["budget_id"], changed["limit_usd"]) == (made["budget_id"], "0.000000000")
    assert changed["updated_at"] > changed["created_at"] == made["created_at"]
    read = await control.ask("GET", f"budgets/{made['budget_id']}")
    assert read == {name: value for name, value in changed.items() if name != "made"}
    assert (await control.call("DELETE", f"budgets/{made['budget_id']}")).status_code == 204
    assert (await refused(control, 404, "GET", f"budgets/{made['budget_id']}")).error == "not_found"
    assert (await refused(control, 404, "DELETE", f"budgets/{made['budget_id']}")).error == "not_found"


@pytest.mark.parametrize(
    ("body", "scope"),
    [
        ({}, {"kind": "org", "value": "default"}),
        ({"scope": {"kind": "org"}}, {"kind": "org", "value": "default"}),
        ({"scope": {"kind": "org", "value": "default"}}, {"kind": "org", "value": "default"}),
        ({"scope": {"kind": "team", "value": "ml"}}, {"kind": "team", "value": "ml"}),
        ({"scope": {"kind": "agent", "value": "ada"}}, {"kind": "agent", "value": "ada"}),
        ({"agent": "ada", "team": "ml"}, {"kind": "agent", "value": "ada"}),
    ],
)
async def test_scopes_may_be_named_in_two_ways(control: Control, body: dict[str, Any], scope: dict[str, str]) -> None:
    budget = await control.ask("PUT", "budgets", {"limit_usd": "1", "window": "month", **body})
    assert budget["scope"] == scope


async def test_one_budget_a_scope_window_and_zone_however_it_is_written(control: Control) -> None:
    ids = {}
    for window, zone in [
        ("60m", None), ("1h", None), ("hour", None), ("hour", "UTC"), ("24h", None), ("1d", None),
        ("day", None), ("day", "Asia/Tokyo"),
    ]:  # fmt: skip
        body = {"limit_usd": "5", "window": window, "agent": "ada"} | ({"zone": zone} if zone else {})
        ids[window, zone] = (await control.ask("PUT", "budgets", body))["budget_id"]
    assert ids["60m", None] == ids["1h", None] != ids["hour", None] == ids["hour", "UTC"]
    assert ids["24h", None] == ids["1d", None] != ids["day", None] != ids["day", "Asia/Tokyo"]
    assert len(set(ids.values())) == 5


async def test_a_budget_chooses_its_estimates_and_keeps_them(control: Control) -> None:
    body = {"team": "ml", "limit_usd": "50", "window": "day"}
    made = await control.ask("PUT", "budgets", body | {"estimate": "calibrated"})
    assert made["estimate"] == "calibrated"
    changed = await control.ask("PUT", "budgets", body | {"limit_usd": "60"})
    assert (changed["budget_id"], changed["estimate"]) == (made["budget_id"], "calibrated")
    assert (await control.ask("PUT", "budgets", body | {"estimate": "strict"}))["estimate"] == "strict"
    assert (await control.ask("GET", f"budgets/{made['budget_id']}"))["estimate"] == "strict"


BAD_BUDGETS: list[tuple[dict[str, Any], str, str]] = [
    ({"limit_usd": "-1"}, "limit_usd", "must not be negative"),
    ({"limit_usd": -1}, "limit_usd", "must be a JSON string"),
    ({"limit_usd": 1.5}, "limit_usd", "must be a JSON string"),
    ({"limit_usd": "1e3"}, "limit_usd", "'12.50'"),
    ({"limit_usd": "1,50"}, "limit_usd", "'12.50'"),
    ({"limit_usd": "0.0000000001"}, "limit_usd", "at most nine decimals"),
    ({"limit_usd": "1000000000.01"}, "limit_usd", "at most 1000000000.000000000"),
    ({"limit_usd": "9" * 60}, "limit_usd", "too long"),
    ({"limit_usd": None}, "limit_usd", "must be a JSON string"),
    ({"limit_usd": ...}, "limit_usd", "is required"),
    ({"window": "fortnight"}, "window", "use hour, day, week, month"),
    ({"window": "0h"}, "window", "use hour, day, week, month"),
    ({"window": "367d"}, "window", "1m to 366d"),
    ({"window": ...}, "window", "is required"),
    ({"zone": "Europe/Atlantis"}, "zone", "Europe/Berlin or UTC"),
    ({"zone": "../../etc/passwd"}, "zone", "Europe/Berlin or UTC"),
    ({"window": "1h", "zone": "UTC"}, "zone", "leave zone out"),
    ({"team": "no spaces"}, "team", "letters, digits"),
    ({"team": ""}, "team", "1 to 128"),
    ({"agent": "a\u0000b"}, "agent", "letters, digits"),
    ({"agent": "a" * 129}, "agent", "too long"),
    ({"limt_usd": "1"}, "limt_usd", "not a field"),
    ({"scope": {"kind": "planet", "value": "u"}}, "scope.kind", "org"),
    ({"scope": {"kind": "team"}}, "scope.value", "is required"),
    ({"scope": {"kind": "org", "value": "other"}}, "scope.value", "leave it out"),
    ({"scope": {"kind": "team", "value": "ml"}, "team": "ml"}, "scope", "leave one out"),
    ({"scope": "team:ml"}, "scope", "must be a JSON object"),
    ({"estimate": "guessed"}, "estimate", "calibrated"),
]


async def test_a_budget_that_can_not_be_is_refused_by_field(control: Control, subtests: pytest.Subtests) -> None:
    before = await control.ask("GET", "org")
    for change, field, text in BAD_BUDGETS:
        with subtests.test(str(change)):
            body = {"limit_usd": "10", "window": "day"} | change
            sent = {name: value for name, value in body.items() if value is not ...}
            error = await refused(control, 400, "PUT", "budgets", sent)
            assert (error.error, error.field) == ("invalid_request", field)
            assert text in error.message
    assert await control.ask("GET", "org") == before


async def test_a_scope_has_no_more_budgets_than_one_call_can_hold(control: Control) -> None:
    for hours in range(1, 17):
        await control.ask("PUT", "budgets", {"team": "ml", "limit_usd": "1", "window": f"{hours}h"})
    assert (
        await refused(control, 409, "PUT", "budgets", {"team": "ml", "limit_usd": "1", "window": "30d"})
    ).error == "too_many_budgets"
    await control.ask("PUT", "budgets", {"team": "ml", "limit_usd": "2", "window": "1h"})


async def test_budgets_stand_where_the_hot_state_says(control: Control) -> None:
    [budget] = (await control.ask("GET", "budgets"))["budgets"]
    nothing = {"spent_usd": None, "held_usd": None, "remaining_usd": None, "resets_at": None}
    assert budget["standing"] == nothing | {"reason": "state_rebuilding"}
    now_ms = await control.context.hot.now_ms()
    window = span_at(CalendarWindow("day", "UTC"), now_ms).key()
    charge = Charge(budget["budget_id"], "org:default", window)
    hold = Hold(amount_nano=500_000_000, charges=(charge,), context="{}", expires_at_ms=now_ms + 60_000)
    image = OrgImage({(budget["budget_id"], window): 2_250_000_000}, {"txn_1": hold}, {}, {})
    assert await control.context.hot.load("default", image, "epoch-1")
    standing = (await control.ask("GET", f"budgets/{budget['budget_id']}"))["standing"]
    assert standing.pop("resets_at").endswith("T00:00:00.000Z")
    assert standing == {
        "spent_usd": "2.250000000",
        "held_usd": "0.500000000",
        "remaining_usd": "7.250000000",
        "reason": None,
    }
    raised = await control.ask("PUT", "budgets", {"limit_usd": "20", "window": "day"})
    assert raised["standing"]["remaining_usd"] == "17.250000000"


async def test_budgets_are_there_while_the_hot_state_is_away(postgres_dsn: str, tmp_path: Path) -> None:
    async with running_control(postgres_dsn, tmp_path, Away(), Away()) as control:
        [budget] = (await control.ask("GET", "budgets"))["budgets"]
        assert budget["limit_usd"] == "10.000000000"
        assert budget["standing"]["reason"] == "hot_state_unreachable"
        assert budget["standing"]["spent_usd"] is None
        assert (await control.call("PUT", "budgets", {"limit_usd": "1", "window": "hour"})).status_code == 201
        status = await control.ask("GET", "status")
        assert (status["published"], status["hot_state"], status["alarms"]) == (False, "unreachable", None)


# ---- connections ----------------------------------------------------------------------------------------------------


async def test_a_connection_is_sealed_replaced_and_removed(control: Control) -> None:
    response = await control.call("PUT", "connections/openai", {"api_key": "sk-proj-0123456789abcdWXYZ"})
    assert response.status_code == 201
    made = response.json()
    assert made["base_url"] == "https://api.openai.com/v1"
    assert (made["key_hint"], made["prices_as"], made["dialect"]) == ("WXYZ", "openai", "openai")
    assert "0123456789" not in response.text
    body = {"api_key": None, "base_url": "http://127.0.0.1:11434/v1/", "prices_as": "openai"}
    response = await control.call("PUT", "connections/local", body)
    assert (response.status_code, response.json()["key_hint"]) == (201, None)
    assert response.json()["base_url"] == "http://127.0.0.1:11434/v1"
    response = await control.call("PUT", "connections/openai", {"api_key": "short", "base_url": "https://proxy/v1"})
    assert (response.status_code, response.json()["key_hint"]) == (200, None)
    assert response.json()["base_url"] == "https://proxy/v1"
    listed = (await control.ask("GET", "connections"))["connections"]
    assert [each["vendor"] for each in listed] == ["local", "openai"]
    assert (await control.call("DELETE", "connections/local")).status_code == 204
    assert (await refused(control, 404, "DELETE", "connections/local")).error == "not_found"


@pytest.mark.parametrize(
    ("vendor", "body", "dialect", "base_url"),
    [
        ("anthropic", {}, "anthropic", "https://api.anthropic.com"),
        ("google", {}, "google", "https://generativelanguage.googleapis.com"),
        ("mistral", {}, "mistral", "https://api.mistral.ai"),
        ("cohere", {}, "cohere", "https://api.cohere.com"),
        ("azure", {"base_url": "https://ours.openai.azure.com/"}, "azure", "https://ours.openai.azure.com"),
        ("groq", {}, "openai", "https://api.groq.com/openai/v1"),
        ("x-ai", {}, "openai", "https://api.x.ai/v1"),
        ("vllm", {"base_url": "http://gpu:8000/v1", "prices_as": "openai"}, "openai", "http://gpu:8000/v1"),
        (
            "claude-proxy",
            {"dialect": "anthropic", "base_url": "https://claude.internal", "prices_as": "anthropic"},
            "anthropic",
            "https://claude.internal",
        ),
    ],
)
async def test_a_connection_speaks_its_vendors_dialect_unless_it_says_otherwise(
    control: Control, vendor: str, body: dict[str, Any], dialect: str, base_url: str
) -> None:
    key = {} if vendor == "vllm" else {"api_key": "sk-1"}
    made = await control.ask("PUT", f"connections/{vendor}", {**key, **body})
    assert (made["dialect"], made["base_url"]) == (dialect, base_url)
    assert (await control.ask("GET", "connections"))["connections"] == [made]


BAD_CONNECTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("sandbox", {}, "vendor"),
    ("api", {}, "vendor"),
    ("OpenAI", {}, "vendor"),
    ("a.b", {}, "vendor"),
    ("openai", {"api_key": ...}, "api_key"),
    ("openai", {"api_key": ""}, "api_key"),
    ("openai", {"api_key": "two words"}, "api_key"),
    ("openai", {"api_key": "line\r\nx-injected: 1"}, "api_key"),
    ("openai", {"api_key": "schlüssel"}, "api_key"),
    ("openai", {"api_key": "k" * 1025}, "api_key"),
    ("openai", {"api_key": 7}, "api_key"),
    ("local", {"prices_as": "openai"}, "base_url"),
    ("local", {"base_url": "http://local/v1"}, "prices_as"),
    ("openai", {"prices_as": "nobody"}, "prices_as"),
    ("openai", {"base_url": "ftp://host/v1"}, "base_url"),
    ("openai", {"base_url": "file:///etc/passwd"}, "base_url"),
    ("openai", {"base_url": "//host/v1"}, "base_url"),
    ("openai", {"base_url": "https://"}, "base_url"),
    ("openai", {"base_url": "https://user:hunter2@host/v1"}, "base_url"),
    ("openai", {"base_url": "https://host/v1?key=hunter2"}, "base_url"),
    ("openai", {"base_url": "https://host/v1#part"}, "base_url"),
    ("openai", {"base_url": "https://host:99999/v1"}, "base_url"),
    ("openai", {"base_url": "https://host\r\nx: y/v1"}, "base_url"),
    ("openai", {"base_url": "https://[::1/v1"}, "base_url"),
    ("openai", {"dialect": "smoke"}, "dialect"),
    ("openai", {"dialct": "openai"}, "dialct"),
    ("openai", {"dialect": "anthropic"}, "base_url"),
    ("v1", {}, "vendor"),
    ("v1beta", {}, "vendor"),
    ("v2", {}, "vendor"),
    ("azure", {}, "base_url"),
    ("ollama", {"api_key": ..., "prices_as": "openai"}, "base_url"),
    ("groq", {"api_key": ...}, "api_key"),
    ("anthropic", {"base_url": "https://api.anthropic.com/v1/"}, "base_url"),
    ("google", {"base_url": "https://generativelanguage.googleapis.com/v1beta"}, "base_url"),
    ("cohere", {"base_url": "https://proxy/cohere/v2"}, "base_url"),
]


async def test_a_connection_that_can_not_be_is_refused_by_field(control: Control, subtests: pytest.Subtests) -> None:
    for vendor, change, field in BAD_CONNECTIONS:
        with subtests.test(f"{vendor} {change}"):
            body = {name: value for name, value in ({"api_key": "sk-1"} | change).items() if value is not ...}
            error = await refused(control, 400, "PUT", f"connections/{vendor}", body)
            assert (error.error, error.field) == ("invalid_request", field)
            assert "hunter2" not in error.message
    assert (await control.ask("GET", "connections"))["connections"] == []


# ---- status, audit ------------------------------------------------------------------------------------------


async def test_status_tells_whether_gateways_have_the_org(control: Control) -> None:
    await control.ask("POST", "teams", {"name": "ml"})
    status = await control.ask("GET", "status")
    assert status["published"]
    assert status["published_version"] == status["config_version"] == 2
    assert (status["hot_state"], status["alarms"]) == ("cold", {})
    await control.context.hot.load("default", OrgImage({}, {}, {}, {}), "epoch-1")
    await control.context.hot.set_alarm("fold_gap:spend.settlements.v1:0", "offset 7 is missing")
    status = await control.ask("GET", "status")
    assert status["hot_state"] == "warm"
    assert status["alarms"] == {"fold_gap:spend.settlements.v1:0": "offset 7 is missing"}


async def test_every_write_is_audited_with_before_and_after(control: Control) -> None:
    key = await control.ask("POST", "keys", {"team": "ml", "agent": "ada"})
    await control.ask("DELETE", f"keys/{key['key_id']}")
    budget = await control.ask("PUT", "budgets", {"limit_usd": "1", "window": "1h", "team": "ml"})
    await control.ask("PUT", "budgets", {"limit_usd": "2", "window": "1h", "team": "ml"})
    await control.ask("DELETE", f"budgets/{budget['budget_id']}")
    await control.ask("PUT", "connections/openai", {"api_key": "sk-1"})
    await control.ask("PUT", "connections/openai", {"api_key": "sk-2"})
    await control.ask("DELETE", "connections/openai")
    entries = (await control.ask("GET", "audit?limit=500"))["entries"][::-1]
    admin_id = next(
        each["key_id"] for each in (await control.ask("GET", "keys"))["keys"] if each["role"] == "org_admin"
    )
    ours = [each for each in entries if each["actor"] == admin_id]
    assert [(each["action"], each["before"] is None, each["after"] is None) for each in ours] == [
        ("team.create", True, False),
        ("agent.create", True, False),
        ("key.create", True, False),
        ("key.revoke", False, False),
        ("budget.create", True, False),
        ("budget.update", False, False),
        ("budget.delete", False, True),
        ("connection.create", True, False),
        ("connection.update", False, False),
        ("connection.delete", False, True),
    ]
    assert ours[5]["before"]["limit_usd"] == "1.000000000"
    assert ours[5]["after"]["limit_usd"] == "2.000000000"
    assert ours[5]["target"] == budget["budget_id"]
    assert [each["config_version"] for each in ours] == sorted(each["config_version"] for each in ours)
    assert {each["actor"] for each in entries} == {"bootstrap", admin_id}
    assert "sk-" not in json.dumps(entries)
    assert key["key"] not in json.dumps(entries)


async def test_the_audit_trail_is_read_in_pages(control: Control) -> None:
    for number in range(5):
        await control.ask("POST", "teams", {"name": f"team-{number}"})
    whole = (await control.ask("GET", "audit?limit=500"))["entries"]
    pages, path = [], "audit?limit=3"
    while True:
        page = await control.ask("GET", path)
        pages.append(page["entries"])
        if page["next"] is None:
            break
        path = f"audit?limit=3&before={page['next']}"
    assert [entry for page in pages for entry in page] == whole
    assert {len(page) for page in pages[:-1]} == {3}


# ---- errors ---------------------------------------------------------------------------------------------------------


BAD_BODIES: list[tuple[bytes, int, str]] = [
    (b"", 400, "must be a JSON object"),
    (b"{", 400, "not JSON"),
    (b'{"name": "\xff"}', 400, "not JSON"),
    (b"[]", 400, "must be a JSON object"),
    (b'"text"', 400, "must be a JSON object"),
    (b"null", 400, "must be a JSON object"),
    (b"[" * 50_000, 400, "not JSON"),
    (b'{"name": "\\ud800"}', 400, "unicode"),
    (b'{"\\ud800": 1}', 400, "must be a JSON object"),
    (b'{"\\u0000": 1}', 400, "not a field"),
    (b'{"' + b"x" * 60_000 + b'": 1}', 400, "not a field"),
    (b'{"name": "' + b"x" * 70_000 + b'"}', 413, "larger than 65536 bytes"),
]


async def test_a_body_that_is_no_request_is_refused(control: Control, subtests: pytest.Subtests) -> None:
    headers = {"authorization": f"Bearer {control.admin_key}", "content-type": "application/json"}
    for content, status, message in BAD_BODIES:
        with subtests.test(repr(content[:20])):
            response = await control.client.post("/api/v1/teams", content=content, headers=headers)
            assert response.status_code == status, response.text
            assert message in ErrorAnswer.model_validate_json(response.content).message


async def test_a_large_body_is_refused_before_it_is_read(control: Control) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 50_000
            yield b"x" * 50_000

    headers = {"authorization": f"Bearer {control.admin_key}", "content-type": "application/json"}
    response = await control.client.post("/api/v1/teams", content=chunks(), headers=headers)
    assert (response.status_code, response.json()["error"]) == (413, "request_too_large")
    assert sent < 1_000_000


BAD_REQUESTS = [
    ("GET", "/api/v1/nothing", 404, "not_found"),
    ("GET", "/nothing", 404, "not_found"),
    ("PATCH", "/api/v1/budgets", 405, "method_not_allowed"),
    ("GET", "/api/v1/audit?limit=0", 400, "invalid_request"),
    ("GET", "/api/v1/audit?limit=ten", 400, "invalid_request"),
    ("GET", "/api/v1/audit?before=99999999999999999999", 400, "invalid_request"),
    ("GET", "/api/v1/prices?vendor=%00&model=%ff", 200, None),
    ("GET", "/api/v1/prices?limit=0", 400, "invalid_request"),
    ("GET", "/api/v1/prices?cursor=abc", 400, "invalid_request"),
    ("GET", "/api/v1/prices?cursor=WzEsMl0=", 400, "invalid_request"),
    ("GET", "/api/v1/prices/%00", 404, "not_found"),
    ("GET", "/api/v1/prices/" + "m" * 300, 400, "invalid_request"),
    ("GET", "/api/v1/price-overrides?vendor=%00", 400, "invalid_request"),
    ("GET", "/api/v1/price-overrides?history=perhaps", 400, "invalid_request"),
    ("DELETE", "/api/v1/price-overrides?vendor=openai", 400, "invalid_request"),
    ("DELETE", "/api/v1/price-overrides?vendor=openai&model=gpt-4o", 404, "not_found"),
    ("DELETE", "/api/v1/routes?vendor=%00", 400, "invalid_request"),
    ("DELETE", "/api/v1/routes", 404, "not_found"),
    ("GET", "/api/v1/catalogs/latest", 400, "invalid_request"),
    ("GET", "/api/v1/catalogs/00ff", 404, "not_found"),
    ("GET", "/api/v1/catalogs/diff", 404, "not_found"),
    ("GET", "/api/v1/catalogs/diff?from=new", 400, "invalid_request"),
    ("POST", "/api/v1/catalogs/00ff/accept", 404, "not_found"),
    ("POST", "/api/v1/catalogs", 400, "invalid_request"),
    ("GET", "/api/v1/budgets/%00", 400, "invalid_request"),
    ("GET", "/api/v1/budgets/" + "b" * 5000, 400, "invalid_request"),
    ("DELETE", "/api/v1/budgets/%F0%9F%92%B8", 400, "invalid_request"),
    ("DELETE", "/api/v1/keys/a%00b", 400, "invalid_request"),
    ("DELETE", "/api/v1/keys/key_1", 404, "not_found"),
    ("DELETE", "/api/v1/connections/%00", 400, "invalid_request"),
]


async def test_every_error_has_the_one_form(control: Control, subtests: pytest.Subtests) -> None:
    headers = {"authorization": f"Bearer {control.admin_key}"}
    for method, path, status, code in BAD_REQUESTS:
        with subtests.test(f"{method} {path[:60]}"):
            response = await control.client.request(method, path, headers=headers)
            assert response.status_code == status
            if code is not None:
                assert ErrorAnswer.model_validate_json(response.content).error == code


async def test_a_fault_of_ours_tells_nothing(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_arguments: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(org_queries, "find", fail)
    response = await control.call("GET", "org")
    assert response.status_code == 500
    assert response.json()["error"] == "internal"
    assert "secret" not in response.text


async def test_control_says_whether_it_is_up_and_whether_it_is_ready(control: Control) -> None:
    async def get(path: str) -> httpx.Response:
        return await control.client.get(path)

    assert (await get("/healthz")).status_code == (await get("/readyz")).status_code == 200
    control.context.started.clear()
    assert ((await get("/healthz")).status_code, (await get("/readyz")).status_code) == (200, 503)
    response = await control.call("GET", "org")
    assert (response.status_code, response.json()["error"]) == (503, "unavailable")
    assert response.headers["retry-after"] == "1"
