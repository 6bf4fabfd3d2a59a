"""Budgets of every scope, window and hierarchy: what the management API keeps, publishes and refuses."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.adapters.cel import Cel
from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.control.budgets import service
from services.control.errors import ErrorAnswer
from services.core.budgets import Budget
from services.core.hotstate import OrgImage
from services.core.matching import BudgetIndex
from services.core.snapshot import decode_snapshot
from services.core.windows import (
    CalendarWindow,
    IntervalWindow,
    LifetimeWindow,
    RollingWindow,
    SessionWindow,
    Window,
    span_at,
)
from tests.support.control import Away, Control, running_control

DAY_MS = 86_400_000
LIMIT = {"limit_usd": "5"}


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


async def published(control: Control, budget_id: str) -> Budget:
    """A budget as gateways have it, whose index takes all that is published."""
    body = await control.directory.snapshot("default")
    assert body is not None
    budgets = decode_snapshot(body).budgets
    found = BudgetIndex(budgets, Cel()).find(budget_id)
    assert found is not None
    return found


async def put(control: Control, **fields: Any) -> Any:
    return await control.ask("PUT", "budgets", LIMIT | fields)


def scope(kind: str, value: str | None = None, expression: str | None = None) -> dict[str, str]:
    fields = {"kind": kind, "value": value, "expression": expression}
    return {name: text for name, text in fields.items() if text is not None}


# ---- scopes and windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("user", "alice@example.com"),
        ("user", "*"),
        ("team", "*"),
        ("project", "apollo"),
        ("session", "run-17"),
        ("environment", "prod"),
        ("key", "key_01JD9Z0V9VJ3C2Q4M8K3J5H7RT"),
        ("vendor", "openai"),
        ("vendor", "sandbox"),
        ("model", "models/gemini 3 (preview)"),
        ("tag", "nightly"),
        ("billing_class", "byok.openai"),
        ("billing_class", "*"),
    ],
)
async def test_every_scope_is_kept_and_published(control: Control, kind: str, value: str) -> None:
    made = await put(control, window="day", scope=scope(kind, value))
    assert made["scope"] == {"kind": kind, "value": value}
    assert made["made"] == {"team": False, "agent": False}
    budget = await published(control, made["budget_id"])
    assert (budget.scope_kind, budget.scope_value) == (kind, value)
    assert [each["name"] for each in (await control.ask("GET", "teams"))["teams"]] == ["default"]


@pytest.mark.parametrize(
    ("fields", "window", "spelled"),
    [
        ({"window": "week", "week_start": 6}, CalendarWindow("week", "UTC", 6), {"zone": "UTC", "week_start": 6}),
        ({"window": "week", "zone": "Asia/Tokyo"}, CalendarWindow("week", "Asia/Tokyo"), {"week_start": 0}),
        ({"window": "month", "anchor_day": 31}, CalendarWindow("month", "UTC", 0, 31), {"anchor_day": 31}),
        ({"window": "quarter", "anchor_month": 2}, CalendarWindow("quarter", "UTC", 0, 1, 2), {"anchor_month": 2}),
        (
            {"window": "year", "anchor_day": 6, "anchor_month": 4, "zone": "Europe/London"},
            CalendarWindow("year", "Europe/London", 0, 6, 4),
            {"anchor_day": 6, "anchor_month": 4, "zone": "Europe/London", "week_start": None},
        ),
        ({"window": "2w"}, RollingWindow(14 * DAY_MS), {"window": "14d", "zone": None}),
        (
            {"window": "every 14d", "anchor": "1970-01-03T01:00:00+01:00"},
            IntervalWindow(14 * DAY_MS, 2 * DAY_MS),
            {"anchor": "1970-01-03T00:00:00.000Z"},
        ),
        ({"window": "session"}, SessionWindow(), {"window": "session"}),
        ({"window": "lifetime"}, LifetimeWindow(), {"window": "lifetime"}),
    ],
)
async def test_every_window_is_kept_and_published(
    control: Control, fields: dict[str, Any], window: Window, spelled: dict[str, Any]
) -> None:
    made = await put(control, team="ml", **fields)
    assert made | spelled == made
    assert (await published(control, made["budget_id"])).window == window
    again = await control.call("PUT", "budgets", LIMIT | {"team": "ml"} | fields)
    assert (again.status_code, again.json()["budget_id"]) == (200, made["budget_id"])


async def test_windows_with_the_same_spans_are_one_budget(control: Control) -> None:
    ids = []
    for anchor in ("2026-01-05T09:00:00Z", "2026-01-19T09:00:00Z", "2026-01-12T09:00:00Z"):
        ids.append((await put(control, window="every 14d", anchor=anchor))["budget_id"])
    for month in (2, 11, 3):
        ids.append((await put(control, window="quarter", anchor_month=month))["budget_id"])
    assert ids[0] == ids[1] != ids[2]
    assert ids[3] == ids[4] != ids[5]
    assert len(set(ids)) == 4


async def test_an_expression_is_kept_under_its_name(control: Control) -> None:
    expression = 'team == "ml" && tags.exists(tag, tag == "batch")'
    made = await put(control, window="day", scope=scope("cel", "batches", expression))
    assert made["scope"] == {"kind": "cel", "value": "batches", "expression": expression}
    assert (await published(control, made["budget_id"])).expression == expression
    # Its other windows have the same one, and need not repeat it.
    other = await put(control, window="month", scope=scope("cel", "batches"))
    assert other["budget_id"] != made["budget_id"]
    assert other["scope"]["expression"] == expression
    assert (await control.ask("GET", f"budgets/{made['budget_id']}"))["scope"] == made["scope"]
    body = LIMIT | {"window": "year", "scope": scope("cel", "batches", "true")}
    error = await refused(control, 409, "PUT", "budgets", body)
    assert (error.error, error.field) == ("expression_differs", "scope.expression")
    assert "choose another name" in error.message


async def test_everything_a_budget_says_is_kept_and_published(control: Control) -> None:
    parent = await put(control, window="month")
    said = {
        "window": "day",
        "scope": scope("user", "*"),
        "estimate": "calibrated",
        "extend": True,
        "parent_id": parent["budget_id"],
        "child_mode": "fallback",
        "enforcement": "monitor",
        "when_full": "alert",
        "thresholds": [1, 50, 100],
    }
    made = await put(control, **said)
    assert made | said == made
    assert made["downgrade_to"] is None
    budget = await published(control, made["budget_id"])
    assert (budget.parent_id, budget.child_mode, budget.full_rule) == (parent["budget_id"], "fallback", "pass")
    assert (budget.extend, budget.thresholds, budget.estimate) == (True, (1, 50, 100), "calibrated")
    # What is left out stays as it is.
    again = await put(control, window="day", scope=scope("user", "*"), limit_usd="7")
    assert again | said | {"limit_usd": "7.000000000", "since_version": made["since_version"]} == again
    cheaper = await put(
        control, window="day", team="ml", when_full="downgrade", downgrade_to="gpt-4o-mini", thresholds=[]
    )
    budget = await published(control, cheaper["budget_id"])
    assert (budget.full_rule, budget.downgrade_to, budget.thresholds) == ("downgrade", "gpt-4o-mini", ())


async def test_budgets_are_listed_by_scope_and_in_pages(control: Control) -> None:
    made = [await put(control, window=f"{hours}h", scope=scope("user", "ann")) for hours in range(1, 6)]
    each = await put(control, window="day", scope=scope("user", "*"))
    await put(control, window="day", team="ann")

    async def listed(query: str) -> tuple[list[str], str | None]:
        answer = await control.ask("GET", f"budgets?{query}")
        return [one["budget_id"] for one in answer["budgets"]], answer["next"]

    ids = [one["budget_id"] for one in made]
    assert await listed("kind=user&value=ann") == (ids, None)
    assert await listed("kind=user&value=*") == ([each["budget_id"]], None)
    assert len((await listed("kind=user"))[0]) == 6
    assert len((await listed("value=ann"))[0]) == 6
    assert len((await listed(""))[0]) == 8
    assert await listed("kind=user&value=ann&limit=2") == (ids[:2], ids[1])
    assert await listed(f"kind=user&value=ann&limit=2&cursor={ids[1]}") == (ids[2:4], ids[3])
    assert await listed(f"kind=user&value=ann&limit=2&cursor={ids[3]}") == (ids[4:], None)
    assert await listed("kind=user&value=ann&limit=5") == (ids, None)
    for query, field in [("limit=0", "limit"), ("limit=1001", "limit"), ("kind=planet", "kind")]:
        error = await refused(control, 400, "GET", f"budgets?{query}")
        assert (error.error, error.field) == ("invalid_request", field)


# ---- changes --------------------------------------------------------------------------------------------------------


async def test_a_budget_counts_since_it_has_its_window(control: Control) -> None:
    made = await put(control, team="ml", window="day")
    path = f"budgets/{made['budget_id']}"
    assert made["since_version"] == (await control.ask("GET", "org"))["config_version"]
    await control.ask("PATCH", path, {"limit_usd": "6", "thresholds": [50], "enforcement": "monitor"})
    await put(control, team="ml", window="day", limit_usd="7")
    same = await control.ask("PATCH", path, {"window": "day", "zone": "UTC"})
    assert same["since_version"] == made["since_version"]
    changed = await control.ask("PATCH", path, {"window": "week", "week_start": 6})
    assert changed["since_version"] == (await control.ask("GET", "org"))["config_version"] > made["since_version"]
    assert (changed["budget_id"], changed["window"], changed["limit_usd"]) == (made["budget_id"], "week", "7.000000000")
    assert (changed["thresholds"], changed["enforcement"]) == ([50], "monitor")
    budget = await published(control, made["budget_id"])
    assert (budget.window, budget.since_version) == (CalendarWindow("week", "UTC", 6), changed["since_version"])


async def test_an_option_of_a_window_is_changed_alone(control: Control) -> None:
    made = await put(control, window="year", anchor_day=6, anchor_month=4, zone="Europe/London")
    path = f"budgets/{made['budget_id']}"
    changed = await control.ask("PATCH", path, {"anchor_month": 10})
    assert (changed["anchor_day"], changed["anchor_month"], changed["zone"]) == (6, 10, "Europe/London")
    changed = await control.ask("PATCH", path, {"anchor_day": None})
    assert (changed["anchor_day"], changed["anchor_month"]) == (1, 10)
    # Another window has none of the former one's options.
    changed = await control.ask("PATCH", path, {"window": "month"})
    assert (changed["anchor_day"], changed["anchor_month"], changed["zone"]) == (1, None, "UTC")
    error = await refused(control, 400, "PATCH", path, {"anchor_month": 3})
    assert (error.field, "quarter or year" in error.message) == ("anchor_month", True)


async def test_what_is_taken_away_takes_what_needs_it_along(control: Control) -> None:
    parent = await put(control, window="month")
    made = await put(control, team="ml", window="day", parent_id=parent["budget_id"], child_mode="fallback")
    path = f"budgets/{made['budget_id']}"
    changed = await control.ask("PATCH", path, {"parent_id": None})
    assert (changed["parent_id"], changed["child_mode"]) == (None, "isolated")
    await control.ask("PATCH", path, {"when_full": "downgrade", "downgrade_to": "gpt-4o-mini"})
    changed = await control.ask("PATCH", path, {"when_full": "block"})
    assert (changed["when_full"], changed["downgrade_to"]) == ("block", None)


async def test_a_call_can_be_downgraded_to_a_model_that_has_a_price_by_whoever_gave_it_one(
    control: Control, postgres_dsn: str
) -> None:
    """Gateways take a cheaper model by its price: the policy for unknown models gives none."""
    await control.ask("PATCH", "org", {"unknown_models": {"policy": "allow_unpriced"}})
    wanted = {"window": "day", "when_full": "downgrade", "downgrade_to": "gpt-own"}
    error = await refused(control, 400, "PUT", "budgets", LIMIT | wanted)
    assert (error.field, "set its price first" in error.message) == ("downgrade_to", True)
    price = {"vendor": "openai", "model": "gpt-own", "usd": {"input": "0.1", "output": "0.2"}}
    await control.ask("PUT", "price-overrides", price)
    made = await put(control, **wanted)
    assert made["downgrade_to"] == "gpt-own"
    by_vendor = {**wanted, "scope": scope("vendor", "mine")}
    assert (await refused(control, 400, "PUT", "budgets", LIMIT | by_vendor)).field == "downgrade_to"
    asked = {"base_url": "https://llm.example.org/v1", "api_key": "sk-1", "prices_as": "openai"}
    await control.ask("PUT", "connections/mine", asked)
    await put(control, **by_vendor)
    # What a budget has already is no reason to refuse another change of it.
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute("UPDATE budgets SET downgrade_to = 'gpt-gone' WHERE budget_id = $1", made["budget_id"])
    await connection.close()
    changed = await control.ask("PATCH", f"budgets/{made['budget_id']}", {"limit_usd": "9"})
    assert (changed["limit_usd"], changed["downgrade_to"]) == ("9.000000000", "gpt-gone")


async def test_a_change_is_audited_with_all_it_changed(control: Control) -> None:
    made = await put(control, team="ml", window="day")
    await control.ask("PATCH", f"budgets/{made['budget_id']}", {"when_full": "alert"})
    entry = (await control.ask("GET", "audit"))["entries"][0]
    assert (entry["action"], entry["target"]) == ("budget.update", made["budget_id"])
    assert (entry["before"]["when_full"], entry["after"]["when_full"]) == ("block", "alert")


async def test_a_budget_does_not_move_into_a_window_that_is_taken(control: Control) -> None:
    day = await put(control, team="ml", window="day")
    week = await put(control, team="ml", window="week")
    error = await refused(control, 409, "PATCH", f"budgets/{week['budget_id']}", {"window": "day"})
    assert (error.error, error.field) == ("already_exists", "window")
    assert day["budget_id"] in error.message
    assert (await refused(control, 404, "PATCH", "budgets/bud_none", {"limit_usd": "1"})).error == "not_found"


# ---- hierarchy ------------------------------------------------------------------------------------------------------


async def test_a_hierarchy_has_no_circle_and_at_most_eight_levels(control: Control) -> None:
    ids: list[str] = []
    for number in range(8):
        parent = {"parent_id": ids[-1]} if ids else {}
        ids.append((await put(control, window="day", scope=scope("user", f"u{number}"), **parent))["budget_id"])
    await published(control, ids[-1])
    too_deep = LIMIT | {"window": "day", "scope": scope("user", "u8"), "parent_id": ids[-1]}
    error = await refused(control, 400, "PUT", "budgets", too_deep)
    assert (error.field, "9 budgets deep" in error.message) == ("parent_id", True)
    # A whole line counts, not only its head.
    top = await put(control, window="day", scope=scope("user", "top"))
    error = await refused(control, 400, "PATCH", f"budgets/{ids[0]}", {"parent_id": top["budget_id"]})
    assert (error.field, "9 budgets deep" in error.message) == ("parent_id", True)
    for own in (ids[0], ids[3], ids[7]):
        error = await refused(control, 400, "PATCH", f"budgets/{ids[0]}", {"parent_id": own})
        assert (error.field, "its own ancestor" in error.message) == ("parent_id", True)
    moved = await control.ask("PATCH", f"budgets/{ids[4]}", {"parent_id": top["budget_id"]})
    assert moved["parent_id"] == top["budget_id"]


async def test_a_parent_stays_while_it_has_children(control: Control) -> None:
    parent = await put(control, window="month")
    child = await put(control, team="ml", window="day", parent_id=parent["budget_id"])
    error = await refused(control, 409, "DELETE", f"budgets/{parent['budget_id']}")
    assert error.error == "has_children"
    assert child["budget_id"] in error.message
    await control.ask("DELETE", f"budgets/{child['budget_id']}")
    await control.ask("DELETE", f"budgets/{parent['budget_id']}")


async def test_a_parent_is_one_budget_of_the_same_org(control: Control) -> None:
    each = await put(control, window="day", scope=scope("user", "*"))
    body = LIMIT | {"window": "day", "team": "ml"}
    error = await refused(control, 400, "PUT", "budgets", body | {"parent_id": each["budget_id"]})
    assert (error.field, "one value" in error.message) == ("parent_id", True)
    error = await refused(control, 400, "PUT", "budgets", body | {"parent_id": "bud_of_nobody"})
    assert (error.field, "there is no budget" in error.message) == ("parent_id", True)
    # A budget of each value may be the child of one.
    org = await put(control, window="day")
    assert (await put(control, window="day", scope=scope("user", "*"), parent_id=org["budget_id"]))["parent_id"]


# ---- refusals -------------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"window": "week", "week_start": 7}, "week_start", "from 0 to 6"),
    ({"week_start": 1}, "week_start", "use window week"),
    ({"anchor_day": 1}, "anchor_day", "month, quarter, year"),
    ({"window": "month", "anchor_month": 1}, "anchor_month", "quarter or year"),
    ({"anchor": "2026-01-05T09:00:00Z"}, "anchor", "every 14d"),
    ({"window": "every 14d", "anchor": "monday"}, "anchor", "such as 2026"),
    ({"window": "every 14d", "zone": "UTC"}, "zone", "leave zone out"),
    ({"window": "session", "zone": "UTC"}, "zone", "leave zone out"),
    ({"window": "week", "week_start": True}, "week_start", "whole number"),
    ({"window": "lifetime", "scope": scope("user", "*")}, "window", "a window that ends"),
    ({"scope": scope("org", "*")}, "scope.value", "leave it out"),
    ({"scope": scope("user")}, "scope.value", "is required"),
    ({"scope": scope("user", "a b")}, "scope.value", "letters, digits"),
    ({"scope": scope("user", "u" * 129)}, "scope.value", "1 to 128"),
    ({"scope": scope("user", "u" * 257)}, "scope.value", "too long"),
    ({"scope": scope("vendor", "Open AI")}, "scope.value", "such as openai"),
    ({"scope": scope("billing_class", "openai")}, "scope.value", "metered.openai"),
    ({"scope": scope("billing_class", "free.openai")}, "scope.value", "metered.openai"),
    ({"scope": scope("model", "a\u0000b")}, "scope.value", "such as gpt-4o"),
    ({"scope": scope("model", "gpt-4*")}, "scope.value", "startsWith"),
    ({"scope": scope("key", "fk_live_" + "x" * 40)}, "scope.value", "never the key"),
    ({"scope": scope("cel", "*", "true")}, "scope.value", "your choice"),
    ({"scope": scope("cel", "x")}, "scope.expression", "is required"),
    ({"scope": scope("cel", "x", "team == ")}, "scope.expression", "no condition"),
    ({"scope": scope("cel", "x", "teem == 'ml'")}, "scope.expression", "unknown name 'teem'"),
    ({"scope": scope("cel", "x", "team + 'x'")}, "scope.expression", "true or false"),
    ({"scope": scope("cel", "x", "t" * 1001)}, "scope.expression", "too long"),
    ({"scope": scope("team", "ml", "true")}, "scope.expression", "use kind 'cel'"),
    ({"child_mode": "fallback"}, "child_mode", "parent_id"),
    ({"child_mode": "sibling"}, "child_mode", "isolated"),
    ({"enforcement": "maybe"}, "enforcement", "monitor"),
    ({"when_full": "panic"}, "when_full", "downgrade"),
    ({"when_full": "downgrade"}, "downgrade_to", "is required"),
    ({"downgrade_to": "gpt-4o-mini"}, "downgrade_to", "set when_full"),
    ({"when_full": "alert", "downgrade_to": "gpt-4o-mini"}, "downgrade_to", "set when_full"),
    ({"when_full": "downgrade", "downgrade_to": "a\u0000b"}, "downgrade_to", "such as gpt-4o-mini"),
    ({"when_full": "downgrade", "downgrade_to": "gpt-9-nano"}, "downgrade_to", "GET /api/v1/prices"),
    (
        {"when_full": "downgrade", "downgrade_to": "gpt-4o-mini", "scope": scope("vendor", "anthropic")},
        "downgrade_to",
        "'anthropic', whose calls this budget caps",
    ),
    (
        {"when_full": "downgrade", "downgrade_to": "gpt-4o-mini", "scope": scope("billing_class", "byok.anthropic")},
        "downgrade_to",
        "has no price with vendor 'anthropic'",
    ),
    ({"team": None}, "team", "must not be null"),
    ({"scope": None}, "scope", "must not be null"),
    ({"thresholds": None}, "thresholds", "must not be null"),
    ({"thresholds": [0]}, "thresholds", "from 1 to 100"),
    ({"thresholds": [101]}, "thresholds", "from 1 to 100"),
    ({"thresholds": [85, 60]}, "thresholds", "must ascend"),
    ({"thresholds": [60, 60]}, "thresholds", "must ascend"),
    ({"thresholds": list(range(1, 12))}, "thresholds", "at most 10"),
    ({"thresholds": [60.5]}, "thresholds.0", "whole number"),
    ({"extend": "yes"}, "extend", "boolean"),
    ({"parent_id": "p" * 65}, "parent_id", "too long"),
    ({"since_version": 1}, "since_version", "not a field"),
]


async def test_what_can_not_be_is_refused_by_field(control: Control, subtests: pytest.Subtests) -> None:
    before = await control.ask("GET", "org")
    for change, field, text in BAD:
        with subtests.test(str(change)):
            error = await refused(control, 400, "PUT", "budgets", LIMIT | {"window": "day"} | change)
            assert (error.error, error.field) == ("invalid_request", field)
            assert text in error.message
    assert await control.ask("GET", "org") == before


async def test_a_change_is_refused_by_field_and_changes_nothing(control: Control, subtests: pytest.Subtests) -> None:
    parent = await put(control, window="month")
    made = await put(control, window="day", scope=scope("user", "*"), parent_id=parent["budget_id"])
    path = f"budgets/{made['budget_id']}"
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, "limit_usd", "name what to change"),
        ({"scope": scope("user", "ann")}, "scope", "not a field"),
        ({"team": "ml"}, "team", "not a field"),
        ({"limit_usd": "-1"}, "limit_usd", "not be negative"),
        ({"limit_usd": None}, "limit_usd", "must not be null; leave it out"),
        ({"limit_usd": "7", "window": None}, "window", "must not be null"),
        ({"limit_usd": "7", "estimate": None}, "estimate", "must not be null"),
        ({"limit_usd": "7", "extend": None}, "extend", "must not be null"),
        ({"limit_usd": "7", "when_full": None}, "when_full", "must not be null"),
        ({"when_full": "downgrade", "downgrade_to": "gpt-9-nano"}, "downgrade_to", "no price with any vendor"),
        ({"window": "lifetime"}, "window", "a window that ends"),
        ({"window": "1h", "zone": "UTC"}, "zone", "leave zone out"),
        ({"week_start": 3}, "week_start", "use window week"),
        ({"parent_id": None, "child_mode": "fallback"}, "child_mode", "name one"),
        ({"child_mode": "fallback", "when_full": "downgrade", "downgrade_to": "m"}, "when_full", "parent pays"),
    ]
    for change, field, text in cases:
        with subtests.test(str(change)):
            error = await refused(control, 400, "PATCH", path, change)
            assert (error.error, error.field) == ("invalid_request", field)
            assert text in error.message
    kept = await control.ask("GET", path)
    assert kept == {name: value for name, value in made.items() if name != "made"}


async def test_there_is_an_end_to_budgets(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_EXPRESSIONS_PER_ORG", 1)
    await put(control, window="day", scope=scope("cel", "x", "true"))
    second = LIMIT | {"window": "day", "scope": scope("cel", "y", "true")}
    error = await refused(control, 409, "PUT", "budgets", second)
    assert (error.error, error.field) == ("too_many_budgets", "scope.kind")
    budgets = len((await control.ask("GET", "budgets"))["budgets"])
    monkeypatch.setattr(service, "MAX_BUDGETS_PER_ORG", budgets)
    error = await refused(control, 409, "PUT", "budgets", LIMIT | {"window": "day", "team": "ml"})
    assert error.error == "too_many_budgets"
    assert "delete some" in error.message
    # What is there can still be changed.
    await put(control, window="day", scope=scope("cel", "x"), limit_usd="6")


async def test_orgs_do_not_share_parents(control: Control, postgres_dsn: str) -> None:
    """The database holds what the service checks: a parent of the same org, kept while it has children."""
    parent = await put(control, window="month")
    await put(control, team="ml", window="day", parent_id=parent["budget_id"])
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(
        "INSERT INTO orgs (name, catalog_version, hold_ms) SELECT 'other', catalog_version, 1 FROM orgs"
    )
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await connection.execute(
            "INSERT INTO budgets (budget_id, org, scope_kind, scope_value, time_window, zone, limit_nano, parent_id)"
            " VALUES ('bud_x', 'other', 'org', 'other', 'lifetime', '', 1, $1)",
            parent["budget_id"],
        )
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await connection.execute("DELETE FROM budgets WHERE budget_id = $1", parent["budget_id"])
    await connection.close()


# ---- standings ------------------------------------------------------------------------------------------------------


async def test_budgets_of_each_value_and_session_stand_by_value_and_session(control: Control) -> None:
    users = await put(control, window="day", scope=scope("user", "*"))
    sessions = await put(control, window="session", team="ml")
    both = await put(control, window="session", scope=scope("user", "*"))
    ever = await put(control, window="lifetime")
    now_ms = await control.context.hot.now_ms()
    day = span_at(CalendarWindow("day", "UTC"), now_ms).key()
    spent = {
        (f"{users['budget_id']}@ann", day): 1_000_000_000,
        (sessions["budget_id"], "s:run-1"): 2_000_000_000,
        (f"{both['budget_id']}@ann", "s:run-1"): 3_000_000_000,
        (ever["budget_id"], "l"): 4_000_000_000,
    }
    assert await control.context.hot.load("default", OrgImage(spent, {}, {}, {}), "epoch-1")

    async def standing(budget: Any, query: str = "") -> Any:
        return (await control.ask("GET", f"budgets/{budget['budget_id']}{query}"))["standing"]

    listed = {each["budget_id"]: each["standing"] for each in (await control.ask("GET", "budgets"))["budgets"]}
    assert listed[users["budget_id"]]["reason"] == "per_value" == (await standing(users))["reason"]
    assert listed[sessions["budget_id"]]["reason"] == "per_session" == (await standing(sessions))["reason"]
    assert listed[users["budget_id"]]["spent_usd"] is None
    assert listed[ever["budget_id"]]["spent_usd"] == "4.000000000"
    assert listed[ever["budget_id"]]["resets_at"] is None
    assert listed[ever["budget_id"]]["reason"] is None
    of_ann = await standing(users, "?value=ann")
    assert (of_ann["spent_usd"], of_ann["remaining_usd"], of_ann["reason"]) == ("1.000000000", "4.000000000", None)
    assert (await standing(users, "?value=bob"))["spent_usd"] == "0.000000000"
    of_run = await standing(sessions, "?session=run-1")
    assert (of_run["spent_usd"], of_run["resets_at"], of_run["reason"]) == ("2.000000000", None, None)
    assert (await standing(both, "?value=ann"))["reason"] == "per_session"
    assert (await standing(both, "?session=run-1"))["reason"] == "per_value"
    assert (await standing(both, "?value=ann&session=run-1"))["spent_usd"] == "3.000000000"
    for budget, query, field in [
        (ever, "?value=ann", "value"),
        (users, "?value=ann&session=run-1", "session"),
        (sessions, "?session=no%20name", "session"),
    ]:
        error = await refused(control, 400, "GET", f"budgets/{budget['budget_id']}{query}")
        assert (error.error, error.field) == ("invalid_request", field)


async def test_a_budget_tells_whether_its_past_is_known(control: Control) -> None:
    day, month = (
        await put(control, window="day", team="ml"),
        await put(control, window="month", scope=scope("user", "*")),
    )
    hot = control.context.hot

    async def told(query: str = "") -> dict[str, Any]:
        listed = (await control.ask("GET", "budgets"))["budgets"]
        single = [await control.ask("GET", f"budgets/{each['budget_id']}") for each in listed]
        known = {each["budget_id"]: each["backfilled"] for each in listed}
        assert known == {each["budget_id"]: each["backfilled"] for each in single}
        of_ann = await control.ask("GET", f"budgets/{month['budget_id']}?value=ann")
        assert of_ann["backfilled"] == known[month["budget_id"]]
        return {each["budget_id"]: known[each["budget_id"]] for each in (day, month)}

    assert day["backfilled"] is None, "the spend state is cold"
    marks = {day["budget_id"]: day["since_version"], month["budget_id"]: month["since_version"] - 1}
    assert await hot.load("default", OrgImage({}, {}, {}, {}, filled=marks), "epoch-1")
    assert await told() == {day["budget_id"]: True, month["budget_id"]: False}, "a mark of an earlier window is none"
    changed = await control.ask("PATCH", f"budgets/{day['budget_id']}", {"window": "week"})
    assert changed["backfilled"] is False
    await control.ask("PATCH", f"budgets/{month['budget_id']}", {"limit_usd": "7"})
    assert await told() == {day["budget_id"]: False, month["budget_id"]: False}


async def test_what_has_no_one_standing_says_so_while_the_hot_state_is_away(postgres_dsn: str, tmp_path: Path) -> None:
    async with running_control(postgres_dsn, tmp_path, Away(), Away()) as control:
        users = await put(control, window="day", scope=scope("user", "*"))
        path = f"budgets/{users['budget_id']}"
        assert (users["standing"]["reason"], users["backfilled"]) == ("per_value", None)
        assert (await control.ask("GET", f"{path}?value=ann"))["standing"]["reason"] == "hot_state_unreachable"
