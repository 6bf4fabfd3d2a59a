"""`core.jobs.Jobs` in memory, for tests and simulation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from services.core.jobs import ENDED_MS, Claim, Job, decode_job, encode_job


@dataclass(slots=True)
class _Kept:
    body: bytes
    due_ms: int
    token: str = ""
    claimed_until_ms: int = 0


class MemoryJobs:
    """The twin of `valkey_jobs.ValkeyJobs`. `clock` gives Unix milliseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._kept: dict[str, dict[tuple[str, str], _Kept]] = {}
        self._ended: dict[tuple[str, str, str], int] = {}
        self._tokens = count(1)

    def all(self) -> list[Job]:
        """Every job that is kept."""
        return [decode_job(each.body) for kept in self._kept.values() for each in kept.values()]

    async def keep(self, job: Job, next_ms: int, *, again: bool = False) -> None:
        """See the port."""
        if not again and self._ended.get((job.org, job.vendor, job.job_id), 0) > self._clock():
            return
        kept = self._kept.setdefault(job.org, {})
        kept.setdefault((job.vendor, job.job_id), _Kept(encode_job(job), self._clock() + next_ms))

    async def claim(self, org: str, vendor: str, job_id: str, lease_ms: int) -> Claim | None:
        """See the port."""
        kept = self._kept.get(org, {}).get((vendor, job_id))
        if kept is None or kept.claimed_until_ms > self._clock():
            return None
        return self._claimed(kept, lease_ms)

    async def claim_due(self, org: str, limit: int, lease_ms: int) -> Sequence[Claim]:
        """See the port."""
        due = [each for each in self._kept.get(org, {}).values() if each.due_ms <= self._clock()]
        return [self._claimed(each, lease_ms) for each in sorted(due, key=lambda each: each.due_ms)[:limit]]

    async def put_back(self, claim: Claim, next_ms: int) -> None:
        """See the port."""
        kept = self._of(claim)
        if kept is not None:
            kept.body, kept.due_ms = encode_job(claim.job), self._clock() + next_ms
            kept.token, kept.claimed_until_ms = "", 0

    async def end(self, claim: Claim) -> bool:
        """See the port."""
        if self._of(claim) is None:
            return False
        job = claim.job
        del self._kept[job.org][job.vendor, job.job_id]
        self._ended[job.org, job.vendor, job.job_id] = self._clock() + ENDED_MS
        return True

    def _claimed(self, kept: _Kept, lease_ms: int) -> Claim:
        kept.token = str(next(self._tokens))
        kept.claimed_until_ms = kept.due_ms = self._clock() + lease_ms
        return Claim(decode_job(kept.body), kept.token)

    def _of(self, claim: Claim) -> _Kept | None:
        kept = self._kept.get(claim.job.org, {}).get((claim.job.vendor, claim.job.job_id))
        return kept if kept is not None and kept.token == claim.token else None
