"""What a call can cost before it is made (`strict`, PR-5), and what it used where the vendor does not say (PR-3)."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from services.core.components import BY_COUNT, COMPONENTS, FLAT, MILLION, MODAL_TRAITS, PARTS, Component
from services.core.events import UsageSource
from services.core.money import divide_half_even
from services.core.pricing import NO_CONTEXT, Context, Price, Rates

# About the most that reasoning models write: more than nearly all of them do, since a guess must not lose money.
TOKENS_PER_SECOND: Final = 250

_NO_COUNTS: Final[Mapping[str, int]] = MappingProxyType({})

# How the hold of a call was sized: at its bound, at what such calls have been seen to cost, or a step at a time (BU-6).
HoldMode = Literal["strict", "calibrated", "stepped"]

# What stands in for the longest answer where none costs anything: a figure for the record, and no bound of money.
_FREE_LIMIT: Final = 65_536


class UnboundedError(ValueError):
    """Nothing bounds the call; `param` is the request field that would."""

    def __init__(self, param: str = "max_tokens", message: str | None = None) -> None:
        super().__init__(message or f"this model's maximum is not known: name {param}, or the cost has no bound")
        self.param = param


class UnpricedComponentError(ValueError):
    """The request uses something the model has no price for; `component` names it, `param` the field at fault."""

    def __init__(self, component: str, param: str = "model") -> None:
        super().__init__(f"this model has no price for {component.replace('_', ' ')}: the cost can't be known")
        self.component = component
        self.param = param


@dataclass(frozen=True, slots=True)
class Demand:
    """The most that a request can make its vendor count, whatever the vendor answers.

    `input_tokens` is an upper bound for one run of the model; `rounds` how often the vendor may run it for this request
    (tools that the vendor itself runs feed their results back, so each further run may read a whole context window).
    `output_tokens_limit` is what the request allows one choice in all, None when it names no limit (then the model's
    maximum stands in), 0 for a route that writes no tokens; `limit_param` is the field that names it.

    `counts` bounds flat counts and pages by usage count (``{"web_searches": 5}``): each must have a price, and what is
    not there can't be used. `parts` are the components of audio, images, video and one-hour cache writes that the
    request can bring about; those in `required` must have a price of their own, any other is priced as what it lies in.
    `contexts` are the price contexts the vendor may choose between (service tiers, batch). `unseen` is the field that
    brings in content whose length can't be seen here (a file by its address): then the input may fill the window.
    `distinct` are context values that must have rates of their own (``{"speed": "fast"}``): without them the call would
    be billed too low.
    """

    input_tokens: int
    output_tokens_limit: int | None
    choices: int = 1
    rounds: int = 1
    counts: Mapping[str, int] = field(default_factory=lambda: _NO_COUNTS)
    parts: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    contexts: tuple[Context, ...] = (NO_CONTEXT,)
    limit_param: str = "max_tokens"
    unseen: str | None = None
    distinct: Context = field(default_factory=lambda: NO_CONTEXT)


@dataclass(frozen=True, slots=True)
class Bound:
    """The most a call can use and cost: tokens in all, over all rounds and choices, other counts, and nano-dollars."""

    input_tokens: int
    output_tokens: int
    amount_nano: int
    counts: Mapping[str, int] = field(default_factory=lambda: _NO_COUNTS)


def strict_bound(price: Price, demand: Demand) -> Bound:
    """A true upper bound of a call's cost: no usage within `demand` costs more by `pricing.price_usage`.

    Every token is taken at the dearest rate it could fall under, long-context tiers and contexts in reach included.
    Raises `UnboundedError` and `UnpricedComponentError`.
    """
    limit = demand.output_tokens_limit
    if limit is None:
        limit = price.max_output_tokens if price.max_output_tokens is not None else price.context_window
    if limit is None and _is_free(price, demand, "output"):
        limit = _FREE_LIMIT
    if limit is None:
        raise UnboundedError(demand.limit_param)
    input_tokens, reach = _input_of(price, demand)
    output_tokens = limit * demand.choices * demand.rounds
    _check_distinct(price, demand.distinct)
    for rates in _reachable(price, demand, reach):
        _check_priced(rates, demand)
    return Bound(input_tokens, output_tokens, most_nano(price, demand, output_tokens), demand.counts)


def most_nano(price: Price, demand: Demand, output_tokens: int) -> int:
    """The most that a call can have cost, in nano-dollars, while it has written no more than so many output tokens.

    All its input and all else that it can use is in it. `demand` has a bound at this price (`strict_bound`).
    """
    input_tokens, reach = _input_of(price, demand)
    return max(
        _most(rates, demand, input_tokens, output_tokens, price.minimums) for rates in _reachable(price, demand, reach)
    )


def most_tokens(price: Price, demand: Demand, bound: Bound, amount_nano: int) -> int:
    """The output tokens that `amount_nano` is surely enough for, whatever else of its `bound` the call uses."""
    if amount_nano >= bound.amount_nano:
        return bound.output_tokens
    least_nano = most_nano(price, demand, 0)
    if amount_nano <= least_nano:
        return 0
    # The cost is the dearest of several that each grow evenly, so that it lies below a line between two of its points.
    tokens = (amount_nano - least_nano) * bound.output_tokens // (bound.amount_nano - least_nano)
    while tokens > 0 and most_nano(price, demand, tokens) > amount_nano:
        tokens -= 1  # for what rounding adds
    return tokens


def writes_text_only(price: Price, demand: Demand) -> bool:
    """Whether all output is text, of which a token has at least one byte; of sounds and pictures nothing is sure."""
    priced = {*price.rates, *(name for each in price.variants for name in each.rates), *demand.required}
    others = (COMPONENTS[name] for name in demand.parts if name in priced)
    return not any(each.tree == "output" and each.traits & MODAL_TRAITS for each in others)


def _is_free(price: Price, demand: Demand, tree: str) -> bool:
    """Whether tokens of a tree cost nothing, however many there are: a server of one's own."""
    sets = [price.rate_sets(context) for context in demand.contexts]
    every = [rates for base, tiers in sets for rates in (base, *(tier.rates for tier in tiers))]
    return all(
        found and not any(rates[each.name] for each in found)
        for rates in every
        for found in [_of_tree(rates, tree, demand.parts)]
    )


