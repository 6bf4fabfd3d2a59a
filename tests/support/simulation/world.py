"""A world for one seed: gateways, aggregators and reapers of the real code, on twins in memory, until all is quiet."""

import asyncio
import copy
import gc
import hashlib
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import orjson

from services.adapters.memory import MemoryDirectory, MemoryHotState, MemoryStore
from services.adapters.memory_answers import MemoryAnswers
from services.adapters.memory_jobs import MemoryJobs
from services.core.hotstate import OrgImage, OrgState
from services.core.ports import Incoming, TopicPartition
from tests.support.aggregation import LedgerTwin, Parts
from tests.support.asgi import Client, scope_of
from tests.support.checker_budgets import Configurations
from tests.support.gateway import CHAT_PATH
from tests.support.history import TOPICS
from tests.support.memory_log import MemoryLog
from tests.support.simulation import seams
from tests.support.simulation.absence import Absence
from tests.support.simulation.backfills import add_new_budgets
from tests.support.simulation.clients import Clients
from tests.support.simulation.control import SimControl
from tests.support.simulation.errands import Errands, add_errands
from tests.support.simulation.growing import add_growing_children
from tests.support.simulation.loop import Process, SimLoop
from tests.support.simulation.network import LATEST_S, Network, at_once
from tests.support.simulation.plan import EXPRESSION, MODEL, NEIGHBOUR, ORG, Call, Plan, draw
from tests.support.simulation.ports import Disk, Witness
from tests.support.simulation.staff import Staff
from tests.support.simulation.troubles import ALERTS, DENIALS, KEYS, Troubles

ORGS = (ORG, NEIGHBOUR)
ALL_TOPICS = (*TOPICS, DENIALS, ALERTS)
# How long, in virtual seconds, everything may take to come to rest once nothing goes wrong any more.
REST_S = 200


