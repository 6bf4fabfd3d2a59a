"""A part as control is told of it, and control as it is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

# What control declines a part with when a budget that it was carved from has changed since: to be carved anew.
OVERTAKEN: Final = "budget_changed"


@dataclass(frozen=True, slots=True)
class Carved:
    """A part that is held, as control is told of it.

    It was carved by the budgets of configuration `config_version`, and control makes it where those that it `covers`
    are still as they were then. One that is to be made once says what it was asked for with and brings its key; else
    control makes one.
    """

    reservation_id: str
    budget_id: str
    parent_budget_id: str
    limit_nano: int
    covers: tuple[str, ...]
    starts_ms: int
    ends_ms: int
    pins: Mapping[str, str]
    made_by: str
    config_version: int
    request_hash: str = ""
    key: str = field(default="", repr=False)


class DeclinedError(Exception):
    """Control will not do what was asked, however often it is: an HTTP `status`, a `code`, and a text that says why."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Control(Protocol):
    """What control keeps of delegations. Every method may raise `DeclinedError`."""

    async def delegate(self, org: str, carved: Carved) -> str:
        """Makes the part's budget and key; the key in clear. Raises `UnavailableError`."""

    async def find(self, org: str, budget_id: str) -> Mapping[str, Any] | None:
        """A delegation's fields; None when there is none. Raises `UnavailableError`."""

    async def end(self, org: str, budget_id: str, actor: str) -> Sequence[str]:
        """Revokes the part's key and takes its budget away, and so with all that was carved from it in turn.

        Answers the reservations that hold them. Raises `UnavailableError`.
        """

    async def lapse(self, org: str, budget_id: str, actor: str) -> Mapping[str, Any]:
        """Ends a part that is held no more and whose key nobody was told; its fields, as `find` has them.

        One that has ended before stays as it is. Raises `UnavailableError`.
        """
