"""Budgets as people read them."""

from typing import Any, Final

from services.commands.output import dollars, moment

WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_EPOCH: Final = "1970-01-01T00:00:00.000Z"
_NO_STANDING: Final = {
    "per_value": "each value",
    "per_session": "each session",
    "state_rebuilding": "being rebuilt",
    "hot_state_unreachable": "unreachable",
}


def scope_text(budget: Any) -> str:
    """What a budget caps: ``team ml``, ``each user``, ``calls nights: <expression>``."""
    scope = budget["scope"]
    if scope["kind"] == "cel":
        return f"calls {scope['value']}: {scope['expression']}"
    return f"each {scope['kind']}" if scope["value"] == "*" else f"{scope['kind']} {scope['value']}"


def window_line(budget: Any) -> str:
    """A budget's window: ``day (Europe/Berlin)``, ``month from day 31 (UTC)``, ``every 14d from 2026-01-05 09:00``."""
    text = str(budget["window"])
    if budget["zone"] is not None:
        return f"{text}{_begin(budget)} ({budget['zone']})"
    anchor = budget["anchor"]
    return text if anchor in (None, _EPOCH) else f"{text} from {moment(anchor)}"


def spends_line(budget: Any) -> str:
    """What may be spent: ``$50.00 per day (Europe/Berlin)``."""
    limit, window = dollars(budget["limit_usd"]), window_line(budget)
    if budget["zone"] is not None or budget["window"] == "session":
        return f"{limit} per {window}"
    if budget["window"] == "lifetime":
        return f"{limit} in all"
    return f"{limit} {window}" if window.startswith("every ") else f"{limit} in any {window}"


def full_line(budget: Any) -> str:
    """What becomes of a call there is no room for."""
    if budget["enforcement"] == "monitor":
        return "monitor"
    if budget["when_full"] == "alert":
        return "alert"
    if budget["child_mode"] == "fallback":
        return "parent pays"
    return "block" if budget["when_full"] == "block" else f"downgrade to {budget['downgrade_to']}"


def resets_line(budget: Any) -> str:
    """When the spend of now will have left, or why that can't be said."""
    standing = budget["standing"]
    reason = standing.get("reason")
    if reason is not None:
        return _NO_STANDING.get(reason, str(reason))
    if standing["resets_at"] is None and standing["spent_usd"] is not None:
        return "never"
    return moment(standing["resets_at"])


def past_line(budget: Any) -> str:
    """Whether what was spent before the budget counted is in its figures."""
    known = budget.get("backfilled")
    if known is None:
        return "-"
    return "counted" if known else "not known yet"


def _begin(budget: Any) -> str:
    """Where a calendar window begins, when that is not where everyone would think."""
    if budget["week_start"]:
        return f" from {WEEKDAYS[budget['week_start']].capitalize()}"
    day, month = budget["anchor_day"], budget["anchor_month"]
    if day is None or (day, month or 1) == (1, 1):
        return ""
    return f" from day {day}" if month is None else f" from {_MONTHS[month - 1]} {day}"
