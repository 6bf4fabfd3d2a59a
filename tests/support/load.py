"""A bounded load on a gateway on loopback: a number of callers, each calling in turn until a moment or a count."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx


@dataclass(frozen=True, slots=True)
class Call:
    """What a caller saw. `status` 0: the connection broke before an answer."""

    status: int
    transaction_id: str | None
    cost_usd: str | None
    retry_after: str | None
    code: str | None


def sandbox_body(tokens: int = 20, **controls: object) -> dict[str, object]:
    """A call to the sandbox vendor with a bounded output."""
    return {
        "model": "sandbox-small",
        "max_tokens": tokens,
        "messages": [{"role": "user", "content": "How much is a farthing?"}],
        "sandbox": {"output_tokens": tokens, **controls},
    }


async def one_call(client: httpx.AsyncClient, url: str, key: str, body: dict[str, object]) -> Call:
    """One call to chat completions."""
    try:
        answer = await client.post(
            url + "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=30
        )
    except httpx.HTTPError:
        return Call(0, None, None, None, None)
    code = None if answer.is_success else answer.json()["error"]["code"]
    headers = answer.headers
    return Call(
        answer.status_code,
        headers.get("x-spend-transaction-id"),
        headers.get("x-spend-cost"),
        headers.get("retry-after"),
        code,
    )


async def drive(
    urls: Sequence[str],
    keys: Sequence[str],
    *,
    callers: int = 8,
    seconds: float = 5.0,
    most: int = 5000,
    body: Callable[[], dict[str, object]] = sandbox_body,
) -> list[Call]:
    """Calls from `callers` at once for `seconds` (at most `most` calls); every answer, in the order of arrival."""
    calls: list[Call] = []
    ends_at = time.monotonic() + seconds
    turn = itertools.count()

    async def caller(client: httpx.AsyncClient) -> None:
        while time.monotonic() < ends_at and (number := next(turn)) < most:
            call = await one_call(client, urls[number % len(urls)], keys[number % len(keys)], body())
            calls.append(call)
            if call.status != 200:
                await asyncio.sleep(0.05)

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=callers)) as client:
        await asyncio.gather(*(caller(client) for _ in range(callers)))
    return calls
