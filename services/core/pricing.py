"""Cost: usage times rates, as integers, one rounding a component, half-even (PR-4).

A rate is nano-dollars for as many units as `components` says (a million tokens, an hour of audio). An absent rate is no
price; zero is a price. Tokens of a part without a rate of its own (say, cached input of a model without a cache price)
are priced as what the part lies in.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from services.core.components import COMPONENTS, FLAT, PARTS, TREES, Component
from services.core.events import ComponentCost
from services.core.money import divide_half_even

Rates = Mapping[str, int]
Context = Mapping[str, str]

# What vendors call the context that their listed prices are for.
_STANDARD: Final[Mapping[str, frozenset[str]]] = {
    "service_tier": frozenset({"default", "standard", "auto", "standard_only", "on_demand", "scale", "batch"}),
    "processing": frozenset({"standard"}),
    "speed": frozenset({"standard"}),
    "inference_geo": frozenset({"global", "not_available"}),
}

NO_CONTEXT: Final[Context] = MappingProxyType({})
_NONE: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Tier:
    """All rates of a call whose input has more than `above_input_tokens` tokens."""

    above_input_tokens: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class Variant:
    """All rates of calls in a certain context (``{"processing": "batch"}``, ``{"service_tier": "priority"}``)."""

    when: Context
    rates: Rates
    tiers: tuple[Tier, ...] = ()

    def holds_in(self, context: Context) -> bool:
        """Whether a call in that context is priced by this variant."""
        return all(context.get(name) == value for name, value in self.when.items())


@dataclass(frozen=True, slots=True)
class Price:
    """A model's price: base rates, long-context `tiers` by rising threshold, `variants`, and what bounds a call.

    `minimums` has, by usage count, the least that is charged once anything is counted (Groq: ten seconds of audio).
    """

    rates: Rates
    tiers: tuple[Tier, ...] = ()
    max_output_tokens: int | None = None
    context_window: int | None = None
    variants: tuple[Variant, ...] = ()
    minimums: Mapping[str, int] = field(default_factory=lambda: _NONE)

    def rate_sets(self, context: Context = NO_CONTEXT) -> tuple[Rates, tuple[Tier, ...]]:
        """Base rates and tiers in a context: those of the first variant that holds in it, else the standard ones."""
        for variant in self.variants:
            if variant.holds_in(context):
                return variant.rates, variant.tiers
        return self.rates, self.tiers


def rates_for(price: Price, input_tokens: int, context: Context = NO_CONTEXT) -> Rates:
    """The rates of a call with that many input tokens: those of the highest tier it is above."""
    rates, tiers = price.rate_sets(context)
    for tier in tiers:
        if input_tokens > tier.above_input_tokens:
            rates = tier.rates
    return rates


def price_usage(price: Price, usage: Mapping[str, int], context: Context = NO_CONTEXT) -> tuple[ComponentCost, ...]:
    """What `usage` costs, as disjoint components, each rounded once, half-even.

    `usage` has counts by name (`components`); a missing one is zero, others are ignored. Where reported parts overlap
    or exceed their total, the dearer part takes its tokens first, so that cost is never too low; for the same reason
    tokens of a tree whose root has no rate are priced at the dearest rate the tree has.
    """
    rates = rates_for(price, usage.get("input_tokens", 0), context)
    costs: list[ComponentCost] = []
    for tree in TREES:
        costs += _split(tree, rates, usage)
    for component in FLAT:
        rate = rates.get(component.name)
        quantity = 1 if component.name == "request" else usage.get(component.count, 0)
        if rate is not None and quantity > 0:
            costs.append(_cost(component, max(quantity, price.minimums.get(component.count, 0)), rate))
    return tuple(costs)


def unpriced_counts(price: Price, usage: Mapping[str, int], context: Context = NO_CONTEXT) -> tuple[str, ...]:
    """Counts in `usage` above zero that nothing in the price covers, in the order of `components`."""
    rates = rates_for(price, usage.get("input_tokens", 0), context)
    roots = [
        COMPONENTS[tree].count
        for tree in TREES
        if tree not in rates and not any(part.name in rates for part in PARTS[tree])
    ]
    flat = [each.count for each in FLAT if each.name not in rates]
    return tuple(count for count in (*roots, *flat) if usage.get(count, 0) > 0)


def unpriced_contexts(price: Price, context: Context) -> tuple[str, ...]:
    """What of a context (``service_tier=flex``) is not the standard one and has no rates of its own in the price."""
    known = {item for variant in price.variants for item in variant.when.items()}
    return tuple(
        f"{name}={value}"
        for name, value in context.items()
        if value not in _STANDARD.get(name, ()) and (name, value) not in known
    )


def _split(tree: str, rates: Rates, usage: Mapping[str, int]) -> Iterator[ComponentCost]:
    root = COMPONENTS[tree]
    parts = [each for each in PARTS[tree] if each.name in rates and usage.get(each.count, 0) > 0]
    rest = usage.get(root.count, 0)
    found: list[tuple[Component, int]] = []
    if parts:
        # Innermost first, and of those equally deep the dearer.
        parts.sort(key=lambda each: (-len(each.traits), -rates[each.name]))
        taken: dict[str, int] = {}
        for part in parts:
            inside = sum(count for name, count in taken.items() if COMPONENTS[name].is_inside(part))
            quantity = min(max(usage[part.count] - inside, 0), rest)
            taken[part.name] = quantity
            rest -= quantity
            if quantity:
                found.append((part, quantity))
    if tree in rates:
        yield _cost(root, rest, rates[tree])
    elif rest:
        dearest = max(
            (each for each in PARTS[tree] if each.name in rates), key=lambda each: rates[each.name], default=None
        )
        if dearest is not None:
            already = sum(quantity for part, quantity in found if part is dearest)
            found = [each for each in found if each[0] is not dearest] + [(dearest, already + rest)]
    for part, quantity in found:
        yield _cost(part, quantity, rates[part.name])


def _cost(component: Component, quantity: int, rate: int) -> ComponentCost:
    cost_nano = divide_half_even(quantity * rate, component.per)
    return ComponentCost(component.name, quantity, rate, cost_nano, component.per)