def _no_window(param: str) -> UnboundedError:
    message = f"this model's context window is not known, so what {param} brings in has no bound: leave it out"
    return UnboundedError(param, message)


def _input_of(price: Price, demand: Demand) -> tuple[int, int | None]:
    """The input tokens that a call is bounded by, over all rounds, and how many decide its tier; None: any number."""
    input_tokens = demand.input_tokens
    if demand.rounds == 1 and demand.unseen is None:
        return input_tokens, input_tokens
    if price.context_window is not None:
        input_tokens = max(input_tokens, price.context_window) * demand.rounds
        return input_tokens, input_tokens
    if _is_free(price, demand, "input"):
        return input_tokens, None  # costs nothing itself, but a long input can bring the output into a dearer tier
    raise _no_window(demand.unseen or "tools")


def _reachable(price: Price, demand: Demand, reach: int | None) -> list[Rates]:
    """The rates a call of up to `reach` input tokens may fall under, in any context; None: of any number."""
    found: list[Rates] = []
    for context in demand.contexts if price.variants else demand.contexts[:1]:
        rates, tiers = price.rate_sets(context)
        found += [rates, *(tier.rates for tier in tiers if reach is None or reach > tier.above_input_tokens)]
    return found


def _check_distinct(price: Price, distinct: Context) -> None:
    for name, value in distinct.items():
        if not any(variant.when.get(name) == value for variant in price.variants):
            raise UnpricedComponentError(f"{name} {value}", name)


