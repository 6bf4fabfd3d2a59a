"""What goes wrong in a round, while its calls are under way, and how it is put right."""

import asyncio
import random
import resource
from collections.abc import Awaitable, Callable
from typing import Final

from tests.chaos.rounds.arena import AGGREGATORS, GATEWAYS, READY_S, Arena

Fault = Callable[[Arena, random.Random], Awaitable[None]]
_PLENTY: Final = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


async def gateways_killed(arena: Arena, rng: random.Random) -> None:
    """kill -9 of three gateways with calls in flight."""
    names = rng.sample(GATEWAYS, 3)
    for name in names:
        await asyncio.sleep(rng.random() * 0.3)
        arena.cluster.kill(name)
    for name in names:
        arena.cluster.spawn(name)


async def aggregator_killed(arena: Arena, rng: random.Random) -> None:
    """kill -9 of one aggregator in the middle of its batches; the other takes over."""
    name = rng.choice(AGGREGATORS)
    arena.cluster.kill(name)
    arena.cluster.spawn(name)


async def aggregators_killed(arena: Arena, _rng: random.Random) -> None:
    """kill -9 of every aggregator."""
    for name in AGGREGATORS:
        arena.cluster.kill(name)
    for name in AGGREGATORS:
        arena.cluster.spawn(name)


async def ledger_killed(arena: Arena, _rng: random.Random) -> None:
    """kill -9 of the ledger while it inserts."""
    arena.cluster.kill("ledger")
    await asyncio.sleep(0.5)
    arena.cluster.spawn("ledger")


async def control_killed(arena: Arena, _rng: random.Random) -> None:
    """kill -9 of control: calls must not notice."""
    arena.cluster.kill("control")
    await asyncio.sleep(1.0)
    arena.cluster.spawn("control")


async def valkey_paused(arena: Arena, rng: random.Random) -> None:
    """SIGSTOP of the hot state."""
    arena.valkey.pause()
    await asyncio.sleep(0.5 + rng.random() * 2)
    arena.valkey.resume()


async def valkey_killed(arena: Arena, _rng: random.Random) -> None:
    """kill -9 of the hot state, and its restart on what it had written."""
    arena.valkey.kill()
    await asyncio.sleep(0.3)
    await asyncio.to_thread(arena.valkey.start)


async def kafka_paused(arena: Arena, rng: random.Random) -> None:
    """SIGSTOP of the broker."""
    await asyncio.to_thread(arena.kafka.pause)
    await asyncio.sleep(0.5 + rng.random() * 2)
    arena.kafka.resume()


async def kafka_killed(arena: Arena, _rng: random.Random) -> None:
    """kill -9 of the broker, and its restart."""
    arena.kafka.kill()
    await asyncio.to_thread(arena.kafka.start, READY_S)


async def disks_full(arena: Arena, rng: random.Random) -> None:
    """No byte more fits on the disk of three gateways' outboxes, and then does again.

    A limit on the size of files stands in for the full disk: writing fails in the same place, with another number.
    """
    names = rng.sample(GATEWAYS, 3)
    pids = [arena.cluster.processes[name].pid for name in names]
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    await asyncio.sleep(1.5)
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, _PLENTY)


async def nothing(_arena: Arena, _rng: random.Random) -> None:
    """A quiet round."""


FAULTS: Final[tuple[Fault, ...]] = (
    gateways_killed,
    aggregator_killed,
    valkey_paused,
    ledger_killed,
    kafka_paused,
    kafka_killed,
    disks_full,
    valkey_killed,
    nothing,
    aggregators_killed,
    control_killed,
)
