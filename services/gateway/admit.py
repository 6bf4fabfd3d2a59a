"""May this call be made? One price bound, one round trip that holds it against every budget, one event on disk."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ulid import ULID

from services.core.budgets import Charge, Standing, tightest
from services.core.calibrate import Calibration
from services.core.estimate import Bound, HoldMode, UnboundedError, UnpricedComponentError, strict_bound
from services.core.events import Attempt, CallFacts, Reservation
from services.core.hotstate import Refused
from services.core.identity import Identity
from services.core.jobs import HOLD_MS, JobKind, JobPart
from services.core.matching import Applicable, TooManyBudgetsError, asks_for_session, closed_cap, names_of
from services.core.ports import OutboxEvent, OutboxFullError, UnavailableError
from services.core.pricebook import UNPRICED, Priced
from services.core.pricing import Price
from services.core.snapshot import Connection, RouteRule
from services.gateway.connect import Connector, Target
from services.gateway.deny import BUDGET_STATUS, Denier, by_closed_cap
from services.gateway.hold import Held, Holder
from services.gateway.jobs.lines import bound_lines, free_batch, whole_part
from services.gateway.observe import CallSpan, Tracing, event_headers
from services.gateway.options import CallOption, calibration_key, cheaper_options
from services.gateway.record import Recorder
from services.gateway.refusal import RefusedError, backlog, names_no_session, rebuilding, require_part
from services.gateway.sizing import size_hold
from services.gateway.snapshots import HotClock, OrgView, Snapshots
from services.gateway.table import Candidate
from services.gateway.timing import Timing
from services.gateway.vendors import RequestFacts, RequestRefusedError, RouteRequest


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

    def by(self, request: RouteRequest) -> "Asked":
        """The same, with another request: one for another model may have that in its path."""
        if request is self.request:
            return self
        return replace(self, request=request, candidate=replace(self.candidate, params=request.params))


@dataclass(slots=True)
class AdmittedCall:
    """A call that is held, for `hold_ms`, and recorded. `standing` is its tightest budget, this hold included.

    `bound` is the most it can cost; `held_nano` what is held: less than that when `estimate_mode` is calibrated or
    stepped, and then it grows as the answer comes.
    `attempts` grows with every try to get it answered. `parts` are what a job's bound is made of. `models` are the
    names of models that it was asked for by. `admitted_at_ms` is of the hot state's clock.
    """

    transaction_id: str
    facts: CallFacts
    asked: Asked
    request: RequestFacts
    price: Price
    bound: Bound
    held_nano: int
    estimate_mode: HoldMode
    charges: tuple[Charge, ...]
    standing: Standing | None
    hold_ms: int
    target: Target
    rule: RouteRule
    span: CallSpan
    timing: Timing
    attempts: list[Attempt] = field(default_factory=list)
    parts: tuple[JobPart, ...] = ()
    models: tuple[str, ...] = ()
    parent_charged: tuple[str, ...] = ()
    admitted_at_ms: int = 0


class Admitter:
    """Decides calls."""

    def __init__(
        self,
        *,
        snapshots: Snapshots,
        clock: HotClock,
        holder: Holder,
        outbox: Recorder,
        tracing: Tracing,
        connector: Connector,
        denier: Denier,
        calibration: Calibration,
    ) -> None:
        self._snapshots = snapshots
        self._clock = clock
        self._holder = holder
        self._outbox = outbox
        self._tracing = tracing
        self._connector = connector
        self._denier = denier
        self._calibration = calibration

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
            auth_mode=self._connector.auth_mode(view.snapshot, vendor, brings_key=asked.own_key is not None),
        )
        span = self._tracing.begin(asked.facts.model, vendor, asked.trace, timing.started_wall_ns)
        return _Attempt(f"txn_{ULID()}", facts, view, asked, span, timing)

    async def _decide(self, attempt: "_Attempt") -> AdmittedCall:
        connection = self._connection(attempt)
        priced, bound, parts = await self._price(attempt, connection)
        target = self._target(attempt, connection)
        if self._outbox.is_full():
            raise backlog("the event log has been away too long, and calls can't be recorded; try again shortly")
        options = await self._options(attempt, priced, bound, parts, connection)
        rule = attempt.view.snapshot.rule(connection.vendor, attempt.facts.route)
        attempt.timing.decided_ns = time.perf_counter_ns()
        # A job is followed by what the hot state keeps of it, so it can't be taken on without.
        fail_open = bool(rule.fail_open) and attempt.asked.job is None
        held = await self._holder.hold(
            attempt.view, attempt.transaction_id, options, attempt.hold_ms, fail_open=fail_open
        )
        if isinstance(held, Refused):
            raise self._exhausted(attempt, options[0].size.amount_nano, held, rule)
        await self._record(attempt, held)
        attempt.timing.held_ns = time.perf_counter_ns()
        option, admitted = held.option, held.admitted
        return AdmittedCall(
            transaction_id=attempt.transaction_id,
            facts=option.facts,
            asked=attempt.asked.by(option.route_request),
            request=option.request,
            price=option.price,
            bound=option.bound,
            held_nano=option.size.amount_nano,
            estimate_mode=option.size.mode,
            charges=admitted.charges,
            standing=tightest(admitted.standings),
            hold_ms=attempt.hold_ms,
            target=target,
            rule=rule,
            span=attempt.span,
            timing=attempt.timing,
            parts=option.parts,
            models=option.models,
            parent_charged=held.parent_charged,
            admitted_at_ms=admitted.now_ms,
        )

    async def _options(
        self,
        attempt: "_Attempt",
        priced: Priced,
        bound: Bound,
        parts: tuple[JobPart, ...],
        connection: Connection,
    ) -> tuple[CallOption, ...]:
        """The call as asked, and by the cheaper models that its budgets have it answered by when they are full."""
        asked = attempt.asked
        models = self._names(attempt, parts, connection.prices_as)
        require_part(attempt.view.budgets, attempt.facts.identity.key_id)
        try:
            matching = attempt.view.budgets.matching(attempt.facts, models)
        except TooManyBudgetsError as error:
            raise self._denied(attempt, "too_many_budgets", str(error)) from error
        attempt.facts = replace(attempt.facts, flags=(*attempt.facts.flags, *matching.flags))
        budgets = [each.budget for each in matching.applicable]
        key = calibration_key(attempt.facts)
        size = size_hold(budgets, bound, asked.facts, priced.price, key, self._calibration)
        closed = closed_cap(matching, size.amount_nano)
        if closed is not None:
            rule = attempt.view.snapshot.rule(connection.vendor, attempt.facts.route)
            refused = by_closed_cap(closed, attempt.view.snapshot.version, self._clock.now_ms())
            raise self._exhausted(attempt, bound.amount_nano, refused, rule)
        needy = asks_for_session(matching)
        if needy is not None and attempt.facts.identity.session is None:
            raise self._session_required(attempt, needy)
        first = CallOption(
            attempt.facts, asked.request, asked.facts, priced.price, bound, size, matching, models, parts
        )
        if asked.job is not None:
            return (first,)  # its id is known where it was submitted, for the model that it names
        now_ms, dialect = self._clock.now_ms(), asked.candidate.dialect
        return first, *await cheaper_options(
            first, attempt.view, dialect, connection.prices_as, now_ms, self._calibration
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

    def _names(self, attempt: "_Attempt", parts: tuple[JobPart, ...], prices_as: str) -> tuple[str, ...]:
        """The names of all models that a call asks for and is priced as: each line of a batch may have its own."""
        names = dict.fromkeys(names_of(attempt.facts))
        for part in parts:
            listed = attempt.view.prices.listed(prices_as, part.model, self._clock.now_ms())
            names |= dict.fromkeys((part.model,) if listed is None else (part.model, listed.model_priced))
        return tuple(names)

    def _exhausted(self, attempt: "_Attempt", amount_nano: int, answer: Refused, rule: RouteRule) -> RefusedError:
        first = attempt.view.budgets.find(answer.exhausted[0].budget_id)
        status = rule.budget_status or BUDGET_STATUS
        return self._denier.exhausted(
            attempt.transaction_id, attempt.facts, attempt.span, amount_nano, answer, status, first
        )

    async def _record(self, attempt: "_Attempt", held: Held) -> None:
        option, admitted = held.option, held.admitted
        reservation = Reservation(
            transaction_id=attempt.transaction_id,
            time_ms=admitted.now_ms,  # the fold compares it with other instants of the hot state's clock
            facts=option.facts,
            estimate_mode=option.size.mode,
            input_tokens_bound=option.bound.input_tokens,
            output_tokens_bound=option.bound.output_tokens,
            held_nano=option.size.amount_nano,
            charges=admitted.charges,
            expires_at_ms=admitted.expires_at_ms,
            parent_charged=held.parent_charged,
            would_block=held.would_block,
        )
        try:
            self._outbox.append([OutboxEvent(reservation, event_headers(attempt.span))])
        except (OutboxFullError, UnavailableError) as error:
            self._holder.release(attempt.facts.identity.org, attempt.transaction_id)
            raise backlog("this call can't be recorded, so it was not made; try again shortly") from error

    def _unknown_model(self, attempt: "_Attempt", vendor: str) -> RefusedError:
        message = f"model {attempt.asked.facts.model!r} of vendor {vendor!r} has no price, so its cost has no bound"
        return self._denied(attempt, "unknown_model", message, param="model")

    def _session_required(self, attempt: "_Attempt", needy: Applicable) -> RefusedError:
        header = self._denier.session_header
        return self._denied(attempt, "session_required", names_no_session(needy, header), param=header)

    def _denied(self, attempt: "_Attempt", code: str, message: str, *, param: str | None = None) -> RefusedError:
        return self._denier.denied(attempt.transaction_id, attempt.facts, attempt.span, 400, code, message, param=param)


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
