"""`core.jobs.Jobs`: one suite over both implementations, in memory and in a real Valkey."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from services.adapters.memory_jobs import MemoryJobs
from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.adapters.valkey_jobs import ValkeyJobs
from services.adapters.valkey_scripts import Script
from services.core.budgets import Charge
from services.core.events import Attempt, CallFacts
from services.core.hotstate import OrgImage
from services.core.identity import Identity
from services.core.jobs import ENDED_MS, Job, JobPart, Jobs, decode_job, encode_job
from services.core.pricing import Price, Tier, Variant
from tests.support.hot_rig import NOW_MS
from tests.support.hot_state import turn_clock

ORG, VENDOR = "acme", "openai"
LEASE_MS = 10_000
PRICE = Price(
    {"input": 150_000_000},
    (Tier(1_000, {"input": 300_000_000}),),
    100,
    1_000,
    (Variant({"processing": "batch"}, {"input": 75_000_000}, (Tier(1_000, {"input": 150_000_000}),)),),
    {"audio_ms": 10_000},
)
JOB = Job(
    org=ORG,
    vendor=VENDOR,
    job_id="batch_é/1",
    kind="openai.batch",
    dialect="openai",
    path="/v1/batches",
    query="api-version=1",
    headers=(("openai-project", "proj_é"),),
    endpoint="/v1/chat/completions",
    transaction_id="txn_01M8EDSM6BH225F1RGET3FH6PE",
    facts=CallFacts(Identity(ORG, "ml", "ada"), VENDOR, "batches", "gpt-4o", "gpt-4o", "exact", "v1", 3, "byok"),
    charges=(Charge("bud_1", "org:acme", "1:2"),),
    held_nano=2**62,
    bound_nano=7,
    estimate_mode="calibrated",
    context={"processing": "batch"},
    parts=(JobPart("gpt-4o", PRICE, 2, 3, 4, {"web_searches": 5}, 6, 7, 8, {"images": 9}, {"pages": 1}, {"pages": 2}),),
    http_status=200,
    attempts=(Attempt(VENDOR, "gpt-4o", "answered", 200, 12),),
    latency_us={"total": 1},
    trace=(("traceparent", "00-1"),),
    by_own_key=True,
    gives_up_at_ms=NOW_MS + 1,
    tries=2,
    gone=1,
    gone_from_ms=NOW_MS + 2,
    parent_charged=("bud_0",),
    admitted_at_ms=NOW_MS - 5,
)


@dataclass
class JobsRig:
    """Jobs on a clock that the test turns."""

    jobs: Jobs
    connection: ValkeyConnection | None
    now_ms: int = NOW_MS

    async def wait(self, wait_ms: int) -> None:
        self.now_ms += wait_ms
        if self.connection is not None:
            await turn_clock(self.connection, self.now_ms)

    async def claim(self, job: Job = JOB) -> Any:
        return await self.jobs.claim(job.org, job.vendor, job.job_id, LEASE_MS)

    async def due(self, limit: int = 10) -> list[str]:
        return [each.job.job_id for each in await self.jobs.claim_due(ORG, limit, LEASE_MS)]


@pytest.fixture(params=["memory", "valkey"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[JobsRig]:
    built: JobsRig
    if request.param == "memory":
        built = JobsRig(MemoryJobs(lambda: built.now_ms), None)
        yield built
        return
    connection = ValkeyConnection(request.getfixturevalue("valkey_url"))
    jobs = ValkeyJobs(connection)
    clock = "redis.call('HMGET', 'test:clock', 'seconds', 'micros')"
    assert all(script.source.count("redis.call('TIME')") == 1 for script in jobs._scripts.values())
    jobs._scripts = {
        name: Script.of(script.source.replace("redis.call('TIME')", clock)) for name, script in jobs._scripts.items()
    }
    built = JobsRig(jobs, connection)
    await built.wait(0)
    yield built
    await connection.close()


def test_a_job_comes_back_as_it_was() -> None:
    assert decode_job(encode_job(JOB)) == JOB


def test_a_record_of_before_counts_had_their_lines_can_be_read() -> None:
    fields = json.loads(encode_job(JOB))
    for name in ("gone", "gone_from_ms", "parent_charged", "admitted_at_ms"):
        del fields[name]
    for name in ("line_counts", "counted", "line_counted"):
        del fields["parts"][0][name]
    part = replace(JOB.parts[0], line_counts={}, counted={}, line_counted={})
    before = replace(JOB, parts=(part,), gone=0, gone_from_ms=0, parent_charged=(), admitted_at_ms=0)
    assert decode_job(json.dumps(fields).encode()) == before


async def test_a_job_that_was_ended_is_not_kept_again_for_a_while(rig: JobsRig) -> None:
    """Whoever had no answer from `keep` tries again; the job may have been settled in between."""
    other = replace(JOB, job_id="other")
    await rig.jobs.keep(JOB, 0)
    assert await rig.jobs.end(await rig.claim())
    await rig.wait(ENDED_MS - 1)
    for job in (JOB, other):
        await rig.jobs.keep(job, 0)
    assert (await rig.claim(), (await rig.claim(other)).job) == (None, other)
    assert await rig.due() == []
    await rig.wait(1)
    await rig.jobs.keep(JOB, 0)
    assert (await rig.claim()).job == JOB


async def test_a_job_that_was_ended_is_kept_again_by_who_could_not_settle_it(rig: JobsRig) -> None:
    await rig.jobs.keep(JOB, 0)
    claim = await rig.claim()
    assert await rig.jobs.end(claim)
    await rig.jobs.keep(claim.job, 0, again=True)
    assert await rig.due() == [JOB.job_id]


async def test_an_end_that_was_not_ones_own_forgets_nothing(rig: JobsRig) -> None:
    await rig.jobs.keep(JOB, 0)
    claim = await rig.claim()
    assert not await rig.jobs.end(replace(claim, token="another"))
    await rig.jobs.put_back(claim, 0)
    assert await rig.due() == [JOB.job_id]


async def test_a_job_is_claimed_by_one_and_ended_once(rig: JobsRig) -> None:
    assert await rig.claim() is None
    await rig.jobs.keep(JOB, 1_000)
    claims = [each for each in await asyncio.gather(*(rig.claim() for _ in range(5))) if each is not None]
    (claim,) = claims
    assert claim.job == JOB
    assert [await rig.jobs.end(claim) for _ in range(2)] == [True, False]
    assert await rig.claim() is None


async def test_a_job_that_is_kept_twice_stays_as_it_was(rig: JobsRig) -> None:
    await rig.jobs.keep(JOB, 1_000)
    await rig.jobs.keep(replace(JOB, held_nano=1), 0)
    assert await rig.due() == []
    assert (await rig.claim()).job == JOB


async def test_jobs_are_due_in_their_time_and_not_again_while_they_are_claimed(rig: JobsRig) -> None:
    later = replace(JOB, job_id="later")
    await rig.jobs.keep(later, 2_000)
    await rig.jobs.keep(JOB, 1_000)
    await rig.wait(999)
    assert await rig.due() == []
    await rig.wait(1)
    assert await rig.due() == [JOB.job_id]
    assert await rig.claim() is None
    await rig.wait(1_000)
    assert await rig.due(limit=0) == []
    assert await rig.due() == ["later"]
    await rig.wait(LEASE_MS - 1_001)
    assert await rig.due() == []
    await rig.wait(1)
    assert await rig.due() == [JOB.job_id]


async def test_a_limit_takes_those_that_have_waited_longest(rig: JobsRig) -> None:
    for number in range(5):
        await rig.jobs.keep(replace(JOB, job_id=f"job-{number}"), 5 - number)
    await rig.wait(10)
    assert await rig.due(limit=2) == ["job-4", "job-3"]
    assert await rig.due() == ["job-2", "job-1", "job-0"]


async def test_a_claim_that_is_over_proves_nothing(rig: JobsRig) -> None:
    await rig.jobs.keep(JOB, 0)
    first = await rig.claim()
    await rig.wait(LEASE_MS)
    second = await rig.claim()
    assert second is not None
    await rig.jobs.put_back(replace(first, job=replace(JOB, tries=9)), 0)
    assert await rig.due() == []
    assert not await rig.jobs.end(first)
    assert await rig.jobs.end(second)


async def test_a_claim_that_is_over_still_holds_when_nobody_else_has_come(rig: JobsRig) -> None:
    await rig.jobs.keep(JOB, 0)
    claim = await rig.claim()
    await rig.wait(2 * LEASE_MS)
    assert await rig.jobs.end(claim)


async def test_what_is_put_back_is_due_and_as_it_is_now(rig: JobsRig) -> None:
    await rig.jobs.keep(JOB, 0)
    (claim,) = await rig.jobs.claim_due(ORG, 10, LEASE_MS)
    await rig.jobs.put_back(replace(claim, job=replace(claim.job, tries=3)), 500)
    assert await rig.due() == []
    assert not await rig.jobs.end(claim)
    await rig.wait(500)
    (again,) = await rig.jobs.claim_due(ORG, 10, LEASE_MS)
    assert again.job == replace(JOB, tries=3)


async def test_orgs_and_vendors_are_apart(rig: JobsRig) -> None:
    others = [replace(JOB, org="other"), replace(JOB, vendor="azure")]
    for job in others:
        await rig.jobs.keep(job, 0)
    assert await rig.claim() is None
    assert (await rig.claim(others[0])).job == others[0]
    assert (await rig.claim(others[1])).job == others[1]


async def test_a_job_outlives_a_rebuild_of_its_org(valkey_url: str) -> None:
    connection = ValkeyConnection(valkey_url)
    hot_state, jobs = ValkeyHotState(connection), ValkeyJobs(connection)
    assert await hot_state.load(ORG, OrgImage({}, {}, {}, {}), "epoch-1")
    await jobs.keep(JOB, 0)
    await connection.execute("DEL", f"{{{ORG}}}:epoch")
    assert await hot_state.load(ORG, OrgImage({}, {}, {}, {}), "epoch-2")
    claim = await jobs.claim(ORG, VENDOR, JOB.job_id, LEASE_MS)
    assert claim is not None
    assert claim.job == JOB
    await connection.close()


async def test_a_record_that_can_not_be_read_hides_no_other(valkey_url: str) -> None:
    connection = ValkeyConnection(valkey_url)
    jobs = ValkeyJobs(connection)
    await jobs.keep(replace(JOB, job_id="newer"), 0)
    await connection.execute("HSET", f"jobs:{{{ORG}}}", f"{VENDOR}/newer", b'{"version": 99}')
    await jobs.keep(JOB, 0)
    assert await jobs.claim(ORG, VENDOR, "newer", LEASE_MS) is None
    assert [each.job for each in await jobs.claim_due(ORG, 10, LEASE_MS)] == [JOB]
    await connection.close()
