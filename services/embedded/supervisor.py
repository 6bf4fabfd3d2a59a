"""Runs every process of an instance: in order of need, as parallel as that allows; stops services before engines."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console

from services.embedded.console import Lines
from services.embedded.data_dir import UpError, write_private
from services.embedded.process import ManagedProcess, ProcessSpec

_DEATHS_AT_START: Final = 3
_LEFTOVER_GRACE_S: Final = 5.0
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A process as the metrics and the CLI see it."""

    name: str
    up: bool
    restarts: int


class Supervisor:
    """The processes of one instance. `run_folder` keeps their ids, so that the next start can end what a crash left."""

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        run_folder: Path,
        log_folder: Path,
        console: Console | None,
        *,
        verbose: bool = False,
    ) -> None:
        self._processes = {
            spec.name: ManagedProcess(spec, Lines(spec.name, log_folder, console, verbose=verbose), self._record)
            for spec in specs
        }
        self._pids_file = run_folder / "processes.json"
        self._pids: dict[str, tuple[int, float]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, timeout_s: float) -> None:
        """Returns when every process is ready.

        Raises `UpError` naming the one that keeps ending, or those that are not ready after `timeout_s` seconds.
        """
        end_leftovers(self._pids_file)
        self._tasks = [asyncio.create_task(self._keep(process)) for process in self._processes.values()]
        try:
            async with asyncio.timeout(timeout_s):
                while not all(process.ready.is_set() for process in self._processes.values()):
                    self._check_start()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise UpError(self._unready(timeout_s)) from error
        for process in self._processes.values():
            process.lines.is_settled = True

    async def stop(self) -> None:
        """Stops rank after rank, those of one rank together, and forgets the process ids."""
        for process in self._processes.values():
            process.stopping = True  # None is started again because another one has left.
            process.lines.is_settled = False
        ranked = sorted(self._processes.values(), key=lambda process: process.spec.stop_rank)
        for _, group in groupby(ranked, key=lambda process: process.spec.stop_rank):
            await asyncio.gather(*(process.stop() for process in group))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in self._processes.values():
            process.lines.close()
        self._pids_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """Ends every process at once: someone asked twice."""
        for process in self._processes.values():
            process.send(signal.SIGKILL)

    def states(self) -> tuple[ProcessState, ...]:
        """Every process as it is now."""
        return tuple(
            ProcessState(name, process.pid is not None, process.restarts) for name, process in self._processes.items()
        )

    async def _keep(self, process: ManagedProcess) -> None:
        for name in process.spec.after:
            await self._processes[name].ready.wait()
        await process.run()

    def _check_start(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()  # What `prepare` raised is the start's own failure.
        for name, process in self._processes.items():
            if process.deaths >= _DEATHS_AT_START:
                said = next((line for line in reversed(process.lines.last) if not line.startswith(f"{name} ended")), "")
                raise UpError(
                    f"{name} ended {_DEATHS_AT_START} times while starting: {said} (see {process.lines.path})"
                )

    def _unready(self, timeout_s: float) -> str:
        waits = [
            f"{name} ({process.waiting_for}; see {process.lines.path})"
            for name, process in self._processes.items()
            if not process.ready.is_set()
        ]
        return f"Not ready after {timeout_s:.0f} s: {', '.join(waits)}."

    def _record(self, name: str, pid: int) -> None:
        try:
            self._pids[name] = (pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return  # Ended already.
        write_private(self._pids_file, json.dumps(self._pids))


def end_leftovers(pids_file: Path) -> None:
    """Ends what a killed supervisor left behind and waits until it is gone.

    On Linux the kernel has told the children already; this gives engines the time they need, and covers other systems.
    """
    if not pids_file.exists():
        return
    recorded: Mapping[str, tuple[int, float]] = json.loads(pids_file.read_text())
    alive = []
    for pid, created in recorded.values():
        try:
            process = psutil.Process(pid)
            if abs(process.create_time() - created) < 1.0:
                alive.extend([process, *process.children(recursive=True)])
        except psutil.NoSuchProcess:
            continue
    for process in alive:
        _quietly(process, signal.SIGTERM)
    _, stubborn = psutil.wait_procs(alive, timeout=_LEFTOVER_GRACE_S)
    for process in stubborn:
        _quietly(process, signal.SIGKILL)
    psutil.wait_procs(stubborn, timeout=_LEFTOVER_GRACE_S)
    pids_file.unlink()


def _quietly(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
