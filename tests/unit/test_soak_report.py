"""The soak's report tells what has failed, and is written all the same."""

import json
from pathlib import Path

import pytest

from tests.chaos import soak
from tests.chaos.rounds.report import figures, page
from tests.chaos.rounds.run import Outcome


def test_a_rig_that_fails_is_told_with_its_exit_status(capfd: pytest.CaptureFixture[str]) -> None:
    good = soak.run_rig("good", "tests.chaos.soak", "--help")
    bad = soak.run_rig("bad", "tests.no_such_rig")
    assert (good["status"], bad["status"]) == (0, 1)
    assert "--report" in capfd.readouterr().out
    told = page(figures(Outcome(seed=7)), [good])
    assert "**Passed**" in told
    assert "| good | `tests.chaos.soak --help` |" in told
    told = page(figures(Outcome(seed=7)), [good, bad])
    assert "**Failed**" in told
    assert "failed, exit status 1" in told


def test_what_was_found_is_in_the_figures_and_on_the_page() -> None:
    outcome = Outcome(seed=7, lost=["txn_1"])
    outcome.books.doubled.append("txn_2 has two settlement events")
    told = figures(outcome)
    assert (told["lost"], told["doubled"]) == (1, 1)
    text = page(json.loads(json.dumps(told)), [])
    assert "**Failed**" in text
    assert "txn_1 has begun, and has no ending" in text
    assert "txn_2 has two settlement events" in text
    assert "seed 7" in text


def test_the_report_is_written_when_every_rig_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def failing(name: str, module: str, *arguments: str) -> dict[str, object]:
        ran.append((name, arguments))
        return {"name": name, "command": module, "status": 70, "told": "", "seconds": 1.0}

    report = tmp_path / "results" / "soak.md"
    monkeypatch.setattr(soak, "run_rig", failing)
    monkeypatch.setattr("sys.argv", ["soak", "--seeds", "25", "--report", str(report)])
    assert soak.main() == 1
    text = report.read_text()
    assert text.count("failed, exit status 70") == len(ran) == 6
    seeds = {name: arguments for name, arguments in ran if name.startswith("simulation")}
    assert seeds["simulation"][:2] == ("--seeds", "25")
    assert seeds["simulation: calls alone"][:3] == ("--plain", "--seeds", "3")
    assert "Where it ran" in text
