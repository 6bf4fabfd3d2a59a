"""An event loop whose clock is virtual and whose order is drawn from a seed: the same seed is the same run.

Callbacks belong to simulated processes. Within one they run in the order in which they were registered, as asyncio
promises; which process goes next is drawn. Time stands still while anything can run, and then jumps to the next timer.
A process may be killed between any two of its callbacks, which is at any of its awaits.
"""

import asyncio
import contextlib
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any

Trace = Callable[..., None]


class StuckError(AssertionError):
    """Something is awaited that nothing will ever bring about, or a run has taken more steps than any should."""


class Process:
    """One simulated process: its callbacks, its tasks, and how far its host's clock is off, in milliseconds."""

    def __init__(self, name: str, skew_ms: int = 0) -> None:
        self.name = name
        self.skew_ms = skew_ms
        self.is_alive = True
        self.queue: deque[asyncio.Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        self.on_death: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return self.name


WORLD = Process("world")
CURRENT: ContextVar[Process] = ContextVar("process", default=WORLD)


class SimLoop(asyncio.BaseEventLoop):
    """The loop. `max_steps` bounds one run."""

    def __init__(self, rng: Random, trace: Trace, max_steps: int = 400_000) -> None:
        super().__init__()
        self._rng = rng
        self._trace = trace
        self._now_s = 0.0
        self._runnable: list[Process] = []
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0
        self._max_steps = max_steps
        self.steps = 0
        self.world = Process("world")
        self.processes: list[Process] = []
        # How many more callbacks of processes run before each death, earliest last.
        self.deaths: list[int] = []
        self.kills = 0

    def time(self) -> float:
        """Virtual seconds since the run began."""
        return self._now_s

    def skip(self, seconds: float) -> None:
        """Lets time pass while everything stands still, as a machine does that is asleep."""
        self._now_s += seconds

    def process(self, name: str, skew_ms: int, on_death: Callable[[], None]) -> Process:
        """A new process."""
        made = Process(name, skew_ms)
        made.on_death = on_death
        self.processes.append(made)
        return made

    def spawn(self, process: Process, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Runs `work` in a process."""
        context = context_of(process)
        return self.create_task(work, name=f"{process.name}/{name}", context=context)

    def create_task(self, coro: Any, *, name: Any = None, context: Context | None = None) -> Any:
        """See `asyncio`; the task is its process's."""
        context = context or copy_context()
        task = super().create_task(coro, name=name, context=context)
        process = self._owner(context)
        process.tasks.append(task)
        if not process.is_alive:
            _bury(task, context)
        elif len(process.tasks) > 500:
            process.tasks = [each for each in process.tasks if not each.done()]
        return task

    def kill(self, process: Process) -> None:
        """Ends a process where it stands: nothing of it runs on. Its coroutines are closed with every port dead."""
        if not process.is_alive:
            return
        self._trace("killed", process.name)
        self.kills += 1
        process.is_alive = False
        process.queue.clear()
        if process in self._runnable:
            self._runnable.remove(process)
        self.processes.remove(process)
        _bury_all(process)
        process.on_death()

    def end(self) -> None:
        """Takes away all that is left when a run is over."""
        for process in (*self.processes, self.world):
            process.is_alive = False
            process.queue.clear()
            _bury_all(process)

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        """See `asyncio`."""
        context = context or copy_context()
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(self._owner(context), handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        """See `asyncio`."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        """See `asyncio`. Of timers at the same instant, the first made is the first."""
        timer = asyncio.TimerHandle(when, callback, args, self, context or copy_context())
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, timer))
        return timer

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """Runs `func` at once, and tells of it a little later, as a thread would."""
        future = self.create_future()
        try:
            result, error = func(*args), None
        except Exception as raised:
            result, error = None, raised
        self.call_later(self._rng.uniform(0, 0.003), _answer, future, result, error)
        return future

    def _run_once(self) -> None:
        """Steps until the loop is told to stop: one callback of one process each, whosever turn it is."""
        timers, runnable = self._timers, self._runnable
        while not self._stopping:  # type: ignore[attr-defined]
            self.steps += 1
            if self.steps > self._max_steps:
                raise StuckError(f"not done after {self._max_steps} steps, at {self._now_s:.3f} s")
            if not runnable:
                if not timers:
                    raise StuckError("everything waits for something that will never come")
                self._now_s = max(self._now_s, timers[0][0])
            while timers and timers[0][0] <= self._now_s:
                timer = heapq.heappop(timers)[2]
                if not timer._cancelled:  # type: ignore[attr-defined]
                    self._enqueue(self._owner(timer._context), timer)  # type: ignore[attr-defined]
            if runnable:
                self._step()

    def _step(self) -> None:
        count = len(self._runnable)
        process = self._runnable[self._rng.randrange(count) if count > 1 else 0]
        handle = process.queue.popleft()
        if not process.queue:
            self._runnable.remove(process)
        if handle._cancelled:  # type: ignore[attr-defined]
            return
        handle._run()
        if self.deaths and process is not self.world and process.is_alive:
            self.deaths[-1] -= 1
            if self.deaths[-1] <= 0:
                self.deaths.pop()
                self.kill(process)

    def _enqueue(self, process: Process, handle: asyncio.Handle) -> None:
        if not process.is_alive:
            return
        if not process.queue:
            self._runnable.append(process)
        process.queue.append(handle)

    def _owner(self, context: Context) -> Process:
        process = context.get(CURRENT, WORLD)
        return self.world if process is WORLD else process

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """Generators are closed by those who use them, or go down with their process."""

    def _write_to_self(self) -> None:
        """There is no other thread."""

    def _process_events(self, event_list: Any) -> None:
        """There is no outside."""


def _answer(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def context_of(process: Process) -> Context:
    """A context for what a process does."""
    context = copy_context()
    context.run(CURRENT.set, process)
    return context


def _bury_all(process: Process) -> None:
    context = context_of(process)
    for task in process.tasks:
        _bury(task, context)
    process.tasks.clear()


def _bury(task: asyncio.Task[Any], context: Context) -> None:
    """Ends a dead process's task without letting it do or say anything more."""
    if task.done():
        return
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    with contextlib.suppress(BaseException):
        context.run(task.get_coro().close)  # type: ignore[union-attr]
