"""One child of the supervisor: started, watched until it is ready, restarted with back-off when it ends, stopped."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.embedded import launch
from services.embedded.console import Lines
from services.embedded.data_dir import UpError

_LAUNCHER: Final = str(Path(launch.__file__).absolute())
_READY_POLL_S: Final = 0.05
_FIRST_DELAY_S: Final = 0.2
_LONGEST_DELAY_S: Final = 10.0
_STEADY_S: Final = 30.0
_LINE_LIMIT: Final = 1024 * 1024

Check = Callable[[], Awaitable[str | None]]
"""Answers None when the process serves, else why it does not yet."""


async def _at_once() -> str | None:
    return None


async def nothing_to_prepare() -> None:
    """What to prepare for a process that needs nothing."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How to run one child.

    It starts when every process named in `after` is ready. `prepare` runs before each start. `stop_rank` orders the
    end: lower ranks are gone before higher ones are asked to. `orphan_signal` is sent when the supervisor is killed.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    check: Check = _at_once
    after: tuple[str, ...] = ()
    prepare: Callable[[], Awaitable[None]] = nothing_to_prepare
    stdin: bytes = b""
    user: str = ""
    stop_rank: int = 0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace_s: float = 10.0
    orphan_signal: signal.Signals = signal.SIGKILL


def launch_command(orphan_signal: signal.Signals, user: str) -> tuple[str, ...]:
    """What stands before a command that gets `orphan_signal` when this process dies, and runs as `user` if any."""
    return (sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid()), str(int(orphan_signal)), user)


@dataclass(slots=True)
class ManagedProcess:
    """A child by its spec. `run` keeps it alive until `stop`; `deaths` counts its ends that nobody asked for."""

    spec: ProcessSpec
    lines: Lines
    on_spawn: Callable[[str, int], None]
    deaths: int = 0
    waiting_for: str | None = "not started yet"
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False
    _process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id while it lives."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return max(0, self.deaths - (self.pid is None))

    async def run(self) -> None:
        """Starts the child, and again after each end, waiting longer each time until it holds; returns after `stop`.

        Raises the `UpError` of a preparation only before the first start, when it is the whole start's failure.
        """
        delay_s = _FIRST_DELAY_S
        while not self.stopping:
            started = time.monotonic()
            try:
                await self._run_once()
                ending = f"ended ({self._ending()})"
            except Exception as error:  # whatever it was: without this loop nothing starts the child again
                if isinstance(error, UpError) and self._process is None:
                    raise
                await self._end_child()
                ending = f"could not be run ({type(error).__name__}: {error})"
            if self._is_stopping():
                return
            self.deaths += 1
            if time.monotonic() - started > _STEADY_S:
                delay_s = _FIRST_DELAY_S
            self._say(f"{ending}; starting again in {delay_s:.1f} s")
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    async def stop(self) -> None:
        """Asks the child to end, and kills it when its grace is over."""
        self.stopping = True
        await self._end_child()

    async def _end_child(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.send(self.spec.stop_signal)
        try:
            await asyncio.wait_for(process.wait(), self.spec.stop_grace_s)
        except TimeoutError:
            self._say(f"did not stop within {self.spec.stop_grace_s:.0f} s and was killed")
            self.send(signal.SIGKILL)
            await process.wait()

    def send(self, number: signal.Signals) -> None:
        """Sends the child a signal if it lives."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def _run_once(self) -> None:
        await self.spec.prepare()
        if self.stopping:
            return
        process = await asyncio.create_subprocess_exec(
            *launch_command(self.spec.orphan_signal, self.spec.user), *self.spec.command,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=dict(self.spec.environment), limit=_LINE_LIMIT,
            start_new_session=True,  # A Ctrl-C in the terminal is the supervisor's to pass on, in order.
        )  # fmt: skip
        self._process = process
        readiness = asyncio.create_task(self._watch_readiness())
        try:
            self.on_spawn(self.spec.name, process.pid)
            await asyncio.gather(self._feed(process), self._pump(process))
            await process.wait()
        finally:
            readiness.cancel()
            self.ready.clear()
            self.waiting_for = "it ended"

    async def _feed(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # It ended first; `run` says so.
            process.stdin.write(self.spec.stdin)
            await process.stdin.drain()
        process.stdin.close()

    async def _pump(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # A line past the limit: its bytes are dropped, the next line is read.
                continue
            if not line:
                return
            self._write(line.decode(errors="replace").rstrip())

    async def _watch_readiness(self) -> None:
        while True:
            self.waiting_for = await self.spec.check()
            if self.waiting_for is None:
                self.ready.set()
                return
            await asyncio.sleep(_READY_POLL_S)

    def _is_stopping(self) -> bool:
        return self.stopping

    def _say(self, text: str) -> None:
        self._write(f"{self.spec.name} {text}", shown=True)

    def _write(self, line: str, *, shown: bool = False) -> None:
        with contextlib.suppress(OSError):  # A console that is full or gone is no reason to end the child.
            self.lines.write(line, shown=shown)

    def _ending(self) -> str:
        code = self._process.returncode if self._process is not None else None
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"
