"""Fuzzes the readers and says how fast, from what seed, over what, and what was found.

    python -m tests.fuzz.run --inputs 1000000 [--seed 1] [--processes 2]
    python -m tests.fuzz.run --seed 1 --only 123456

An input follows from the seed and its number alone, so a finding can be had again by its number.
"""

import argparse
import os
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import targets

# Far above what any input here may take; a reader that is quadratic or worse goes past it.
SLOW_SECONDS = 1.0
MOST_MEMORY_BYTES = 1 << 30


@dataclass(slots=True)
class Report:
    """What a run did: inputs by target, and the first finding of each kind with how often it came."""

    inputs: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    memory_bytes: int = 0

    def add(self, other: "Report") -> None:
        """Takes in another run's report."""
        self.inputs += other.inputs
        self.times += other.times
        self.findings = {**other.findings, **self.findings}
        self.memory_bytes = max(self.memory_bytes, other.memory_bytes)


def fuzz(seed: int, numbers: Iterable[int]) -> Report:
    """Runs the inputs with these numbers."""
    groups = targets()
    random = Random()
    mutator = Mutator(random)
    report = Report()
    before_bytes = _peak_bytes()
    for number in numbers:
        random.seed(seed * 1_000_000_007 + number)
        group = groups[number % len(groups)]
        target = group[number // len(groups) % len(group)]
        report.inputs[target.name] += 1
        begun = time.process_time()
        try:
            target.run(mutator)
            assert time.process_time() - begun < SLOW_SECONDS, "slow"
        except Exception as error:
            kind, where = _kind(error)
            report.times[kind] += 1
            report.findings.setdefault(kind, f"{target.name}, input {number}: {error!r:.200}\n{where}")
    report.memory_bytes = _peak_bytes() - before_bytes  # whatever ran in this process before has its own
    if report.memory_bytes > MOST_MEMORY_BYTES:
        report.findings["memory"] = f"{report.memory_bytes} more bytes were in use at the most"
        report.times["memory"] += 1
    return report


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kind(error: Exception) -> tuple[str, str]:
    """What makes two findings the same: the error, and the innermost line of ours; and the lines that led there."""
    steps = [each for each in traceback.extract_tb(error.__traceback__) if "site-packages" not in each.filename]
    lines = [f"  {Path(each.filename).name}:{each.lineno} {each.line}" for each in steps[-4:]]
    what = str(error)[:40] if isinstance(error, AssertionError) else ""
    return f"{type(error).__name__} {what} at {Path(steps[-1].filename).name}:{steps[-1].lineno}", "\n".join(lines)


def _share(arguments: tuple[int, range]) -> Report:
    return fuzz(*arguments)


def main() -> int:
    """The command; its status is 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", type=int, help="the one input with this number, its error raised")
    options = parser.parse_args()
    if options.only is not None:
        report = fuzz(options.seed, (options.only,))
        print(*report.findings.values(), sep="\n")
        return int(bool(report.findings))
    begun = time.perf_counter()
    report = Report()
    step = max(1, min(20_000, -(-options.inputs // options.processes)))
    shares = [(options.seed, range(at, min(at + step, options.inputs))) for at in range(0, options.inputs, step)]
    with ProcessPoolExecutor(options.processes) as pool:
        for done, share in enumerate(pool.map(_share, shares), 1):
            report.add(share)
            if done % 10 == 0:
                print(f"{report.inputs.total():,} inputs, {len(report.findings)} kinds of findings", file=sys.stderr)
    seconds = time.perf_counter() - begun
    for name, count in sorted(report.inputs.items()):
        print(f"{count:>9,}  {name}")
    for kind, count in report.times.most_common():
        print(f"\nFOUND {count:,} times: {kind}\n{report.findings[kind]}")
    total = report.inputs.total()
    print(
        f"\n{total:,} inputs of {len(report.inputs)} targets from seed {options.seed} in {seconds:.0f} s "
        f"({total / seconds:,.0f} a second, {options.processes} processes), "
        f"{report.memory_bytes >> 20} MiB at the most, {len(report.findings)} kinds of findings"
    )
    return int(bool(report.findings))


if __name__ == "__main__":
    sys.exit(main())
