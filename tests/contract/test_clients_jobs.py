"""The official clients' batches and background responses through the gateway: their outcome, and what they settle at.

Each gets through the gateway what it gets at the vendor itself, but for the address of Anthropic's results (ADR 10);
each job is held once and settled once, and no vendor ever sees the caller's key.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from services.core.events import Reservation
from tests.support.clients import ask, run_client_many
from tests.support.jobs import BATCH_INPUT_NANO, BATCH_OUTPUT_NANO, CLAUDE, JobWorld, job_world
from tests.support.vendors import StandInVendor, VendorName

MODELS: Final = {"openai": "gpt-4o-mini", "anthropic": CLAUDE}
# What each scenario costs: two lines of a batch at the batch price, or one response at the full one.
OPENAI_BATCH: Final = 2 * (13 * BATCH_INPUT_NANO + 9 * BATCH_OUTPUT_NANO)
RESPONSE: Final = 13 * 150 + 9 * 600
ANTHROPIC_BATCH: Final = 2 * (13 * 1_500 + 12 * 7_500)
CASES: Final = {
    "openai": {"batch": OPENAI_BATCH, "responses_background": RESPONSE},
    "anthropic": {"batches": ANTHROPIC_BATCH, "batch_results": ANTHROPIC_BATCH},
    "node-anthropic": {"batches": ANTHROPIC_BATCH, "batch_results": ANTHROPIC_BATCH},
}


@pytest.fixture
async def there(
    tmp_path: Path, valkey_url: str, openai_vendor: StandInVendor, anthropic_vendor: StandInVendor
) -> AsyncIterator[JobWorld]:
    async with job_world(tmp_path, valkey_url, openai_vendor, anthropic_vendor) as world:
        await world.org.set_budget("10.00")
        await world.gateways[0].assembly.snapshots.poll()
        yield world


@pytest.mark.parametrize("name", CASES)
async def test_jobs_are_what_they_are_at_the_vendor_itself(there: JobWorld, name: str) -> None:
    kind: VendorName = "openai" if name == "openai" else "anthropic"
    gateway, vendor = there.gateways[0].url, there.openai if kind == "openai" else there.anthropic
    straight_vendor = StandInVendor(kind)
    straight_vendor.start()
    # One process for all, as a client takes seconds to start: at the vendor itself, through the gateway, and by name.
    ways = [(straight_vendor.root, "sk-straight", ""), (gateway, there.key, ""), (gateway, there.key, f"/{kind}")]
    asked = [ask(name, each, *way, model=MODELS[kind]) for way in ways for each in CASES[name]]
    try:
        outcomes = await asyncio.to_thread(run_client_many, name, asked)
    finally:
        straight_vendor.stop()
    for outcome in outcomes:
        assert outcome["ok"], outcome
    count = len(CASES[name])
    straight, *through = (outcomes[at : at + count] for at in range(0, len(outcomes), count))
    for some, (root, _, prefix) in zip(through, ways[1:], strict=True):
        for expected, found in zip(straight, some, strict=True):
            assert plain(found) == plain(expected, straight_vendor.root, root + prefix)

    settlements = there.settlements()
    assert [each.cost_nano for each in settlements] == [*CASES[name].values()] * 2
    assert {(each.outcome, each.usage_source) for each in settlements} == {("completed", "reported")}
    held = {each.transaction_id: each.held_nano for each in there.events() if isinstance(each, Reservation)}
    assert {each.transaction_id for each in settlements} == held.keys()
    assert all(each.cost_nano <= held[each.transaction_id] for each in settlements)
    assert await there.kept() == 0
    assert {each.credential for each in vendor.requests} == {"sk-vendor" if kind == "openai" else "sk-ant-vendor"}


def plain(outcome: dict[str, Any], theirs: str = "", ours: str = "") -> str:
    """What a client got, without what differs from one batch or run to the next; `theirs` is where `ours` should be."""
    kept = {each: outcome.get(each) for each in ("text", "data", "usage", "chunks")}
    text = json.dumps(kept, sort_keys=True)
    return re.sub(r"(batch|resp)_stand_in_\d+", r"\1", text.replace(theirs, ours) if theirs else text)
