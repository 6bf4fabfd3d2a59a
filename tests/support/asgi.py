"""Drives an ASGI application without a server, with a client that can hang up at any moment."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import orjson

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


@dataclass
class Client:
    """One request's client. `hang_up` may be called at any time; `chunks` are the body as it was sent.

    `answered` is set with the head, `sent` with each piece of the body; `ended` tells whether the body came to its end.
    """

    body: Sequence[bytes] = (b"",)
    never_ends: bool = False
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    ended: bool = False
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    sent: asyncio.Event = field(default_factory=asyncio.Event)
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _place: int = 0

    def hang_up(self) -> None:
        """The client goes away."""
        self._gone.set()

    async def receive(self) -> Message:
        if self._gone.is_set():
            return {"type": "http.disconnect"}
        if self._place < len(self.body):
            chunk = self.body[self._place]
            self._place += 1
            more = self.never_ends or self._place < len(self.body)
            return {"type": "http.request", "body": chunk, "more_body": more}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self._gone.is_set():
            return  # As uvicorn does: what is sent to nobody is dropped.
        if message["type"] == "http.response.start":
            assert not self.answered.is_set(), "two heads"
            self.status = message["status"]
            self.headers = list(message["headers"])
            assert all(name == name.lower() for name, _ in self.headers)
            self.answered.set()
            return
        assert self.answered.is_set(), "a body before its head"
        assert not self.ended, "more after the end"
        self.chunks.append(message.get("body", b""))
        self.sent.set()
        self.ended = not message.get("more_body", False)

    @property
    def content(self) -> bytes:
        """The body so far."""
        return b"".join(self.chunks)

    def header(self, name: str) -> str | None:
        """The value of a response header."""
        values = [value for known, value in self.headers if known == name.encode()]
        assert len(values) < 2, f"{name} is there twice"
        return values[0].decode() if values else None

    def json(self) -> Any:
        """The body, decoded."""
        return orjson.loads(self.content)


def scope_of(
    path: str, headers: Sequence[tuple[str, str]] = (), method: str = "POST", query: str = ""
) -> dict[str, Any]:
    """An HTTP scope as uvicorn makes it."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return {
        "type": "http",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": raw,
        "http_version": "1.1",
    }


async def request(
    app: App,
    path: str,
    body: object = b"",
    *,
    headers: Sequence[tuple[str, str]] = (),
    method: str = "POST",
    query: str = "",
) -> Client:
    """One request to its end. `body` is bytes as they are, or anything else as JSON."""
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    client = Client(body=(content,))
    length = [("content-length", str(len(content)))] if content else []
    await app(scope_of(path, [*headers, *length], method, query), client.receive, client.send)
    return client
