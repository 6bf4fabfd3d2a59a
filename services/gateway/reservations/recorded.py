"""The ledger's transactions, asked for on a caller's behalf (`past.Ledger`)."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import httpx

from services.core.ports import UnavailableError

_TIMEOUT: Final = httpx.Timeout(3.0, connect=1.0)
# In all, however slowly it answers: whoever asks has a claim that lapses (`core.answers.CLAIM_MS`).
_WITHIN_S: Final = 4.0


class RecordedTransactions:
    """Asks the ledger at `base_url`, as its callers do."""

    def __init__(self, base_url: str, transport: httpx.AsyncBaseTransport) -> None:
        self._base_url = base_url.rstrip("/")
        self._transport = transport

    async def transaction(self, reservation_id: str, credentials: Mapping[str, str]) -> Mapping[str, Any] | None:
        """See the protocol."""
        request = httpx.Request(
            "GET",
            f"{self._base_url}/v1/transactions/{quote(reservation_id, safe='')}?wait=false",
            headers=credentials,
            extensions={"timeout": _TIMEOUT.as_dict()},
        )
        try:
            async with asyncio.timeout(_WITHIN_S):
                response = await self._transport.handle_async_request(request)
                try:
                    content = await response.aread()
                finally:
                    await response.aclose()
        except (httpx.HTTPError, TimeoutError) as error:
            raise UnavailableError(f"the ledger: {type(error).__name__}") from error
        if response.status_code in (400, 404):
            return None
        if response.status_code != httpx.codes.OK:
            raise UnavailableError(f"the ledger answers {response.status_code}")
        fields: Mapping[str, Any] = httpx.Response(200, content=content).json()
        return fields
