"""What a call can cost before it is made (`strict`, PR-5), and what it used where the vendor does not say (PR-3)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.core.events import UsageSource
from services.core.pricing import UNITS_PER_RATE, Price, Rates


class UnboundedError(ValueError):
    """Nothing bounds the call's output; `param` is the request field that would."""

    param = "max_tokens"

    def __init__(self) -> None:
        super().__init__("this model's maximum output is not known: name max_tokens, or the cost has no bound")


class UnpricedComponentError(ValueError):
    """The request uses something the model has no price for; `component` names it."""

    def __init__(self, component: str) -> None:
        super().__init__(f"this model has no price for {component.replace('_', ' ')}: the cost can't be known")
        self.component = component


@dataclass(frozen=True, slots=True)
class Bound:
    """The most a call can use and cost: tokens in all, over all choices, and nano-dollars."""

    input_tokens: int
    output_tokens: int
    amount_nano: int


def strict_bound(
    price: Price,
    input_tokens_bound: int,
    output_tokens_limit: int | None,
    choices: int,
    components: Iterable[str] = (),
) -> Bound:
    """A true upper bound of a call's cost: no usage within its token bounds costs more by `pricing.price_usage`.

    Every token is taken at the dearest rate it could fall under, long-context tiers in reach included.
    `output_tokens_limit` is what the request allows one choice, None when it names no limit; then the model's maximum
    output, or else its context window, stands in. `components`: what the request uses beyond plain input and output.
    Raises `UnboundedError` and `UnpricedComponentError`.
    """
    limit = output_tokens_limit
    if limit is None:
        limit = price.max_output_tokens if price.max_output_tokens is not None else price.context_window
    if limit is None:
        raise UnboundedError
    reachable: list[Rates] = [price]
    reachable += [tier.rates for tier in price.tiers if input_tokens_bound > tier.above_input_tokens]
    for component in components:
        if any(getattr(rates, component) is None for rates in reachable):
            raise UnpricedComponentError(component)
    output_tokens = limit * choices
    amount = max(_most(rates, input_tokens_bound, output_tokens) for rates in reachable)
    return Bound(input_tokens_bound, output_tokens, amount)


def _most(rates: Rates, input_tokens: int, output_tokens: int) -> int:
    input_rates = _present(rates.input, rates.cache_read, rates.cache_write, rates.audio_input)
    output_rates = _present(rates.output, rates.audio_output)
    request_rates = _present(rates.request)
    exact = input_tokens * max(input_rates) + output_tokens * max(output_rates) + sum(request_rates)
    # Each component is rounded by itself, and each can gain half a nano-dollar by that; whole rates never round.
    rounded = sum(rate % UNITS_PER_RATE != 0 for rate in (*input_rates, *output_rates, *request_rates))
    return -(-exact // UNITS_PER_RATE) + rounded // 2


def _present(*rates: int | None) -> list[int]:
    return [rate for rate in rates if rate is not None]


def fill_in_usage(
    reported: Mapping[str, int],
    text_bytes: int,
    input_tokens_bound: int,
    output_tokens_limit: int | None,
    choices: int,
) -> tuple[dict[str, int], UsageSource]:
    """The usage of a response, with estimates for what the vendor did not report, and where it comes from.

    Conservative on purpose, so that money is never lost: input counts as its upper bound, output as one token for each
    byte of generated text seen (a token is at least one byte), but never more than the request allowed.
    """
    usage = dict(reported)
    if "input_tokens" in usage and "output_tokens" in usage:
        return usage, "reported"
    usage.setdefault("input_tokens", input_tokens_bound)
    most = text_bytes if output_tokens_limit is None else min(text_bytes, output_tokens_limit * choices)
    usage.setdefault("output_tokens", most)
    return usage, "estimated"


def within_bound(usage: Mapping[str, int], source: UsageSource, bound: Bound) -> dict[str, int]:
    """`usage` as it is settled: estimates never go past what was held for them; a vendor's report stays."""
    settled = dict(usage)
    if source == "estimated":
        for name, most in (("input_tokens", bound.input_tokens), ("output_tokens", bound.output_tokens)):
            settled[name] = min(settled.get(name, 0), most)
    return settled
