"""Asks vendors for jobs that no client asks for, so that a batch whose owner never looks is settled, too."""

import asyncio
import random
import time
from typing import Final

import structlog

from services.core.jobs import Claim, Job, Jobs
from services.core.ports import Directory, UnavailableError
from services.gateway.connect import Connector
from services.gateway.jobs.access import Access, Fetcher, VendorSaysNoError
from services.gateway.jobs.keeper import LEASE_MS, Keeper
from services.gateway.jobs.states import Ending, ending_of, status_path
from services.gateway.snapshots import HotClock, Snapshots
from services.gateway.vendors.registry import DIALECTS

log = structlog.get_logger()

# An org's jobs are claimed a few at a time, so that other gateways have their share, and so many in one look at most.
_AT_A_TIME: Final = 4
_ROUNDS: Final = 50
# So many orgs' vendors are asked at a time. A status that does not come is given up soon (`access`); results, which may
# take minutes, are read outside of this.
_ORGS_AT_A_TIME: Final = 16
# An org whose vendors are slow has had its share after this long, until the next look.
_LOOK_S: Final = 30.0


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
        self._looks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Looks until cancelled. An org whose last look is still under way is left to it, and no other waits for it."""
        try:
            while True:
                # Gateways that were started together must not look together.
                await asyncio.sleep(self._interval_s * random.uniform(0.75, 1.25))  # noqa: S311
                try:
                    await self._begin()
                except UnavailableError as error:
                    log.warning("jobs_not_polled", reason=str(error))
        finally:
            looks = list(self._looks.values())
            for each in looks:
                each.cancel()
            await asyncio.gather(*looks, return_exceptions=True)

    async def look(self) -> None:
        """Looks once, to the end. Raises `UnavailableError` when not even the orgs can be read."""
        await self._begin()
        await asyncio.gather(*self._looks.values())

    async def _begin(self) -> None:
        for org in await self._directory.orgs():
            if org not in self._looks:
                self._looks[org] = asyncio.create_task(self._look_at(org))

    async def _look_at(self, org: str) -> None:
        ends_at = time.monotonic() + _LOOK_S
        try:
            for _ in range(_ROUNDS):
                async with self._room:
                    claims = await self._jobs.claim_due(org, _AT_A_TIME, LEASE_MS)
                    found = await asyncio.gather(*(self._ask(each) for each in claims))
                ended = [each for each in found if each is not None]
                await asyncio.gather(*(self._keeper.finish(*each) for each in ended))
                if len(claims) < _AT_A_TIME or time.monotonic() > ends_at:
                    return
        except UnavailableError as error:
            log.warning("jobs_not_polled", org=org, reason=str(error))
        except Exception:
            # Nothing else may end with it: jobs that nobody asks for are booked at their estimates in time.
            log.exception("jobs_not_polled", org=org)
        finally:
            self._looks.pop(org, None)

    async def _ask(self, claim: Claim) -> tuple[Claim, Ending, Access] | None:
        """What is needed to finish a job; None for one that has not ended."""
        job = claim.job
        if self._clock.now_ms() >= job.gives_up_at_ms:
            await self._keeper.give_up(claim)
            return None
        if job.by_own_key:
            await self._keeper.goes_on(claim)
            return None
        try:
            access = await self._access(job)
            body = await self._fetcher.status(access, status_path(job.path, job.job_id))
        except (UnavailableError, VendorSaysNoError, ValueError) as error:
            await self._keeper.missed(claim, error)
            return None
        ending = ending_of(job.kind, job.path, body)
        if ending is None:
            await self._keeper.goes_on(claim)
            return None
        return claim, ending, access

    async def _access(self, job: Job) -> Access:
        """The way to a job with its org's own key; raises `ValueError` when there is none any more."""
        view = await self._snapshots.view(job.org)
        connection = self._connector.connection(view.snapshot, job.vendor, brings_key=False)
        if connection is None or job.dialect not in DIALECTS:
            raise ValueError(f"the org has no connection to vendor {job.vendor!r} any more")
        headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in job.headers)
        target = self._connector.target(job.org, connection, None)
        return Access(DIALECTS[job.dialect], target, headers, job.query)
