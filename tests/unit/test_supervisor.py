"""The supervisor, with small processes that do one thing each."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from services.embedded import process as process_module
from services.embedded.data_dir import UpError, write_private
from services.embedded.process import ProcessSpec
from services.embedded.supervisor import Supervisor, end_leftovers

SLEEPER = "import time; print('here', flush=True); time.sleep(600)"


def spec(name: str, program: str, **changes: object) -> ProcessSpec:
    return ProcessSpec(name=name, command=(sys.executable, "-c", program), environment=dict(os.environ), **changes)  # type: ignore[arg-type]


def supervisor(folder: Path, *specs: ProcessSpec) -> Supervisor:
    for name in ("run", "logs"):
        (folder / name).mkdir(exist_ok=True)
    return Supervisor(specs, folder / "run", folder / "logs", None)


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.02)


def pids(folder: Path) -> dict[str, int]:
    return {name: pid for name, (pid, _) in json.loads((folder / "run" / "processes.json").read_text()).items()}


async def test_starts_in_order_of_need_and_stops_by_rank(tmp_path: Path) -> None:
    order = tmp_path / "order"
    program = f"""
import signal, sys, time
name = {{name!r}}
def note(what):
    with open({str(order)!r}, 'a') as file:
        file.write(name + ' ' + what + '\\n')
def end(*_):
    note('stops')
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
note('starts')
time.sleep(600)
"""

    def started(name: str) -> Callable[[], object]:
        async def check() -> str | None:
            known = order.read_text() if order.exists() else ""
            return None if f"{name} starts" in known else "it has not said so"

        return check

    instance = supervisor(
        tmp_path,
        spec("service", program.format(name="service"), check=started("service"), after=("engine",), stop_rank=0),
        spec("engine", program.format(name="engine"), check=started("engine"), stop_rank=9),
    )
    await instance.start(20)
    await instance.stop()
    assert order.read_text().split("\n")[:-1] == ["engine starts", "service starts", "service stops", "engine stops"]
    assert not (tmp_path / "run" / "processes.json").exists()


async def test_restarts_what_ends_with_growing_delays(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    program = (
        f"import time\nwith open({str(starts)!r}, 'a') as file: file.write(f'{{time.time()}}\\n')\ntime.sleep(0.05)"
    )
    instance = supervisor(tmp_path, spec("brief", program))
    await instance.start(20)
    await eventually(lambda: starts.exists() and len(starts.read_text().split()) >= 4)
    times = [float(each) for each in starts.read_text().split()]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] >= 0.2
    assert gaps[1] >= 0.4
    assert gaps[2] >= 0.8
    assert instance.states()[0].restarts >= 3
    await instance.stop()
    assert not instance.states()[0].up
    assert "brief ended (exit code 0); starting again in 0.4 s" in (tmp_path / "logs" / "brief.log").read_text()


async def test_restarts_what_is_killed_and_keeps_the_rest(tmp_path: Path) -> None:
    instance = supervisor(tmp_path, spec("one", SLEEPER), spec("two", SLEEPER))
    await instance.start(20)
    await eventually(lambda: len(pids(tmp_path)) == 2)
    before = pids(tmp_path)
    os.kill(before["one"], signal.SIGKILL)
    await eventually(lambda: pids(tmp_path)["one"] != before["one"])
    assert pids(tmp_path)["two"] == before["two"]
    assert {state.name: state.restarts for state in instance.states()} == {"one": 1, "two": 0}
    assert "one ended (killed by SIGKILL)" in (tmp_path / "logs" / "one.log").read_text()
    await instance.stop()


async def test_kills_what_does_not_stop(tmp_path: Path) -> None:
    program = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
    instance = supervisor(tmp_path, spec("deaf", program, stop_grace_s=0.3))
    await instance.start(20)
    log = tmp_path / "logs" / "deaf.log"
    await eventually(lambda: log.exists() and "here" in log.read_text())
    pid = pids(tmp_path)["deaf"]
    await instance.stop()
    assert not psutil.pid_exists(pid)
    assert "did not stop within" in log.read_text()


async def test_a_start_that_keeps_failing_says_what_the_process_said(tmp_path: Path) -> None:
    async def never() -> str | None:
        return "no answer"

    instance = supervisor(tmp_path, spec("broken", "print('the disk is full'); raise SystemExit(3)", check=never))
    with pytest.raises(UpError, match=r"broken ended 3 times while starting: the disk is full \(see .*broken\.log\)"):
        await instance.start(20)
    await instance.stop()


async def test_a_start_that_takes_too_long_says_what_it_waits_for(tmp_path: Path) -> None:
    async def never() -> str | None:
        return "answered 503: cold"

    instance = supervisor(tmp_path, spec("slow", SLEEPER, check=never), spec("fine", SLEEPER))
    with pytest.raises(UpError, match=r"Not ready after 1 s: slow \(answered 503: cold; see .*slow\.log\)\."):
        await instance.start(1)
    await instance.stop()
    assert not any(state.up for state in instance.states())


async def test_a_failed_preparation_is_the_failure_of_the_start(tmp_path: Path) -> None:
    async def prepare() -> None:
        raise UpError("there is no room")

    instance = supervisor(tmp_path, spec("engine", SLEEPER, prepare=prepare))
    with pytest.raises(UpError, match="there is no room"):
        await instance.start(20)
    await instance.stop()


async def test_goes_on_after_whatever_kept_it_from_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trouble: list[Exception] = [UpError("there is no room"), OSError(24, "Too many open files"), MemoryError()]

    async def prepare() -> None:
        if (tmp_path / "run" / "processes.json").exists() and trouble:
            raise trouble.pop(0)

    monkeypatch.setattr(process_module, "_FIRST_DELAY_S", 0.01)
    instance = supervisor(tmp_path, spec("one", SLEEPER, prepare=prepare))
    await instance.start(20)
    await eventually(lambda: len(pids(tmp_path)) == 1)
    before = pids(tmp_path)["one"]
    os.kill(before, signal.SIGKILL)
    await eventually(lambda: instance.states()[0].up and pids(tmp_path)["one"] != before)
    assert instance.states()[0].restarts == 4
    said = (tmp_path / "logs" / "one.log").read_text()
    assert "one could not be run (UpError: there is no room); starting again in 0.0 s" in said
    assert "one could not be run (OSError: [Errno 24] Too many open files); starting again in" in said
    await instance.stop()


async def test_a_child_that_can_not_be_recorded_is_ended_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []

    def full_disk(path: Path, text: str) -> None:
        if len(refused) < 2:
            refused.append(json.loads(text)["one"][0])
            raise OSError(28, "No space left on device")
        write_private(path, text)

    monkeypatch.setattr("services.embedded.supervisor.write_private", full_disk)
    instance = supervisor(tmp_path, spec("one", SLEEPER))
    await instance.start(20)
    await eventually(lambda: (tmp_path / "run" / "processes.json").exists())
    assert not any(psutil.pid_exists(pid) for pid in refused)
    assert len({*refused, *pids(tmp_path).values()}) == 3
    assert instance.states()[0].restarts == 2
    await instance.stop()
    assert "one could not be run (OSError: [Errno 28] No space" in (tmp_path / "logs" / "one.log").read_text()


class Full(io.StringIO):
    """A terminal's stand-in on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


