"""What a budget may be, by what a request says of it."""

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from services.control.budgets.forms import ChangeBudget, SetBudget
from services.control.budgets.rules import changed_window, expression_of, scope_of, with_options
from services.control.errors import ApiError
from services.core.budgets import DEFAULT_THRESHOLDS, Budget
from services.core.matching import ExpressionError, Predicate
from services.core.windows import CalendarWindow, IntervalWindow, LifetimeWindow, Window, WindowError

DAY = CalendarWindow("day", "UTC")
PLAIN = Budget("bud_1", "team", "ml", DAY, 5)
CHILD = Budget("bud_1", "team", "ml", DAY, 5, parent_id="bud_0", child_mode="fallback")
CHEAPER = Budget("bud_1", "team", "ml", DAY, 5, when_full="downgrade", downgrade_to="small")


class OnlyTrue:
    """An expression language of one expression."""

    def compile(self, text: str) -> Predicate:
        if text != "true":
            raise ExpressionError("is not true")

        def always(_context: Mapping[str, Any]) -> bool:
            return True

        return always


def asked(**fields: Any) -> SetBudget:
    return SetBudget.model_validate({"limit_usd": "1", "window": "day", **fields})


def change(**fields: Any) -> ChangeBudget:
    return ChangeBudget.model_validate(fields)


def test_what_a_request_leaves_out_stays_as_it_is() -> None:
    for budget in (PLAIN, CHILD, CHEAPER):
        assert with_options(budget, change(limit_usd="2")) == budget
        assert with_options(budget, asked()) == budget
    assert PLAIN.thresholds == DEFAULT_THRESHOLDS


NEVER_NULL = ("estimate", "extend", "child_mode", "enforcement", "when_full", "thresholds")


@pytest.mark.parametrize(
    ("form", "names"),
    [(ChangeBudget, ("limit_usd", "window", *NEVER_NULL)), (SetBudget, ("scope", "team", "agent", *NEVER_NULL))],
)
def test_what_can_not_be_nothing_is_never_null(
    form: type[ChangeBudget] | type[SetBudget], names: tuple[str, ...]
) -> None:
    """Else a request that means to change something changes nothing, or caps the whole org, and looks as if it had."""
    told = form.model_json_schema()["properties"]
    may_be_null = {"zone", "week_start", "anchor_day", "anchor_month", "anchor", "parent_id", "downgrade_to"}
    for name in told:
        fields: dict[str, Any] = {"limit_usd": "1", "window": "day", name: None}
        if name in may_be_null:
            form.model_validate(fields)
            continue
        with pytest.raises(ValidationError) as caught:
            form.model_validate(fields)
        assert [each["loc"] for each in caught.value.errors()] == [(name,)]
        assert "anyOf" not in told[name]
    assert may_be_null | set(names) | {"limit_usd", "window"} == told.keys()


def test_false_and_empty_are_changes() -> None:
    budget = Budget("bud_1", "team", "ml", DAY, 5, extend=True)
    assert not with_options(budget, change(extend=False)).extend
    assert with_options(budget, change(thresholds=[])).thresholds == ()


@pytest.mark.parametrize(
    ("budget", "fields", "expected"),
    [
        (CHILD, {"parent_id": None}, {"parent_id": None, "child_mode": "isolated"}),
        (CHILD, {"parent_id": "bud_9"}, {"parent_id": "bud_9", "child_mode": "fallback"}),
        (CHEAPER, {"when_full": "alert"}, {"when_full": "alert", "downgrade_to": None}),
        (CHEAPER, {"downgrade_to": "tiny"}, {"when_full": "downgrade", "downgrade_to": "tiny"}),
        (CHEAPER, {"when_full": "block", "downgrade_to": None}, {"when_full": "block", "downgrade_to": None}),
    ],
)
def test_what_needs_another_option_goes_with_it(
    budget: Budget, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    changed = with_options(budget, change(**fields))
    assert {name: getattr(changed, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("budget", "fields", "field"),
    [
        (PLAIN, {"child_mode": "fallback"}, "child_mode"),
        (CHILD, {"parent_id": None, "child_mode": "fallback"}, "child_mode"),
        (PLAIN, {"when_full": "downgrade"}, "downgrade_to"),
        (CHEAPER, {"downgrade_to": None}, "downgrade_to"),
        (CHEAPER, {"when_full": "block", "downgrade_to": "tiny"}, "downgrade_to"),
        (CHILD, {"when_full": "downgrade", "downgrade_to": "tiny"}, "when_full"),
        (CHEAPER, {"parent_id": "bud_0", "child_mode": "fallback"}, "when_full"),
        (Budget("bud_1", "user", "*", LifetimeWindow(), 5), {}, "window"),
        (PLAIN, {"thresholds": [10, 10]}, "thresholds"),
        (PLAIN, {"thresholds": [100, 10]}, "thresholds"),
    ],
)
def test_options_that_contradict_each_other_are_refused(budget: Budget, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ApiError) as caught:
        with_options(budget, change(**fields))
    assert (caught.value.status, caught.value.field) == (400, field)


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({"limit_usd": "1"}, CalendarWindow("year", "Asia/Tokyo", 0, 6, 4)),
        ({"zone": "UTC"}, CalendarWindow("year", "UTC", 0, 6, 4)),
        ({"anchor_day": 7}, CalendarWindow("year", "Asia/Tokyo", 0, 7, 4)),
        ({"anchor_day": None, "zone": None}, CalendarWindow("year", "UTC", 0, 1, 4)),
        ({"window": "year"}, CalendarWindow("year", "UTC")),
        ({"window": "every 1d", "anchor": "1970-01-01T06:00Z"}, IntervalWindow(86_400_000, 6 * 3_600_000)),
    ],
)
def test_a_window_changes_by_its_options_or_as_a_whole(fields: dict[str, Any], window: Window) -> None:
    assert changed_window(change(**fields), CalendarWindow("year", "Asia/Tokyo", 0, 6, 4)) == window


def test_a_window_takes_no_option_of_another() -> None:
    with pytest.raises(WindowError) as caught:
        changed_window(change(anchor="1970-01-01T06:00Z"), DAY)
    assert caught.value.field == "anchor"


def test_a_scope_is_named_in_full_or_in_short() -> None:
    assert scope_of(asked(), "acme") == ("org", "acme", None)
    assert scope_of(asked(team="ml"), "acme") == ("team", "ml", None)
    assert scope_of(asked(team="ml", agent="ada"), "acme") == ("agent", "ada", "ml")
    assert scope_of(asked(scope={"kind": "user", "value": "*"}), "acme") == ("user", "*", None)
    assert scope_of(asked(scope={"kind": "org"}), "acme") == ("org", "acme", None)


def test_an_expression_is_that_of_its_name_unless_said() -> None:
    named = asked(scope={"kind": "cel", "value": "x"})
    assert expression_of(named, "true", OnlyTrue()) == "true"
    said = asked(scope={"kind": "cel", "value": "x", "expression": "true"})
    assert expression_of(said, None, OnlyTrue()) == "true"
    for request, known in ((named, None), (asked(scope={"kind": "cel", "value": "x", "expression": "no"}), None)):
        with pytest.raises(ApiError) as caught:
            expression_of(request, known, OnlyTrue())
        assert caught.value.field == "scope.expression"
