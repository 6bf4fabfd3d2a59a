"""What the routes of our own share that are no vendor's: who asks, the body, errors in the plain form (GW-8)."""

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.core.identity import DIMENSIONS, Identity, KeyRecord
from services.core.ports import UnavailableError
from services.gateway.body import AT_ONCE_NS, ClientGoneError, Message, Receive, Send, read_body
from services.gateway.headers import CallHeaders, HeaderReader, last_value
from services.gateway.identify import Authenticator
from services.gateway.refusal import RefusedError, rebuilding
from services.gateway.respond import JSON, send_plain, send_whole
from services.gateway.snapshots import OrgView, Snapshots

MAX_BODY_BYTES: Final = 65_536
_MAX_KEY_CHARS: Final = 255
_BEARER: Final = "Bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, by which key, with what configuration. `credentials` are the caller's own, for the ledger."""

    identity: Identity
    key: KeyRecord
    view: OrgView
    credentials: Mapping[str, str] = field(repr=False)

    @property
    def org(self) -> str:
        """The caller's org."""
        return self.identity.org

    @property
    def secret(self) -> str:
        """The caller's API key in clear."""
        return self.credentials["authorization"].removeprefix(_BEARER)

    @property
    def is_admin(self) -> bool:
        """Whether the caller manages the org."""
        return self.key.role == "org_admin"

    def may_see(self, who: Identity) -> bool:
        """Whether a reservation is the caller's: all that the caller is pinned to is the same in it."""
        return all(getattr(self.identity, name) in (None, getattr(who, name)) for name in DIMENSIONS)


@dataclass(frozen=True, slots=True)
class Told:
    """An answer: HTTP status, JSON fields, and headers beside the usual ones."""

    status: int
    fields: Mapping[str, Any]
    headers: tuple[tuple[bytes, bytes], ...] = ()


class PlainApi(ABC):
    """Serves the paths below one, each request as `answer` says."""

    def __init__(self, authenticator: Authenticator, snapshots: Snapshots, header_prefix: str) -> None:
        self._authenticator = authenticator
        self._snapshots = snapshots
        self._reader = HeaderReader(header_prefix)

    @abstractmethod
    async def answer(self, scope: Message, caller: Caller, body: bytes) -> Told:
        """The answer to one request; raises `RefusedError`."""

    async def serve(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serves one request."""
        try:
            headers = self._reader.read(scope["headers"])
            caller = await self._caller(headers)
            began_ns = time.perf_counter_ns()
            body = await read_body(receive, headers.content_length, MAX_BODY_BYTES)
            took_ns = time.perf_counter_ns() - began_ns
            if took_ns > AT_ONCE_NS or await self._view(caller.org) is not caller.view:
                caller = await self._caller(headers)
            answer = await self.answer(scope, caller, body)
        except RefusedError as refusal:
            fields = {**refusal.fields, **({} if refusal.param is None else {"field": refusal.param})}
            await send_plain(
                send, refusal.status, refusal.code, refusal.message, headers=refusal.headers, fields=fields
            )
        except ClientGoneError:
            return
        else:
            content = json.dumps(answer.fields, separators=(",", ":")).encode()
            await send_whole(send, answer.status, [JSON, *answer.headers], content)

    async def _caller(self, headers: CallHeaders) -> Caller:
        identity = await self._authenticator.identify(headers)
        key = await self._authenticator.key(headers)
        view = await self._view(identity.org)
        return Caller(identity, key, view, {"authorization": f"{_BEARER}{headers.key}"})

    async def _view(self, org: str) -> OrgView:
        try:
            return await self._snapshots.view(org)
        except UnavailableError as error:
            raise rebuilding("this org's configuration can't be read right now; try again in a second") from error


def check_method(method: str, right: str) -> None:
    """Raises `RefusedError` (405) for another method than the `right` one."""
    if method != right:
        message = f"this path takes {right}, not {method}"
        raise RefusedError(405, "method_not_allowed", message, headers=((b"allow", right.encode()),))


def idempotency_key(scope: Message) -> str | None:
    """The request's ``Idempotency-Key``; None without one. Raises `RefusedError` (400) for one that can't be one."""
    value = last_value(scope["headers"], b"idempotency-key")
    if value is None:
        return None
    key = value.decode("latin-1").strip()
    if not key or len(key) > _MAX_KEY_CHARS or not key.isprintable():
        message = f"Idempotency-Key must be 1 to {_MAX_KEY_CHARS} printable characters"
        raise RefusedError(400, "invalid_request", message, param="idempotency-key")
    return key


def digest(*parts: str) -> str:
    """A name made of others: equal ones give the same, and others don't."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]


def away(message: str) -> RefusedError:
    """Something that is needed does not answer, or is busy with the same: the request may be repeated."""
    return RefusedError(503, "service_unavailable", message, headers=((b"retry-after", b"1"),))
