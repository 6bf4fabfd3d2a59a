"""How the gateway itself reaches a vendor for a job: the same address and key, the same scope, and nothing else."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from services.core.ports import UnavailableError
from services.core.vendor_port import VendorRequest, VendorResponse, VendorTransport
from services.gateway.connect import Target
from services.gateway.forward import PLAIN_ANSWER
from services.gateway.meter import Decoder
from services.gateway.table import Candidate, path_below
from services.gateway.vendors import Dialect, Route

# What scopes a request to a part of the vendor's account, or names the protocol's version.
_SCOPING: Final = frozenset((b"openai-organization", b"openai-project", b"anthropic-version", b"anthropic-beta"))
_STATUS_S: Final = 20.0
_MAX_STATUS_BYTES: Final = 16 * 1024 * 1024
_MAX_LINE_BYTES: Final = 64 * 1024 * 1024


class VendorSaysNoError(Exception):
    """The vendor answered with something else than what was asked for. `is_gone`: there is no such thing (any more)."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(f"the vendor answered {status} for {what}")
        self.status = status
        self.is_gone = status in (404, 410)


class TooLargeError(Exception):
    """A body is larger than may be held in memory."""


@dataclass(frozen=True, slots=True)
class Access:
    """The way to one vendor with one key. `query` is what every address there needs (``api-version``)."""

    dialect: Dialect
    target: Target = field(repr=False)
    headers: tuple[tuple[bytes, bytes], ...]
    query: str = ""

    def request(self, path: str, timeout_s: float) -> VendorRequest:
        """A GET of a path, which is written as those of the dialect's routes."""
        place = Candidate(self.dialect, Route("", "GET", path, "free", ""))
        url = self.target.base_url + path_below(self.target.base_url, self.dialect, place)
        return VendorRequest(
            "GET",
            f"{url}?{self.query}" if self.query else url,
            (*self.headers, *self.dialect.credential_headers(self.target.vendor_key), PLAIN_ANSWER),
            b"",
            timeout_s,
        )


def scoping_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """Of a client's headers those that the gateway's own requests for the same job must have, too."""
    return tuple((name, value) for name, value in headers if name.lower() in _SCOPING)


def lasting_query(query: str) -> str:
    """Of a client's query what every address of that vendor needs."""
    return "&".join(pair for pair in query.split("&") if pair.startswith("api-version="))


class Fetcher:
    """Reads from vendors. All methods raise `UnavailableError` and `VendorSaysNoError`."""

    def __init__(self, transport: VendorTransport, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s

    async def file(self, access: Access, path: str, max_bytes: int) -> bytes:
        """A whole file; raises `TooLargeError` past `max_bytes`."""
        parts: list[bytes] = []
        size = 0
        async with aclosing(self._pieces(access, path)) as pieces:
            async for piece in pieces:
                parts.append(piece)
                size += len(piece)
                if size > max_bytes:
                    raise TooLargeError
        return b"".join(parts)

    async def status(self, access: Access, path: str) -> Mapping[str, Any]:
        """A JSON object; one that can't be read raises `VendorSaysNoError`."""
        try:
            async with asyncio.timeout(_STATUS_S):
                value = orjson.loads(await self.file(access, path, _MAX_STATUS_BYTES))
        except TimeoutError as error:
            raise UnavailableError(f"the vendor did not tell of {path} within {_STATUS_S:g} s") from error
        except (TooLargeError, orjson.JSONDecodeError) as error:
            raise VendorSaysNoError(200, f"{path}, which can't be read") from error
        if not isinstance(value, dict):
            raise VendorSaysNoError(200, f"{path}, which is no object")
        return value

    async def lines(self, access: Access, path: str) -> AsyncGenerator[bytes, None]:
        """A file's lines, one at a time; the last may be empty."""
        rest = bytearray()
        async with aclosing(self._pieces(access, path)) as pieces:
            async for piece in pieces:
                rest += piece
                if b"\n" in piece:
                    *whole, last = rest.split(b"\n")
                    for line in whole:
                        yield bytes(line)
                    rest = bytearray(last)
                elif len(rest) > _MAX_LINE_BYTES:
                    raise VendorSaysNoError(200, f"{path}, which has a line of more than {_MAX_LINE_BYTES} bytes")
        yield bytes(rest)

    async def _pieces(self, access: Access, path: str) -> AsyncGenerator[bytes, None]:
        response = await self._transport.send(access.request(path, self._timeout_s))
        try:
            if not 200 <= response.status < 300:
                raise VendorSaysNoError(response.status, path)
            async with aclosing(decoded(response)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            await response.close()


async def decoded(response: VendorResponse) -> AsyncGenerator[bytes, None]:
    """The body of a response, any content encoding undone; raises `UnavailableError` for what can't be."""
    pieces: list[bytes] = []
    decoder = Decoder({name.lower(): value for name, value in response.headers}, pieces.append)
    async with aclosing(response.chunks()) as chunks:
        async for chunk in chunks:
            decoder.feed(chunk)
            if decoder.unread_bytes:
                raise UnavailableError("the vendor's answer is encoded in a way that can't be read")
            for piece in pieces:
                yield piece
            pieces.clear()
