"""Jobs that are asked for and ended while gateways stop, vendors hang, and answers of the hot state are lost."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from services.core.events import Settlement
from services.core.jobs import GIVE_UP_MS, Claim
from services.gateway import app
from services.gateway.assemble import Assembly, assemble
from tests.support.asgi import request
from tests.support.gateway import AWAY, ScriptedAnswer, options, until
from tests.support.job_faults import BATCH, COST_NANO, ENDED, OUTPUT, SUBMITTED, There, job_faults
from tests.support.jobs import jsonl, line

GONE = ScriptedAnswer([b"{}"], 404)


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[There]:
    async with job_faults(tmp_path) as made:
        yield made


async def pass_time(there: There, wait_ms: int) -> None:
    there.wait(wait_ms)
    await there.world.assembly.snapshots.poll()


# ---- a caller's own key ---------------------------------------------------------------------------------------------


async def submit_with_own_key(there: There) -> None:
    there.world.answer(ScriptedAnswer([jsonl(line(1))]), ScriptedAnswer([BATCH]))
    client = await there.world.call(SUBMITTED, path="/v1/batches", x_vendor_key="sk-mine")
    assert client.status == 200, client.json()


async def look_with_own_key(there: There, *contents: Any) -> None:
    there.world.answer(*(each if isinstance(each, Exception) else ScriptedAnswer([each]) for each in contents))
    headers = there.world.headers(x_vendor_key="sk-mine")
    await request(there.world.assembly.app, "/v1/batches/batch_1", headers=headers, method="GET")


async def test_a_job_of_a_callers_own_key_outlives_a_fault(there: There) -> None:
    await there.world.assembly.snapshots.poll()
    await submit_with_own_key(there)
    await look_with_own_key(there, ENDED.encode(), AWAY)
    for _ in range(3):
        await pass_time(there, 3_600_000)
        await there.poll()
    assert (len(there.jobs.all()), there.settlements()) == (1, [])
    await look_with_own_key(there, ENDED.encode(), OUTPUT)
    assert [each.cost_nano for each in there.settlements()] == [COST_NANO]
    assert {dict(each.headers)[b"authorization"] for each in there.world.vendor.requests} == {b"Bearer sk-mine"}


async def test_a_job_of_a_callers_own_key_that_is_due_is_kept_until_it_is_given_up(there: There) -> None:
    await there.world.assembly.snapshots.poll()
    await submit_with_own_key(there)
    claim = await there.jobs.claim(there.world.org.name, "openai", "batch_1", 1_000)
    assert claim is not None
    await there.jobs.put_back(claim, 0)
    await there.poll()
    assert len(there.jobs.all()) == 1
    await pass_time(there, GIVE_UP_MS + 1_000)
    await there.poll()
    assert (there.jobs.all(), there.settlements()) == ([], [])


# ---- lost answers ---------------------------------------------------------------------------------------------------


async def test_a_job_whose_keeping_was_not_answered_is_settled_once(
    there: There, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.jobs.keeper._KEEP_PAUSES_S", (0.0, 0.1))
    monkeypatch.setattr("services.gateway.jobs.keeper._KEEP_WAIT_S", 0.01)
    there.jobs.fails += ["kept"]
    await there.submit()
    await there.look(ENDED.encode(), OUTPUT)
    assert [each.cost_nano for each in there.settlements()] == [COST_NANO]
    await there.world.assembly.finish_jobs(5)
    await pass_time(there, 60_000)
    await there.poll(ENDED.encode(), OUTPUT)
    assert (len(there.settlements()), there.jobs.all()) == (1, [])


# ---- gone -----------------------------------------------------------------------------------------------------------


async def test_a_vendor_that_was_away_and_then_knows_of_nothing_is_not_believed_at_once(there: There) -> None:
    await there.world.assembly.snapshots.poll()
    await there.submit()
    for answer in (AWAY, AWAY, AWAY, AWAY, GONE):
        await pass_time(there, 3_600_000)
        await there.poll(answer)
    assert (there.settlements(), [(each.tries, each.gone) for each in there.jobs.all()]) == ([], [(5, 1)])
    await pass_time(there, 3_600_000)
    await there.poll(ENDED.encode(), OUTPUT)
    assert [each.cost_nano for each in there.settlements()] == [COST_NANO]


async def test_a_client_that_asks_all_the_time_does_not_make_a_job_gone(there: There) -> None:
    await there.world.assembly.snapshots.poll()
    await there.submit()

    async def look() -> None:
        there.world.answer(ScriptedAnswer([ENDED.encode()]), GONE)
        await request(there.world.assembly.app, "/v1/batches/batch_1", headers=there.world.headers(), method="GET")

    for wait_ms in (60_000, 120_000, 240_000, 480_000):
        for _ in range(3):
            await look()
            await pass_time(there, wait_ms // 4)
        assert there.settlements() == []
        await pass_time(there, wait_ms // 4 + 5_000)
    await look()
    (settlement,) = there.settlements()
    assert (settlement.outcome, settlement.cost_nano) == ("partial", settlement.held_nano - 1)


# ---- the gateway's end ----------------------------------------------------------------------------------------------


def ending_slowly(there: There) -> tuple[asyncio.Event, asyncio.Event]:
    """The end of a job is slow to be answered: set once it was asked for, and to be set to answer it."""
    asked, answered = asyncio.Event(), asyncio.Event()
    end = there.jobs.end

    async def slow(claim: Claim) -> bool:
        has_ended = await end(claim)
        asked.set()
        await answered.wait()
        return has_ended

    there.jobs.end = slow  # type: ignore[method-assign]
    return asked, answered


async def test_a_poller_that_is_cancelled_while_it_ends_a_job_settles_it(there: There) -> None:
    await there.submit()
    there.wait(60_000)
    asked, answered = ending_slowly(there)
    looking = asyncio.create_task(there.poll(ENDED.encode(), OUTPUT))
    await asked.wait()
    looking.cancel()
    await asyncio.wait({looking})
    answered.set()
    await there.world.assembly.finish_jobs(5)
    assert [each.cost_nano for each in there.settlements()] == [COST_NANO]


async def test_the_end_of_a_gateway_waits_a_little_only(there: There) -> None:
    await there.submit()
    asked, answered = ending_slowly(there)
    looking = asyncio.create_task(there.look(ENDED.encode(), OUTPUT))
    await asked.wait()
    await asyncio.wait_for(there.world.assembly.finish_jobs(0.05), 5)
    assert there.settlements() == []
    answered.set()
    await looking
    assert len(there.settlements()) == 1


class _Publishing:
    """The publisher, log and server of a gateway that is told to stop. `drained` is what the outbox had at the end."""

    def __init__(self, there: There, stopped: asyncio.Event) -> None:
        self._there = there
        self._stopped = stopped
        self.should_exit = False
        self.drained: list[Settlement] = []

    async def serve(self, sockets: object) -> None:
        await self._stopped.wait()

    async def create_topics(self, topics: object) -> None:
        return

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def drain(self, timeout_s: float) -> bool:
        self.drained = self._there.settlements()
        return True


async def test_a_gateway_that_stops_publishes_the_settlements_of_jobs_it_has_ended(there: There) -> None:
    await there.submit()
    there.wait(60_000)
    asked, answered = ending_slowly(there)
    there.world.answer(ScriptedAnswer([ENDED.encode()]), ScriptedAnswer([OUTPUT]))
    assembly: Assembly = assemble(there.world.ports, options(job_poll_interval_s=0.01))
    await assembly.snapshots.poll()
    stopped = asyncio.Event()
    other = cast("Any", _Publishing(there, stopped))
    running = asyncio.create_task(
        app._run_until_stopped(
            other, cast("Any", None), assembly, asyncio.sleep(3_600), other, other, there.world.outbox
        )
    )
    await asked.wait()
    stopped.set()
    asyncio.get_running_loop().call_later(0.1, answered.set)
    await running
    assert [each.cost_nano for each in other.drained] == [COST_NANO]


# ---- many orgs ------------------------------------------------------------------------------------------------------


async def test_an_org_whose_look_goes_on_keeps_no_other_waiting(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []

    async def orgs() -> list[str]:
        return ["slow", "other"]

    async def claim_due(org: str, limit: int, lease_ms: int) -> list[Claim]:
        looks.append(org)
        if org == "slow":
            await asyncio.Event().wait()
        return []

    monkeypatch.setattr(there.world.ports.directory, "orgs", orgs)
    monkeypatch.setattr(there.jobs, "claim_due", claim_due)
    running = asyncio.create_task(assemble(there.world.ports, options(job_poll_interval_s=0.01)).poller.run())
    await until(lambda: looks.count("other") >= 3)
    assert looks.count("slow") == 1
    running.cancel()
    await asyncio.wait({running})
    assert {each for each in asyncio.all_tasks() if "_look_at" in repr(each)} == set()


async def test_results_that_come_slowly_keep_no_other_org_waiting(
    there: There, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.jobs.poll._ORGS_AT_A_TIME", 1)
    await there.submit()
    there.wait(60_000)
    own, looks, slow = there.world.org.name, list[str](), asyncio.Event()
    usual = there.jobs.claim_due

    async def orgs() -> list[str]:
        return [own, "other"]

    async def claim_due(org: str, limit: int, lease_ms: int) -> Any:
        looks.append(org)
        return await usual(org, limit, lease_ms)

    monkeypatch.setattr(there.world.ports.directory, "orgs", orgs)
    monkeypatch.setattr(there.jobs, "claim_due", claim_due)
    there.world.answer(ScriptedAnswer([ENDED.encode()]), ScriptedAnswer([slow, OUTPUT]))
    assembly = assemble(there.world.ports, options())
    await assembly.snapshots.poll()
    looking = asyncio.create_task(assembly.poller.look())
    await until(lambda: "other" in looks)
    assert there.settlements() == []
    slow.set()
    await looking
    assert len(there.settlements()) == 1


async def test_an_org_with_slow_vendors_has_its_share_and_no_more(
    there: There, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        await there.submit(answer=ScriptedAnswer([BATCH.replace(b"batch_1", b"batch_%d" % number)]))
    there.wait(60_000)
    monkeypatch.setattr("services.gateway.jobs.poll._LOOK_S", -1.0)
    await there.poll(*(ScriptedAnswer([b"{}"]) for _ in range(6)))
    assert len([each for each in there.world.vendor.requests if "/batches/batch_" in each.url]) == 4
    await there.poll()
    looks = [each.url for each in there.world.vendor.requests if "/batches/batch_" in each.url]
    assert (len(looks), len(set(looks))) == (6, 6)
