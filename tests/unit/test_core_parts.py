"""What a part of a budget is settled at: what it has spent, and never less than may have been."""

import pytest

from services.core.budgets import Standing
from services.core.events import CallFacts
from services.core.hotstate import WINDOW_GRACE_MS
from services.core.identity import Identity
from services.core.parts import ROUTE, VENDOR, part_flags, part_of, spent_by
from services.core.windows import CalendarSpan

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
