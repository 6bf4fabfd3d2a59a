"""The rig notices: each bug planted in the services fails one of the first seeds, by the promise that it breaks."""

import pytest

from tests.simulation.mutations import BACKFILL_MUTATIONS, MUTATIONS
from tests.simulation.run import run_seeds

# A minute, in seeds: a second has ten and more of them, and unlike a second they are the same on any machine.
WITHIN = 300


@pytest.mark.parametrize("name", sorted({**MUTATIONS, **BACKFILL_MUTATIONS}))
def test_a_planted_bug_is_caught_within_a_minute(name: str) -> None:
    plant, promises = {**MUTATIONS, **BACKFILL_MUTATIONS}[name]
    with plant():
        tally = run_seeds(range(WITHIN), until_failed=True, with_backfills=name in BACKFILL_MUTATIONS)
    assert tally.failed, f"{name!r} went unnoticed in {WITHIN} seeds"
    ((seed, findings),) = tally.failed.items()
    assert findings[0][0] in promises, f"seed {seed}: {findings[:3]}"
