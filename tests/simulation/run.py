"""Runs seeds of the simulation: ``python -m tests.simulation.run --seeds 100000 --from 0 --jobs 2``.

What fails is printed, seed by seed, with how to have it again: ``python -m tests.simulation.run --seed 42 --trace``.
"""

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from tests.support.simulation.verify import sights, verify
from tests.support.simulation.world import simulate, tidy

CHUNK = 50
_OPTIONS = {"with_rollbacks": "--rollbacks", "is_plain": "--plain", "with_backfills": "--backfills"}


@dataclass
class Tally:
    """What a number of runs came to; `failed` are the seeds with their findings."""

    runs: int = 0
    calls: int = 0
    admitted: int = 0
    kills: int = 0
    loads: int = 0
    steps: int = 0
    # How often each thing was seen that a run is there to bring about.
    seen: Counter[str] = field(default_factory=Counter)
    failed: dict[int, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, other: "Tally") -> None:
        """Takes in another tally."""
        for name in ("runs", "calls", "admitted", "kills", "loads", "steps"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seen.update(other.seen)
        self.failed.update(other.failed)


def run_seeds(
    seeds: Iterable[int],
    until_failed: bool = False,
    with_rollbacks: bool = False,
    is_plain: bool = False,
    with_backfills: bool = False,
) -> Tally:
    """Runs the seeds in this process, one after another."""
    tally = Tally()
    with tidy():
        for seed in seeds:
            world = simulate(seed, with_rollbacks=with_rollbacks, is_plain=is_plain, with_backfills=with_backfills)
            findings = verify(world)
            tally.runs += 1
            tally.calls += len(world.plan.calls)
            tally.admitted += len(world.witness.admitted)
            tally.kills += world.kills
            tally.loads += sum(map(len, world.witness.loads.values()))
            tally.steps += world.loop.steps
            tally.seen.update(sights(world))
            if findings:
                tally.failed[seed] = findings
                if until_failed:
                    break
    return tally


def show(seed: int, findings: list[tuple[str, str]], **kind: bool) -> str:
    """A failing seed, and how to have it again. `kind` is that of `simulate`."""
    options = "".join(f" {_OPTIONS[name]}" for name, is_so in kind.items() if is_so)
    told = "\n".join(f"  {promise}: {text[:400]}" for promise, text in findings[:5])
    return f"seed {seed}:\n{told}\n  again: python -m tests.simulation.run --seed {seed}{options} --trace"


def _chunks(first: int, count: int) -> Iterator[range]:
    for begin in range(first, first + count, CHUNK):
        yield range(begin, min(begin + CHUNK, first + count))


def _one(seed: int, with_trace: bool, **kind: bool) -> int:
    with tidy():
        world = simulate(seed, keep_trace=with_trace, **kind)
        findings = verify(world)
    if with_trace:
        print("\n".join(world.lines))
    print(f"seed {seed}: digest {world.digest()}, {world.loop.steps} steps, {len(world.witness.admitted)} admitted")
    for promise, text in findings:
        print(f"  {promise}: {text}")
    return 1 if findings else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Runs seeds of the simulation.")
    parser.add_argument("--seeds", type=int, default=2000, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--trace", action="store_true", help="with everything that happens in it (with --seed)")
    parser.add_argument("--jobs", type=int, default=1, help="in so many processes")
    parser.add_argument("--rollbacks", action="store_true", help="the hot state may lose its last writes, too")
    parser.add_argument("--plain", action="store_true", help="calls alone: no reservation API, no parts of budgets")
    parser.add_argument("--backfills", action="store_true", help="budgets are made in the midst of calls; plain")
    options = parser.parse_args()
    kind = {
        "with_rollbacks": options.rollbacks,
        "is_plain": options.plain,
        "with_backfills": options.backfills,
    }
    if options.seed is not None:
        return _one(options.seed, options.trace, **kind)
    began, total = time.monotonic(), Tally()
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for tally in pool.imap_unordered(
            partial(run_seeds, **kind),
            _chunks(options.first, options.seeds),
        ):
            total.add(tally)
            for seed, findings in tally.failed.items():
                print(show(seed, findings, **kind), flush=True)
    print(
        f"{total.runs} seeds in {time.monotonic() - began:.0f} s: {total.calls} calls, {total.admitted} admitted,"
        f" {total.kills} kills, {total.loads} rebuilds, {total.steps} steps, {len(total.failed)} failed"
    )
    print(", ".join(f"{name} {count}" for name, count in sorted(total.seen.items())))
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
