"""A request's body, read whole and bounded."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from services.gateway.refusal import RefusedError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Larger bodies take long enough to read that other calls would notice.
READ_IN_THREAD_BYTES: Final = 256 * 1024
# A body that took longer than this may have begun under another configuration: who asks, for what, is looked up again.
AT_ONCE_NS: Final = 50_000_000
# How much of a body that is too large is read and dropped, so that the caller is still listening when it is refused.
_DRAIN_BYTES: Final = 256 * 1024 * 1024
_DRAIN_S: Final = 20.0


class ClientGoneError(Exception):
    """The caller hung up before its request was complete."""


async def read_body(receive: Receive, content_length: int | None, limit: int) -> bytes:
    """The body, of at most `limit` bytes. Raises `RefusedError` (413) and `ClientGoneError`."""
    if content_length is not None and content_length > limit:
        raise await _too_large(receive, limit)
    parts: list[bytes] = []
    size = 0
    while True:
        chunk, more = await _next(receive)
        if not more and not parts:
            return _checked(chunk, limit)
        size += len(chunk)
        if size > limit:
            raise await _too_large(receive, limit) if more else _refusal(limit, ())
        parts.append(chunk)
        if not more:
            return b"".join(parts)


async def _next(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message.get("body", b""), message.get("more_body", False)


def _checked(body: bytes, limit: int) -> bytes:
    if len(body) > limit:
        raise _refusal(limit, ())
    return body


async def _too_large(receive: Receive, limit: int) -> RefusedError:
    drained = 0
    try:
        async with asyncio.timeout(_DRAIN_S):
            more = True
            while more and drained < _DRAIN_BYTES:
                chunk, more = await _next(receive)
                drained += len(chunk)
    except TimeoutError:
        more = True
    # What is left unread must not be taken for the next request.
    return _refusal(limit, ((b"connection", b"close"),) if more else ())


def _refusal(limit: int, headers: tuple[tuple[bytes, bytes], ...]) -> RefusedError:
    message = f"the request body is larger than this gateway's limit of {limit} bytes"
    return RefusedError(413, "request_too_large", message, fields={"limit_bytes": limit}, headers=headers)