class World:
    """One run. `problems` says what went wrong by which promise; `trace` tells everything that happened."""

    def __init__(self, plan: Plan, errands: Errands, keep_trace: bool = False, *, can_be_absent: bool = False) -> None:
        self.plan = plan
        self.errands = errands
        self.problems: list[tuple[str, str]] = []
        self._kept: list[str] | None = [] if keep_trace else None
        self._digest = hashlib.sha256()
        self.loop = SimLoop(Random(f"order:{plan.seed}"), self.trace)
        self.loop.set_exception_handler(self._unhandled)
        self._rng = Random(f"world:{plan.seed}")
        self.network = Network(self.loop, Random(f"network:{plan.seed}"), self.trace, plan.weather)
        letters = {f"{each}.dlq": 1 for each in ALL_TOPICS}
        self.log = MemoryLog({**dict.fromkeys(ALL_TOPICS, plan.partitions), **letters})
        self.store = MemoryStore()
        self.hot = MemoryHotState(self.hot_ms, self.store)
        self.directory = MemoryDirectory(self.hot_ms, self.store)
        self.ledger = LedgerTwin(self.log)
        self.jobs = MemoryJobs(self.hot_ms)
        self.answers = MemoryAnswers(self.hot_ms)
        self.witness = Witness()
        self.disks = [Disk(f"gw_{number}") for number in range(plan.gateways)]
        self.apps: dict[int, tuple[Process, Any]] = {}
        self.configurations = {
            org: Configurations({EXPRESSION: lambda event: event["identity"]["user"] == "ada"}) for org in ORGS
        }
        # When the hot state has lost what it had taken in since when, by its own clock.
        self.lost: list[tuple[int, int]] = []
        # Orgs of which a threshold may have gone untold, as an aggregator died that could not publish it.
        self.untold: set[str] = set()
        self._calling: set[asyncio.Task[Any]] = set()
        self.troubles = Troubles(self)
        self.control = SimControl(self)
        self.clients = Clients(self)
        # The offset below which the ledger has the denials of a partition.
        self.denials_taken: dict[TopicPartition, int] = {}
        self.statuses: list[int] = []
        # When all had come to rest, by the hot state's clock, and what the hot state and the log were then.
        self.rest_ms = 0
        self.at_rest = self.store
        self.history: list[Incoming] = []
        self.kills = 0
        self.absence = Absence(plan.seed, plan.gateways, has_errands=bool(errands), is_possible=can_be_absent)
        self.rebuilt: dict[str, OrgState] = {}

    # ---- telling ----------------------------------------------------------------------------------------------------

    def trace(self, *words: object, more: Callable[[], str] | None = None) -> None:
        """Tells what happened, and `more` to those who read it."""
        line = f"{self.loop.time():9.4f} {' '.join(map(str, words))}"
        self._digest.update(line.encode() + b"\n")
        if self._kept is not None:
            self._kept.append(line if more is None else f"{line} {more()}")

    def problem(self, promise: str, text: str) -> None:
        """Tells what should not have happened."""
        self.trace("PROBLEM", promise, text)
        self.problems.append((promise, text))

    @property
    def lines(self) -> list[str]:
        """The trace, when it was kept."""
        return self._kept or []

    def digest(self) -> str:
        """What two runs of a seed have in common: every line of the trace, and every byte of the log."""
        whole = self._digest.copy()
        for message in self.log.history:
            whole.update(message.value)
        return whole.hexdigest()

    def hot_ms(self) -> int:
        """The hot state's clock."""
        return seams.BASE_MS + self.plan.hot_start_ms + int(self.loop.time() * 1000)

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "never retrieved" in str(context.get("message")):
            return  # of those that live, `_look_for_errors` knows; of the dead, nobody was left to ask
        self.problem("error", f"{context.get('message')}: {context.get('exception')!r}")

    # ---- the run ----------------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """Everything, from a new org until all is quiet."""
        self.troubles.configure(NEIGHBOUR, self.plan.neighbours_budgets)
        self.troubles.configure(ORG, self.plan.budgets[0][1])
        self.troubles.publish()
        for org in ORGS:
            assert at_once(self.hot.load(org, OrgImage({}, {}, {}, {}), "epoch-0"))
        Staff(self).start_all()
        self.loop.deaths = list(self.plan.deaths)
        troubles = [asyncio.ensure_future(each) for each in self.troubles.all()]
        clients = asyncio.ensure_future(self.clients.run()) if self.errands else None
        for call in self.plan.calls:
            await asyncio.sleep(max(0.0, call.at_s - self.loop.time()))
            self.begin(call)
        await asyncio.gather(*troubles)
        await asyncio.sleep(0.5)
        self.network.calm()
        self.plan.ledger_every_s = 5.0
        self.loop.deaths.clear()
        self.trace("calm")
        await asyncio.sleep(LATEST_S)  # what was late may still come
        if clients is not None:
            await clients
        await self._rest()
        if self.absence.is_on and not self.problems:
            await self._come_back()
        await asyncio.sleep(1.5)  # for what is only told of
        self._look_for_errors()
        self.rest_ms, self.history = self.hot_ms(), list(self.log.history)
        if not self.problems:
            await self._rebuild_aside()
        if self.errands and not self.problems:
            self.at_rest = copy.deepcopy(self.store)
            await self._ask_all_again()

    async def _come_back(self) -> None:
        """A gateway that was away for hours publishes what it has on its disk, most of it for the second time."""
        self.trace("away for", self.absence.seconds)
        self.loop.skip(self.absence.seconds)
        await asyncio.sleep(2.0)  # for those who slept
        self.absence.end()
        await self._rest()

    async def _ask_all_again(self) -> None:
        """What was answered once is answered so for ever: by whichever gateway, from beside the hot state or later from
        the ledger, which has everything by then."""
        self.ledger.taken = {place: self.log.end(place) for place in self.log.places(*TOPICS)}
        self.denials_taken = {place: self.log.end(place) for place in self.log.places(DENIALS)}
        self.plan.ledger_every_s = 1e9
        self.trace("later", self.errands.afterwards_s)
        self.loop.skip(self.errands.afterwards_s)
        await asyncio.sleep(5.0)  # for those who slept
        await self.clients.ask_again()
        self._look_for_errors()

    def ledger_has(self, place: TopicPartition) -> int:
        """The offset below which the ledger has what is in a partition."""
        return self.ledger.taken.get(place, self.denials_taken.get(place, 0))

    async def _rebuild_aside(self) -> None:
        """Rebuilds the org into an empty hot state, from a ledger that has any part of the log."""
        store = MemoryStore()
        hot, directory = MemoryHotState(self.hot_ms, store), MemoryDirectory(self.hot_ms, store)
        ledger, places = LedgerTwin(self.log), self.log.places(*TOPICS)
        ledger.taken = {place: self._rng.randint(0, self.log.end(place)) for place in places}
        self.troubles.publish(directory)
        await Parts(self.log, hot, directory, ledger, places).rebuilder.rebuild(ORGS)
        self.rebuilt = {org: store.state(org) for org in ORGS}

    def begin(self, call: Call, bearer: str | None = None) -> None:
        """A call, by its org's key or by another `bearer`."""
        process, app = self.apps[call.gateway]
        if not process.is_alive:
            return
        asked: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "How much is a farthing?"}],
        }
        if call.max_tokens is not None:
            asked["max_tokens"] = call.max_tokens
        if call.stream:
            asked |= {"stream": True, "stream_options": {"include_usage": True}}
        headers = [("authorization", f"Bearer {bearer or KEYS[call.org]}"), ("x-spend-user", call.user)]
        if call.session is not None:
            headers.append(("x-spend-session", call.session))
        client = Client(body=(orjson.dumps(asked),))

        async def serve() -> None:
            await app(scope_of(CHAT_PATH, headers), client.receive, client.send)
            self.statuses.append(client.status)
            self.trace("answered", process.name, client.status)
            if client.status == 401 and bearer is not None and self.control.is_live(bearer):
                self.problem("BU-9", "the key of a part that lives was called unknown")

        self.trace("called", process.name, call.org, call.max_tokens, "stream" if call.stream else "whole")
        self.serve(process, serve(), "call")
        if call.hangs_up_s is not None:
            self.loop.call_later(call.hangs_up_s, client.hang_up)

    def serve(self, process: Process, work: Coroutine[Any, Any, None], name: str) -> None:
        """A process serves a request. Nothing is at rest before it has."""
        task = self.loop.spawn(process, work, name)
        self._calling.add(task)
        task.add_done_callback(self._calling.discard)

    async def _rest(self) -> None:
        """Returns when nothing is left to be done."""
        ends_s = self.loop.time() + REST_S
        while not self.problems and (why := self._unrest()) is not None:
            if self.loop.time() > ends_s:
                self.problem("P4", f"no rest after {REST_S} s: {why}")
                return
            if self.errands and (sleeps_s := self._nothing_before_s(why)) > 0:
                self.trace("nothing for", sleeps_s)
                self.loop.skip(sleeps_s)
                ends_s += sleeps_s
            await asyncio.sleep(1.0)

    def _nothing_before_s(self, why: str) -> float:
        """How long nothing will happen, where there is no unrest but holds that live on."""
        due = [due_ms for org in ORGS for due_ms in self.store.state(org).due.values()]
        if not why.startswith("holds of") or not due:
            return 0.0
        return max(0.0, (min(due) - self.hot_ms()) / 1000 - 2.0)

    def _look_for_errors(self) -> None:
        """What any task of a process that still lives has raised, and nobody has asked for."""
        for process in self.loop.processes:
            for task in process.tasks:
                if task.done() and not task.cancelled() and task._log_traceback:
                    self.problem("error", f"{task.get_name()} raised {task.exception()!r}")

    def _unrest(self) -> str | None:
        names = [f"gateway{number}" for number in range(self.plan.gateways)]
        waiting = [
            disk.producer
            for name, disk in zip(names, self.disks, strict=True)
            if disk.rows and not self.absence.is_of(name)
        ]
        if waiting:
            return f"outboxes of {waiting} are not empty"
        alive = {each.name for each in self.loop.processes}
        if len(alive) < self.plan.gateways + self.plan.aggregators + 1 - self.absence.is_on:
            return "processes are away"
        if any(not task.done() and self._lives(task) for task in self._calling):
            return "calls are under way"
        for place in self.log.places(*TOPICS):
            if self.store.fold_fences.get(place) != self.log.end(place):
                return f"{place} is folded to {self.store.fold_fences.get(place)} of {self.log.end(place)}"
        return next((why for org in ORGS if (why := self._unrest_of(org)) is not None), None)

    def _unrest_of(self, org: str) -> str | None:
        state = self.store.state(org)
        if state.epoch is None:
            return f"{org} is cold"
        filling = {
            each.budget_id: each.since_version for each in self.troubles.snapshots[org].budgets if each.since_version
        }
        if any(state.filled.get(name) != since for name, since in filling.items()):
            return f"{filling} are not backfilled: {state.filled}"
        return f"holds of {org} are open: {sorted(state.due)}" if state.due else None

    def _lives(self, task: asyncio.Task[Any]) -> bool:
        name = task.get_name().partition("/")[0]
        return any(each.name == name and task in each.tasks for each in self.loop.processes)

    def run(self) -> None:
        """Runs to the end."""
        seams.use(self.loop, Random(f"chance:{self.plan.seed}"), self.trace)
        try:
            self.loop.run_until_complete(self.main())
        except AssertionError as error:
            self.problem("stuck", str(error))
        finally:
            self.kills = self.loop.kills
            self.loop.end()
            self.loop.close()


_runs = 0


@contextmanager
def tidy() -> Iterator[None]:
    """Runs of many seeds: memory is tidied between them and never within, where it would be at no given instant."""
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        with seams.installed(), warnings.catch_warnings():
            # What a process was about to begin when it died is never awaited.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def simulate(
    seed: int,
    keep_trace: bool = False,
    *,
    with_rollbacks: bool = False,
    is_plain: bool = False,
    with_backfills: bool = False,
) -> World:
    """Runs a seed, within `tidy`. A plain one has calls alone, and so has one with rollbacks, or with backfills.

    With backfills, budgets are made in the midst of calls.
    """
    global _runs
    _runs += 1
    if _runs % 16 == 0:
        gc.collect()
    plan = draw(seed, with_rollbacks=with_rollbacks, is_plain=is_plain)
    if with_backfills:
        add_new_budgets(plan)
    has_errands = not (with_rollbacks or is_plain or with_backfills)
    errands = add_growing_children(plan) if has_errands else Errands()
    if errands is None:
        errands = add_errands(plan)
    world = World(plan, errands, keep_trace, can_be_absent=has_errands)
    world.run()
    return world
