"""Who may manage: the bearer of an ``org_admin`` key of the org."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from services.control.context import Change, Context
from services.control.errors import ApiError
from services.control.keys import queries
from services.core.identity import hash_key, is_key_text
from services.core.ports import UnavailableError

_bearer = HTTPBearer(auto_error=False, scheme_name="admin key", description="An org_admin key: fk_live_…")


@dataclass(frozen=True, slots=True)
class Admin:
    """An authenticated admin. Everything it reads and writes is in its own org."""

    context: Context
    org: str
    key_id: str

    def change(self) -> AbstractAsyncContextManager[Change]:
        """One write to the admin's org, in its name."""
        return self.context.change(self.org, self.key_id)


async def authenticate(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Admin:
    """The admin whose key the request carries: 401 without a live key, 403 with a key that may not manage."""
    context: Context = request.app.state.context
    if not context.started.is_set():
        raise UnavailableError("control is still starting")
    if credentials is None:
        raise ApiError(401, "invalid_key", "this call needs the header Authorization: Bearer fk_live_…")
    record = None
    if is_key_text(credentials.credentials):
        async with context.database.snapshot() as connection:
            record = await queries.find_live(connection, hash_key(credentials.credentials, context.vault.pepper))
    if record is None:
        raise ApiError(401, "invalid_key", "this key is unknown or has been revoked")
    if record.role != "org_admin":
        raise ApiError(403, "forbidden", "this is an agent key; management needs an org_admin key")
    return Admin(context, record.org, record.key_id)


AdminDep = Annotated[Admin, Depends(authenticate)]
