"""How much of a budget a call is held at (PR-5, BU-6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.core.budgets import Budget
from services.core.calibrate import Calibration, Key
from services.core.estimate import Bound, Demand, HoldMode, most_nano, writes_text_only
from services.core.pricing import Price
from services.gateway.vendors import RequestFacts

# The output that a stream is held at beyond what it has used, for each of its choices: enough for most answers, and a
# small part of what the largest models can write.
STEP_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class HoldSize:
    """What is held for a call, in nano-dollars, and how that was found."""

    amount_nano: int
    mode: HoldMode


def size_hold(
    budgets: Sequence[Budget], bound: Bound, facts: RequestFacts, price: Price, key: Key, calibration: Calibration
) -> HoldSize:
    """What to hold for a call of `facts` that can cost `bound` at `price` and falls under `budgets`.

    The bound, unless every budget settles for what such calls (those of `key`) have been seen to cost; or unless the
    call is a stream that names no limit of its own and every budget that can stop it lets it be held step by step.
    """
    if budgets and all(each.estimate == "calibrated" for each in budgets):
        estimate_nano = calibration.estimate(key, bound.amount_nano)
        if estimate_nano is not None:
            return HoldSize(estimate_nano, "calibrated")
    if _may_grow(budgets, facts, price):
        step_nano = most_nano(price, facts.demand, min(step_tokens(facts.demand), bound.output_tokens))
        if step_nano < bound.amount_nano:
            return HoldSize(step_nano, "stepped")
    return HoldSize(bound.amount_nano, "strict")


def step_tokens(demand: Demand) -> int:
    """The output tokens of one step."""
    return STEP_TOKENS * demand.choices


def _may_grow(budgets: Sequence[Budget], facts: RequestFacts, price: Price) -> bool:
    """Whether a call may be held at a step, to be extended while its answer comes."""
    if not facts.stream or facts.demand.output_tokens_limit is not None:
        return False
    # Work that goes on without its stream, or whose output is not seen in it, can't be followed.
    if facts.in_background or facts.lines or facts.is_unpriced or not writes_text_only(price, facts.demand):
        return False
    enforced = [each for each in budgets if each.full_rule != "pass"]
    return bool(enforced) and all(each.extend for each in enforced)
