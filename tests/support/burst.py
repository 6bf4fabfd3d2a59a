"""Many calls at one moment, each on a connection of its own, over as few layers as there can be: bursts on loopback."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

PATH: Final = "/v1/chat/completions"
TIMEOUT_S: Final = 30.0
_CODES: Final = (b"budget_exhausted", b"BudgetCapExceeded", b"state_rebuilding", b"ledger_backlog")
_END: Final = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Shot:
    """A call to make: where, by whom (headers, the key among them), and what it asks for.

    `leaves_after`: how many bytes of the answer's body the client waits for before it hangs up; None for all of it.
    """

    url: str
    headers: Mapping[str, str]
    body: bytes
    path: str = PATH
    leaves_after: int | None = None
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Hit:
    """What came back. `status` 0: nothing, or half of it. `code` is the error's, that of a stream's end among them.

    `transaction_id`: the head of an answer named it, whether or not the rest came; of half an error none is told, for
    a refused call has not begun. `body`: of an answer that is no stream, whole. `left`: the client hung up, as it meant
    to.
    """

    status: int
    transaction_id: str | None = None
    code: str | None = None
    body: bytes = b""
    left: bool = False


async def burst(shots: Sequence[Shot]) -> list[Hit]:
    """Makes all calls at once; what came back, in their order."""
    return list(await asyncio.gather(*(fire(each) for each in shots)))


async def fire(shot: Shot) -> Hit:
    """Makes one call. Nothing that goes wrong on its way is raised."""
    try:
        async with asyncio.timeout(shot.timeout_s):
            return await _exchange(shot)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
        return Hit(0)


async def _exchange(shot: Shot) -> Hit:
    parts = urlsplit(shot.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = rest = b""
    left = False
    try:
        asked = [f"POST {shot.path} HTTP/1.1", f"host: {parts.netloc}", "connection: close"]
        asked += [f"content-length: {len(shot.body)}", "content-type: application/json"]
        asked += [f"{name}: {value}" for name, value in shot.headers.items()]
        writer.write("\r\n".join(asked).encode() + _END + shot.body)
        head = await reader.readuntil(_END)
        if shot.leaves_after is None:
            rest = await reader.read()
        else:
            while len(rest) < shot.leaves_after and (more := await reader.read(65_536)):
                rest += more
            left = len(rest) >= shot.leaves_after
    except (ConnectionError, TimeoutError):
        if not head:
            raise
    finally:
        writer.close()
    return _hit(head, rest, left)


def _hit(head: bytes, rest: bytes, left: bool) -> Hit:
    """What an answer's head and body come to."""
    if not head.startswith(b"HTTP/1.1 "):
        return Hit(0)
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    status, transaction_id = int(lines[0].split(" ")[1]), headers.get("x-spend-transaction-id")
    if left:
        return Hit(status, transaction_id, left=True)
    half = Hit(0, transaction_id if status < 400 else None)
    length = headers.get("content-length")
    if length is None:
        # A stream: its last chunk is empty, or it broke off. What ended it is in an event.
        if not rest.endswith(b"\r\n0" + _END):
            return half
        tail = rest[-4_096:]
        return Hit(status, transaction_id, next((each.decode() for each in _CODES if each in tail), None))
    if len(rest) != int(length):
        return half
    return Hit(status, transaction_id, None if status < 400 else _code(rest), rest)


def _code(body: bytes) -> str | None:
    """The code of an error, in a vendor's envelope or in the plain form."""
    error = json.loads(body).get("error")
    code = error.get("code") if isinstance(error, dict) else error
    return None if code is None else str(code)
