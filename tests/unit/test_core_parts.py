"""What a part of a budget is settled at: what it has spent, and never less than may have been."""

from typing import Any

import pytest

from services.core.budgets import Budget, Standing
from services.core.events import CallFacts
from services.core.hotstate import WINDOW_GRACE_MS
from services.core.identity import Identity
from services.core.parts import ROUTE, VENDOR, part_flags, part_of, parts_held_alike, spent_by
from services.core.windows import CalendarSpan, CalendarWindow

END_MS = 9_000_000
SPAN = CalendarSpan(1_000_000, END_MS)
HOUR_MS = 3_600_000


def facts(route: str = ROUTE) -> CallFacts:
    flags = ("expression_error:bud_1", *part_flags("sub_1", SPAN))
    return CallFacts(Identity("acme", "key_1"), VENDOR, route, "", "", "none", "v1", 3, flags=flags)


def test_the_facts_of_its_reservation_tell_where_its_figures_are() -> None:
    part = part_of(facts())
    assert part is not None
    assert (part.budget_id, part.span) == ("sub_1", SPAN)
    assert part_of(facts("chat")) is None


@pytest.mark.parametrize(
    ("spent", "held", "now_ms", "expected"),
    [
        (30, 0, END_MS, 30),
        (0, 0, END_MS - HOUR_MS, 0),
        (30, 5, END_MS, None),
        (30, 5, END_MS + WINDOW_GRACE_MS - HOUR_MS - 1, None),
        (30, 5, END_MS + WINDOW_GRACE_MS - HOUR_MS, 35),
        (0, 0, END_MS + WINDOW_GRACE_MS - 1, 0),
        (0, 0, END_MS + WINDOW_GRACE_MS, 100),
    ],
)
def test_it_is_settled_when_nothing_of_it_is_open_or_its_figures_are_about_to_go(
    spent: int, held: int, now_ms: int, expected: int | None
) -> None:
    part = part_of(facts())
    assert part is not None
    standing = Standing("sub_1", "part", 100, spent_nano=spent, held_nano=held, resets_at_ms=None)
    assert spent_by(part, standing, 100, now_ms) == expected


DAY = CalendarWindow("day", "UTC")


def budget(budget_id: str, **changes: Any) -> Budget:
    return Budget(budget_id, "org", "acme", DAY, 1, **changes)


def alike(covers: tuple[str, ...], *budgets: Budget) -> tuple[str, bool]:
    part = Budget("sub_1", "key", "key_sub_1", DAY, 1, thresholds=(), covers=covers, ends_at_ms=END_MS)
    (found,) = parts_held_alike([part], budgets)
    assert (found.covers, found.ends_at_ms, found.budget_id) == (covers, END_MS, "sub_1")
    return found.estimate, found.extend


@pytest.mark.parametrize(
    ("covered", "expected"),
    [
        ([{}], ("strict", False)),
        ([{"extend": True}], ("strict", True)),
        ([{"estimate": "calibrated"}], ("calibrated", False)),
        ([{"estimate": "calibrated", "extend": True}, {"extend": True}], ("strict", True)),
        ([{"estimate": "calibrated", "extend": True}, {"estimate": "calibrated"}], ("calibrated", False)),
        ([{"extend": True}, {"enforcement": "monitor"}], ("strict", True)),
        ([{"extend": True}, {"when_full": "alert", "estimate": "calibrated"}], ("strict", True)),
        ([{"extend": True, "enforcement": "monitor"}], ("strict", False)),
        ([{"estimate": "calibrated"}, {"enforcement": "monitor"}], ("strict", False)),
    ],
)
def test_the_calls_of_a_part_are_held_as_those_of_all_that_it_was_carved_from(
    covered: list[dict[str, Any]], expected: tuple[str, bool]
) -> None:
    budgets = [budget(f"bud_{number}", **changes) for number, changes in enumerate(covered)]
    assert alike(tuple(each.budget_id for each in budgets), *budgets, budget("bud_other")) == expected


def test_what_a_part_covers_of_each_value_and_by_another_part_counts_and_what_is_gone_does_not() -> None:
    grows = budget("bud_each", extend=True, estimate="calibrated")
    assert alike(("bud_each@ada", "sub_0", "bud_gone"), grows) == ("calibrated", True)
    assert alike(("bud_gone",), grows) == ("strict", False)
    assert parts_held_alike([], [grows]) == ()
