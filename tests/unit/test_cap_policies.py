"""The cap matrix as budgets: what null, 0 and nothing come to, and which of them are one budget."""

from dataclasses import replace
from typing import get_args

import pytest

from services.control.cap_policies.compiled import compile_caps
from services.control.compile import OrgRecord, compile_snapshot
from services.core import billing
from services.core.billing import AUTH_MODES, BYOK, CAP_PERIODS, CONNECTION_AUTH_MODES, Cap, CapPeriod, split_class
from services.core.budgets import DEFAULT_THRESHOLDS, Budget
from services.core.identity import check_name
from services.core.matching import BudgetIndex, closed_cap
from services.core.snapshot import decode_snapshot, encode_snapshot
from services.core.windows import CalendarWindow, SessionWindow, Window
from tests.support.examples import FACTS

ORG = OrgRecord("acme", config_version=9, catalog_version="cafe", hold_ms=900_000, book_expired=True)
CALL = replace(FACTS, vendor="openai", auth_mode="metered")


@pytest.mark.parametrize(
    ("period", "window"),
    [
        ("daily", CalendarWindow("day", "UTC")),
        ("monthly", CalendarWindow("month", "UTC")),
        ("per_session", SessionWindow()),
    ],
)
def test_a_cap_is_an_enforced_budget_of_its_billing_class(period: CapPeriod, window: Window) -> None:
    (budget,) = compile_caps([Cap("metered.openai", period, 5, 7)])
    assert (budget.scope, budget.window, budget.limit_nano) == ("billing_class:metered.openai", window, 5)
    assert (budget.is_cap, budget.full_rule, budget.since_version) == (True, "block", 7)
    assert budget.thresholds == DEFAULT_THRESHOLDS
    assert budget.budget_id.startswith("cap_")


def test_null_is_no_budget_and_zero_is_one_that_blocks() -> None:
    caps = [Cap("metered.openai", "daily", None, 1), Cap("metered.openai", "monthly", 0, 1)]
    (budget,) = compile_caps(caps)
    assert (budget.limit_nano, budget.window) == (0, CalendarWindow("month", "UTC"))
    assert compile_caps([]) == compile_caps([replace(caps[1], limit_nano=None)]) == ()


def test_ids_tell_every_cap_and_every_time_it_was_enforced_apart() -> None:
    caps = [
        Cap(f"{mode}.{vendor}", period, 1, version)
        for mode in AUTH_MODES
        for vendor in ("openai", "openai-1", "a" * 63)
        for period in CAP_PERIODS
        for version in (1, 11, 2**63 - 1)
    ]
    ids = [each.budget_id for each in compile_caps(caps)]
    assert len(set(ids)) == len(caps)
    for each in ids:
        assert check_name("budget_id", each) == each
        assert "@" not in each
    assert Cap("metered.openai", "daily", 1, 3).budget_id == Cap("metered.openai", "daily", 2, 3).budget_id


def test_a_call_falls_under_the_caps_of_its_own_class_alone() -> None:
    caps = compile_caps(Cap(name, "daily", 1, 1) for name in ("metered.openai", "byok.openai", "metered.google"))
    index = BudgetIndex(caps)
    assert [each.scope for each in index.matching(CALL).applicable] == ["billing_class:metered.openai"]
    own = replace(CALL, auth_mode=BYOK)
    assert [each.scope for each in index.matching(own).applicable] == ["billing_class:byok.openai"]


def test_only_a_cap_of_nothing_is_closed() -> None:
    def closed(*budgets: Budget) -> str | None:
        found = closed_cap(BudgetIndex(budgets).matching(CALL))
        return None if found is None else found.budget_id

    zero, some = compile_caps([Cap("metered.openai", "per_session", 0, 1), Cap("metered.openai", "daily", 1, 1)])
    assert closed(zero, some) == zero.budget_id
    assert closed(some) is None
    assert closed(*compile_caps([Cap("byok.openai", "daily", 0, 1)])) is None
    assert closed(Budget("bud_1", "org", FACTS.identity.org, SessionWindow(), 0)) is None, "a budget's figures tell"


def test_caps_are_in_the_snapshot_beside_the_budgets() -> None:
    caps = compile_caps([Cap("metered.openai", "daily", 5, 7), Cap("byok.google", "per_session", 0, 9)])
    org = Budget("bud_org", "org", "acme", CalendarWindow("day", "UTC"), 1)
    key = Budget("bud_key", "key", "key_1", CalendarWindow("day", "UTC"), 1)
    snapshot = compile_snapshot(ORG, [key, org], [], caps=caps)
    assert [each.budget_id for each in snapshot.budgets] == [
        "bud_org", "cap_daily_metered.openai_7", "cap_per_session_byok.google_9", "bud_key",
    ]  # fmt: skip
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot


def test_the_names_of_auth_modes_are_those_of_their_types() -> None:
    assert set(AUTH_MODES) == set(get_args(billing.AuthMode)) == {*CONNECTION_AUTH_MODES, BYOK}
    assert set(CONNECTION_AUTH_MODES) == set(get_args(billing.ConnectionAuthMode))
    assert set(CAP_PERIODS) == set(get_args(billing.CapPeriod))


@pytest.mark.parametrize("text", ["", "openai", "metered.", ".openai", "Metered.openai", "prepaid.openai", "metered"])
def test_what_begins_with_no_auth_mode_is_no_billing_class(text: str) -> None:
    with pytest.raises(ValueError, match="not a billing class"):
        split_class(text)
    assert split_class("host-session.openai") == ("host-session", "openai")
