"""What the events of one call say together."""

from dataclasses import replace
from itertools import permutations

import pytest

from services.core.events import Event, Expiry
from services.ledger.transactions import STATES, merge
from tests.support.examples import DENIAL, RESERVATION, RESIZED, SETTLEMENT

EXPIRED = Expiry(
    RESERVATION.transaction_id,
    RESERVATION.expires_at_ms,
    RESERVATION.facts,
    RESERVATION.held_nano,
    900,
    RESERVATION.charges,
)


@pytest.mark.parametrize(
    ("events", "state", "cost_nano"),
    [
        ((RESERVATION,), "held", 0),
        ((RESERVATION, SETTLEMENT), "settled", SETTLEMENT.cost_nano),
        ((SETTLEMENT,), "settled", SETTLEMENT.cost_nano),
        ((RESERVATION, EXPIRED), "expired", 900),
        ((RESERVATION, EXPIRED, SETTLEMENT), "settled", SETTLEMENT.cost_nano),
        ((DENIAL,), "denied", 0),
    ],
)
def test_state_and_cost_do_not_depend_on_the_order(events: tuple[Event, ...], state: str, cost_nano: int) -> None:
    assert state in STATES
    told = []
    for order in permutations(events):
        ((transaction,)) = merge((event, "") for event in order).values()
        assert (transaction.state, transaction.cost_nano) == (state, cost_nano)
        told.append(transaction.fields())
    assert all(each == told[0] for each in told)


def test_a_second_event_of_a_kind_changes_nothing() -> None:
    (transaction,) = merge([(SETTLEMENT, ""), (replace(SETTLEMENT, cost_nano=1), "")]).values()
    assert transaction.cost_nano == SETTLEMENT.cost_nano


def test_every_answer_has_every_field() -> None:
    shapes = [
        set(merge((event, "") for event in events)[events[0].transaction_id].fields())
        for events in ((RESERVATION,), (RESERVATION, SETTLEMENT), (RESERVATION, EXPIRED), (DENIAL,))
    ]
    assert all(shape == shapes[0] for shape in shapes)


def test_the_trace_is_that_of_the_first_event_that_has_one() -> None:
    (transaction,) = merge([(RESERVATION, ""), (SETTLEMENT, "ab" * 16)]).values()
    assert transaction.fields()["trace_id"] == "ab" * 16
    (untraced,) = merge([(RESERVATION, "")]).values()
    assert untraced.fields()["trace_id"] is None


def test_calls_are_kept_apart_in_the_order_they_came() -> None:
    other = replace(RESERVATION, transaction_id="txn_other")
    assert list(merge([(other, ""), (RESERVATION, ""), (SETTLEMENT, "")])) == ["txn_other", RESERVATION.transaction_id]


def test_a_call_that_went_on_to_another_vendor_is_told_as_that_one_s() -> None:
    facts = replace(RESIZED.facts, model_priced="gpt-4o-mini")
    settled = replace(SETTLEMENT, facts=facts, held_nano=RESIZED.held_nano)
    (moved,) = merge((event, "") for event in (RESERVATION, RESIZED)).values()
    (ended,) = merge((event, "") for event in (RESERVATION, RESIZED, settled)).values()
    for each in (moved, ended):
        told = each.fields()
        assert (told["vendor"], told["model_priced"]) == ("openai", "gpt-4o-mini")
        assert told["held_usd"] == "0.001875000"
        assert told["estimate"] is not None
