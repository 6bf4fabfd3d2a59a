"""Many calls at one moment, each on a connection of its own, over as few layers as there can be: bursts on loopback."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

PATH = "/v1/chat/completions"
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Shot:
    """A call to make: where, by whom (headers, the key among them), and what it asks for."""

    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Hit:
    """What came back. `status` 0: nothing, or half of it. `code` is the error's."""

    status: int
    transaction_id: str | None = None
    code: str | None = None


async def burst(shots: Sequence[Shot]) -> list[Hit]:
    """Makes all calls at once; what came back, in their order."""
    return list(await asyncio.gather(*(_fire(each) for each in shots)))


async def _fire(shot: Shot) -> Hit:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _exchange(shot)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
        return Hit(0)


async def _exchange(shot: Shot) -> Hit:
    parts = urlsplit(shot.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        head = [f"POST {PATH} HTTP/1.1", f"host: {parts.netloc}", "connection: close"]
        head += [f"content-length: {len(shot.body)}", "content-type: application/json"]
        head += [f"{name}: {value}" for name, value in shot.headers.items()]
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + shot.body)
        answer = await reader.read()
    finally:
        writer.close()
    top, _, rest = answer.partition(b"\r\n\r\n")
    if not top.startswith(b"HTTP/1.1 "):
        return Hit(0)
    lines = top.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    status = int(lines[0].split(" ")[1])
    length = headers.get("content-length")
    if length is None or len(rest) != int(length):
        return Hit(0, headers.get("x-spend-transaction-id", "").upper() or None)
    code = None
    if status != 200:
        told = json.loads(rest)
        error = told.get("error")
        code = error.get("code") if isinstance(error, dict) else error
    transaction_id = headers.get("x-spend-transaction-id")
    return Hit(status, None if transaction_id is None else "txn_" + transaction_id[4:].upper(), code)
