"""The independent model notices what it is there for."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.checker import (
    check_answers,
    check_endings,
    check_fences,
    check_figures,
    check_offsets,
    check_parents,
    check_windows,
    judge,
)
from tests.support.checker_budgets import Configurations, span_key
from tests.support.checker_caps import CapChecker, Change
from tests.support.checker_parents import check_payers

HOUR_MS = 3_600_000
WINDOW = "c:0:3600000"
LIMITS = {1: {"bud_1": 100}, 2: {"bud_1": 250}}


@dataclass
class Told:
    """A message of the log."""

    value: bytes
    offset: int
    topic: str = "spend.reservations.v1"
    partition: int = 0


class Log:
    """Writes events as a gateway publishes them, as far as the model reads them."""

    def __init__(self) -> None:
        self.messages: list[Told] = []

    def add(self, kind: str, name: str, at_ms: int, topic: str = "spend.reservations.v1", **fields: Any) -> None:
        offset = sum(each.topic == topic for each in self.messages)
        event = {
            "type": kind,
            "transaction_id": name,
            "producer": "gw_1",
            "sequence": len(self.messages) + 1,
            "time": text(at_ms),
            "config_version": 1,
            "flags": [],
            "identity": {"team": "ml", "key_id": "key_1", "user": None, "session": None},
            "charges": [{"budget_id": "bud_1", "scope": "org:a", "window": WINDOW}],
            "parent_charged": [],
            **fields,
        }
        self.messages.append(Told(json.dumps(event).encode(), offset, topic))

    def reserve(self, name: str, at_ms: int, held: int, **fields: Any) -> None:
        self.add("spend.reservation.created.v1", name, at_ms, held_usd=usd(held), **fields)

    def resize(self, name: str, at_ms: int, held: int, **fields: Any) -> None:
        self.add("spend.hold.resized.v1", name, at_ms, held_usd=usd(held), **fields)

    def settle(self, name: str, at_ms: int, held: int, cost: int, **fields: Any) -> None:
        told = {"held_usd": usd(held), "cost_usd": usd(cost), "admitted_at": text(at_ms), **fields}
        self.add("spend.settlement.recorded.v1", name, at_ms + HOUR_MS, "spend.settlements.v1", **told)

    def caps(self, limits: dict[int, dict[str, int]] = LIMITS, **known: Any) -> list[str]:
        checker = CapChecker(limits, **known)
        for message in self.messages:
            checker.foresee(message)
        for message in self.messages:
            checker.take(message)
        return checker.findings


def usd(nano: int) -> str:
    return f"0.{nano:09d}"


def text(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_calls_that_fit_are_no_finding() -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.reserve("txn_2", 2, 40)
    log.settle("txn_1", 1, 60, 10)
    log.reserve("txn_3", 3, 50)
    assert log.caps() == []


def test_a_call_for_which_there_was_no_room_is_found() -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.reserve("txn_2", 2, 41)
    assert "txn_2 came to 101 of 100" in log.caps()[0]


def test_a_call_is_judged_by_the_limit_it_was_admitted_under() -> None:
    log = Log()
    log.reserve("txn_1", 1, 200, config_version=2)
    log.settle("txn_1", 1, 200, 190, config_version=2)
    assert log.caps() == []
    log.reserve("txn_2", 2, 1)
    assert "txn_2 came to 191 of 100" in log.caps()[0]


def test_a_call_that_a_rebuild_could_not_know_of_takes_no_ones_room() -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.reserve("txn_2", 9, 60)
    assert log.caps(loads=[(5, {})]) == []
    assert log.caps(loads=[(5, {("spend.reservations.v1", 0): 1})]) != []
    assert log.caps(lost=[(1, 5)]) == []


def test_a_hold_that_is_changed_counts_as_changed_from_then_on_wherever_the_log_has_it() -> None:
    for at_ms, findings in ((3, 0), (5, 2)):
        log = Log()
        log.reserve("txn_1", 1, 60)
        log.reserve("txn_2", 4, 60)
        log.resize("txn_1", at_ms, 40)
        assert len(log.caps()) == findings
        log.messages.pop()
        log.resize("txn_1", at_ms, 90, charges=[])
        assert len(log.caps()) == findings
        # Larger it is only once the log has it.
        log.messages.pop()
        log.resize("txn_1", at_ms, 70)
        assert "txn_2 came to 120 of 100" in log.caps()[0]


def test_a_full_child_that_a_hold_has_left_counts_what_it_held_until_the_log_tells_of_it() -> None:
    slot = ("bud_1", WINDOW)
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.reserve("txn_2", 4, 60)
    assert log.caps(seen={"txn_1": [Change(3, 90, frozenset())]}) == []
    seen = {"txn_1": [Change(3, 90, frozenset(), frozenset({slot}))]}
    assert "txn_2 came to 120 of 100" in log.caps(seen=seen)[0]
    log.resize("txn_1", 3, 90, charges=[])
    assert "txn_2 came to 120 of 100" in log.caps(seen=seen)[0]
    log.messages[1:] = reversed(log.messages[1:])
    assert log.caps(seen=seen) == []


def test_a_call_that_ended_later_counts_as_what_it_held_when_another_was_admitted() -> None:
    log = Log()
    log.reserve("txn_1", 1, 40)
    log.resize("txn_1", 5, 90)
    log.settle("txn_1", 1, 90, 90)
    log.reserve("txn_2", 3, 60)
    # A rebuild could not know of it, so that there was room for the first to grow.
    known = {("spend.reservations.v1", 0): 1, ("spend.settlements.v1", 0): 0}
    assert log.caps(loads=[(4, known)]) == []
    log.messages.pop()
    log.reserve("txn_2", 3, 61)
    assert "txn_2 came to 101 of 100" in log.caps(loads=[(4, known)])[0]


def test_a_change_that_nobody_recorded_counts_where_it_is_less_until_an_expiry_tells_of_it() -> None:
    slot, other = ("bud_1", WINDOW), [{"budget_id": "bud_2", "scope": "org:a", "window": WINDOW}]
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.reserve("txn_2", 4, 60)
    assert log.caps(seen={"txn_1": [Change(3, 40, frozenset({slot}))]}) == []
    assert log.caps(seen={"txn_1": [Change(3, 70, frozenset({slot}))]}) != []
    limits, seen = {1: {"bud_1": 100, "bud_2": 80}}, {"txn_1": [Change(3, 70, frozenset({("bud_2", WINDOW)}))]}
    told = {"held_usd": usd(70), "booked_usd": usd(70), "admitted_at": text(1), "charges": other}
    log.add("spend.hold.expired.v1", "txn_1", HOUR_MS, "spend.settlements.v1", **told)
    log.reserve("txn_3", 5, 40)
    assert log.caps(limits, seen=seen) == []
    log.reserve("txn_4", 6, 11, charges=other)
    assert "txn_4 came to 81 of 80" in log.caps(limits, seen=seen)[0]
    log.messages.pop()
    # It was recorded after all, and the log has that last. What it tells of earlier changes is past.
    log.resize("txn_1", 3, 70, charges=other)
    log.resize("txn_1", 2, 50)
    assert log.caps(limits) == log.caps(limits, seen=seen) == []


@pytest.mark.parametrize("outcome", ["cut_off", "partial", "completed"])
def test_a_stream_that_was_ended_early_and_cost_more_than_it_held_is_found(outcome: str) -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.settle("txn_1", 1, 60, 61, estimate_mode="stepped", outcome=outcome)
    if outcome == "completed":
        assert log.caps() == []
        assert judge(log.messages).transactions["txn_1"].spent_nano == 61
        return
    assert "txn_1 was ended early at 61" in log.caps()[0]
    with pytest.raises(AssertionError, match="cost more than it held"):
        judge(log.messages)


# bud_2 is made by configuration 2, and counts the calls of the first one as well.
MADE = {1: {"bud_1": 1000}, 2: {"bud_1": 1000, "bud_2": 100}}
BOTH = [{"budget_id": name, "scope": "org:a", "window": WINDOW} for name in ("bud_1", "bud_2")]
KNOWS = {"config_version": 2, "charges": BOTH}


def implies(event: dict[str, Any], _admitted: str) -> list[tuple[str, str, int]]:
    is_said = any(charge["budget_id"] == "bud_2" for charge in event["charges"])
    return [] if is_said or event["config_version"] >= 2 else [("bud_2", WINDOW, 2)]


def folded(*at_ms: int, offset: int = 0, topic: str = "spend.reservations.v1") -> dict[str, Any]:
    """That the hot state has folded a message then."""
    return {"implied": implies, "folds": {(topic, 0, offset): at_ms}}


def test_what_a_new_budget_does_not_say_counts_from_when_it_is_folded() -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.reserve("txn_2", 4, 60, **KNOWS)
    assert "txn_2 came to 120 of 100" in log.caps(MADE, **folded(3))[0]
    assert log.caps(MADE, **folded(4)) == log.caps(MADE, **folded()) == []
    # Lost again, and folded again later; or loaded with all that was in the log.
    assert log.caps(MADE, **folded(3), lost=[(2, 4)]) == []
    assert log.caps(MADE, **folded(2, 3), lost=[(2, 2)]) != []
    assert log.caps(MADE, **folded(), loads=[(2, {("spend.reservations.v1", 0): 1})]) != []


def test_what_is_implied_counts_for_calls_that_know_the_budget_and_against_no_call_itself() -> None:
    log = Log()
    log.reserve("txn_1", 1, 600)
    log.reserve("txn_2", 4, 60)
    log.resize("txn_1", 5, 700)
    assert log.caps(MADE, **folded(2)) == []
    log.reserve("txn_3", 6, 1, **KNOWS)
    assert "txn_3 came to 701 of 100 nano-dollars in ('bud_2'" in log.caps(MADE, **folded(2))[0]
    # Nor for those that know the budget as it was before it was made to count them.
    later = {**folded(2), "implied": lambda event, admitted: [(*each[:2], 3) for each in implies(event, admitted)]}
    assert log.caps(MADE, **later) == []


def test_what_is_implied_counts_as_it_was_changed_and_as_it_ended() -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.resize("txn_1", 3, 90)
    log.reserve("txn_2", 6, 20, **KNOWS)
    assert "txn_2 came to 110 of 100" in log.caps(MADE, **folded(2))[0]
    # Folded when the hold was another already, it is not what the hot state goes by.
    assert log.caps(MADE, **folded(4)) == []
    assert log.caps(MADE, **folded(4, offset=1)) != []
    log.settle("txn_1", 1, 90, 10)
    log.reserve("txn_3", 7, 80, **KNOWS)
    findings = log.caps(MADE, **folded(4, topic="spend.settlements.v1"))
    assert [each for each in findings if "txn_3 came to 110 of 100" in each]
    log.messages.pop()
    log.reserve("txn_3", 7, 70, **KNOWS)
    assert log.caps(MADE, **folded(4, topic="spend.settlements.v1")) == []


def test_a_hold_that_was_implied_is_charged_with_room_or_without() -> None:
    log = Log()
    log.reserve("txn_1", 1, 300)
    log.resize("txn_1", 3, 200, **KNOWS)
    assert log.caps(MADE, implied=implies) == []
    log.reserve("txn_2", 4, 1, **KNOWS)
    assert "txn_2 came to 201 of 100" in log.caps(MADE, implied=implies)[0]
    log.messages.pop()
    log.resize("txn_1", 5, 210, **KNOWS)
    assert "txn_1 came to 210 of 100" in log.caps(MADE, implied=implies)[0]


def test_a_change_that_the_hot_state_has_lost_takes_no_ones_room() -> None:
    log = Log()
    log.reserve("txn_1", 1, 40)
    log.resize("txn_1", 3, 60)
    log.reserve("txn_2", 9, 50)
    log.reserve("txn_3", 11, 10)
    assert log.caps() != []
    assert log.caps(lost=[(2, 5)]) == []
    assert log.caps(lost=[(4, 5)]) != []
    log.messages.pop()
    log.resize("txn_1", 10, 60)
    assert log.caps(lost=[(2, 5)]) == []
    log.reserve("txn_3", 11, 10)
    assert log.caps(lost=[(2, 5)]) != []


def test_the_cost_of_a_call_that_has_lost_what_it_grew_by_is_what_it_holds_until_it_is_folded() -> None:
    log = Log()
    log.reserve("txn_1", 1, 40)
    log.resize("txn_1", 3, 90)
    log.settle("txn_1", 1, 90, 90)
    log.reserve("txn_2", 9, 60)
    assert log.caps() != []
    assert log.caps(lost=[(2, 5)]) == []
    assert log.caps(lost=[(4, 5)]) != []


def test_a_hold_that_is_made_smaller_needs_no_room() -> None:
    for amount, findings in ((60, 0), (90, 2)):
        log = Log()
        log.reserve("txn_1", 1, 80)
        log.resize("txn_1", 2, amount, config_version=2)
        assert len(log.caps({1: {"bud_1": 100}, 2: {"bud_1": 50}})) == findings


def test_a_budget_that_is_gone_stays_charged_and_limits_nothing() -> None:
    limits = {1: {"bud_1": 100}, 2: {"bud_2": 100}}
    log = Log()
    log.reserve("txn_1", 1, 80)
    log.resize("txn_1", 2, 300, config_version=2)
    log.settle("txn_1", 1, 300, 200)
    assert log.caps(limits) == []
    log.reserve("txn_2", 3, 1, config_version=2)
    assert log.caps(limits) == ["txn_2 is charged to bud_1, which version 2 has not"]


def test_a_call_that_nothing_limits_any_more_is_judged_by_no_limit_when_it_ends() -> None:
    log = Log()
    log.reserve("txn_1", 1, 80)
    log.resize("txn_1", 2, 300)
    log.settle("txn_1", 1, 300, 200)
    assert log.caps({1: {"bud_1": 100}}) != []
    assert log.caps({1: {"bud_1": 100}, 2: {}}) == []


def test_what_a_rolling_window_has_let_go_counts_no_more() -> None:
    log = Log()

    def charged(bucket: int) -> list[dict[str, str]]:
        return [{"budget_id": "bud_1", "scope": "org:a", "window": f"r:1000:60:{bucket}"}]

    log.reserve("txn_1", 1_000, 60, charges=charged(1))
    log.settle("txn_1", 1_000, 60, 60, charges=charged(1))
    log.reserve("txn_2", 61_000, 60, charges=charged(61))
    assert log.caps() != []
    log.messages.pop()
    log.reserve("txn_2", 62_000, 60, charges=charged(62))
    assert log.caps() == []


def test_a_second_answer_that_differs_is_found() -> None:
    assert check_answers([("txn_1", (1, 2), (1, 2))]) == []
    assert len(check_answers([("txn_1", (1, 2), (1, 3))])) == 1


def test_a_call_without_an_ending_and_one_that_is_lost_are_found() -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.reserve("txn_2", 1, 60)
    log.settle("txn_1", 1, 60, 10)
    findings = check_endings(judge(log.messages), ["txn_1", "txn_2", "txn_3"])
    assert findings == ["txn_3 was recorded, and the log does not have it", "txn_2 has no ending"]


def test_a_call_in_the_wrong_window_is_found() -> None:
    log = Log()
    log.reserve("txn_1", HOUR_MS - 1, 60)
    assert check_windows(judge(log.messages)) == []
    log.reserve("txn_2", HOUR_MS, 60)
    assert len(check_windows(judge(log.messages))) == 1
    assert len(check_windows(judge(log.messages[:1]), {"txn_1": (5, (("bud_1", "c:3600000:7200000"),))})) == 1


def test_an_expiry_may_tell_of_a_change_of_its_hold_that_nobody_lived_to_record() -> None:
    log = Log()
    told = {"held_usd": usd(90), "booked_usd": usd(90), "admitted_at": text(1), "charges": []}
    log.reserve("txn_1", 1, 60)
    log.add("spend.hold.expired.v1", "txn_1", HOUR_MS, "spend.settlements.v1", **told)
    admitted = {"txn_1": (1, (("bud_1", WINDOW),))}
    assert len(check_windows(judge(log.messages), admitted)) == 1
    assert len(check_windows(judge(log.messages), admitted, {"txn_1": {(("bud_2", WINDOW),)}})) == 1
    assert check_windows(judge(log.messages), admitted, {"txn_1": {()}}) == []


def test_figures_that_are_not_those_of_the_log_are_found() -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.reserve("txn_2", 1, 30)
    log.settle("txn_1", 1, 60, 10)
    verdict, slot = judge(log.messages), ("bud_1", WINDOW)
    assert check_figures(verdict, {slot: 10}, {slot: 30}, 5) == []
    assert len(check_figures(verdict, {slot: 11}, {slot: 0}, 5)) == 2
    assert len(check_figures(verdict, {slot: 10, ("bud_2", WINDOW): 1}, {slot: 30}, 5)) == 1
    assert check_figures(verdict, {slot: 14}, {slot: 30}, 5, {slot: 4}) == []


def test_what_a_window_has_spent_matters_for_a_day_after_its_end() -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.settle("txn_1", 1, 60, 10)
    verdict = judge(log.messages)
    assert check_figures(verdict, {}, {}, 25 * HOUR_MS - 1) != []
    assert check_figures(verdict, {}, {}, 25 * HOUR_MS) == []


def test_offsets_that_are_neither_folded_nor_set_aside_are_found() -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.messages.append(Told(b"{", 1))
    place = ("spend.reservations.v1", 0)
    assert check_offsets(log.messages, [(*place, 1)], {place: 2}) == []
    assert len(check_offsets(log.messages, [], {place: 1})) == 2
    assert check_fences(log.messages, {place: 1}) == []
    assert len(check_fences(log.messages, {place: 0})) == 1


def test_a_parent_that_was_passed_over_is_found() -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    verdict = judge(log.messages)
    assert check_parents(verdict, {1: {"bud_1": None}}) == []
    assert len(check_parents(verdict, {1: {"bud_1": "bud_2", "bud_2": None}})) == 1


def test_nobody_knows_what_a_part_left_out_that_was_never_recorded() -> None:
    parents = {1: {"bud_1": "bud_2", "bud_2": None}}
    for cost, findings in ((0, 0), (1, 1)):
        log = Log()
        log.settle("dlg_1", 1, 60, cost, route="delegation")
        assert len(check_parents(judge(log.messages), parents)) == findings


def test_a_child_that_was_left_out_has_somebody_above_it_that_pays() -> None:
    def published(parent: str | None, *covers: str) -> dict[str, dict[str, Any]]:
        above = {"bud_1": None, "bud_c": parent, "bud_m": "bud_1", "bud_n": None}
        budgets: dict[str, dict[str, Any]] = {name: {"parent_id": up, "covers": ()} for name, up in above.items()}
        return {**budgets, "bud_n": {"parent_id": None, "covers": covers}}

    def found(charged: str, versions: dict[int, dict[str, dict[str, Any]]], version: int = 1) -> int:
        log = Log()
        charges = [{"budget_id": charged, "scope": "org:a", "window": WINDOW}]
        log.reserve("txn_1", 1, 60, charges=charges, parent_charged=["bud_c"], config_version=version)
        return len(list(check_payers(judge(log.messages), versions)))

    assert found("bud_1", {1: published("bud_m")}) == 0, "the top pays for what the middle has no room for"
    assert found("bud_n", {1: published("bud_m")}) == 1
    assert found("bud_n", {1: published("bud_m", "bud_1")}) == 0, "what holds the top for it pays"
    assert found("bud_1", {1: published(None)}) == 1
    changed = {1: published(None), 2: published("bud_m"), 3: published(None)}
    assert [found("bud_1", changed, version) for version in (1, 2, 3)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("window", "key"),
    [
        ({"length_ms": 60_000}, "r:1000:60:12345"),
        ({"every_ms": 4_000, "anchor_ms": 1_000}, "c:12345000:12349000"),
        ({"of": "lifetime"}, "l"),
        ({"of": "session"}, "s:s-1"),
        ({"unit": "hour", "zone": "UTC"}, "c:10800000:14400000"),
        ({"unit": "day", "zone": "Asia/Kolkata"}, "c:-19800000:66600000"),
    ],
)
def test_the_model_has_windows_of_its_own(window: dict[str, Any], key: str) -> None:
    assert span_key(window, 12_345_678, "s-1") == key


def test_what_earlier_calls_imply_is_counted_once_and_only_for_them() -> None:
    budget = {
        "budget_id": "bud_2",
        "scope_kind": "team",
        "scope_value": "*",
        "window": {"of": "lifetime"},
        "since_version": 2,
    }
    configurations = Configurations({})
    configurations.take(json.dumps({"version": 2, "budgets": [budget]}).encode())
    log = Log()
    log.settle("txn_1", 1, 60, 10)
    log.settle("txn_2", 1, 60, 20, config_version=2)
    log.settle("txn_3", 1, 60, 40, charges=[{"budget_id": "bud_2@ml", "scope": "team:ml", "window": "l"}])
    assert configurations.implied(judge(log.messages)) == {("bud_2@ml", "l"): 10}


def test_a_call_that_names_an_old_window_alone_is_missed_in_the_new_one() -> None:
    """Whichever configuration it is of."""
    window = {"length_ms": HOUR_MS}
    budget = {"budget_id": "bud_2", "scope_kind": "team", "scope_value": "ml", "window": window, "since_version": 2}
    configurations = Configurations({})
    configurations.take(json.dumps({"version": 2, "budgets": [budget]}).encode())
    old, new = ({"budget_id": "bud_2", "scope": "team:ml", "window": key} for key in ("l", "r:60000:60:0"))
    log = Log()
    for number, charges in enumerate(([old], [old, new], [new], []), 1):
        log.settle(f"txn_{number}", 1, 60, 10**number, charges=charges, config_version=2)
    assert configurations.implied(judge(log.messages)) == {("bud_2", "r:60000:60:0"): 10}


def test_what_an_event_implies_is_of_the_present_budgets_and_not_of_what_it_says() -> None:
    budget = {"budget_id": "bud_2", "scope_kind": "team", "scope_value": "ml", "since_version": 2}
    configurations = Configurations({})
    for version, since, window in ((2, 2, {"of": "lifetime"}), (3, 3, {"every_ms": 1_000, "anchor_ms": 0})):
        body = {"version": version, "budgets": [{**budget, "since_version": since, "window": window}]}
        configurations.take(json.dumps(body).encode())
    event = {"config_version": 2, "identity": {"team": "ml", "session": None}, "charges": []}
    said = [("bud_2", "c:4000:5000", 3)]
    assert list(configurations.implied_slots(event, text(4_500))) == said
    # Its window of then counts in the present one; its present one is said, whichever span of it is.
    other = {**event, "identity": {"team": "ops", "session": None}, "charges": [{"budget_id": "bud_2", "window": "l"}]}
    assert list(configurations.implied_slots(other, text(4_500))) == said
    for other in ({"charges": [{"budget_id": "bud_2", "window": "c:0:1000"}]}, {"config_version": 3}):
        assert list(configurations.implied_slots({**event, **other}, text(4_500))) == []
    assert list(configurations.implied_slots({**event, "route": "delegation"}, text(4_500))) == []
