"""The processes of a simulated world: each is started as its own `app.py` would, and again when it has died."""

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from services.adapters.cel import Cel
from services.adapters.publisher import Publisher
from services.aggregator.patience import Patience, or_end_process
from services.aggregator.reaper import Reaper
from services.aggregator.stream import fold_stream
from services.gateway.assemble import Ports, assemble
from tests.support.aggregation import Parts, Told
from tests.support.gateway import PEPPER, open_sealed, options
from tests.support.history import TOPICS
from tests.support.simulation import seams
from tests.support.simulation.control import SimRelay
from tests.support.simulation.loop import Process, context_of
from tests.support.simulation.ports import MemoryOutbox, SimAnswers, SimHotState, SimLedger, SimLog
from tests.support.simulation.vendor import SimVendor

if TYPE_CHECKING:
    from tests.support.simulation.world import World


class Staff:
    """Starts processes. Make one within the world's own process."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._context = copy_context()
        self._rng = Random(f"staff:{world.plan.seed}")

    def start_all(self) -> None:
        """Starts everything there is to be."""
        for number in range(self._world.plan.aggregators):
            self.start_aggregator(number)
        self.start_reaper()
        for number in range(self._world.plan.gateways):
            self.start_gateway(number)

    def _process(self, name: str, skew: int, start: Callable[[], None]) -> Process:
        def again() -> None:
            if self._world.absence.keep(name, partial(self._context.run, start)):
                return
            self._world.loop.call_later(self._rng.uniform(0.01, 1.5), start, context=self._context)

        return self._world.loop.process(name, self._world.plan.skews_ms[skew], again)

    def _rng_of(self, process: Process) -> Random:
        return Random(f"{process.name}:{len(self._world.log.history)}:{self._world.loop.steps}:{self._world.plan.seed}")

    def _run(self, process: Process, work: Any, name: str) -> None:
        """Work that a process does for as long as it lives: whatever it raises, the process must not have."""

        def ended(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and task.exception() is not None and process.is_alive:
                self._world.problem("P10", f"{process.name} ended: {task.exception()!r}")
                self._world.loop.call_soon(self._world.loop.kill, process, context=self._context)

        self._world.loop.spawn(process, work, name).add_done_callback(ended)

    def _hot_of(self, process: Process, repeats: int = 0) -> SimHotState:
        return SimHotState(
            process,
            self._world.network,
            (self._world.hot, self._world.directory),
            self._world.witness,
            self._rng_of(process),
            repeats,
        )

    def start_gateway(self, number: int) -> None:
        """Starts a gateway over what its predecessor has left on disk."""
        process = self._process(f"gateway{number}", number, lambda: self.start_gateway(number))
        self._world.trace("started", process.name)
        outbox = MemoryOutbox(process, self._world.disks[number], self._world.plan.outbox_limit, self._world.trace)
        hot: Any = self._hot_of(process, self._world.plan.repeats_per_mille)
        log = SimLog(process, self._world.network, self._world.log, self._rng_of(process), self._world.absence)

        def begin() -> None:
            publisher = Publisher(outbox, log, on_published=lambda _: None, on_failure=lambda _: None)
            outbox.wake = publisher.wake
            vendor = SimVendor(
                process, self._world.network, self._rng_of(process), self._world.plan.hold_ms, self._world.plan.moods
            )
            ports = Ports(
                directory=hot,
                hot_state=hot,
                outbox=outbox,
                vendors=vendor,
                relay_transport=SimRelay(process, self._world),
                open_sealed=open_sealed,
                pepper=PEPPER,
                jobs=self._world.jobs,
                answers=SimAnswers(process, self._world.network, self._world.answers),
                expressions=Cel(),
            )
            assembly = assemble(ports, options(sandbox_url=None, poll_interval_s=0.8, vendor_timeout_s=5.0))
            self._world.apps[number] = (process, assembly.app)
            self._run(process, assembly.snapshots.run(), "snapshots")
            self._run(process, assembly.holds.run(), "holds")
            self._run(process, publisher.run(), "publisher")

        context_of(process).run(begin)

    def start_aggregator(self, number: int) -> None:
        """Starts an aggregator; only the first `plan.folding` fold."""
        process = self._process(f"aggregator{number}", 4 + number, lambda: self.start_aggregator(number))
        self._world.trace("started", process.name)
        hot: Any = self._hot_of(process)
        log: Any = SimLog(process, self._world.network, self._world.log, self._rng_of(process))
        ledger: Any = SimLedger(process, self._world.network, self._world.ledger)

        async def serve() -> None:
            parts = Parts(log, hot, hot, ledger, self._world.log.places(*TOPICS))
            # Ids of their own: those of two processes must never be alike.
            parts.rebuilder._new_epoch = parts.backfiller._new_token = lambda: f"id-{seams.VirtualUlid()}"
            self._note_what_waits(process, parts)
            patience = parts.patience
            if number < self._world.plan.folding:
                await parts.fences.prepare(parts.places)
            self._run(process, or_end_process(patience.every(0.9, "rebuild", parts.rebuilder.rebuild_cold)), "rebuild")
            self._run(process, or_end_process(patience.every(0.7, "expiry", parts.reaper.reap)), "reaper")
            self._run(process, or_end_process(patience.every(0.8, "backfill", parts.backfiller.backfill)), "backfill")
            look = parts.thresholds.look_again
            self._run(process, or_end_process(patience.every(1.0, "thresholds", look)), "thresholds")
            if number < self._world.plan.folding:
                fold = fold_stream(log, parts.places, parts.fences, parts.folder, patience, parts.stopping)
                await or_end_process(fold)

        self._run(process, or_end_process(serve()), "fold")

    def _note_what_waits(self, process: Process, parts: Parts) -> None:
        """Takes down, should the process die, for which orgs it has put off to tell of thresholds."""
        put_off, again, waiting = parts.thresholds._put_off, process.on_death, set[str]()

        def putting_off(org: str, *rest: Any) -> None:
            waiting.add(org)
            put_off(org, *rest)

        def died() -> None:
            self._world.untold |= waiting
            again()

        parts.thresholds._put_off = putting_off  # type: ignore[method-assign]
        process.on_death = died

    def start_reaper(self) -> None:
        """Starts a second reaper, beside the aggregators' own."""
        process = self._process("reaper", 7, self.start_reaper)
        hot: Any = self._hot_of(process)
        log: Any = SimLog(process, self._world.network, self._world.log, self._rng_of(process))

        async def serve() -> None:
            reaper = Reaper(log, hot, hot, Told())
            await Patience(asyncio.Event()).every(0.7, "expiry", reaper.reap)

        self._run(process, or_end_process(serve()), "reaper")
