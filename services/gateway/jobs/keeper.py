"""Jobs from their vendor's first answer to their settlement: kept, claimed by one gateway, and ended once."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

import structlog

from services.core.events import Outcome
from services.core.jobs import GIVE_UP_MS, Claim, Job, Jobs
from services.core.ports import UnavailableError
from services.gateway.admit import AdmittedCall
from services.gateway.jobs.access import Access, Fetcher, VendorSaysNoError, lasting_query, scoping_headers
from services.gateway.jobs.settle import JobSettler
from services.gateway.jobs.states import Ending, has_ended, needed_of, outcome_of, read_line
from services.gateway.jobs.tally import Tally
from services.gateway.meter import Metered
from services.gateway.snapshots import HotClock

log = structlog.get_logger()

# When a job is first asked for, and again while it goes on.
FIRST_LOOK_MS: Final = 60_000
NEXT_LOOK_MS: Final = 60_000
# Reading a large batch's results takes minutes; one that takes longer than this is begun anew by another gateway.
LEASE_MS: Final = 900_000
_RETRY_MS: Final = 60_000
_LONGEST_RETRY_MS: Final = 3_600_000
# So far do the waits double.
_MOST_DOUBLINGS: Final = 6
# How often a vendor may say that it knows nothing of a job or its results, each time after a longer wait, before that
# is believed.
GONE_TRIES: Final = 5
_LINES_AT_A_TIME: Final = 16
_KEEP_PAUSES_S: Final = (0.0, 0.2, 1.0, 5.0, 30.0)
_KEEP_WAIT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class GoesOn:
    """A call that its answer does not end. `kept` is done when its job's record is kept; None without a record."""

    kept: asyncio.Task[None] | None

    async def wait(self) -> None:
        """Waits a little for it, so that whoever is told of the job finds it kept."""
        if self.kept is not None:
            await asyncio.wait({self.kept}, timeout=_KEEP_WAIT_S)


