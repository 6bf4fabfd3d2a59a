"""Delegations as control keeps them, over its internal API (`desk.Control`)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final
from urllib.parse import quote

import httpx

from services.core.ports import NotSentError, UnavailableError
from services.gateway.delegations.carved import Carved, DeclinedError

# What control will say again however often it is asked.
_DECLINED: Final = frozenset({400, 409, 422})
# Errors of httpx that come before a request is on its way.
_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_TIMEOUT: Final = httpx.Timeout(10.0, connect=2.0)


class ControlDelegations:
    """Asks control at `base_url`. `token` is the internal token."""

    def __init__(self, base_url: str, token: str, transport: httpx.AsyncBaseTransport) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        self._transport = transport

    async def delegate(self, org: str, carved: Carved) -> str:
        """See the protocol."""
        told = asdict(carved)
        if not carved.request_hash:
            del told["request_hash"], told["key"]  # a control of an earlier release does not know them
        fields = await self._ask("POST", org, "", json.dumps(told).encode())
        if fields is None:
            raise UnavailableError(f"control does not know org {org}")
        key: str = fields["key"]
        return key

    async def find(self, org: str, budget_id: str) -> Mapping[str, Any] | None:
        """See the protocol."""
        return await self._ask("GET", org, "/" + quote(budget_id, safe=""))

    async def end(self, org: str, budget_id: str, actor: str) -> Sequence[str]:
        """See the protocol."""
        fields = await self._ask("POST", org, f"/{quote(budget_id, safe='')}/end?actor={quote(actor, safe='')}")
        ended: Sequence[str] = () if fields is None else fields["reservation_ids"]
        return ended

    async def lapse(self, org: str, budget_id: str, actor: str) -> Mapping[str, Any]:
        """See the protocol."""
        fields = await self._ask("POST", org, f"/{quote(budget_id, safe='')}/lapse?actor={quote(actor, safe='')}")
        if fields is None:
            raise UnavailableError("control does not know the part, or is of an earlier release")
        return fields

    async def _ask(self, method: str, org: str, path: str, body: bytes = b"") -> Mapping[str, Any] | None:
        url = f"{self._base_url}/internal/v1/orgs/{quote(org, safe='')}/delegations{path}"
        request = httpx.Request(
            method, url, headers=self._headers, content=body, extensions={"timeout": _TIMEOUT.as_dict()}
        )
        try:
            response = await self._transport.handle_async_request(request)
            try:
                content = await response.aread()
            finally:
                await response.aclose()
        except _NOT_SENT as error:
            raise NotSentError(f"control: {type(error).__name__}") from error
        except httpx.HTTPError as error:
            raise UnavailableError(f"control: {type(error).__name__}") from error
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.status_code in _DECLINED:
            raise _declined(response.status_code, content)
        if not response.is_success:
            raise UnavailableError(f"control answers {response.status_code}")
        fields: Mapping[str, Any] = json.loads(content)
        return fields


def _declined(status: int, content: bytes) -> DeclinedError:
    try:
        told = json.loads(content)
        return DeclinedError(status, str(told["error"]), str(told["message"]))
    except (ValueError, KeyError, TypeError):
        return DeclinedError(status, "invalid_request", f"control answers {status}")
