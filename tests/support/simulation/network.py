"""What lies between simulated processes and the systems they use: time, outages, lost answers, late effects."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass, field
from random import Random
from typing import Any

from services.core.ports import UnavailableError
from tests.support.simulation.loop import Process, SimLoop, Trace

# What is late takes effect within so many seconds.
LATEST_S = 2.0


@dataclass
class Weather:
    """How bad it is. Each `lost` and `late` is the chance of one call in a thousand."""

    longest_s: float = 0.004
    slow_per_mille: int = 20
    slow_s: float = 0.4
    lost_per_mille: int = 0
    late_per_mille: int = 0
    # Of answers to changes of holds, so many more.
    lost_changes_per_mille: int = 0
    # (who, to what, from, until), in virtual seconds; an empty name is anybody.
    cuts: list[tuple[str, str, float, float]] = field(default_factory=list)
    slow_folds_s: float = 0.0


class Network:
    """Carries calls of processes to outside systems. `incarnations` of a system change when it starts anew."""

    def __init__(self, loop: SimLoop, rng: Random, trace: Trace, weather: Weather) -> None:
        self.loop = loop
        self._rng = rng
        self.trace = trace
        self.weather = weather
        self.incarnations: dict[str, int] = {}
        # The world's own.
        self.context = copy_context()

    def calm(self) -> None:
        """No more faults."""
        self.weather.lost_per_mille = self.weather.late_per_mille = self.weather.slow_per_mille = 0
        self.weather.cuts.clear()
        self.weather.slow_folds_s = 0.0
        self.weather.lost_changes_per_mille = 0

    def is_cut(self, process: Process, system: str) -> bool:
        """Whether a process can't reach a system now."""
        now_s = self.loop.time()
        return any(
            who in ("", process.name.partition("#")[0]) and to == system and begin <= now_s < end
            for who, to, begin, end in self.weather.cuts
        )

    def delay_s(self) -> float:
        """How long a message takes, one way."""
        if self._rng.randrange(1000) < self.weather.slow_per_mille:
            return self._rng.uniform(0, self.weather.slow_s)
        return self._rng.uniform(0, self.weather.longest_s)

    async def carry(
        self, process: Process, system: str, what: str, effect: Callable[[], Any], *, may_be_late: bool = True
    ) -> Any:
        """The answer to a call, whose `effect` takes place at one instant: once, or not at all, or unbeknown."""
        alive(process)
        born = self.incarnations.get(system, 0)
        await asyncio.sleep(self.delay_s())
        if self.incarnations.get(system, 0) != born:
            raise UnavailableError(f"the connection to {system} broke")
        if self.is_cut(process, system):
            self.trace("cut", process.name, system, what)
            raise UnavailableError(f"{system} can't be reached")
        fate = self._rng.randrange(1000)
        if may_be_late and fate < self.weather.late_per_mille:
            self.trace("late", process.name, system, what)
            self._later(system, born, self._rng.uniform(0.01, LATEST_S), effect)
            raise UnavailableError(f"{system} did not answer in time")
        answer = effect()
        if fate >= 1000 - self.weather.lost_per_mille:
            self.trace("lost", process.name, system, what)
            await asyncio.sleep(self.delay_s())
            raise UnavailableError(f"{system}'s answer was lost")
        await asyncio.sleep(self.delay_s())
        return answer

    def _later(self, system: str, born: int, delay_s: float, effect: Callable[[], Any]) -> None:
        def land() -> None:
            if self.incarnations.get(system, 0) == born:  # a server that starts anew knows of no old connection
                effect()

        # The world's own: the process that asked may be gone by then.
        self.loop.spawn(self.loop.world, _after(delay_s, land), "late effect")


async def _after(delay_s: float, land: Callable[[], None]) -> None:
    await asyncio.sleep(delay_s)
    land()


def alive(process: Process) -> None:
    """Raises when a dead process would do something."""
    if not process.is_alive:
        raise GeneratorExit


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that awaits nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a twin in memory has awaited something")
