"""Rounds on an arena: a burst at tight budgets, a fault in its middle, and the books read when all is quiet again.

Run any number with ``python -m tests.chaos.rounds.run --rounds 200 --report FILE``. Traffic is to loopback only, and
ends by itself. `tests.chaos.soak` runs it together with the other rigs.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.adapters.kafka import KafkaLog
from services.core.ports import TopicPartition
from tests.chaos.rounds.arena import AGGREGATORS, GATEWAYS, READY_S, Arena, arena, tighten
from tests.chaos.rounds.books import Books
from tests.chaos.rounds.direct import Desk, Memory, scripts
from tests.chaos.rounds.faults import FAULTS, Fault
from tests.chaos.rounds.judging import CapBook, Limits
from tests.chaos.rounds.report import figures, page
from tests.chaos.rounds.rest import Agreement, Rest, end_parts, read_audit
from tests.chaos.rounds.traffic import Round, shots, tell
from tests.support.agreement import read_all, settle_down
from tests.support.burst import Hit, burst

# Concurrent calls of a round: those made one by one, and what the desk's scripts come to on top.
CALLS: Final = 880
RESERVATIONS: Final = 14
PARTS: Final = 3
ASKED_AGAIN: Final = 10
# How many rounds there are to a judgement: each waits until all holds have ended.
EACH_JUDGED: Final = 25
# Longer than a minute: that is how long a part holds whose gateway died before it could tell of it.
QUIET_S: Final = 240.0


@dataclass
class Outcome:
    """What all rounds came to. `recovery_s` by fault: from its end until every service answered again.

    `judged`: the rounds whose end the judge has seen. `begun`: the calls whose answer had begun, so that they must have
    an ending. `failure`: why the run ended early.
    """

    seed: int = 0
    rounds: int = 0
    judged: int = 0
    told: Counter[str] = field(default_factory=Counter)
    desk: Counter[str] = field(default_factory=Counter)
    begun: set[str] = field(default_factory=set)
    recovery_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: Memory = field(default_factory=Memory)
    books: Books = field(default_factory=lambda: Books(CapBook(Limits()), {}))
    agreement: Agreement = field(default_factory=Agreement)
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0
    judging_s: float = 0.0
    failure: str = ""

    @property
    def calls(self) -> int:
        """How many were made."""
        return self.told.total()

    def findings(self) -> list[str]:
        """All that is not as promised, worst first."""
        found = [f"P1: {each}" for each in self.books.caps.found]
        found += [f"P2: {each}" for each in self.memory.differing]
        found += [f"P4: {name} has begun, and has no ending" for name in self.lost]
        found += [f"P4: {each}" for each in (*self.books.doubled, *self.agreement.findings)]
        return found + self.books.wrong + ([self.failure] if self.failure else [])


@dataclass
class Judge:
    """Reads what is new, each time, and holds everything against it."""

    made: Arena
    log: KafkaLog
    outcome: Outcome
    limits: Limits
    rest: Rest
    last_entry: int = 0

    async def judge(self) -> None:
        """Waits for quiet first."""
        outcome, began_s = self.outcome, time.monotonic()
        await asyncio.to_thread(self.made.cluster.wait_ready, "ledger", READY_S)
        self.last_entry = await asyncio.to_thread(read_audit, self.made, self.limits, self.last_entry)
        await end_parts(self.made, self.limits)
        await settle_down(self.made.cluster, self.log, GATEWAYS, QUIET_S)
        judged_s = time.monotonic()
        self.last_entry = await asyncio.to_thread(read_audit, self.made, self.limits, self.last_entry)
        books = outcome.books
        since = {TopicPartition(*place): offset for place, offset in books.offsets.items()}
        await asyncio.to_thread(books.take, await read_all(self.log, since=since))
        outcome.agreement = await self.rest.agreement(books)
        outcome.lost = sorted({name for name in outcome.begun if not _has_ended(books, name)} | set(books.open()))
        totals = {name: sum(each.values()) for name, each in books.spent_by.items()}
        if len(set(totals.values())) > 1:
            books.wrong.append(f"P3: the sums differ: {totals}")
        outcome.judged = outcome.rounds
        ended_s = time.monotonic()
        outcome.judging_s += ended_s - judged_s
        print(f"  quiet after {judged_s - began_s:.1f} s, judged in {ended_s - judged_s:.1f} s", flush=True)


def _has_ended(books: Books, name: str) -> bool:
    call = books.calls.get(name)
    # A gateway whose disk is full can't record what a call did cost: its hold's expiry books the most it can have cost.
    return call is not None and call.opened is not None and call.has_ended


async def play(
    made: Arena, outcome: Outcome, rounds: int, *, calls: int = CALLS, each_judged: int = EACH_JUDGED
) -> None:
    """Plays rounds and judges, up to the first finding. Raises `AssertionError` where a service does not come back."""
    rng = random.Random(outcome.seed)
    log = KafkaLog(made.kafka.bootstrap)
    limits = Limits(made.watching())
    outcome.books = Books(CapBook(limits), made.parents())
    judge = Judge(made, log, outcome, limits, Rest(made))
    began_s = time.monotonic()
    try:
        for number in range(rounds):
            began_round_s = time.monotonic()
            await tighten(made, rng, calls // 4)
            fault = FAULTS[number % len(FAULTS)]
            recovery_s = await _round(Round(made, number, rng), fault, outcome, calls)
            outcome.recovery_s[fault.__name__].append(recovery_s)
            outcome.rounds += 1
            outcome.seconds = time.monotonic() - began_s
            took_s = time.monotonic() - began_round_s
            print(f"round {number + 1}, {fault.__name__}: {took_s:.1f} s, ready in {recovery_s:.1f} s", flush=True)
            if (number + 1) % each_judged == 0 or number + 1 == rounds:
                await judge.judge()
            if outcome.findings():
                break
    finally:
        outcome.seconds = time.monotonic() - began_s
        await log.close()


async def _round(this: Round, fault: Fault, outcome: Outcome, calls: int) -> float:
    desk = Desk(this, outcome.memory)
    shooting = asyncio.create_task(burst(shots(this, calls)))
    working = [asyncio.create_task(each) for each in scripts(desk, RESERVATIONS, PARTS, ASKED_AGAIN)]
    await asyncio.sleep(0.3 + this.rng.random() * 0.7)
    await fault(this.arena, this.rng)
    healed_s = time.monotonic()
    ready = asyncio.create_task(_ready_again(this.arena))
    hits = await shooting
    await asyncio.gather(*working)
    recovered_s = await ready
    _take(outcome, [*hits, *desk.hits], desk)
    return recovered_s - healed_s


async def _ready_again(made: Arena) -> float:
    """When every service takes calls again."""
    names = ("control", *AGGREGATORS, *GATEWAYS)
    await asyncio.gather(*(asyncio.to_thread(made.cluster.wait_ready, name, READY_S) for name in names))
    return time.monotonic()


def _take(outcome: Outcome, hits: list[Hit], desk: Desk) -> None:
    outcome.told.update(tell(hits))
    outcome.desk.update(desk.seen)
    # The head of an answer comes after the call's record is on disk, and that of an error that is no call's has none.
    outcome.begun |= {each.transaction_id for each in hits if each.transaction_id and each.status in (0, 200)}
    outcome.begun |= desk.held


def run(outcome: Outcome, rounds: int, place: Path, *, calls: int = CALLS, each_judged: int = EACH_JUDGED) -> None:
    """Plays them on an arena of their own; what goes wrong with the run itself is in its outcome, too."""
    try:
        with arena(place) as made:
            asyncio.run(play(made, outcome, rounds, calls=calls, each_judged=each_judged))
    except Exception as error:  # whatever it is, the report says so
        outcome.failure = f"the run ended early: {type(error).__name__}: {str(error)[:200]} … {str(error)[-1_500:]}"


def main() -> int:
    """Exit status: 0 when all was as promised."""
    parser = argparse.ArgumentParser(description="Bursts and faults on real processes and engines.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--calls", type=int, default=CALLS, help="of each burst, beside those in several steps")
    parser.add_argument("--each-judged", type=int, default=EACH_JUDGED, help="how many rounds to a judgement")
    parser.add_argument("--report", type=Path, help="where to write it as Markdown")
    parser.add_argument("--figures", type=Path, help="where to write the figures of the report as JSON")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    outcome = Outcome(options.seed)
    with tempfile.TemporaryDirectory(prefix="farthing-soak-") as place:
        run(outcome, options.rounds, Path(place), calls=options.calls, each_judged=options.each_judged)
    told = figures(outcome)
    if options.figures is not None:
        options.figures.write_text(json.dumps(told, indent=1))
    text = page(told, [])
    print(text)
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(text)
    for finding in outcome.findings()[:20]:
        print(finding[:2_000], file=sys.stderr)
    return 1 if outcome.findings() else 0


if __name__ == "__main__":
    sys.exit(main())
