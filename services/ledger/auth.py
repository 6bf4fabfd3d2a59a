"""Who asks: the holder of a key, who sees its own org and what its pins allow, or one of our own services."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request

from services.core.identity import KeyRecord, hash_key, is_key_text
from services.core.ports import Directory, UnavailableError
from services.ledger.errors import ApiError, HotStateUnavailableError
from services.ledger.query import Scope


@dataclass(frozen=True, slots=True)
class Gate:
    """What callers are checked against. `key_header` may carry a key in place of ``Authorization``."""

    directory: Directory
    pepper: bytes
    internal_token: str
    key_header: str

    async def caller(self, request: Request) -> KeyRecord:
        """The record of the key in the request; 401 without a live one."""
        key = _bearer(request) or request.headers.get(self.key_header)
        if key is None:
            raise ApiError(401, "invalid_key", "this call needs the header Authorization: Bearer fk_live_…")
        record = None
        if is_key_text(key):
            try:
                record = await self.directory.find_key(hash_key(key, self.pepper))
            except UnavailableError as error:
                raise HotStateUnavailableError(str(error)) from error
        if record is None:
            raise ApiError(401, "invalid_key", "this key is unknown or has been revoked")
        return record

    async def admin(self, request: Request, what: str) -> KeyRecord:
        """As `caller`, but 403 unless it is an ``org_admin`` key, which `what` needs."""
        record = await self.caller(request)
        if record.role != "org_admin":
            raise ApiError(403, "forbidden", f"this is an agent key; {what} needs an org_admin key")
        return record

    def check_service(self, request: Request) -> None:
        """401 unless the request carries the internal token."""
        token = _bearer(request) or ""
        if not hmac.compare_digest(token.encode(), self.internal_token.encode()):
            raise ApiError(401, "invalid_token", "this call is for Farthing's own services")


def scope_of(
    record: KeyRecord,
    filters: Mapping[str, str | None],
    model: str | None,
    since_ms: int | None,
    until_ms: int | None,
    billing_class: str | None = None,
) -> Scope:
    """What the key's holder may see of what they ask for; 403 when a filter contradicts a pin."""
    columns = dict(record.pins)
    for name, value in filters.items():
        if value is None:
            continue
        pinned = columns.setdefault(name, value)
        if pinned != value:
            message = f"{name} is {value!r}, but this key is pinned to {pinned!r}; drop {name} or use another key"
            raise ApiError(403, "identity_mismatch", message, name)
    return Scope(record.org, columns, model, since_ms, until_ms, billing_class)


def _bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None
