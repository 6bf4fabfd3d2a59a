"""Where services ask for the time, for chance, for ids, and where they log: in a simulation all of it is the seed's."""

import contextlib
import functools
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from random import Random
from typing import Any

import services.aggregator
import services.gateway
from services.core.codec import decode
from services.gateway.identify import Authenticator
from tests.support.history import decode_once
from tests.support.simulation.loop import CURRENT, SimLoop, Trace

BASE_MS = 1_800_000_000_000  # an instant on a full hour, and on a full day but for eight hours
_SKIPPED = ("app", "faust_app", "server")


class ProcessEndedError(Exception):
    """What `end_process` is to a simulated process."""


class _Now:
    """What stands behind the seams while a run is on."""

    loop: SimLoop
    rng: Random
    trace: Trace
    ids = 0


class VirtualTime:
    """Stands in for the module `time`: the loop's clock, wrong by as much as the asking process's host is."""

    def time_ns(self) -> int:
        """Unix nanoseconds, by the host."""
        return round(_Now.loop.time() * 1e9) + (BASE_MS + CURRENT.get().skew_ms) * 1_000_000

    def time(self) -> float:
        """Unix seconds, by the host."""
        return self.time_ns() / 1e9

    def monotonic(self) -> float:
        """Seconds since some instant."""
        return _Now.loop.time() + 1000.0

    def monotonic_ns(self) -> int:
        """Nanoseconds since some instant."""
        return round(_Now.loop.time() * 1e9) + 1_000_000_000_000

    perf_counter = monotonic
    perf_counter_ns = monotonic_ns

    def sleep(self, _seconds: float) -> None:
        """What would block a thread takes no time."""


class VirtualRandom:
    """Stands in for the module `random`."""

    def uniform(self, low: float, high: float) -> float:
        """A number between."""
        return _Now.rng.uniform(low, high)

    def random(self) -> float:
        """A number from 0 to 1."""
        return _Now.rng.random()


class VirtualUlid:
    """Stands in for `ulid.ULID`: the next number, in the same spelling."""

    def __init__(self) -> None:
        _Now.ids += 1
        self._text = f"{_Now.ids:026d}"

    def __str__(self) -> str:
        return self._text


class VirtualLog:
    """Stands in for a logger: lines are part of the trace."""

    def __getattr__(self, level: str) -> Any:
        def told(event: str, **fields: Any) -> None:
            fields.pop("exc_info", None)
            _Now.trace("log", CURRENT.get().name, level, event, *(f"{name}={each}" for name, each in fields.items()))

        return told


def _end_process(event: str, **fields: Any) -> Any:
    raise ProcessEndedError(f"{event}: {fields.get('reason', '')}")


@functools.cache
def _modules() -> tuple[Any, ...]:
    """Every module of the services that are simulated, and of the adapters that they are given."""
    found = [importlib.import_module("services.adapters.publisher")]
    for package in (services.gateway, services.aggregator):
        for each in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if each.name.rpartition(".")[2] not in _SKIPPED:
                found.append(importlib.import_module(each.name))
    return tuple(found)


def _replacements() -> Iterator[tuple[Any, str, Any]]:
    import time

    stand_ins = {"time": (time, VirtualTime()), "random": (sys.modules["random"], VirtualRandom())}
    for module in _modules():
        for name, (real, virtual) in stand_ins.items():
            if getattr(module, name, None) is real:
                yield module, name, virtual
        if hasattr(module, "ULID"):
            yield module, "ULID", VirtualUlid
        for name in ("log", "_log"):
            if type(getattr(module, name, None)).__module__.startswith("structlog"):
                yield module, name, VirtualLog()
        if hasattr(module, "end_process"):
            yield module, "end_process", _end_process
        if module.__name__ == "services.gateway.assemble":
            # It never changes, and takes milliseconds to make.
            table = module.RouteTable(module.DIALECTS.values())
            yield module, "RouteTable", lambda _, table=table: table
        if hasattr(module, "decode_catalog"):
            yield module, "decode_catalog", functools.cache(module.decode_catalog)
        if getattr(module, "decode", None) is decode:
            # Each process and each replay reads the same log; what is read is not to be changed.
            yield module, "decode", decode_once


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Puts the stand-ins in place for as long as the block lasts. Runs take place within, one at a time."""
    kept: list[tuple[Any, str, Any]] = []
    defaults: Any = Authenticator.__init__.__kwdefaults__
    kept_clock = defaults["monotonic_s"]
    defaults["monotonic_s"] = VirtualTime().monotonic
    hook = sys.unraisablehook
    try:
        for module, name, stand_in in list(_replacements()):
            kept.append((module, name, getattr(module, name)))
            setattr(module, name, stand_in)
        sys.unraisablehook = lambda _: None  # a dead process's last words
        yield
    finally:
        sys.unraisablehook = hook
        defaults["monotonic_s"] = kept_clock
        for module, name, real in kept:
            setattr(module, name, real)


def use(loop: SimLoop, rng: Random, trace: Trace) -> None:
    """From now on the stand-ins are of this run."""
    _Now.loop, _Now.rng, _Now.trace, _Now.ids = loop, rng, trace, 0
