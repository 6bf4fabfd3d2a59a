"""Parts of budgets that are handed on (BU-9): one reservation holds a part against all it was carved from.

It holds it for a moment at first, and for all of the part's time before anybody is told the part's key: a hold whose
time is over before the part's is of a part that nobody can have spent of.

The part's own budget counts its calls. When the part is over, and nothing of it is held any more, the reservation is
settled at what the part has spent: the rest is free again. The events say which part a reservation holds by its facts'
flags, so that whoever ends it looks nothing up.
"""

import hashlib
import hmac
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from services.core.budgets import Budget, Proposal, Standing, owner_id
from services.core.events import CallFacts, ComponentCost, Settlement
from services.core.hotstate import WINDOW_GRACE_MS, DueHold
from services.core.identity import KEY_PREFIX
from services.core.windows import CalendarSpan, parse_span

ROUTE: Final = "delegation"
# Such a reservation is no vendor's bill, and no budget of vendors is charged for it (`core.matching`).
VENDOR: Final = "farthing"
RESERVATION_PREFIX: Final = "dlg_"
BUDGET_PREFIX: Final = "sub_"
# How long before its figures go a part is settled with calls still open: the reaper looks at least this often.
_LAST_LOOK_MS: Final = 3_600_000
# The key of a part is named after its budget, so that nobody takes it for a key without one.
_KEY_PREFIX: Final = "key_"
_ALPHABET: Final = string.ascii_letters + string.digits
_SECRET_CHARACTERS: Final = 40
_PART: Final = "part:"
_WINDOW: Final = "window:"


def key_of(budget_id: str) -> str:
    """The id of the key that spends a part, by the part's budget."""
    return _KEY_PREFIX + budget_id


def budget_of_key(key_id: str) -> str | None:
    """The budget that all calls of a key are charged to because it is a part's; None for any other key."""
    return key_id.removeprefix(_KEY_PREFIX) if key_id.startswith(_KEY_PREFIX + BUDGET_PREFIX) else None


def part_key(pepper: bytes, maker_key: str, budget_id: str) -> str:
    """The key of a part that is asked for with an Idempotency-Key, made of its maker's key (both in clear).

    The same for the same part, so that it can be told again and is kept nowhere. Nobody makes it who has not the
    maker's key, and the pepper beside it: its maker has to be told it, and is not before the part is held for all of
    its time. It tells nothing of the maker's, nor of another part's.
    """
    made = hmac.new(pepper, f"key of {budget_id} by {maker_key}".encode(), hashlib.sha512).digest()
    number, text = int.from_bytes(made), ""
    for _ in range(_SECRET_CHARACTERS):
        number, rest = divmod(number, len(_ALPHABET))
        text += _ALPHABET[rest]
    return KEY_PREFIX + text


def held_alike(part: Budget, covered: Sequence[Budget]) -> Budget:
    """The budget of a part, by which its calls are held as those of what it was carved from: the budgets `covered`.

    Of several, as for a call that falls under them all: by past calls where all of them say so, and a stream a step at
    a time where all that can stop it do (PR-5, BU-6).
    """
    enforced = [each for each in covered if each.full_rule != "pass"]
    is_calibrated = bool(covered) and all(each.estimate == "calibrated" for each in covered)
    return replace(
        part,
        estimate="calibrated" if is_calibrated else "strict",
        extend=bool(enforced) and all(each.extend for each in enforced),
    )


def parts_held_alike(parts: Iterable[Budget], budgets: Iterable[Budget]) -> tuple[Budget, ...]:
    """The budgets of an org's parts, each `held_alike` those of `budgets` that it covers.

    A part of a part covers all that the outer one does, so parts need not be among them. What is gone says nothing.
    """
    all_parts = tuple(parts)
    named = {owner_id(name) for part in all_parts for name in part.covers}
    known: Mapping[str, Budget] = {each.budget_id: each for each in budgets if each.budget_id in named} if named else {}
    return tuple(
        held_alike(part, [known[name] for each in part.covers if (name := owner_id(each)) in known])
        for part in all_parts
    )


def part_flags(budget_id: str, span: CalendarSpan) -> tuple[str, ...]:
    """The flags of a reservation that holds a part."""
    return (_PART + budget_id, _WINDOW + span.key())


def part_of(facts: CallFacts) -> Proposal | None:
    """Where the figures of the part are that a reservation holds; None for any other reservation."""
    if facts.route != ROUTE:
        return None
    told = {name: value for flag in facts.flags for name, _, value in [flag.partition(":")]}
    return Proposal(told["part"], "part", parse_span(told["window"]), 0, "pass", is_fixed=True)


def spent_by(part: Proposal, standing: Standing, held_nano: int, now_ms: int) -> int | None:
    """What a part that was held with `held_nano` is to be settled at; None while a call of it is still open.

    The figures of a part are not kept for ever (`WINDOW_GRACE_MS`). Shortly before they go, what is still held counts
    as spent; once they are gone, all of the part does: the safe side.
    """
    assert isinstance(part.span, CalendarSpan), "a part has a window from when it was made to its end"
    if now_ms >= part.span.end_ms + WINDOW_GRACE_MS:
        return held_nano
    if standing.held_nano == 0:
        return standing.spent_nano
    if now_ms >= part.span.end_ms + WINDOW_GRACE_MS - _LAST_LOOK_MS:
        return standing.spent_nano + standing.held_nano
    return None


def settled(hold: DueHold, facts: CallFacts, spent_nano: int, now_ms: int) -> Settlement:
    """The end of a part: what it was carved from is charged what it has spent."""
    return Settlement(
        transaction_id=hold.reservation_id,
        time_ms=now_ms,
        facts=facts,
        outcome="completed",
        usage_source="none",
        usage={},
        components=(ComponentCost(ROUTE, 1, spent_nano, spent_nano, per=1),) if spent_nano else (),
        cost_nano=spent_nano,
        held_nano=hold.amount_nano,
        charges=hold.charges,
        http_status=0,
        retry_count=0,
        estimate_mode="stated",
        admitted_at_ms=hold.admitted_at_ms,
    )
