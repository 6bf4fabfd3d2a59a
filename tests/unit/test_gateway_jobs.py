"""Jobs from when they are kept to when they are settled, where something goes wrong."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.core.events import Reservation, Settlement
from services.core.ports import UnavailableError
from services.gateway.assemble import assemble
from services.gateway.jobs.keeper import LEASE_MS
from services.gateway.vendors.fields import TEMPLATE_TOKENS
from tests.support.asgi import request
from tests.support.gateway import (
    AWAY,
    RefusingOutbox,
    ScriptedAnswer,
    options,
    until,
    world,
)
from tests.support.job_faults import COST_NANO, ENDED, NOW_MS, OUTPUT, FailingJobs, There, job_faults
from tests.support.jobs import BATCH_INPUT_NANO, BATCH_OUTPUT_NANO, line
from tests.support.vendors import openai as answers


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[There]:
    async with job_faults(tmp_path) as made:
        yield made


async def test_a_job_whose_claim_can_not_be_ended_is_settled_later_and_once(there: There) -> None:
    await there.submit()
    there.jobs.fails += ["end"]
    await there.look(ENDED.encode(), OUTPUT)
    assert there.settlements() == []
    there.wait(LEASE_MS)
    await there.poll(ENDED.encode(), OUTPUT)
    await there.look(ENDED.encode())
    (settlement,) = there.settlements()
    assert settlement.cost_nano == COST_NANO


async def test_a_claim_that_was_lost_while_results_came_settles_nothing(there: There) -> None:
    await there.submit()
    slow = asyncio.Event()
    there.world.answer(ScriptedAnswer([ENDED.encode()]), ScriptedAnswer([slow, OUTPUT]))
    first = asyncio.ensure_future(
        request(there.world.assembly.app, "/v1/batches/batch_1", headers=there.world.headers(), method="GET")
    )
    await until(lambda: len(there.world.vendor.requests) == 4)
    there.wait(LEASE_MS)
    await there.poll(ENDED.encode(), OUTPUT)
    assert len(there.settlements()) == 1
    slow.set()
    await first
    assert len(there.settlements()) == 1


async def test_a_settlement_that_the_disk_does_not_take_is_tried_again(tmp_path: Path) -> None:
    made: There
    jobs = FailingJobs(lambda: made.world.clock())

    async with world(tmp_path, jobs=jobs) as inner:
        refused: list[Exception] = [UnavailableError("the disk is full")]
        outbox = RefusingOutbox(
            inner.outbox, lambda event: refused.pop() if isinstance(event, Settlement) and refused else None
        )
        assembly = assemble(replace(inner.ports, outbox=outbox), options())
        made = There(replace(inner, assembly=assembly), jobs)
        inner.clock.now_ms = NOW_MS
        await inner.org.set_budget("1.00")
        await assembly.snapshots.poll()
        await made.submit()
        await made.look(ENDED.encode(), OUTPUT)
        assert (made.settlements(), len(jobs.all())) == ([], 1)
        made.wait(60_000)
        await made.poll(ENDED.encode(), OUTPUT)
        assert [each.cost_nano for each in made.settlements()] == [COST_NANO]
        assert jobs.all() == []


async def test_a_vendor_that_is_away_is_asked_again_ever_less_often(there: There) -> None:
    await there.submit()
    there.wait(60_000)
    waits = [60_000, 120_000, 240_000]
    for wait_ms in waits:
        await there.poll(AWAY)
        there.wait(wait_ms - 1)
        await there.poll()
        there.wait(1)
    await there.poll(ENDED.encode(), OUTPUT)
    assert [each.cost_nano for each in there.settlements()] == [COST_NANO]


async def test_a_job_that_nobody_tells_of_is_given_up_after_its_hold_was_booked(there: There) -> None:
    await there.submit()
    for _ in range(200):
        if not there.jobs.all():
            break
        there.wait(3_600_000)
        await there.world.assembly.snapshots.poll()
        await there.poll(ScriptedAnswer([b"no"], 401))
    assert (there.jobs.all(), there.settlements()) == ([], [])
    assert there.world.clock.now_ms - NOW_MS > 26 * 3_600_000


async def test_a_batch_whose_output_is_still_to_be_written_has_not_ended(there: There) -> None:
    await there.submit()
    await there.look(json.dumps(answers.batch("batch_1", "completed", counts=(1, 1, 0))).encode())
    assert (there.settlements(), len(there.jobs.all())) == ([], 1)
    await there.look(ENDED.encode(), OUTPUT)
    assert [each.cost_nano for each in there.settlements()] == [COST_NANO]


async def test_a_gateway_looks_by_itself_and_goes_on_whatever_happens(there: There) -> None:
    await there.submit()
    there.wait(60_000)
    faults: list[Exception] = [AWAY, RuntimeError("a defect")]
    claim_due = there.jobs.claim_due

    async def failing(org: str, limit: int, lease_ms: int) -> Any:
        if faults:
            raise faults.pop()
        return await claim_due(org, limit, lease_ms)

    there.jobs.claim_due = failing  # type: ignore[method-assign]
    there.world.answer(ScriptedAnswer([ENDED.encode()]), ScriptedAnswer([OUTPUT]))
    assembly = assemble(there.world.ports, options(job_poll_interval_s=0.01))
    await assembly.snapshots.poll()
    running = asyncio.create_task(assembly.poller.run())
    await until(lambda: there.settlements())
    running.cancel()
    assert [each.cost_nano for each in there.settlements()] == [COST_NANO]
    assert faults == []


async def test_a_vendor_that_hangs_is_asked_again_later(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.jobs.access._STATUS_S", 0.05)
    await there.submit()
    there.wait(60_000)
    await there.poll(ScriptedAnswer([asyncio.Event()]))
    assert [each.tries for each in there.jobs.all()] == [1]


async def test_many_jobs_are_asked_for_in_one_look(there: There) -> None:
    for number in range(11):
        await there.submit(answer=ScriptedAnswer([json.dumps(answers.batch(f"batch_{number}", "validating")).encode()]))
    there.wait(60_000)
    before = len(there.world.vendor.requests)
    await there.poll(*(ScriptedAnswer([b"{}"]) for _ in range(11)))
    assert len({each.url for each in there.world.vendor.requests[before:]}) == 11


async def test_an_org_without_its_connection_keeps_its_job(there: There) -> None:
    await there.submit()
    await there.world.org.disconnect("openai")
    await there.world.sync()
    there.wait(60_000)
    await there.poll()
    (job,) = there.jobs.all()
    assert job.tries == 1


async def test_what_can_not_be_read_of_a_status_settles_nothing(there: There) -> None:
    await there.submit()
    for answer in (b"", b"[]", b"{", b'{"id": 5}', b'{"id": "batch_1", "status": ["completed"]}'):
        assert (await there.look(answer)).content == answer
    assert (there.settlements(), len(there.jobs.all())) == ([], 1)


async def test_a_line_of_results_that_can_not_be_read_costs_what_it_could(there: There) -> None:
    lines = [line(1), line(2, max_tokens=80)]
    await there.submit(*lines)
    await there.look(ENDED.encode(), OUTPUT + b'{"custom_id": "line-2", "resp')
    (settlement,) = there.settlements()
    longest = len(json.dumps(lines[1]["body"])) + TEMPLATE_TOKENS
    assert settlement.cost_nano == COST_NANO + longest * BATCH_INPUT_NANO + 80 * BATCH_OUTPUT_NANO
    assert settlement.usage_source == "estimated"


async def test_estimates_of_many_lines_stay_within_what_is_held(there: There) -> None:
    await there.submit(line(1), line(2))
    await there.look(ENDED.encode(), b"no json\n" * 50)
    (settlement,) = there.settlements()
    assert settlement.cost_nano == settlement.held_nano - 2


async def test_lines_without_usage_are_estimated_from_what_they_say(there: There) -> None:
    silent = answers.completion(text="four")
    del silent["usage"]
    await there.submit(line(1))
    await there.look(ENDED.encode(), answers.batch_output([answers.batch_line("line-1", silent)]))
    (settlement,) = there.settlements()
    (reservation,) = (each for each in there.world.events() if isinstance(each, Reservation))
    assert settlement.usage_source == "estimated"
    assert (settlement.usage["input_tokens"], settlement.usage["output_tokens"]) == (reservation.input_tokens_bound, 4)
