"""Rounds on an arena: a burst at tight budgets, a fault in its middle, and the books read when all is quiet again.

Run any number with ``python -m tests.chaos.rounds.run --rounds 200 --report bench/results/soak.md``. Traffic is to
loopback only, and ends by itself.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.adapters.kafka import KafkaLog
from tests.chaos.rounds.arena import AGGREGATORS, GATEWAYS, Arena, arena, tighten
from tests.chaos.rounds.faults import FAULTS, Fault
from tests.chaos.rounds.judging import Overshoots, overshoots
from tests.support.agreement import assert_agreement, read_all, settle_down
from tests.support.burst import Hit, burst
from tests.support.checker import Verdict, judge

CALLS: Final = 1_000
READY_S: Final = 40.0
QUIET_S: Final = 60.0


@dataclass
class Outcome:
    """What all rounds came to. `recovery_s` by fault: from its end until every gateway answered calls again."""

    rounds: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    answered: set[str] = field(default_factory=set)
    recovery_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    overshoots: Overshoots = field(default_factory=Overshoots)
    verdict: Verdict = field(default_factory=Verdict)
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def calls(self) -> int:
        """How many were made."""
        return self.statuses.total()


async def play(made: Arena, rounds: int, seed: int, *, calls: int = CALLS, each_judged: int = 20) -> Outcome:
    """Plays rounds and judges; raises `AssertionError` where the books do not agree."""
    rng = random.Random(seed)
    log = KafkaLog(made.kafka.bootstrap)
    outcome = Outcome()
    began_s = time.monotonic()
    try:
        for number in range(rounds):
            await tighten(made, rng, calls // 4)
            fault = FAULTS[number % len(FAULTS)]
            hits, recovery_s = await _round(made, fault, rng, calls)
            outcome.recovery_s[fault.__name__].append(recovery_s)
            outcome.rounds += 1
            outcome.statuses.update(each.status for each in hits)
            outcome.answered |= {each.transaction_id for each in hits if each.status == 200 and each.transaction_id}
            if (number + 1) % each_judged == 0 or number + 1 == rounds:
                await _judge(made, log, outcome)
    finally:
        await log.close()
    outcome.seconds = time.monotonic() - began_s
    return outcome


async def _round(made: Arena, fault: Fault, rng: random.Random, calls: int) -> tuple[list[Hit], float]:
    shooting = asyncio.create_task(burst(made.shots(rng, calls)))
    await asyncio.sleep(0.3 + rng.random() * 0.7)
    await fault(made, rng)
    healed_s = time.monotonic()
    hits = await shooting
    await asyncio.gather(
        *(asyncio.to_thread(made.cluster.wait_ready, name, READY_S) for name in ("control", *AGGREGATORS, *GATEWAYS))
    )
    return hits, time.monotonic() - healed_s


async def _judge(made: Arena, log: KafkaLog, outcome: Outcome) -> None:
    await asyncio.to_thread(made.cluster.wait_ready, "ledger", READY_S)
    await settle_down(made.cluster, log, GATEWAYS, QUIET_S)
    messages = await read_all(log)
    verdict = await asyncio.to_thread(judge, messages)
    await asyncio.to_thread(assert_agreement, verdict, made.cluster)
    limits = await asyncio.to_thread(made.limits)
    outcome.overshoots = await asyncio.to_thread(overshoots, messages, limits)
    outcome.verdict = verdict
    # A gateway whose disk is full can't record what a call did cost: its hold's expiry books the most it can have cost.
    ended = {name for name, each in verdict.transactions.items() if each.settlement or each.expiry}
    outcome.lost = sorted(outcome.answered - ended)
    assert not outcome.overshoots.found, outcome.overshoots.found[:5]
    assert not outcome.lost, outcome.lost[:5]
    totals = [sum(verdict.spent_by(name).values()) for name in ("org", "team", "agent")]
    assert len(set(totals)) == 1, totals


def report(outcome: Outcome, seed: int) -> str:
    """The run as a page of Markdown."""
    kinds = outcome.verdict.kinds()
    admitted, refused = kinds["reservation"], outcome.statuses[402]
    lines = [
        "# Soak",
        "",
        "Written by `make soak`: ten gateways, two aggregators, a ledger and control as processes of their own, on a",
        f"real Kafka, Valkey and PostgreSQL; bursts of {CALLS:,} concurrent calls at 40 budgets, a fault in the middle",
        "of each.",
        "",
        "| | |",
        "|---|---|",
        f"| rounds | {outcome.rounds} (seed {seed}) |",
        f"| calls | {outcome.calls:,} |",
        f"| admitted | {admitted:,} |",
        f"| refused by a budget | {refused:,} |",
        f"| answered otherwise (503, cut off, no answer) | {outcome.calls - outcome.statuses[200] - refused:,} |",
        f"| holds that expired | {kinds['expiry']:,} |",
        f"| admissions checked against a limit | {outcome.overshoots.checked:,} |",
        f"| overshoot | ${_usd(outcome.overshoots.most)} |",
        f"| lost (answered, and without an ending in the log) | {len(outcome.lost)} |",
        "| doubled (two endings of one kind of one call) | 0, or the run would have failed |",
        f"| published twice, and taken once | {outcome.verdict.duplicates:,} |",
        f"| time | {outcome.seconds:,.0f} s |",
        "",
        "| fault | rounds | until every service was ready again, median | longest |",
        "|---|---|---|---|",
    ]
    for fault in FAULTS:
        times = sorted(outcome.recovery_s.get(fault.__name__, []))
        if times:
            told = (fault.__doc__ or "").partition("\n")[0].rstrip(".")
            lines.append(f"| {told} | {len(times)} | {times[len(times) // 2]:.1f} s | {times[-1]:.1f} s |")
    return "\n".join(lines) + "\n"


def _usd(amount_nano: int) -> str:
    return f"{amount_nano // 10**9}.{amount_nano % 10**9:09d}"


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="farthing-soak-") as place, arena(Path(place)) as made:
        outcome = asyncio.run(play(made, options.rounds, options.seed))
    text = report(outcome, options.seed)
    print(text)
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(text)


if __name__ == "__main__":
    main()
