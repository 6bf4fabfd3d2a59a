"""The sandbox's ASGI application."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from services.sandbox import answer
from services.sandbox.request import BadRequestError, ChatRequest, read_request

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES: Final = 67_108_864
_JSON: Final = b"application/json"
_EVENT_STREAM: Final = b"text/event-stream; charset=utf-8"


class _ClientGoneError(Exception):
    """The client hung up; there is nobody to answer."""


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Answers HTTP; has nothing to start or stop."""
    if scope["type"] != "http":
        raise ValueError("the sandbox speaks HTTP only")
    try:
        match (scope["method"], scope["path"]):
            case ("POST", "/v1/chat/completions"):
                await _chat(receive, send)
            case ("GET", "/v1/models"):
                await _send_json(send, 200, answer.model_list())
            case ("GET", "/healthz" | "/readyz"):
                await _send_json(send, 200, b'{"status":"ok"}')
            case _:
                await _send_json(send, 404, answer.error("invalid_request_error", "the sandbox has no such route"))
    except _ClientGoneError:
        return


async def _chat(receive: Receive, send: Send) -> None:
    body = await _read_body(receive)
    if body is None:
        text = f"the request body is larger than {MAX_BODY_BYTES} bytes"
        await _send_json(send, 413, answer.error("invalid_request_error", text))
        return
    try:
        request = read_request(body)
    except BadRequestError as error:
        await _send_json(send, 400, answer.error("invalid_request_error", str(error), error.param, "invalid_value"))
        return
    await _pause(receive, request.delay_s)
    if request.fault == "error_500":
        await _send_json(send, 500, answer.error("server_error", "the request asked the sandbox to fail"))
    elif request.stream:
        await _stream(receive, send, request)
    else:
        await _complete(send, request)


async def _complete(send: Send, request: ChatRequest) -> None:
    body = answer.completion(request)
    if request.fault != "hang_up":
        await _send_json(send, 200, body)
        return
    await _start(send, 200, _JSON, len(body))
    # Returning before the body is complete makes the server cut the connection.
    await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})


async def _stream(receive: Receive, send: Send, request: ChatRequest) -> None:
    await _start(send, 200, _EVENT_STREAM, None)
    for place, event in enumerate(answer.events(request)):
        if request.fault == "hang_up" and place >= request.fault_after_chunks:
            return
        await _pause(receive, request.chunk_delay_s)
        await send({"type": "http.response.body", "body": event, "more_body": True})
    if request.fault != "hang_up":
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None when it is too large."""
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size <= MAX_BODY_BYTES:
            parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts) if size <= MAX_BODY_BYTES else None


async def _pause(receive: Receive, seconds: float) -> None:
    """Waits, but not for a client that has hung up."""
    if seconds <= 0:
        return
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return
    raise _ClientGoneError


async def _send_json(send: Send, status: int, body: bytes) -> None:
    await _start(send, status, _JSON, len(body))
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _start(send: Send, status: int, content_type: bytes, length: int | None) -> None:
    headers = [(b"content-type", content_type)]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    await send({"type": "http.response.start", "status": status, "headers": headers})
