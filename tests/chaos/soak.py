"""The three rigs one after the other, and their one report: ``python -m tests.chaos.soak --report FILE``.

A rig that fails does not keep the others from running, nor the report from being written. Each prints as it does alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.chaos.rounds.report import page

ROOT: Final = Path(__file__).resolve().parents[2]
# The kinds of seeds beside the main one, of which each has a tenth: what is in them, and how they are asked for.
OTHER_KINDS: Final = (
    ("calls alone", "--plain"),
    ("budgets made in the midst of calls", "--backfills"),
    ("a hot state that loses its last writes", "--rollbacks"),
)


def run_rig(name: str, module: str, *arguments: str) -> dict[str, Any]:
    """Runs a rig to its end: its name, command, exit status, seconds, and what it said last of itself."""
    began_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = []
    with process:
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line.strip())
    return {
        "name": name,
        "command": " ".join((module, *arguments)),
        "status": process.returncode,
        "seconds": round(time.monotonic() - began_s, 1),
        "told": "; ".join(_telling(said)),
    }


def _telling(said: Sequence[str]) -> list[str]:
    """The seed a rig began with, and its last lines that are figures."""
    lines = [line for line in said if line]
    return list(dict.fromkeys([*(line for line in lines[:1] if line.startswith("seed")), *lines[-2:]]))


def simulations(seeds: int, jobs: int) -> list[dict[str, Any]]:
    """Runs so many seeds of the simulation, and a tenth as many (rounded up) of each other kind."""
    module, of_jobs = "tests.simulation.run", ("--jobs", str(jobs))
    rigs = [run_rig("simulation", module, "--seeds", str(seeds), *of_jobs)]
    for kind, option in OTHER_KINDS:
        rigs.append(run_rig(f"simulation: {kind}", module, option, "--seeds", str(-(-seeds // 10)), *of_jobs))
    return rigs


def rounds_of(place: Path, rounds: int, seed: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs the chaos rounds: how that ended, and their figures; none where it ended before it had any."""
    path = place / "rounds.json"
    arguments = ["--rounds", str(rounds), "--figures", str(path), *(["--seed", str(seed)] if seed is not None else [])]
    ended = run_rig("chaos", "tests.chaos.rounds.run", *arguments)
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    said = f"{told['rounds']} rounds, below" if told else "nothing"
    command = f"tests.chaos.rounds.run --rounds {rounds} --seed {told.get('seed', seed)}"
    return {**ended, "told": said, "command": command}, told


def main() -> int:
    """Exit status: 0 when every rig passed."""
    parser = argparse.ArgumentParser(description="Runs the three rigs and writes their report.")
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the twins")
    parser.add_argument("--seeds", type=int, default=100_000, help="of the simulation; a tenth of each other kind")
    parser.add_argument("--rounds", type=int, default=200, help="of chaos")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the simulation")
    parser.add_argument("--seed", type=int, help="of the rounds")
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    rigs = [
        run_rig("property", "tests.property.twin_soak", "--steps", str(options.steps)),
        *simulations(options.seeds, options.jobs),
    ]
    with tempfile.TemporaryDirectory() as place:
        chaos, told = rounds_of(Path(place), options.rounds, options.seed)
    rigs.append(chaos)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(page(told, rigs))
    print(f"the report is in {options.report}")
    failed = [each["name"] for each in rigs if each["status"]]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
