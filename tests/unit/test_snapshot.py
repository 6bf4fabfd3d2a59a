"""The compiled snapshot: over the wire and back, what earlier releases left out, and which rule counts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.budgets import ESTIMATE_MODES, Budget
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
from services.core.windows import CalendarWindow, RollingWindow
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
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        decode_snapshot(value)


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
