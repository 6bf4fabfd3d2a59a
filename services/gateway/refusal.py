"""Why a call is not made: one exception that carries all a client is told."""

from collections.abc import Mapping
from typing import Final

from services.core.matching import Applicable, BudgetIndex
from services.core.parts import budget_of_key

_IN_A_SECOND: Final = ((b"retry-after", b"1"),)


class RefusedError(Exception):
    """A call that ends before the vendor sees it (or whose vendor never answered).

    `code` is the machine-readable reason, `param` the field or header at fault, `fields` more facts for the client,
    `headers` more response headers.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        fields: Mapping[str, object] | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.fields = fields or {}
        self.headers = headers


def rebuilding(message: str) -> RefusedError:
    """The spend state can't be trusted or reached: nothing may be let through (GW-9)."""
    return RefusedError(503, "state_rebuilding", message, headers=_IN_A_SECOND)


def past_unknown(budget_id: str, scope: str) -> RefusedError:
    """A budget can't be checked: what it has spent before it was made, or got its window, is not known yet (BU-8)."""
    message = f"what budget {budget_id} of {scope} has already spent is not known yet; try again in a second"
    fields = {"budget_id": budget_id, "scope": scope}
    return RefusedError(503, "state_rebuilding", message, fields=fields, headers=_IN_A_SECOND)


def require_part(budgets: BudgetIndex, key_id: str) -> None:
    """Raises `RefusedError` (503) for the key of a part (BU-9) whose budget is not in force here yet, or no more.

    Keys and budgets become known by ways of their own; without its budget the key would spend what it was carved from.
    """
    budget_id = budget_of_key(key_id)
    if budget_id is not None and budgets.find(budget_id) is None:
        raise rebuilding("this key's part of a budget is not in force here yet, or has ended; try again in a second")


def names_no_session(needy: Applicable, header: str) -> str:
    """Why a call that names no session is refused, and where it would say it."""
    return (
        f"budget {needy.budget_id} of {needy.scope} caps each session, and this call names none; "
        f"send the session's name in {header}"
    )


def backlog(message: str) -> RefusedError:
    """The call could not be recorded, so it may not be made."""
    return RefusedError(503, "ledger_backlog", message, headers=_IN_A_SECOND)
