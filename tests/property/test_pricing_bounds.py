"""No usage within a demand costs more than its strict bound; and costs are what they are made of, for any price."""

from collections.abc import Mapping
from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.core.components import COMPONENTS, FLAT, MODAL_TRAITS, PARTS, TREES
from services.core.estimate import Demand, UnpricedComponentError, most_nano, most_tokens, strict_bound
from services.core.pricing import Price, Tier, Variant, price_usage, rates_for, unpriced_counts

# Rates beside half a nano-dollar a unit are where rounding could get past the bound.
RATE = st.integers(0, 100_000_000_000) | st.sampled_from([499_999, 500_000, 500_001, 1_500_001, 2_000_000])
NAMES = sorted(COMPONENTS)
RATES = st.dictionaries(st.sampled_from(NAMES), RATE, max_size=10).map(lambda found: {"input": 7, "output": 9, **found})
CONTEXTS: tuple[Mapping[str, str], ...] = (
    {},
    {"processing": "batch"},
    {"service_tier": "priority"},
    {"service_tier": "flex"},
)


@st.composite
def tier_lists(draw: st.DrawFn) -> tuple[Tier, ...]:
    starts = sorted(draw(st.sets(st.integers(0, 3_000), max_size=2)))
    return tuple(Tier(start, draw(RATES)) for start in starts)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    whens = draw(st.lists(st.sampled_from(CONTEXTS[1:]), max_size=2, unique_by=str))
    return Price(
        draw(RATES),
        draw(tier_lists()),
        max_output_tokens=draw(st.none() | st.integers(1, 500)),
        context_window=draw(st.integers(500, 5_000)),
        variants=tuple(Variant(when, draw(RATES), draw(tier_lists())) for when in whens),
        minimums=draw(st.dictionaries(st.sampled_from(["audio_ms", "characters"]), st.integers(0, 20_000))),
    )


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    modal = [name for name in NAMES if COMPONENTS[name].traits & MODAL_TRAITS]
    flat = [each.count for each in FLAT if each.name != "request"]
    return Demand(
        draw(st.integers(0, 4_000)),
        draw(st.none() | st.integers(0, 1_000)),
        choices=draw(st.integers(1, 4)),
        rounds=draw(st.integers(1, 3)),
        counts=draw(st.dictionaries(st.sampled_from([*flat, "pages"]), st.integers(0, 5_000), max_size=4)),
        parts=frozenset(draw(st.sets(st.sampled_from(modal), max_size=3))),
        contexts=tuple(draw(st.lists(st.sampled_from(CONTEXTS), min_size=1, max_size=3))),
        unseen=draw(st.sampled_from([None, None, "messages"])),
    )


@st.composite
def usages(draw: st.DrawFn, demand: Demand, input_tokens: int, output_tokens: int) -> dict[str, int]:
    """Any usage that a vendor could report for the demand; parts that the request can't bring about are not there."""
    usage = {
        "input_tokens": draw(st.just(input_tokens) | st.integers(0, input_tokens)),
        "output_tokens": draw(st.just(output_tokens) | st.integers(0, output_tokens)),
    }
    usage |= {count: draw(st.just(most) | st.integers(0, most)) for count, most in demand.counts.items()}
    for tree in TREES:
        asked_for: set[str] = set()
        for name in demand.parts:
            if COMPONENTS[name].tree == tree:
                asked_for |= COMPONENTS[name].traits
        for part in PARTS[tree]:
            if part.traits & MODAL_TRAITS <= asked_for:
                usage[part.count] = draw(st.integers(0, 5_000))
    return usage


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_no_usage_within_the_demand_costs_more(data: st.DataObject) -> None:
    price, demand = data.draw(prices()), data.draw(demands())
    try:
        bound = strict_bound(price, demand)
    except UnpricedComponentError:
        assume(False)
    usage = data.draw(usages(demand, bound.input_tokens, bound.output_tokens))
    context = data.draw(st.sampled_from(demand.contexts))
    assert sum(each.cost_nano for each in price_usage(price, usage, context)) <= bound.amount_nano
    assert bound.input_tokens >= demand.input_tokens


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_call_that_has_written_so_much_has_cost_no_more_than_that_much_is_held_at(data: st.DataObject) -> None:
    """For a part of the output; and what an amount is enough for never costs more than it."""
    price, demand = data.draw(prices()), data.draw(demands())
    try:
        bound = strict_bound(price, demand)
    except UnpricedComponentError:
        assume(False)
    written = data.draw(st.integers(0, bound.output_tokens))
    usage = data.draw(usages(demand, bound.input_tokens, written))
    context = data.draw(st.sampled_from(demand.contexts))
    held_nano = most_nano(price, demand, written)
    assert sum(each.cost_nano for each in price_usage(price, usage, context)) <= held_nano <= bound.amount_nano
    assert most_nano(price, demand, bound.output_tokens) == bound.amount_nano
    amount_nano = data.draw(st.integers(0, bound.amount_nano) | st.just(held_nano))
    enough = most_tokens(price, demand, bound, amount_nano)
    assert 0 <= enough <= bound.output_tokens
    assert enough == 0 or most_nano(price, demand, enough) <= amount_nano


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_quantities_of_a_tree_add_up_to_its_total_and_costs_to_their_rates(data: st.DataObject) -> None:
    price = data.draw(prices())
    usage = data.draw(st.fixed_dictionaries({each.count: st.integers(0, 5_000) for each in COMPONENTS.values()}))
    context = data.draw(st.sampled_from(CONTEXTS))
    costs = price_usage(price, usage, context)
    rates = rates_for(price, usage["input_tokens"], context)
    assert len({each.component for each in costs}) == len(costs)
    for tree in TREES:
        mine = [each for each in costs if COMPONENTS[each.component].tree == tree]
        total = usage[COMPONENTS[tree].count]
        priced = tree in rates or any(part.name in rates for part in PARTS[tree])
        assert sum(each.quantity for each in mine) == (total if priced else 0)
    for each in costs:
        assert each.price_nano == rates[each.component]
        exact = Fraction(each.quantity * each.price_nano, each.per)
        assert abs(each.cost_nano - exact) <= Fraction(1, 2)
        assert each.cost_nano == round(exact)  # Python rounds fractions half to even, too.


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_what_costs_nothing_although_it_was_used_is_unpriced_or_free(data: st.DataObject) -> None:
    price = data.draw(prices())
    count = data.draw(st.sampled_from([each.count for each in FLAT if each.name != "request"]))
    usage = {count: data.draw(st.integers(1, 5_000))}
    component = next(each for each in FLAT if each.count == count)
    charged = [each for each in price_usage(price, usage) if each.component == component.name]
    assert bool(charged) != (count in unpriced_counts(price, usage))


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_more_tokens_of_one_kind_never_cost_less_within_a_tier(data: st.DataObject) -> None:
    rates = data.draw(RATES)
    price = Price(rates)
    few, more = sorted(data.draw(st.tuples(st.integers(0, 5_000), st.integers(0, 5_000))))
    root = data.draw(st.sampled_from(["input_tokens", "output_tokens"]))
    cost = [sum(each.cost_nano for each in price_usage(price, {root: many})) for many in (few, more)]
    assert cost[0] <= cost[1]
