"""What following a growing hold costs: ns a chunk beside the meter's own, and what looking after calls costs.

The chunks are a chat stream's, one word each. Measured in turn, several rounds; trust the ratios, not the absolute
figures.

    python -m bench.holds [--rounds 7] [--chunks 20000] [--calls 10000]
"""

import argparse
import asyncio
import os
import platform
import statistics
import time
from types import SimpleNamespace
from typing import Any, cast

import orjson

from services.core.estimate import Demand, strict_bound
from services.core.pricing import Price
from services.core.usage.openai_chat import ChatShape
from services.gateway.extend import GrowingHold
from services.gateway.meter import Meter, meter_for
from services.gateway.renew import LiveHolds
from services.gateway.timing import Timing
from services.gateway.vendors import RequestFacts

# So much output that the whole stream is within the first step: an extension is a round trip, and no part of this.
PRICE = Price({"input": 150_000_000, "output": 600_000_000}, max_output_tokens=100_000_000)
FACTS = RequestFacts("m", True, Demand(1000, None), ChatShape(), b"")
HEADERS = {b"content-type": b"text/event-stream"}
DELTA = {"index": 0, "delta": {"content": " word"}, "finish_reason": None}
CHUNK = b"data: " + orjson.dumps({"object": "chat.completion.chunk", "model": "m", "choices": [DELTA]}) + b"\n\n"


def a_call(mode: str) -> Any:
    """As much of an admitted call as is looked at."""
    bound = strict_bound(PRICE, FACTS.demand)
    return SimpleNamespace(
        estimate_mode=mode,
        bound=bound,
        price=PRICE,
        request=FACTS,
        held_nano=bound.amount_nano // 2,
        hold_ms=900_000,
        timing=Timing(tried_ns=time.perf_counter_ns()),
        asked=SimpleNamespace(job=None),
        facts=SimpleNamespace(flags=()),
    )


def metered(meter: Meter, chunks: int) -> int:
    """Nanoseconds for so many chunks through a meter alone."""
    begun = time.process_time_ns()
    for _ in range(chunks):
        meter.feed(CHUNK)
    return time.process_time_ns() - begun


async def followed(meter: Meter, chunks: int) -> int:
    """The same, with the hold followed."""

    async def resize(_: int) -> None:
        raise AssertionError("all of it is within the first step")

    growing = GrowingHold(a_call("stepped"), resize)
    growing.follow(meter)
    growing.begin_read()
    begun = time.process_time_ns()
    for _ in range(chunks):
        meter.feed(CHUNK)
        if not growing.is_covered():
            await growing.wait()
        growing.begin_read()
    return time.process_time_ns() - begun


def looked_after(calls: int) -> tuple[int, int]:
    """Nanoseconds to begin and end looking after one call, and of one sweep over so many."""
    holds = LiveHolds(cast(Any, None), cast(Any, None), cast(Any, None), cast(Any, None))
    call = a_call("strict")
    begun = time.process_time_ns()
    for _ in range(calls):
        holds.end(holds.begin(call))
    each_ns = (time.process_time_ns() - begun) // calls
    for _ in range(calls):
        holds.begin(call)
    begun = time.process_time_ns()
    holds.sweep()
    return each_ns, time.process_time_ns() - begun


async def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--chunks", type=int, default=20_000)
    parser.add_argument("--calls", type=int, default=10_000)
    options = parser.parse_args()
    alone, added = [], []
    for _ in range(options.rounds):
        alone.append(metered(meter_for(FACTS, 200, HEADERS), options.chunks) / options.chunks)
        with_hold = await followed(meter_for(FACTS, 200, HEADERS), options.chunks)
        added.append(with_hold / options.chunks - alone[-1])
    each_ns, sweep_ns = looked_after(options.calls)
    print(f"python {platform.python_version()}, {os.cpu_count()} cores, medians over {options.rounds} rounds")
    print(f"a chunk through the meter      {statistics.median(alone):>8.0f} ns")
    print(f"its hold followed, beside that {statistics.median(added):>8.0f} ns")
    print(f"a call looked after            {each_ns:>8} ns")
    print(f"a sweep over {options.calls:>6} calls     {sweep_ns / 1000:>8.0f} µs")


if __name__ == "__main__":
    asyncio.run(main())
