"""What the end of a job teaches, and what picks the rates of its lines."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import pytest

from services.core.calibrate import LEAST_SAMPLES, Calibration
from services.core.catalog import catalog_of
from services.core.events import Outcome, Settlement
from services.core.ports import OutboxEvent
from services.core.pricebook import PriceBook
from services.core.snapshot import UnknownModels
from services.core.usage.reading import Reading
from services.gateway.jobs.lines import bound_lines
from services.gateway.jobs.settle import JobSettler
from services.gateway.jobs.tally import Tally
from services.gateway.observe import NoObserver
from services.gateway.options import calibration_key
from tests.property.test_job_bounds import BATCH, NEEDED, batch, job_of

ENTRY: Final = {
    "vendor": "openai", "model": "small", "aliases": [], "max_output_tokens": 100,
    "prices": [{"usd": {"input": "2.0", "output": "4.0", "web_search": "1.0"}}],
    "variants": [{"when": {"processing": "batch"}, "usd": {"input": "1.0", "output": "2.0"}}],
}  # fmt: skip


class Kept:
    """A recorder that keeps everything."""

    def __init__(self) -> None:
        self.events: list[OutboxEvent] = []

    def append(self, events: Sequence[OutboxEvent]) -> None:
        self.events.extend(events)

    def is_full(self) -> bool:
        return False


def tally() -> Tally:
    book = PriceBook(catalog_of("v1", [ENTRY], {}), None, UnknownModels())
    return Tally(job_of(bound_lines(book, "openai", 1_795_000_000_000, batch([("small", 100, 100, 0)]))))


def reading(**usage: int) -> Reading:
    return Reading(usage, 0, complete=True, model="small", context={"processing": "standard"})


def test_a_line_is_priced_as_the_batch_it_is_of_whatever_it_says_itself() -> None:
    found = tally()
    found.add(reading(input_tokens=10, output_tokens=5), NEEDED)
    assert found.context == BATCH
    assert sum(each.cost_nano for each in found.components()) == 10 * 1_000 + 5 * 2_000


@pytest.mark.parametrize(
    ("usage", "outcome", "learns"),
    [
        ({"input_tokens": 10, "output_tokens": 5}, "completed", True),
        ({"input_tokens": 10, "output_tokens": 5}, "partial", False),
        ({"input_tokens": 10}, "completed", False),
    ],
)
def test_only_what_was_reported_of_a_whole_job_is_learned_from(
    usage: dict[str, int], outcome: Outcome, learns: bool
) -> None:
    calibration = Calibration()
    settler = JobSettler(Kept(), NoObserver(), calibration)
    found = tally()
    found.add(reading(**usage), NEEDED)
    for _ in range(LEAST_SAMPLES):
        assert settler.settle(found.job, found, outcome)
    estimate = calibration.estimate(calibration_key(found.job.facts), found.job.bound_nano)
    assert (estimate is not None) is learns


def test_a_jobs_settlement_tells_when_it_was_admitted_and_which_parents_pay() -> None:
    kept = Kept()
    found = tally()
    job = replace(found.job, parent_charged=("bud_0",), admitted_at_ms=1_795_000_000_001)
    assert JobSettler(kept, NoObserver(), Calibration()).settle(job, found, "completed")
    (settlement,) = (each.event for each in kept.events)
    assert isinstance(settlement, Settlement)
    assert (settlement.parent_charged, settlement.admitted_at_ms) == (("bud_0",), 1_795_000_000_001)