def _check_priced(rates: Rates, demand: Demand) -> None:
    for name in sorted(demand.required):
        if name not in rates:
            raise UnpricedComponentError(name)
    for count, most in demand.counts.items():
        component = BY_COUNT[count]
        if most > 0 and component.name not in rates and (component.tree is None or component.tree not in rates):
            raise UnpricedComponentError(component.name)
    if demand.input_tokens > 0 and not _of_tree(rates, "input", demand.parts):
        raise UnpricedComponentError("input")
    if demand.output_tokens_limit != 0 and not _of_tree(rates, "output", demand.parts):
        raise UnpricedComponentError("output")


def _most(rates: Rates, demand: Demand, input_tokens: int, output_tokens: int, minimums: Mapping[str, int]) -> int:
    # Each component of a tree is rounded by itself, and can gain half a nano-dollar by that; whole rates never round.
    halves = 0
    millionths = 0
    for tree, tokens in (("input", input_tokens), ("output", output_tokens)):
        in_reach = _of_tree(rates, tree, demand.parts)
        if tokens and in_reach:
            millionths += tokens * max(rates[each.name] for each in in_reach)
            halves += sum(rates[each.name] % MILLION != 0 for each in in_reach)
    pages = demand.counts.get("pages", 0)
    if pages:
        priced = [rates[each.name] for each in (COMPONENTS["page"], *PARTS["page"]) if each.name in rates]
        millionths += pages * max(priced)
        halves += sum(rate % MILLION != 0 for rate in priced)
    nano = (2 * millionths + halves * MILLION) // (2 * MILLION)
    for component in FLAT:
        count = 1 if component.name == "request" else demand.counts.get(component.count, 0)
        if count and component.name in rates:
            # More units never cost less after rounding either.
            count = max(count, minimums.get(component.count, 0))
            nano += divide_half_even(count * rates[component.name], component.per)
    return nano


def _of_tree(rates: Rates, tree: str, parts: frozenset[str]) -> list[Component]:
    """The priced components of a tree that a request can bring about; without any, whatever the tree has a price for.

    Audio that can be input can be read from a cache, too: a trait that one of `parts` has, others may have.
    """
    priced = [each for each in (COMPONENTS[tree], *PARTS[tree]) if each.name in rates]
    if tree not in rates:
        return priced
    asked_for: set[str] = set()
    for name in parts:
        if COMPONENTS[name].tree == tree:
            asked_for |= COMPONENTS[name].traits
    return [each for each in priced if each.traits & MODAL_TRAITS <= asked_for]


def fill_in_usage(
    reported: Mapping[str, int], needed: Iterable[str], text_bytes: int, demand: Demand
) -> tuple[dict[str, int], UsageSource]:
    """The usage of a response, with estimates for what it had to say and did not, and where it comes from.

    `needed` are the counts that the answer of this route reports. Conservative on purpose, so that money is never lost:
    input and other counts stand at their bound, output at one token for each byte of generated text seen (a token is at
    least one byte), but never more than the request allowed.
    """
    usage = dict(reported)
    missing = [count for count in needed if count not in usage]
    for count in missing:
        if count == "input_tokens":
            usage[count] = demand.input_tokens
        elif count == "output_tokens":
            limit = demand.output_tokens_limit
            usage[count] = text_bytes if limit is None else min(text_bytes, limit * demand.choices * demand.rounds)
        else:
            usage[count] = demand.counts.get(count, 0)
    return usage, "estimated" if missing else "reported"


def unseen_tokens(unseen_ms: int) -> int:
    """The output tokens that a model may have written in so many milliseconds without any of them to be seen."""
    return -(-unseen_ms * TOKENS_PER_SECOND // 1000)


def within_bound(
    usage: Mapping[str, int], source: UsageSource, bound: Bound, reported: Container[str] = ()
) -> dict[str, int]:
    """`usage` as it is settled: estimates never go past what was held for them; what the vendor `reported` stays."""
    settled = dict(usage)
    if source == "estimated":
        for name, most in (("input_tokens", bound.input_tokens), ("output_tokens", bound.output_tokens)):
            if name in settled and name not in reported:
                settled[name] = min(settled[name], most)
    return settled
