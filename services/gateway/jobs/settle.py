"""A job's one settlement: written by whoever ended its claim, from its record alone."""

import time

import structlog

from services.core.calibrate import Calibration
from services.core.events import Outcome, Settlement
from services.core.jobs import Job
from services.core.money import format_usd
from services.core.ports import OutboxEvent, OutboxFullError, UnavailableError
from services.gateway.jobs.tally import Tally
from services.gateway.observe import Observer
from services.gateway.options import calibration_key
from services.gateway.record import Recorder

log = structlog.get_logger()


class JobSettler:
    """Writes the settlements of jobs. Never waits."""

    def __init__(self, outbox: Recorder, observer: Observer, calibration: Calibration) -> None:
        self._outbox = outbox
        self._observer = observer
        self._calibration = calibration

    def settle(self, job: Job, tally: Tally, outcome: Outcome) -> bool:
        """Records what a job did cost, once a job; false when the disk did not take it."""
        components = tally.components()
        cost_nano = sum(each.cost_nano for each in components)
        settlement = Settlement(
            transaction_id=job.transaction_id,
            time_ms=time.time_ns() // 1_000_000,
            facts=job.facts,
            outcome=outcome,
            usage_source=tally.source,
            usage=tally.usage,
            components=components,
            cost_nano=cost_nano,
            held_nano=job.held_nano,
            charges=job.charges,
            http_status=job.http_status,
            retry_count=max(0, len(job.attempts) - 1),
            latency_us=job.latency_us,
            estimate_mode=job.estimate_mode,
            price_context=tally.context,
            unpriced=tally.unpriced,
            attempts=job.attempts,
            parent_charged=job.parent_charged,
            admitted_at_ms=job.admitted_at_ms,
        )
        trace = tuple((name, value.encode("latin-1")) for name, value in job.trace)
        try:
            self._outbox.append([OutboxEvent(settlement, trace)])
        except (OutboxFullError, UnavailableError) as error:
            log.error("settlement_not_recorded", transaction_id=job.transaction_id, reason=str(error))
            return False
        log.info(
            "job_settled",
            transaction_id=job.transaction_id,
            job_id=job.job_id,
            outcome=outcome,
            cost_usd=format_usd(cost_nano),
        )
        self._observer.settled(job.vendor, outcome, cost_nano)
        if cost_nano > job.held_nano:
            self._observer.underestimated(job.vendor, job.estimate_mode)
        if tally.source == "reported" and outcome == "completed":
            self._calibration.learn(calibration_key(job.facts), job.bound_nano, cost_nano)
        return True
