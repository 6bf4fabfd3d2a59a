"""May this call be made? One price bound, one round trip that holds it against every budget, one event on disk."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
from ulid import ULID

from services.core.budgets import Budget, Charge, EstimateMode, Standing, propose, tightest
from services.core.calibrate import Calibration, Key
from services.core.codec import encode_facts
from services.core.estimate import Bound, UnboundedError, UnpricedComponentError, strict_bound
from services.core.events import Attempt, CallFacts, Reservation
from services.core.hotstate import Admitted, Cold, HoldRequest, Refused
from services.core.identity import Identity
from services.core.jobs import HOLD_MS, JobKind, JobPart
from services.core.ports import HotState, OutboxEvent, OutboxFullError, UnavailableError
from services.core.pricebook import UNPRICED, Priced
from services.core.pricing import Price
from services.core.snapshot import Connection, RouteRule
from services.gateway.connect import Connector, Target
from services.gateway.deny import BUDGET_STATUS, Denier
from services.gateway.jobs.lines import bound_lines, free_batch, whole_part
from services.gateway.observe import CallSpan, Tracing, event_headers
from services.gateway.record import Recorder
from services.gateway.refusal import RefusedError, backlog, rebuilding
from services.gateway.snapshots import HotClock, OrgView, Snapshots
from services.gateway.table import Candidate
from services.gateway.timing import Timing
from services.gateway.vendors import RequestFacts, RequestRefusedError, RouteRequest

log = structlog.get_logger()

BYOK: Final = "byok"
METERED: Final = "metered"
_PROPOSALS: Final = 3
_RELEASE_PAUSES_S: Final = (0.0, 0.5, 2.0, 8.0)


@dataclass(frozen=True, slots=True)
class Asked:
    """A call as it was asked for: who asks, on which route, with what, and whose vendor key shall be used.

    `job` is the kind of work that it asks for to go on after its answer.
    """

    identity: Identity
    candidate: Candidate
    request: RouteRequest
    facts: RequestFacts
    vendor: str | None
    own_key: str | None = field(repr=False)
    trace: Mapping[str, str] = field(default_factory=dict)
    job: JobKind | None = None


@dataclass(slots=True)
class AdmittedCall:
    """A call that is held, for `hold_ms`, and recorded. `standing` is its tightest budget, this hold included.

    `bound` is the most it can cost; `held_nano` what is held, less than that when `estimate_mode` is calibrated.
    `attempts` grows with every try to get it answered. `parts` are what a job's bound is made of.
    """

    transaction_id: str
    facts: CallFacts
    asked: Asked
    request: RequestFacts
    price: Price
    bound: Bound
    held_nano: int
    estimate_mode: EstimateMode
    charges: tuple[Charge, ...]
    standing: Standing | None
    hold_ms: int
    target: Target
    rule: RouteRule
    span: CallSpan
    timing: Timing
    attempts: list[Attempt] = field(default_factory=list)
    parts: tuple[JobPart, ...] = ()


class Admitter:
    """Decides calls."""

    def __init__(
        self,
        *,
        snapshots: Snapshots,
        clock: HotClock,
        hot_state: HotState,
        outbox: Recorder,
        tracing: Tracing,
        connector: Connector,
        denier: Denier,
        calibration: Calibration,
    ) -> None:
        self._snapshots = snapshots
        self._clock = clock
        self._hot_state = hot_state
        self._outbox = outbox
        self._tracing = tracing
        self._connector = connector
        self._denier = denier
        self._calibration = calibration
        self._releasing: set[asyncio.Task[None]] = set()

    async def view(self, org: str) -> OrgView:
        """The org's compiled view; raises `RefusedError` (503)."""
        try:
            return await self._snapshots.view(org)
        except UnavailableError as error:
            raise rebuilding("this org's configuration can't be read right now; try again in a second") from error

    async def admit(self, asked: Asked, view: OrgView, timing: Timing) -> AdmittedCall:
        """Holds and records a call. Raises `RefusedError`."""
        attempt = self._attempt(asked, view, timing)
        try:
            return await self._decide(attempt)
        except RefusedError as refusal:
            attempt.span.end({"farthing.transaction_id": attempt.transaction_id}, error=refusal.code)
            raise

    def refused(self, asked: Asked, view: OrgView, timing: Timing, error: RequestRefusedError) -> RefusedError:
        """The refusal, on its way to the ledger, of a call whose request can't be read or bounded."""
        attempt = self._attempt(asked, view, timing)
        refusal = self._denied(attempt, error.code, str(error), param=error.param)
        attempt.span.end({"farthing.transaction_id": attempt.transaction_id}, error=refusal.code)
        return refusal

    def _attempt(self, asked: Asked, view: OrgView, timing: Timing) -> "_Attempt":
        vendor = asked.vendor if asked.vendor is not None else self._connector.default_for(asked.facts.model)
        facts = CallFacts(
            identity=asked.identity,
            vendor=vendor,
            route=asked.candidate.route.name,
            model_requested=asked.facts.model,
            model_priced=asked.facts.model,
            match="none",
            catalog_version=view.snapshot.catalog_version,
            config_version=view.snapshot.version,
            auth_mode=METERED if asked.own_key is None else BYOK,
        )
        span = self._tracing.begin(asked.facts.model, vendor, asked.trace, timing.started_wall_ns)
        return _Attempt(f"txn_{ULID()}", facts, view, asked, span, timing)

    async def _decide(self, attempt: "_Attempt") -> AdmittedCall:
        connection = self._connection(attempt)
        priced, bound, parts = await self._price(attempt, connection)
        target = self._target(attempt, connection)
        if self._outbox.is_full():
            raise backlog("the event log has been away too long, and calls can't be recorded; try again shortly")
        budgets = tuple(attempt.view.budgets.matching(attempt.facts.identity))
        held_nano, mode = self._amount(attempt, budgets, bound)
        rule = attempt.view.snapshot.rule(connection.vendor, attempt.facts.route)
        attempt.timing.decided_ns = time.perf_counter_ns()
        admitted = await self._hold(attempt, budgets, bound, held_nano, rule)
        await self._record(attempt, bound, held_nano, mode, admitted)
        attempt.timing.held_ns = time.perf_counter_ns()
        return AdmittedCall(
            transaction_id=attempt.transaction_id,
            facts=attempt.facts,
            asked=attempt.asked,
            request=attempt.asked.facts,
            price=priced.price,
            bound=bound,
            held_nano=held_nano,
            estimate_mode=mode,
            charges=admitted.charges,
            standing=tightest(admitted.standings),
            hold_ms=attempt.hold_ms,
            target=target,
            rule=rule,
            span=attempt.span,
            timing=attempt.timing,
            parts=parts,
        )

    def _connection(self, attempt: "_Attempt") -> Connection:
        vendor, asked = attempt.facts.vendor, attempt.asked
        snapshot = attempt.view.snapshot
        brings_key = asked.own_key is not None
        try:
            return self._connector.speaking(asked.candidate.dialect, snapshot, vendor, brings_key=brings_key)
        except ValueError as error:
            missing = self._connector.connection(snapshot, vendor, brings_key=brings_key) is None
            if missing and vendor == self._connector.default_vendor and self._find(attempt, vendor) is None:
                raise self._unknown_model(attempt, vendor) from error  # connecting the vendor would not help
            raise self._denied(attempt, "no_vendor_connection", str(error)) from error

    def _find(self, attempt: "_Attempt", prices_as: str) -> Priced | None:
        if attempt.asked.candidate.route.billing == "unpriced":
            return Priced("", "none", UNPRICED, attempt.view.snapshot.catalog_version)
        if not attempt.asked.facts.model and attempt.asked.candidate.route.billing == "submitted":
            return free_batch(attempt.view.snapshot.catalog_version)
        return attempt.view.prices.find(prices_as, attempt.asked.facts.model, self._clock.now_ms())

    async def _price(self, attempt: "_Attempt", connection: Connection) -> tuple[Priced, Bound, tuple[JobPart, ...]]:
        if attempt.asked.facts.lines:
            return await self._price_lines(attempt, connection)
        priced = self._find(attempt, connection.prices_as)
        if priced is None:
            raise self._unknown_model(attempt, connection.vendor)
        attempt.note(priced)
        try:
            bound = strict_bound(priced.price, attempt.asked.facts.demand)
            job, asked = attempt.asked.job, attempt.asked.facts
            return priced, bound, () if job is None else (whole_part(asked.model, priced, bound, asked.counted),)
        except UnboundedError as error:
            raise self._denied(attempt, "invalid_request", str(error), param=error.param) from error
        except UnpricedComponentError as error:
            raise self._denied(attempt, "unpriced_feature", str(error), param=error.param) from error

    async def _price_lines(
        self, attempt: "_Attempt", connection: Connection
    ) -> tuple[Priced, Bound, tuple[JobPart, ...]]:
        """The same of a batch, whose lines are many: other calls must not wait for them."""
        facts, prices, now_ms = attempt.asked.facts, attempt.view.prices, self._clock.now_ms()
        try:
            found = await asyncio.to_thread(bound_lines, prices, connection.prices_as, now_ms, facts)
        except RequestRefusedError as error:
            raise self._denied(attempt, error.code, str(error), param=error.param) from error
        attempt.note(found.priced)
        return found.priced, found.bound, found.parts

    def _target(self, attempt: "_Attempt", connection: Connection) -> Target:
        try:
            return self._connector.target(attempt.facts.identity.org, connection, attempt.asked.own_key)
        except ValueError as error:
            raise self._denied(attempt, "no_vendor_connection", str(error)) from error

    def _amount(self, attempt: "_Attempt", budgets: Sequence[Budget], bound: Bound) -> tuple[int, EstimateMode]:
        """What to hold: the bound, unless every budget the call falls under settles for what such calls have cost."""
        if not budgets or any(each.estimate != "calibrated" for each in budgets):
            return bound.amount_nano, "strict"
        estimate_nano = self._calibration.estimate(calibration_key(attempt.facts), bound.amount_nano)
        return (bound.amount_nano, "strict") if estimate_nano is None else (estimate_nano, "calibrated")

    async def _hold(
        self, attempt: "_Attempt", budgets: Sequence[Budget], bound: Bound, held_nano: int, rule: RouteRule
    ) -> Admitted:
        snapshot = attempt.view.snapshot
        context = encode_facts(attempt.facts)
        now_ms = self._clock.now_ms()
        for _ in range(_PROPOSALS):
            proposals = propose(budgets, now_ms)
            request = HoldRequest(snapshot.org, attempt.transaction_id, held_nano, proposals, attempt.hold_ms, context)
            try:
                answer = await self._hot_state.reserve(request)
            except UnavailableError as error:
                self._release(attempt)
                raise rebuilding("the spend state can't be reached; try again in a second") from error
            if isinstance(answer, Cold):
                raise rebuilding("the spend state is being rebuilt; try again in a second")
            self._clock.learn(answer.now_ms)
            self._snapshots.hint(attempt.view, answer.config_version)
            if isinstance(answer, Admitted):
                return answer
            if isinstance(answer, Refused):
                status = rule.budget_status or BUDGET_STATUS
                raise self._denier.exhausted(
                    attempt.transaction_id,
                    attempt.facts,
                    attempt.span,
                    replace(bound, amount_nano=held_nano),
                    answer,
                    status,
                )
            now_ms = answer.now_ms
        raise rebuilding("the budgets' windows are turning over; try again in a second")

    async def _record(
        self, attempt: "_Attempt", bound: Bound, held_nano: int, mode: EstimateMode, admitted: Admitted
    ) -> None:
        reservation = Reservation(
            transaction_id=attempt.transaction_id,
            time_ms=admitted.now_ms,  # the fold compares it with other instants of the hot state's clock
            facts=attempt.facts,
            estimate_mode=mode,
            input_tokens_bound=bound.input_tokens,
            output_tokens_bound=bound.output_tokens,
            held_nano=held_nano,
            charges=admitted.charges,
            expires_at_ms=admitted.expires_at_ms,
        )
        try:
            self._outbox.append([OutboxEvent(reservation, event_headers(attempt.span))])
        except (OutboxFullError, UnavailableError) as error:
            self._release(attempt)
            raise backlog("this call can't be recorded, so it was not made; try again shortly") from error

    def _release(self, attempt: "_Attempt") -> None:
        """Takes a hold back that no call will end, off the call's way; its expiry would book money never spent."""
        task = asyncio.create_task(self._release_patiently(attempt.facts.identity.org, attempt.transaction_id))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _release_patiently(self, org: str, transaction_id: str) -> None:
        for pause_s in _RELEASE_PAUSES_S:
            await asyncio.sleep(pause_s)
            try:
                await self._hot_state.release(org, transaction_id)
            except UnavailableError:
                continue
            return
        log.warning("hold_not_released", transaction_id=transaction_id, reason="the hot state is away")

    def _unknown_model(self, attempt: "_Attempt", vendor: str) -> RefusedError:
        message = f"model {attempt.asked.facts.model!r} of vendor {vendor!r} has no price, so its cost has no bound"
        return self._denied(attempt, "unknown_model", message, param="model")

    def _denied(self, attempt: "_Attempt", code: str, message: str, *, param: str | None = None) -> RefusedError:
        return self._denier.denied(attempt.transaction_id, attempt.facts, attempt.span, 400, code, message, param=param)


def calibration_key(facts: CallFacts) -> Key:
    """What calls must have in common for their costs to tell of each other."""
    return facts.identity.org, facts.vendor, facts.model_priced, facts.route


@dataclass(slots=True)
class _Attempt:
    """A call while it is being decided; `facts` fill up on the way."""

    transaction_id: str
    facts: CallFacts
    view: OrgView
    asked: Asked
    span: CallSpan
    timing: Timing

    @property
    def hold_ms(self) -> int:
        """How long its hold shall live: a job's for as long as the job may take."""
        job, usual_ms = self.asked.job, self.view.snapshot.hold_ms
        return usual_ms if job is None else max(usual_ms, HOLD_MS[job])

    def note(self, priced: Priced) -> None:
        """Takes into the facts how it is priced."""
        self.facts = replace(
            self.facts,
            model_priced=priced.model_priced,
            match=priced.match,
            catalog_version=priced.catalog_version,
        )