class Keeper:
    """Keeps jobs and settles them. Everything that a job costs goes through here, once."""

    def __init__(self, jobs: Jobs, fetcher: Fetcher, settler: JobSettler, clock: HotClock) -> None:
        self._jobs = jobs
        self._fetcher = fetcher
        self._settler = settler
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    async def finish_tasks(self, timeout_s: float) -> None:
        """Waits for what is being kept or settled, at the end of the gateway."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    # ---- submission -------------------------------------------------------------------------------------------------

    def take_over(self, call: AdmittedCall, metered: Metered, http_status: int) -> GoesOn | None:
        """Makes a job of a call whose vendor has taken it on; None when the answer is the end of its work, too.

        Never waits, so that a call that is cancelled here is kept all the same. Where the answer does not even name the
        job, nobody will ever learn what it uses: it is settled at its bound.
        """
        reading = metered.reading
        if call.asked.job is None or (reading is not None and has_ended(call.asked.job, reading)):
            return None
        if reading is None or reading.job is None:
            self.settle_at_bound(call, http_status)
            return GoesOn(None)
        job = self.job_of(call, reading.job, http_status)
        call.span.end({"http.response.status_code": http_status, "farthing.transaction_id": call.transaction_id})
        return GoesOn(self._begin(self._keep_patiently(job)))

    def settle_at_bound(self, call: AdmittedCall, http_status: int) -> None:
        """Settles a call whose vendor may be at work on a job that nobody can name."""
        job = self.job_of(call, "", http_status)
        tally = Tally(job)
        tally.add_bound()
        call.span.end({"farthing.transaction_id": call.transaction_id}, error="partial")
        self._settler.settle(job, tally, "partial")

    def job_of(self, call: AdmittedCall, job_id: str, http_status: int) -> Job:
        """The record of a call's job."""
        asked = call.asked
        assert asked.job is not None
        return Job(
            org=call.facts.identity.org,
            vendor=call.target.vendor,
            job_id=job_id,
            kind=asked.job,
            dialect=asked.candidate.dialect.name,
            path=asked.candidate.route.path,
            query=lasting_query(asked.request.query),
            headers=tuple(
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in scoping_headers(asked.request.headers)
            ),
            endpoint=call.request.endpoint,
            transaction_id=call.transaction_id,
            facts=call.facts,
            charges=call.charges,
            held_nano=call.held_nano,
            bound_nano=call.bound.amount_nano,
            estimate_mode=call.estimate_mode,
            context=call.request.context,
            parts=call.parts,
            http_status=http_status,
            attempts=tuple(call.attempts),
            latency_us=call.timing.latency_us(),
            trace=tuple(call.span.headers.items()),
            by_own_key=asked.own_key is not None,
            gives_up_at_ms=self._clock.now_ms() + GIVE_UP_MS,
            parent_charged=call.parent_charged,
            admitted_at_ms=call.admitted_at_ms,
        )

    async def _keep_patiently(self, job: Job) -> None:
        for pause_s in _KEEP_PAUSES_S:
            await asyncio.sleep(pause_s)
            try:
                await self._jobs.keep(job, self._next_ms(job, FIRST_LOOK_MS))
            except UnavailableError:
                continue
            return
        log.error(
            "job_not_kept",
            transaction_id=job.transaction_id,
            job_id=job.job_id,
            reason="the hot state is away; its hold will be booked at its estimate",
        )

    # ---- the end ----------------------------------------------------------------------------------------------------

    async def claim(self, org: str, vendor: str, job_id: str) -> Claim | None:
        """A job that has ended, for this gateway alone to settle; None when there is none here to settle."""
        return await self._jobs.claim(org, vendor, job_id, LEASE_MS)

    async def finish(self, claim: Claim, ending: Ending, access: Access) -> None:
        """Settles a job that has ended; puts it back when its results can't be had now.

        Raises `UnavailableError` when the hot state is away: then it is tried again once the claim is over.
        """
        tally = Tally(claim.job)
        try:
            async with asyncio.timeout(LEASE_MS / 1000):
                outcome = await self._read_results(tally, ending, access)
        except (UnavailableError, VendorSaysNoError, TimeoutError) as error:
            await self.missed(claim, error)
            return
        await self._settle(claim, tally, outcome)

    async def missed(self, claim: Claim, error: Exception) -> None:
        """Puts a job back that the vendor did not tell of, or settles it at its bound when it is gone for good.

        Whoever deletes the results of a batch before they are read pays for all that it could have used.
        """
        job, now_ms = claim.job, self._clock.now_ms()
        log.warning("job_not_settled", transaction_id=job.transaction_id, job_id=job.job_id, reason=str(error))
        retry_ms = _retry_ms(job.tries)
        if not (isinstance(error, VendorSaysNoError) and error.is_gone):
            job = replace(job, tries=job.tries + 1)
        elif now_ms < job.gone_from_ms:
            retry_ms = job.gone_from_ms - now_ms  # a client that asks every second has not waited
        elif job.gone + 1 >= GONE_TRIES:
            tally = Tally(job)
            tally.add_bound()
            await self._settle(claim, tally, "partial")
            return
        else:
            retry_ms = _retry_ms(job.gone)
            job = replace(job, tries=job.tries + 1, gone=job.gone + 1, gone_from_ms=now_ms + retry_ms)
        await self._jobs.put_back(replace(claim, job=job), self._next_ms(job, retry_ms))

    async def goes_on(self, claim: Claim) -> None:
        """Puts a job back that has not ended."""
        await self._jobs.put_back(claim, self._next_ms(claim.job, NEXT_LOOK_MS))

    async def give_up(self, claim: Claim) -> None:
        """Forgets a job whose end nobody has told of; its hold was booked long ago."""
        if await self._jobs.end(claim):
            log.warning("job_given_up", transaction_id=claim.job.transaction_id, job_id=claim.job.job_id)

    async def _read_results(self, tally: Tally, ending: Ending, access: Access) -> Outcome:
        job, kinds = tally.job, Counter[str]()
        needed = needed_of(job)
        if ending.reading is not None:
            if ending.outcome == "cancelled" and not ending.reading.usage:
                # It may have thought for an hour before it was stopped, and nobody has seen of it.
                tally.add_bound()
            else:
                tally.add(ending.reading, needed)
        for path in ending.files:
            async with aclosing(self._fetcher.lines(access, path)) as lines:
                async for text in lines:
                    kinds[_take(tally, text, needed)] += 1
                    if kinds.total() % _LINES_AT_A_TIME == 0:
                        await asyncio.sleep(0)  # calls in flight must not wait for all lines that have come
        return outcome_of(kinds) if ending.outcome is None else ending.outcome

    async def _settle(self, claim: Claim, tally: Tally, outcome: Outcome) -> None:
        # Whoever waits for it may be cancelled; a job that has been ended must be settled all the same.
        await asyncio.shield(self._begin(self._end_and_settle(claim, tally, outcome)))

    async def _end_and_settle(self, claim: Claim, tally: Tally, outcome: Outcome) -> None:
        if not await self._jobs.end(claim):
            return
        # Nothing is waited for between the two: a gateway that dies here leaves the job to its hold's expiry.
        if not self._settler.settle(claim.job, tally, outcome):
            await self._jobs.keep(claim.job, self._next_ms(claim.job, _RETRY_MS), again=True)

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _next_ms(self, job: Job, next_ms: int) -> int:
        # Only its caller can ask for a job that was submitted with a key of the caller's own: the gateway comes to it
        # when it gives it up.
        return max(job.gives_up_at_ms - self._clock.now_ms(), 0) if job.by_own_key else next_ms


def _retry_ms(tries: int) -> int:
    return int(min(_RETRY_MS * 2 ** min(tries, _MOST_DOUBLINGS), _LONGEST_RETRY_MS))


def _take(tally: Tally, text: bytes, needed: Sequence[str]) -> str:
    """Adds a line of results; how its request went, empty for a blank line or one that can't be read."""
    try:
        line = read_line(tally.job, text)
    except ValueError as error:
        log.warning("result_not_read", transaction_id=tally.job.transaction_id, reason=str(error))
        tally.add_unread()
        return ""
    if line is None:
        return ""
    if line.charged:
        tally.add(line.reading, needed)
    return line.kind
