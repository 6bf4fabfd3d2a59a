"""Compiling an org's rows: equal rows give equal bytes, and the bytes say what the rows say."""

import json
from dataclasses import replace
from itertools import permutations

from services.control.compile import HashedKey, OrgRecord, compile_keys, compile_snapshot
from services.core.budgets import Budget
from services.core.identity import KeyRecord
from services.core.snapshot import (
    Connection,
    Overrides,
    RouteRule,
    Target,
    UnknownModels,
    decode_snapshot,
    encode_snapshot,
)
from services.core.windows import CalendarWindow, RollingWindow

ORG = OrgRecord("acme", config_version=7, catalog_version="cafe", hold_ms=900_000, book_expired=True)
BUDGETS = [
    Budget("bud_3", "agent", "ada", RollingWindow(3_600_000), 1),
    Budget("bud_2", "org", "acme", CalendarWindow("day", "Europe/Berlin"), 10**18),
    Budget("bud_1", "team", "ml", CalendarWindow("month", "UTC"), 0),
    Budget("bud_4", "org", "acme", RollingWindow(60_000), 2),
]
CONNECTIONS = [
    Connection("openai", "openai", "https://api.openai.com/v1", "v1.sealed", "openai"),
    Connection("local", "openai", "http://127.0.0.1:11434/v1", None, "openai", "local"),
]
OVERRIDES = Overrides(
    "beef", ({"vendor": "vllm", "model": "llama", "prices": [{"from": None, "usd": {"input": "0"}}]},)
)
RULES = [
    RouteRule("openai", "chat.completions", timeout_ms=5000, fallbacks=(Target("local", "llama"),)),
    RouteRule(budget_status=429),
    RouteRule("openai", fallbacks=()),
]


def test_the_snapshot_says_what_the_rows_say() -> None:
    snapshot = decode_snapshot(encode_snapshot(compile_snapshot(ORG, BUDGETS, CONNECTIONS)))
    assert (snapshot.org, snapshot.version, snapshot.catalog_version) == ("acme", 7, "cafe")
    assert (snapshot.hold_ms, snapshot.book_expired) == (900_000, True)
    assert set(snapshot.budgets) == set(BUDGETS)
    assert dict(snapshot.connections) == {each.vendor: each for each in CONNECTIONS}
    released = replace(ORG, book_expired=False)
    assert decode_snapshot(encode_snapshot(compile_snapshot(released, [], []))).book_expired is False


def test_the_snapshot_says_how_prices_and_routes_are_the_orgs_own() -> None:
    org = replace(
        ORG, unknown_models=UnknownModels("fallback_price", Target("openai", "gpt-4o")), allow_unpriced_routes=True
    )
    budgets = [replace(BUDGETS[0], estimate="calibrated")]
    snapshot = decode_snapshot(encode_snapshot(compile_snapshot(org, budgets, [], OVERRIDES, RULES)))
    assert (snapshot.unknown_models, snapshot.allow_unpriced_routes) == (org.unknown_models, True)
    assert snapshot.overrides == OVERRIDES
    assert set(snapshot.rules) == set(RULES)
    assert snapshot.budgets[0].estimate == "calibrated"
    plain = compile_snapshot(ORG, BUDGETS, CONNECTIONS)
    assert (plain.unknown_models.policy, plain.allow_unpriced_routes) == ("reject", False)
    assert (plain.overrides, plain.rules) == (None, ())


def test_fields_that_a_newer_control_adds_are_passed_over() -> None:
    snapshot = compile_snapshot(ORG, BUDGETS, CONNECTIONS)
    fields = json.loads(encode_snapshot(snapshot))
    for part in (fields, *fields["budgets"], *(each["window"] for each in fields["budgets"]), *fields["connections"]):
        part["added_later"] = 1
    assert decode_snapshot(json.dumps(fields).encode()) == snapshot


def test_a_connection_of_an_earlier_control_is_metered() -> None:
    fields = json.loads(encode_snapshot(compile_snapshot(ORG, BUDGETS, CONNECTIONS)))
    for each in fields["connections"]:
        del each["auth_mode"]
    connections = decode_snapshot(json.dumps(fields).encode()).connections
    assert {each.auth_mode for each in connections.values()} == {"metered"}


def test_the_order_of_rows_does_not_matter() -> None:
    compiled = {
        encode_snapshot(compile_snapshot(ORG, budgets, connections, None, rules))
        for budgets in permutations(BUDGETS)
        for connections in permutations(CONNECTIONS)
        for rules in permutations(RULES)
    }
    assert len(compiled) == 1


def test_budgets_come_widest_scope_first() -> None:
    compiled = compile_snapshot(ORG, BUDGETS, [])
    assert [each.budget_id for each in compiled.budgets] == ["bud_2", "bud_4", "bud_1", "bud_3"]


def test_live_keys_and_revoked_ones_are_kept_apart() -> None:
    admin = KeyRecord("key_1", "acme", "org_admin", {})
    agent = KeyRecord("key_2", "acme", "agent", {"team": "ml", "agent": "ada"})
    keys = compile_keys(
        [
            HashedKey("aa", admin, False),
            HashedKey("bb", agent, True),
            HashedKey("cc", agent, False),
            HashedKey("dd", agent, True, is_forgotten=True),
        ]
    )
    assert keys.live == {"aa": admin, "cc": agent}
    assert (keys.revoked, keys.forgotten) == (("bb",), ("dd",))
