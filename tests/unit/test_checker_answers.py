"""The independent model of what callers are told, and of parts of budgets: it notices each way of being wrong."""

from typing import Any

import pytest

from tests.support.checker import Transaction, Verdict, check_parents
from tests.support.checker_answers import Asked, Told, check_recorded, check_told
from tests.support.checker_parts import check_parts

AT = "2027-01-15T08:00:00.000Z"
RESERVE = Asked("order-1", "reserve", "/v1/reservations", '{"amount_usd":"0.1"}', "order-1")
SETTLE = Asked("order-1", "settle", "/v1/reservations/rsv_1/settle", '{"cost_usd":"0.05"}', None)
RELEASE = Asked("order-1", "release", "/v1/reservations/rsv_1/release", "{}", None)
HELD = {"reservation_id": "rsv_1", "held_usd": "0.100000000", "expires_at": AT}
ENDED = {"reservation_id": "rsv_1", "cost_usd": "0.050000000", "outcome": "completed"}
OTHER = Asked("order-1", "reserve", "/v1/reservations", '{"amount_usd":"0.2"}', "order-1")
RESERVED = {"held_usd": "0.100000000", "expires_at": AT, "charges": [], "time": AT}


@pytest.mark.parametrize(
    ("told", "count"),
    [
        ([Told(RESERVE, 201, HELD), Told(RESERVE, 503, {}), Told(RESERVE, 201, HELD), Told(OTHER, 409, {})], 0),
        ([Told(RESERVE, 503, {}), Told(RESERVE, 402, HELD), Told(RESERVE, 201, HELD)], 1),
        ([Told(RESERVE, 201, HELD), Told(RESERVE, 201, {**HELD, "held_usd": "0.2"})], 1),
        ([Told(RESERVE, 201, HELD), Told(RESERVE, 409, {})], 1),
        ([Told(RESERVE, 201, HELD), Told(OTHER, 201, HELD)], 1),
        ([Told(SETTLE, 200, ENDED), Told(RELEASE, 409, {}), Told(SETTLE, 200, ENDED)], 0),
        ([Told(SETTLE, 200, ENDED), Told(RELEASE, 200, {**ENDED, "cost_usd": "0.000000000"})], 1),
        ([Told(Asked("order-1", "extend", "", "{}", None), 200, HELD)] * 2 + [Told(RESERVE, 201, HELD)], 0),
    ],
)
def test_an_answer_that_changes_is_found(told: list[Told], count: int) -> None:
    assert len(check_told(told)) == count


@pytest.mark.parametrize(
    ("transaction", "told", "count"),
    [
        (Transaction(reservation=RESERVED), Told(RESERVE, 201, HELD), 0),
        (Transaction(), Told(RESERVE, 201, HELD), 1),
        (Transaction(reservation={**RESERVED, "held_usd": "0.200000000"}), Told(RESERVE, 201, HELD), 1),
        (Transaction(denial={}), Told(RESERVE, 402, HELD), 0),
        (Transaction(), Told(RESERVE, 402, HELD), 1),
        (Transaction(settlement=ENDED), Told(SETTLE, 200, ENDED), 0),
        (Transaction(), Told(SETTLE, 200, ENDED), 1),
        (Transaction(settlement={**ENDED, "cost_usd": "0.060000000"}), Told(SETTLE, 200, ENDED), 1),
    ],
)
def test_what_was_told_and_is_not_in_the_log_is_found(transaction: Transaction, told: Told, count: int) -> None:
    assert len(check_recorded(Verdict({"rsv_1": transaction}), [told])) == count


def part(cost_usd: str, **changes: Any) -> Transaction:
    charges = [{"budget_id": "bud_1", "window": "l"}]
    fields = {"held_usd": "0.100000000", "charges": charges, "route": "delegation", "time": AT, "flags": ["part:sub_1"]}
    ending = {"cost_usd": cost_usd, "held_usd": "0.100000000", "charges": charges, "route": "delegation"}
    return Transaction(reservation={**fields, **changes}, settlement=ending)


def call(cost_usd: str, budget_id: str = "sub_1", booked_usd: str | None = None) -> Transaction:
    fields = {"held_usd": "0.040000000", "charges": [{"budget_id": "sub_1", "window": "c:0:9"}], "route": "/v1/chat"}
    fields["charges"] = [*fields["charges"], {"budget_id": budget_id, "window": "l"}]
    expiry = None if booked_usd is None else {**fields, "booked_usd": booked_usd}
    return Transaction(reservation={**fields, "time": AT}, settlement={**fields, "cost_usd": cost_usd}, expiry=expiry)


@pytest.mark.parametrize(
    ("parts", "unheld", "count"),
    [
        ({"dlg_1": part("0.030000000"), "txn_1": call("0.030000000", "sub_1")}, (), 0),
        ({"dlg_1": part("0.000000000"), "txn_1": call("0.030000000", "sub_1")}, (), 1),
        ({"dlg_1": part("0.000000000"), "txn_1": call("0.030000000", "sub_1")}, ("txn_1",), 0),
        ({"dlg_1": part("0.030000000"), "txn_1": call("0.030000000", "bud_1")}, (), 1),
        ({"dlg_1": part("0.040000000"), "txn_1": call("0.030000000", "sub_1", "0.040000000")}, (), 0),
        ({"dlg_1": part("0.110000000")}, ("dlg_0",), 2),
        ({"dlg_1": part("0.000000000", held_usd="0.200000000")}, (), 1),
    ],
)
def test_a_part_that_is_not_given_back_as_it_should_be_is_found(
    parts: dict[str, Transaction], unheld: tuple[str, ...], count: int
) -> None:
    for each in parts.values():
        assert each.settlement is not None
        each.settlement["charges"] = list({slot["budget_id"]: slot for slot in each.settlement["charges"]}.values())
    assert len(check_parts(Verdict(parts), {1: {"sub_1": 100_000_000}}, unheld)) == count


def test_a_parts_call_is_not_charged_again_to_the_parent_that_holds_the_part() -> None:
    event = {"config_version": 1, "charges": [{"budget_id": "sub_1"}, {"budget_id": "bud_2"}], "parent_charged": []}
    verdict = Verdict({"txn_1": Transaction(reservation=event)})
    assert check_parents(verdict, {1: {"bud_2": "bud_1"}}, {1: {"sub_1": ["bud_1"]}}) == []
    assert len(check_parents(verdict, {1: {"bud_2": "bud_1"}})) == 1
