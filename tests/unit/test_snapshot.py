"""The compiled snapshot: over the wire and back, what earlier releases left out, and which rule counts."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.budgets import ESTIMATE_MODES, SCOPE_KINDS, Budget, ScopeKind
from services.core.snapshot import (
    ANY,
    UNKNOWN_MODEL_POLICIES,
    Connection,
    Overrides,
    RouteRule,
    Snapshot,
    Target,
    UnknownModels,
    decode_snapshot,
    encode_snapshot,
)
from services.core.windows import (
    CALENDAR_UNITS,
    CalendarWindow,
    IntervalWindow,
    LifetimeWindow,
    RollingWindow,
    SessionWindow,
    Window,
)
from tests.support.strategies import amounts, names

targets = st.builds(Target, names, names)
rules = st.builds(
    RouteRule,
    vendor=st.just(ANY) | names,
    route=st.just(ANY) | names,
    budget_status=st.sampled_from((None, 402, 403, 429)),
    timeout_ms=st.none() | st.integers(1, 600_000),
    fallbacks=st.none() | st.lists(targets, max_size=3).map(tuple),
    fail_open=st.none() | st.booleans(),
)
snapshots = st.builds(
    Snapshot,
    org=names,
    version=st.integers(0, 2**53),
    catalog_version=names,
    hold_ms=st.integers(1, 10**9),
    book_expired=st.booleans(),
    budgets=st.lists(
        st.builds(
            Budget,
            names,
            st.sampled_from(("org", "team", "agent")),
            names,
            st.sampled_from((CalendarWindow("day", "Europe/Berlin"), RollingWindow(60_000))),
            amounts,
            st.sampled_from(ESTIMATE_MODES),
        ),
        max_size=3,
    ).map(tuple),
    connections=st.lists(st.builds(Connection, names, names, names, st.none() | names, names), max_size=3).map(
        lambda found: {each.vendor: each for each in found}
    ),
    overrides=st.none() | st.builds(Overrides, names, st.just(({"vendor": "v", "model": "m", "prices": []},))),
    unknown_models=st.one_of(
        st.sampled_from(UNKNOWN_MODEL_POLICIES).map(UnknownModels),
        targets.map(lambda target: UnknownModels("fallback_price", target)),
    ),
    allow_unpriced_routes=st.booleans(),
    rules=st.lists(rules, max_size=4).map(tuple),
)


@given(snapshots)
def test_a_snapshot_comes_back_as_it_was(snapshot: Snapshot) -> None:
    encoded = encode_snapshot(snapshot)
    assert decode_snapshot(encoded) == snapshot
    assert encode_snapshot(decode_snapshot(encoded)) == encoded
    newer = json.dumps({**json.loads(encoded), "from_the_future": 1}).encode()
    assert decode_snapshot(newer) == snapshot


def test_what_an_earlier_control_left_out_is_the_safe_choice() -> None:
    budget = Budget("bud_1", "org", "o", RollingWindow(60_000), 5)
    fields = json.loads(encode_snapshot(Snapshot("o", 1, "c", 9, True, (budget,), {})))
    for name in ("overrides", "unknown_models", "allow_unpriced_routes", "rules"):
        del fields[name]
    del fields["budgets"][0]["estimate"]
    snapshot = decode_snapshot(json.dumps(fields).encode())
    assert snapshot.unknown_models.policy == "reject"
    assert snapshot.allow_unpriced_routes is False
    assert snapshot.budgets[0].estimate == "strict"
    assert (snapshot.overrides, snapshot.rules) == (None, ())


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b"null", b'{"org":"o"}'])
def test_anything_else_raises_what_is_promised(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        decode_snapshot(value)


def fields_of_all() -> dict[str, Any]:
    """The fields of a snapshot with something of everything."""
    budget = Budget("bud_1", "org", "o", CalendarWindow("day", "UTC"), 5)
    connection = Connection("openai", "openai", "https://x", None, "openai")
    models = UnknownModels("fallback_price", Target("v", "m"))
    snapshot = Snapshot("o", 1, "c", 9, True, (budget,), {"openai": connection}, unknown_models=models)
    fields: dict[str, Any] = json.loads(encode_snapshot(snapshot))
    return fields


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scope_kind", "galaxy"),
        ("scope_kind", ["org"]),
        ("scope_value", 7),
        ("expression", ["true"]),
        ("parent_id", 1),
        ("downgrade_to", False),
        ("estimate", "wild"),
        ("child_mode", "adopted"),
        ("enforcement", "maybe"),
        ("when_full", "cry"),
        ("limit_nano", "5"),
        ("limit_nano", 5.0),
        ("limit_nano", -1),
        ("limit_nano", True),
        ("since_version", "1"),
        ("ends_at_ms", 1.5),
        ("extend", "yes"),
        ("is_cap", None),
        ("covers", None),
        ("thresholds", 60),
        ("window", None),
    ],
)
def test_a_budget_that_is_not_understood_is_not_taken_for_another(name: str, value: object) -> None:
    """An unknown kind of scope would cap nothing, an unknown rule block nothing."""
    fields = fields_of_all()
    fields["budgets"][0][name] = value
    with pytest.raises(ValueError, match=rf"^budget_id bud_1: {name} "):
        decode_snapshot(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("window", "named"),
    [
        ({"unit": "fortnight", "zone": "UTC"}, "window.unit 'fortnight' is none of day, hour"),
        ({"unit": ["day"], "zone": "UTC"}, "window.unit"),
        ({"unit": "day", "zone": "Mars/Olympus"}, "unknown zone 'Mars/Olympus'"),
        ({"unit": "day"}, "there is no zone"),
        ({"unit": "week", "zone": "UTC", "week_start": 7}, "week_start '7' is not a whole number from 0 to 6"),
        ({"unit": "month", "zone": "UTC", "anchor_day": 0}, "anchor_day"),
        ({"unit": "year", "zone": "UTC", "anchor_month": 13}, "anchor_month"),
        ({"of": "project"}, "window.of 'project' is none of lifetime, session"),
        ({"length_ms": 0}, "length_ms"),
        ({"length_ms": "60000"}, "length_ms"),
        ({"every_ms": 0, "anchor_ms": 0}, "every_ms"),
        ({"every_ms": 60_000, "anchor_ms": None}, "anchor_ms"),
        ({"every_ms": 60_000}, "there is no anchor_ms"),
        ({"cron": "0 0 * * *"}, "there is no unit"),
    ],
)
def test_a_window_that_is_not_understood_is_not_taken_for_another(window: dict[str, Any], named: str) -> None:
    fields = fields_of_all()
    fields["budgets"][0]["window"] = window
    with pytest.raises(ValueError, match=rf"^budget_id bud_1: .*{re.escape(named)}"):
        decode_snapshot(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("version",), None, "version"),
        (("org",), 5, "org '5' is not a text"),
        (("budgets", 0, "budget_id"), 5, "budget_id '5' is not a text"),
        (("hold_ms",), 0, "hold_ms"),
        (("book_expired",), 1, "book_expired"),
        (("allow_unpriced_routes",), "no", "allow_unpriced_routes"),
        (("unknown_models", "policy"), "guess", "unknown_models.policy"),
        (("connections", 0, "auth_mode"), "byok", "vendor openai: auth_mode 'byok'"),
        (("connections", 0, "dialect"), ..., "vendor openai: there is no dialect"),
        (("org",), ..., "there is no org"),
        (("budgets", 0, "limit_nano"), ..., "budget_id bud_1: there is no limit_nano"),
    ],
)
def test_what_else_is_not_understood_is_named(path: tuple[str | int, ...], value: object, named: str) -> None:
    fields = fields_of_all()
    place: Any = fields
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    if value is ...:
        del place[path[-1]]
    with pytest.raises(ValueError, match=re.escape(named)):
        decode_snapshot(json.dumps(fields).encode())


@pytest.mark.parametrize("kind", SCOPE_KINDS)
@pytest.mark.parametrize(
    "window", [*(CalendarWindow(unit, "UTC", 6, 31, 12) for unit in CALENDAR_UNITS), SessionWindow(), LifetimeWindow(),
               IntervalWindow(60_000, 5)]
)  # fmt: skip
def test_every_kind_and_window_comes_back(kind: ScopeKind, window: Window) -> None:
    budget = Budget(
        *("bud_1", kind, "x", window, 5, "calibrated", "true", "bud_0", "fallback", "monitor", "downgrade", "m"),
        extend=True, since_version=3, is_cap=True, ends_at_ms=7,
    )  # fmt: skip
    snapshot = Snapshot("o", 1, "c", 9, True, (budget,), {})
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot


def ruled(*found: RouteRule) -> Snapshot:
    return Snapshot("o", 1, "c", 9, True, (), {}, rules=found)


def test_the_most_particular_rule_counts_whatever_their_order() -> None:
    found = [
        RouteRule(ANY, ANY, budget_status=402),
        RouteRule(ANY, "messages", budget_status=403),
        RouteRule("anthropic", ANY, budget_status=429),
        RouteRule("anthropic", "messages", budget_status=451),
    ]
    for order in (found, found[::-1]):
        snapshot = ruled(*order)
        assert snapshot.rule("anthropic", "messages").budget_status == 451
        assert snapshot.rule("anthropic", "batches").budget_status == 429
        assert snapshot.rule("other", "messages").budget_status == 403
        assert snapshot.rule("other", "other").budget_status == 402


def test_each_setting_is_found_for_itself() -> None:
    """A particular rule leaves to a general one what it does not say; no fallbacks at all is something said."""
    target = Target("v", "m")
    snapshot = ruled(
        RouteRule(ANY, ANY, budget_status=429, timeout_ms=9, fallbacks=(target,)),
        RouteRule("openai", ANY, timeout_ms=5),
        RouteRule("openai", "embeddings", fallbacks=()),
    )
    assert snapshot.rule("openai", "embeddings") == RouteRule("openai", "embeddings", 429, 5, ())
    assert snapshot.rule("openai", "chat") == RouteRule("openai", "chat", 429, 5, (target,))
    assert snapshot.rule("x", "y") == RouteRule("x", "y", 429, 9, (target,))
    assert ruled().rule("x", "y") == RouteRule("x", "y")
