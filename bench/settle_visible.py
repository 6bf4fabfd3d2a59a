"""How long from a call's end until its cost is in `spent`, where it counts for the next call.

Everything runs on this machine as real processes: control, ledger, aggregator, a gateway and the sandbox vendor, on
Valkey as the hot state and, in turn, Valkey Streams and Apache Kafka as the log. A few callers call, pause, and call
again. From the end of each answer on, the call's hold is looked at every other millisecond until it is settled, which
is the step that adds its cost to its budgets.

    python -m bench.settle_visible [--calls 300] [--callers 4] [--pause 0.05] [--log valkey|kafka]
"""

import argparse
import asyncio
import os
import platform
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import redis.asyncio

from tests.support.cluster import Cluster
from tests.support.kafka import KafkaBroker
from tests.support.load import one_call, sandbox_body
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer

LOOK_EVERY_S = 0.002
LOST_S = 30.0
WARM_UP_CALLS = 20


@contextmanager
def running(log: str) -> Iterator[Cluster]:
    """Farthing on engines of its own, over this log; all of it ends with the block."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="settle-visible-")))
        hot = stack.enter_context(ValkeyServer(directory / "hot"))
        postgres = stack.enter_context(PostgresServer(directory / "postgres"))
        if log == "kafka":
            broker = stack.enter_context(KafkaBroker(directory / "log"))
            cluster = Cluster(directory, redis_url=hot.url, postgres_dsn=postgres.dsn, kafka=broker.bootstrap)
        else:
            streams = stack.enter_context(ValkeyServer(directory / "log", appendonly="always"))
            cluster = Cluster(directory, redis_url=hot.url, postgres_dsn=postgres.dsn, log_url=streams.url)
        stack.callback(cluster.stop)
        cluster.start("control")
        cluster.take_first_keys()
        cluster.start("ledger", "sandbox", "aggregator", "gateway")
        yield cluster


async def measure(cluster: Cluster, calls: int, callers: int, pause_s: float) -> list[float]:
    """The delay of each call, in seconds."""
    delays_s: list[float] = []
    left = iter(range(calls))
    async with redis.asyncio.Redis.from_url(cluster.redis_url) as hot, httpx.AsyncClient(trust_env=False) as client:

        async def caller(seed: int) -> None:
            chance = random.Random(seed)
            for _ in left:
                call = await one_call(client, cluster.url(), cluster.agent_key, sandbox_body())
                ended_s = time.perf_counter()
                if call.status != 200 or call.transaction_id is None:
                    raise RuntimeError(f"the gateway answers {call}")
                while await hot.hget(f"{{default}}:h:{call.transaction_id}", "phase") != b"settled":
                    if time.perf_counter() - ended_s > LOST_S:
                        raise RuntimeError(f"{call.transaction_id} is not settled after {LOST_S} s")
                    await asyncio.sleep(LOOK_EVERY_S)
                delays_s.append(time.perf_counter() - ended_s)
                await asyncio.sleep(chance.uniform(0, 2 * pause_s))

        await asyncio.gather(*(caller(seed) for seed in range(callers)))
    return delays_s


def report(log: str, delays_s: Sequence[float]) -> None:
    """One line of figures."""
    ordered = sorted(delays_s)
    parts = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
    figures = "  ".join(
        f"{name} {1000 * ordered[min(len(ordered) - 1, int(part * len(ordered)))]:7.1f} ms" for name, part in parts
    )
    print(f"{log:7} {len(ordered):5} calls  {figures}", flush=True)


def main() -> None:
    """Measures over each log in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300, help="calls to measure over each log")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.05, help="mean pause of a caller between calls, in seconds")
    parser.add_argument("--log", choices=("valkey", "kafka"), action="append")
    arguments = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()},"
        f" load {os.getloadavg()[0]:.1f} at the start"
    )
    for log in arguments.log or ("valkey", "kafka"):
        with running(log) as cluster:
            asyncio.run(measure(cluster, WARM_UP_CALLS, 1, 0))
            report(log, asyncio.run(measure(cluster, arguments.calls, arguments.callers, arguments.pause)))


if __name__ == "__main__":
    main()
