"""Asks vendors for jobs that no client asks for, so that a batch whose owner never looks is settled, too."""

import asyncio
import random
from typing import Final

import structlog

from services.core.jobs import Claim, Job, Jobs
from services.core.ports import Directory, UnavailableError
from services.gateway.connect import Connector
from services.gateway.jobs.access import Access, Fetcher, VendorSaysNoError
from services.gateway.jobs.keeper import LEASE_MS, Keeper
from services.gateway.jobs.states import ending_of, status_path
from services.gateway.snapshots import HotClock, Snapshots
from services.gateway.vendors.registry import DIALECTS

log = structlog.get_logger()

# An org's jobs are claimed a few at a time, so that other gateways have their share, and so many in one look at most.
_AT_A_TIME: Final = 4
_ROUNDS: Final = 50
# A vendor that hangs must keep no more than its own org waiting.
_ORGS_AT_A_TIME: Final = 16


class Poller:
    """Looks every `interval_s` for jobs that are due, of every org there is. Gateways share them by claims."""

    def __init__(
        self,
        *,
        directory: Directory,
        snapshots: Snapshots,
        clock: HotClock,
        connector: Connector,
        jobs: Jobs,
        keeper: Keeper,
        fetcher: Fetcher,
        interval_s: float,
    ) -> None:
        self._directory = directory
        self._snapshots = snapshots
        self._clock = clock
        self._connector = connector
        self._jobs = jobs
        self._keeper = keeper
        self._fetcher = fetcher
        self._interval_s = interval_s
        self._room = asyncio.Semaphore(_ORGS_AT_A_TIME)

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            # Gateways that were started together must not look together.
            await asyncio.sleep(self._interval_s * random.uniform(0.75, 1.25))  # noqa: S311
            try:
                await self.look()
            except UnavailableError as error:
                log.warning("jobs_not_polled", reason=str(error))

    async def look(self) -> None:
        """Looks once. Raises `UnavailableError` when not even the orgs can be read."""
        await asyncio.gather(*(self._look_at(org) for org in await self._directory.orgs()))

    async def _look_at(self, org: str) -> None:
        try:
            async with self._room:
                for _ in range(_ROUNDS):
                    claims = await self._jobs.claim_due(org, _AT_A_TIME, LEASE_MS)
                    await asyncio.gather(*(self._ask(each) for each in claims))
                    if len(claims) < _AT_A_TIME:
                        return
        except UnavailableError as error:
            log.warning("jobs_not_polled", org=org, reason=str(error))
        except Exception:
            # Nothing else may end with it: jobs that nobody asks for are booked at their estimates in time.
            log.exception("jobs_not_polled", org=org)

    async def _ask(self, claim: Claim) -> None:
        job = claim.job
        if self._clock.now_ms() >= job.gives_up_at_ms or job.by_own_key:
            await self._keeper.give_up(claim)
            return
        try:
            access = await self._access(job)
            body = await self._fetcher.status(access, status_path(job.path, job.job_id))
        except (UnavailableError, VendorSaysNoError, ValueError) as error:
            await self._keeper.missed(claim, error)
            return
        ending = ending_of(job.kind, job.path, body)
        if ending is None:
            await self._keeper.goes_on(claim)
        else:
            await self._keeper.finish(claim, ending, access)

    async def _access(self, job: Job) -> Access:
        """The way to a job with its org's own key; raises `ValueError` when there is none any more."""
        view = await self._snapshots.view(job.org)
        connection = self._connector.connection(view.snapshot, job.vendor, brings_key=False)
        if connection is None or job.dialect not in DIALECTS:
            raise ValueError(f"the org has no connection to vendor {job.vendor!r} any more")
        headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in job.headers)
        target = self._connector.target(job.org, connection, None)
        return Access(DIALECTS[job.dialect], target, headers, job.query)
