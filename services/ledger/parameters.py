"""What callers may ask for, and how. A parameter that is not known, or has a value that is not, is refused by name."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.core.billing import split_class
from services.core.identity import IdentityError, check_name
from services.core.windows import (
    CalendarSpan,
    LifetimeWindow,
    RollingWindow,
    SessionWindow,
    WindowError,
    parse_window,
    span_at,
)
from services.ledger.billing import BillingDimension
from services.ledger.query import Dimension
from services.ledger.transactions import State

MAX_PAGE: Final = 500
MAX_BILLING_DAYS: Final = 90
_LENGTH: Final = re.compile(r"(?P<count>[1-9][0-9]{0,3})(?P<unit>[hd])")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)


def _name(text: str) -> str:
    try:
        return check_name("it", text)
    except IdentityError as error:
        raise ValueError(str(error)) from error


def _instant(text: str) -> str:
    to_ms(text)
    return text


def to_ms(text: str) -> int:
    """Unix milliseconds of an RFC 3339 time; raises `ValueError`."""
    try:
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is not None and _EPOCH <= instant < _LATEST:
            return (instant - _EPOCH) // timedelta(milliseconds=1)
    except ValueError:
        pass
    raise ValueError("it must be a time with a zone, such as 2026-03-01T00:00:00Z")


def _billing_class(text: str) -> str:
    try:
        split_class(text)
    except ValueError:
        raise ValueError("it must be an auth mode, a dot and a vendor, such as metered.openai") from None
    return text


Name = Annotated[str, AfterValidator(_name)]
Instant = Annotated[str, AfterValidator(_instant)]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    team: Name | None = Field(None, description="Calls of this team only.")
    agent: Name | None = Field(None, description="Calls of this agent only.")
    vendor: Name | None = Field(
        None, description="Calls to this vendor only; a call that went on to another vendor is found by both."
    )
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Calls that asked for this model or were priced as it only."
    )
    since: Instant | None = Field(
        None, description="From this instant on: an RFC 3339 time with a zone.", examples=["2026-03-01T00:00:00Z"]
    )
    until: Instant | None = Field(
        None, description="Before this instant: an RFC 3339 time with a zone.", examples=["2026-04-01T00:00:00Z"]
    )

    def filters(self) -> dict[str, str | None]:
        """Columns to filter by."""
        return {"team": self.team, "agent": self.agent, "vendor": self.vendor}

    def span_ms(self) -> tuple[int | None, int | None]:
        """`since` and `until` in Unix milliseconds; raises `WindowError` when nothing lies between them."""
        since_ms = to_ms(self.since) if self.since is not None else None
        until_ms = to_ms(self.until) if self.until is not None else None
        if since_ms is not None and until_ms is not None and since_ms >= until_ms:
            raise WindowError("until", "until must be later than since")
        return since_ms, until_ms


class PageParameters(_Parameters):
    """``GET /v1/transactions``."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = Field(50, description="How many to a page at the most.")
    cursor: Annotated[str, Field(max_length=400)] | None = Field(
        None, description="The `next_cursor` of the page before, unchanged; the other parameters as for that page."
    )
    state: State | None = Field(None, description="Transactions in this state only.")


class EstimatesParameters(_Parameters):
    """``GET /v1/estimates``: either a `window` (the last 30 days unless said otherwise) or `since` and `until`."""

    window: Annotated[str, Field(max_length=40)] | None = Field(
        None,
        description="The span to sum up: the current hour, day, week, month, quarter or year, or a length up to now,"
        " such as 90m, 24h or 30d. 30d unless said otherwise; not together with since and until.",
        examples=["month", "24h"],
    )
    zone: Annotated[str, Field(max_length=60)] | None = Field(
        None,
        description="Whose hour, day or the like: an IANA time zone; UTC unless said otherwise.",
        examples=["Europe/Berlin"],
    )

    def spend_span_ms(self, now_ms: int) -> tuple[int | None, int | None]:
        """The span to sum up, in Unix milliseconds. Raises `WindowError`."""
        if self.since is not None or self.until is not None:
            for name in ("window", "zone"):
                if getattr(self, name) is not None:
                    raise WindowError(name, f"{name} does not go together with since and until; drop one or the other")
            return self.span_ms()
        window = parse_window(self.window or "30d", self.zone)
        if isinstance(window, SessionWindow | LifetimeWindow):
            raise WindowError("window", f"window {self.window!r} is no span of time; use one such as month or 30d")
        if isinstance(window, RollingWindow):
            return now_ms - window.length_ms, None
        span = span_at(window, now_ms)
        assert isinstance(span, CalendarSpan)
        return span.start_ms, span.end_ms


class SpendParameters(EstimatesParameters):
    """``GET /v1/spend``: the same spans of time."""

    by: Dimension = Field("org", description="What to sum up by.")


class BillingParameters(BaseModel):
    """``GET /api/admin/billing/spend``."""

    model_config = ConfigDict(extra="forbid")

    org_id: Name | None = Field(None, alias="orgId", description="The key's own org; may be left out.")
    window: Annotated[str, Field(max_length=40)] = Field(
        "30d", description=f"How far back: hours or days, up to {MAX_BILLING_DAYS} days.", examples=["24h", "7d", "30d"]
    )
    by: BillingDimension = Field("billing_class", description="What to sum up by.")
    billing_class: Annotated[str, Field(max_length=160), AfterValidator(_billing_class)] | None = Field(
        None, alias="billingClass", description="Calls of this billing class only.", examples=["metered.openai"]
    )
    project: Name | None = Field(None, description="Calls of this project only.")
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = Field(50, description="How many to a page at the most.")
    cursor: Annotated[str, Field(max_length=1000)] | None = Field(
        None, description="The `nextCursor` of the page before, unchanged; the other parameters as for that page."
    )

    def since_ms(self, now_ms: int) -> int:
        """The beginning of the window, in Unix milliseconds. Raises `WindowError`."""
        match = _LENGTH.fullmatch(self.window)
        hours = 0 if match is None else int(match["count"]) * (24 if match["unit"] == "d" else 1)
        if not 0 < hours <= 24 * MAX_BILLING_DAYS:
            message = f"window must be hours or days up to {MAX_BILLING_DAYS}d, such as 24h, 7d or 30d"
            raise WindowError("window", message)
        return now_ms - hours * 3_600_000
