"""Billing classes (BU-7): whose money and which vendor's bill a call is, and what may cap it."""

from dataclasses import dataclass
from typing import Final, Literal

AuthMode = Literal["byok", "metered", "shared", "host-session", "local"]
ConnectionAuthMode = Literal["metered", "shared", "host-session", "local"]
CapPeriod = Literal["daily", "monthly", "per_session"]

BYOK: Final = "byok"
METERED: Final = "metered"
AUTH_MODES: Final[tuple[AuthMode, ...]] = ("byok", "metered", "shared", "host-session", "local")
# What a connection can say of its calls. A call that brings a key of its own is `BYOK`, whatever its connection says.
CONNECTION_AUTH_MODES: Final[tuple[ConnectionAuthMode, ...]] = ("metered", "shared", "host-session", "local")
CAP_PERIODS: Final[tuple[CapPeriod, ...]] = ("daily", "monthly", "per_session")


@dataclass(frozen=True, slots=True)
class Cap:
    """One cap of a cell of the cap matrix: what a billing class may spend a UTC day, a UTC month or a session.

    `limit_nano` None: not enforced, on purpose. `since_version` is the configuration that it has been enforced since
    without a break: a limit that changes keeps it, one that was turned off and on again has another.
    """

    billing_class: str
    period: CapPeriod
    limit_nano: int | None
    since_version: int

    @property
    def budget_id(self) -> str:
        """The id of the budget that enforces it.

        Never that of an earlier time it was enforced: what was charged then would count twice once it is backfilled.
        """
        return f"cap_{self.period}_{self.billing_class}_{self.since_version}"


def split_class(billing_class: str) -> tuple[str, str]:
    """Auth mode and vendor of ``metered.openai``; raises `ValueError` for a text that begins with no auth mode."""
    auth_mode, _, vendor = billing_class.partition(".")
    if auth_mode not in AUTH_MODES or not vendor:
        raise ValueError(f"{billing_class[:80]!r} is not a billing class")
    return auth_mode, vendor