async def test_a_console_that_takes_nothing_ends_no_child(tmp_path: Path) -> None:
    for name in ("run", "logs"):
        (tmp_path / name).mkdir()
    program = f"print('first', flush=True); {SLEEPER}"
    instance = Supervisor(
        [spec("one", program)], tmp_path / "run", tmp_path / "logs", Console(file=Full()), verbose=True
    )
    await instance.start(20)
    log = tmp_path / "logs" / "one.log"
    await eventually(lambda: log.exists() and "here" in log.read_text())
    assert instance.states()[0].restarts == 0
    os.kill(pids(tmp_path)["one"], signal.SIGKILL)
    await eventually(lambda: instance.states()[0].up and instance.states()[0].restarts == 1)
    await instance.stop()


async def test_feeds_standard_input_and_keeps_long_lines_from_blocking(tmp_path: Path) -> None:
    program = f"import sys; print(sys.stdin.read().upper()); print('x' * 3_000_000); {SLEEPER}"
    instance = supervisor(tmp_path, spec("reader", program, stdin=b"a setting"))
    await instance.start(20)
    log = tmp_path / "logs" / "reader.log"
    await eventually(lambda: log.exists() and "here" in log.read_text())
    assert log.read_text().startswith("A SETTING\n")
    await instance.stop()


PARENT = """
import asyncio, os, sys
from pathlib import Path
from services.embedded.process import ProcessSpec
from services.embedded.supervisor import Supervisor

async def main():
    folder = Path(sys.argv[1])
    specs = [ProcessSpec(name=name, command=(sys.executable, "-c", "import time; time.sleep(600)"),
                         environment=dict(os.environ)) for name in ("one", "two")]
    await Supervisor(specs, folder / "run", folder / "logs", None).start(20)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_children_die_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    for name in ("run", "logs"):
        (tmp_path / name).mkdir()
    parent = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", PARENT, str(tmp_path)])
    try:
        file = tmp_path / "run" / "processes.json"
        await eventually(lambda: file.exists() and len(pids(tmp_path)) == 2)
        children = pids(tmp_path).values()
        assert all(psutil.pid_exists(pid) for pid in children)
    finally:
        parent.kill()
        parent.wait()
    if sys.platform != "linux":  # Elsewhere no kernel tells the children; the next start ends them.
        end_leftovers(file)
    await eventually(lambda: not any(psutil.pid_exists(pid) for pid in children))


def test_the_next_start_ends_what_was_left_and_nothing_else(tmp_path: Path) -> None:
    left, other = (subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(2))
    try:
        file = tmp_path / "processes.json"
        created = psutil.Process(left.pid).create_time()
        # The second record has the number of a process that is alive, but was made at another time: a reused number.
        file.write_text(json.dumps({"left": [left.pid, created], "reused": [other.pid, created - 3600]}))
        end_leftovers(file)
        assert not psutil.pid_exists(left.pid)
        assert other.poll() is None
        assert not file.exists()
    finally:
        for process in (left, other):
            process.kill()
            process.wait()
