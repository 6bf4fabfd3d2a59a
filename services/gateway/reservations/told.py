"""What a caller of the reservation API is told. All of it follows from events, so that the ledger can tell it again."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.core.budgets import Charge
from services.core.codec import charges_fields
from services.core.codec_fields import format_time, parse_time
from services.core.events import Denial, HoldResized, Reservation, Settlement
from services.core.money import format_usd
from services.gateway.respond import DONT_RETRY

CREATED: Final = 201
OK: Final = 200
# Whatever a route's rule says for calls: an answer that is to be the same for ever depends on no rule.
NO_ROOM: Final = 402
# A client that waits longer than this is better told than held up; and what has room within so little has it now, but
# for holds that may end at any time.
SHORT_WAIT_MS: Final = 60_000
SOON_MS: Final = 1_000


def held(reservation: Reservation, resized: HoldResized | None = None) -> dict[str, Any]:
    """An open reservation, as it was taken or as it was changed last."""
    last = resized or reservation
    return {
        "reservation_id": reservation.transaction_id,
        "state": "held",
        "created_at": format_time(reservation.time_ms),
        "held_usd": format_usd(last.held_nano),
        "expires_at": format_time(last.expires_at_ms),
        "charges": charges_fields(last.charges),
        "parent_charged": list(parents_paid(reservation, last.charges)),
    }


def parents_paid(reservation: Reservation, charges: Sequence[Charge]) -> tuple[str, ...]:
    """The budgets that leave a hold to their parents: from its beginning on, or since it was changed to `charges`.

    One that a larger hold was charged to after all has left nothing.
    """
    paying = {each.budget_id for each in charges}
    asked = dict.fromkeys((*reservation.parent_charged, *(each.budget_id for each in reservation.charges)))
    return tuple(each for each in asked if each not in paying)


def ended(settlement: Settlement) -> dict[str, Any]:
    """A reservation that was settled, or released: then it has cost nothing and was cancelled."""
    is_released = settlement.outcome == "cancelled" and settlement.cost_nano == 0
    return {
        "reservation_id": settlement.transaction_id,
        "state": "released" if is_released else "settled",
        "settled_at": format_time(settlement.time_ms),
        "cost_usd": format_usd(settlement.cost_nano),
        "held_usd": format_usd(settlement.held_nano),
        "outcome": settlement.outcome,
        "usage": dict(settlement.usage),
        "charges": charges_fields(settlement.charges),
    }


def refusal_flags(fields: Mapping[str, object], room_at_ms: int | None) -> tuple[str, ...]:
    """What `refused` tells beyond a denial's own fields, as flags of its facts; `fields` are those of `name_full`."""
    flags = [f"{name}:{fields[name]}" for name in ("cap", "resets_at") if fields.get(name) is not None]
    if room_at_ms is not None:
        flags.append(f"retry_at:{format_time(room_at_ms)}")
    return tuple(flags)


def refusal_headers(denial: Denial, now_ms: int, *, is_lasting: bool) -> tuple[tuple[bytes, bytes], ...]:
    """Whether to ask again, and when, as a refused call is told (`gateway.deny`), at `now_ms` of the hot state's clock.

    `is_lasting`: whoever asks again by the same key is answered the same, however much room there is by then.
    """
    found = [flag.partition(":")[2] for flag in denial.facts.flags if flag.startswith("retry_at:")]
    wait_ms = parse_time(found[0]) - now_ms if found else None
    if wait_ms is not None and wait_ms <= SOON_MS and not is_lasting:
        return ((b"retry-after", b"1"),)
    if wait_ms is None or not 0 < wait_ms <= SHORT_WAIT_MS:
        return (DONT_RETRY,)
    return DONT_RETRY, (b"retry-after", b"%d" % -(-wait_ms // 1000))


def refused(denial: Denial) -> dict[str, Any]:
    """A reservation that no budget had room for."""
    flagged = {name: value for flag in denial.facts.flags for name, _, value in [flag.partition(":")]}
    limit_nano, spent_nano, held_nano = denial.limit_nano or 0, denial.spent_nano or 0, denial.held_nano or 0
    fields: dict[str, Any] = {
        "error": denial.code,
        "message": denial.reason,
        "reservation_id": denial.transaction_id,
        "estimate_usd": format_usd(denial.estimate_nano),
        "budget_id": denial.budget_id,
        "scope": denial.scope,
        "limit_usd": format_usd(limit_nano),
        "spent_usd": format_usd(spent_nano),
        "held_usd": format_usd(held_nano),
        "remaining_usd": format_usd(limit_nano - spent_nano - held_nano),
        "resets_at": flagged.get("resets_at"),
    }
    if "retry_at" in flagged:
        fields["retry_at"] = flagged["retry_at"]
    if "cap" in flagged:
        fields |= {"cap": flagged["cap"], "billingClass": denial.facts.billing_class}
    return fields
