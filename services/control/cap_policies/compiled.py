"""The cap matrix as budgets: what gateways enforce of it."""

from collections.abc import Iterable, Mapping
from typing import Final

from services.core.billing import Cap, CapPeriod
from services.core.budgets import Budget
from services.core.windows import CalendarWindow, SessionWindow, Window

_WINDOWS: Final[Mapping[CapPeriod, Window]] = {
    "daily": CalendarWindow("day", "UTC"),
    "monthly": CalendarWindow("month", "UTC"),
    "per_session": SessionWindow(),
}


def compile_caps(caps: Iterable[Cap]) -> tuple[Budget, ...]:
    """A budget for every cap that is enforced; a cap that is turned off has none."""
    return tuple(
        Budget(
            cap.budget_id,
            "billing_class",
            cap.billing_class,
            _WINDOWS[cap.period],
            cap.limit_nano,
            since_version=cap.since_version,
            is_cap=True,
        )
        for cap in caps
        if cap.limit_nano is not None
    )
