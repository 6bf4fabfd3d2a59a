"""Real gateways, aggregators and reapers, in a world that a seed draws with all that goes wrong in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.run import Tally, run_seeds, show
from tests.simulation.seeds import FOUND, FOUND_BY_BACKFILLS, FOUND_BY_ERRANDS, FOUND_WITH_ROLLBACKS
from tests.support.simulation.verify import verify
from tests.support.simulation.world import simulate, tidy

# Two thousand in all.
SEEDS, PARTS = 1600, 8
ROLLBACK_SEEDS = 300
BACKFILL_SEEDS = 100
# What every part of the runs has to show.
WANTED = {
    "spend.reservation.created.v1",
    "spend.settlement.recorded.v1",
    "spend.hold.expired.v1",
    "spend.hold.resized.v1",
    "spend.decision.denied.v1",
    "outcome cut_off",
    "outcome partial",
    "parent_charged",
    "would_block",
    "downgraded",
    "fail_open",
    "late settlement",
    "asked again",
    "absent",
    "estimate stepped",
    "backfilled",
    "alert",
    "unreadable",
    "told reserve 201",
    "told reserve 402",
    "told reserve 409",
    "told extend 200",
    "told settle 200",
    "told release 200",
    "told delegate 201",
}
ROOT = Path(__file__).resolve().parents[2]


def _told(tally: Tally, found: dict[int, str], **kind: bool) -> str:
    """What failed, with what it was that these seeds `found`."""
    return "\n".join(f"{found.get(seed, '')}\n{show(seed, each, **kind)}" for seed, each in tally.failed.items())


@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_holds_in_every_world(part: int) -> None:
    count = SEEDS // PARTS
    tally = run_seeds(range(part * count, (part + 1) * count))
    assert not tally.failed, _told(tally, {})
    # A rig in which nothing goes wrong, or nothing goes right, would prove nothing.
    assert tally.runs == count
    assert tally.admitted > 2 * count
    assert tally.kills > count // 4
    assert tally.loads > count // 10
    assert not WANTED - {name for name, times in tally.seen.items() if times}


@pytest.mark.parametrize(
    ("found", "kind"),
    [(FOUND, {"is_plain": True}), (FOUND_BY_ERRANDS, {}), (FOUND_BY_BACKFILLS, {"with_backfills": True})],
    ids=["plain", "errands", "backfills"],
)
def test_what_seeds_found_once_they_do_not_find_again(found: dict[int, str], kind: dict[str, bool]) -> None:
    tally = run_seeds(found, **kind)
    assert not tally.failed, _told(tally, found, **kind)


def test_what_seeds_with_lost_writes_found_once_they_do_not_find_again() -> None:
    tally = run_seeds(FOUND_WITH_ROLLBACKS, with_rollbacks=True)
    told = (
        f"{FOUND_WITH_ROLLBACKS[seed]}\n{show(seed, each, with_rollbacks=True)}" for seed, each in tally.failed.items()
    )
    assert not tally.failed, "\n".join(told)


def test_a_hot_state_that_lost_its_last_writes_has_them_folded_again() -> None:
    lost = 0
    with tidy():
        for seed in range(ROLLBACK_SEEDS):
            world = simulate(seed, with_rollbacks=True)
            findings = verify(world)
            assert not findings, show(seed, findings, with_rollbacks=True)
            lost += len(world.lost)
    assert lost > ROLLBACK_SEEDS // 4


def test_budgets_made_in_the_midst_of_calls_count_what_was_before_them() -> None:
    tally = run_seeds(range(BACKFILL_SEEDS), with_backfills=True)
    assert not tally.failed, "\n".join(
        show(seed, findings, with_backfills=True) for seed, findings in tally.failed.items()
    )
    assert tally.admitted > 2 * BACKFILL_SEEDS
    # Each makes three budgets, and a wipe takes none away.
    assert tally.seen["backfilled"] == 3 * BACKFILL_SEEDS
    assert tally.loads > BACKFILL_SEEDS // 10


def test_a_seed_is_the_same_run_every_time() -> None:
    with tidy():
        runs = [simulate(seed, keep_trace=True) for seed in range(40) for _ in range(2)]
    for first, second in zip(runs[::2], runs[1::2], strict=True):
        assert first.lines == second.lines, f"seed {first.plan.seed}"
        assert first.digest() == second.digest(), f"seed {first.plan.seed}"
    assert len({each.digest() for each in runs}) == len(runs) // 2


def test_a_seed_is_the_same_run_in_every_process() -> None:
    program = (
        "from tests.support.simulation.world import simulate, tidy\n"
        "with tidy():\n"
        "    print([simulate(seed).digest() for seed in range(30)])"
    )
    answers = set()
    for hash_seed in ("0", "2"):  # with an order of their own for every set of names
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        answers.add(
            subprocess.run(
                [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
            ).stdout
        )
    assert len(answers) == 1


def test_a_failing_seed_tells_how_to_have_it_again() -> None:
    told = show(42, [("P1", "bud_1 came to 3 of 2")])
    assert "P1: bud_1 came to 3 of 2" in told
    assert told.endswith("python -m tests.simulation.run --seed 42 --trace")
    told = show(42, [], with_rollbacks=True, is_plain=False, with_backfills=True)
    assert told.endswith("--seed 42 --rollbacks --backfills --trace")
