"""May this call be made? One price bound, one round trip that holds it against every budget, one event on disk."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
from ulid import ULID

from services.core.budgets import Charge, Standing, propose, tightest
from services.core.codec import encode_facts, format_time
from services.core.estimate import Bound, UnboundedError, UnpricedComponentError, strict_bound
from services.core.events import CallFacts, Denial, Reservation
from services.core.hotstate import Admitted, Cold, HoldRequest, Refused
from services.core.identity import Identity
from services.core.money import format_usd
from services.core.ports import HotState, OutboxEvent, OutboxFullError, UnavailableError
from services.core.pricing import Found, Price
from services.core.snapshot import Connection
from services.gateway.observe import CallSpan, Tracing, event_headers
from services.gateway.record import Recorder
from services.gateway.refusal import RefusedError, backlog, rebuilding
from services.gateway.snapshots import HotClock, OrgView, Snapshots
from services.gateway.timing import Timing
from services.gateway.vendors import RequestFacts

log = structlog.get_logger()

SANDBOX: Final = "sandbox"
_PROPOSALS: Final = 3
_RELEASE_PAUSES_S: Final = (0.0, 0.5, 2.0, 8.0)
# A client that waits longer than this is better told than held up (CLIENTS.md).
_SHORT_WAIT_MS: Final = 60_000

OpenSealed = Callable[[str, str, str], str]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call goes: `base_url` up to and without the route, and the vendor's key in the clear."""

    vendor: str
    base_url: str
    vendor_key: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class AdmittedCall:
    """A call that is held, for `hold_ms`, and recorded. `standing` is its tightest budget, this hold included."""

    transaction_id: str
    facts: CallFacts
    request: RequestFacts
    price: Price
    bound: Bound
    charges: tuple[Charge, ...]
    standing: Standing | None
    hold_ms: int
    target: Target
    span: CallSpan
    timing: Timing


class Admitter:
    """Decides calls. `open_sealed` decrypts a vendor key for (org, vendor, sealed text) and raises `ValueError`."""

    def __init__(
        self,
        *,
        snapshots: Snapshots,
        clock: HotClock,
        hot_state: HotState,
        outbox: Recorder,
        tracing: Tracing,
        open_sealed: OpenSealed,
        sandbox_url: str | None,
        default_vendor: str,
        header_prefix: str,
    ) -> None:
        self._snapshots = snapshots
        self._clock = clock
        self._hot_state = hot_state
        self._outbox = outbox
        self._tracing = tracing
        self._open_sealed = open_sealed
        self._default_vendor = default_vendor
        self._transaction_header = (header_prefix + "transaction-id").encode()
        self._sandbox = None
        if sandbox_url is not None:
            self._sandbox = Connection(SANDBOX, "openai", sandbox_url.rstrip("/") + "/v1", None, SANDBOX)
        self._releasing: set[asyncio.Task[None]] = set()

    async def view(self, org: str) -> OrgView:
        """The org's compiled view; raises `RefusedError` (503)."""
        try:
            return await self._snapshots.view(org)
        except UnavailableError as error:
            raise rebuilding("this org's configuration can't be read right now; try again in a second") from error

    def connections(self, view: OrgView) -> Mapping[str, Connection]:
        """Every vendor the org can reach, the sandbox included when there is one."""
        sandbox = {} if self._sandbox is None else {SANDBOX: self._sandbox}
        return {**view.snapshot.connections, **sandbox}

    async def admit(
        self,
        identity: Identity,
        request: RequestFacts,
        *,
        dialect: str,
        route: str,
        vendor: str | None,
        trace: Mapping[str, str],
        timing: Timing,
    ) -> AdmittedCall:
        """Holds and records a call to `vendor` (None: the model or the default decides). Raises `RefusedError`."""
        view = await self.view(identity.org)
        if vendor is None:
            to_sandbox = self._sandbox is not None and request.model.startswith("sandbox-")
            vendor = SANDBOX if to_sandbox else self._default_vendor
        facts = CallFacts(
            identity=identity,
            vendor=vendor,
            route=route,
            model_requested=request.model,
            model_priced=request.model,
            match="none",
            catalog_version=view.snapshot.catalog_version,
            config_version=view.snapshot.version,
        )
        span = self._tracing.begin(request.model, vendor, trace, timing.started_wall_ns)
        attempt = _Attempt(f"txn_{ULID()}", facts, view, request, span, timing)
        try:
            return await self._decide(attempt, dialect)
        except RefusedError as refusal:
            span.end({"farthing.transaction_id": attempt.transaction_id}, error=refusal.code)
            raise

    async def _decide(self, attempt: "_Attempt", dialect: str) -> AdmittedCall:
        connection = self._connection(attempt, dialect)
        found, bound = self._price(attempt, connection)
        target = Target(connection.vendor, connection.base_url.rstrip("/"), self._vendor_key(attempt, connection))
        if self._outbox.is_full():
            raise backlog("the event log has been away too long, and calls can't be recorded; try again shortly")
        attempt.timing.decided_ns = time.perf_counter_ns()
        admitted = await self._hold(attempt, bound)
        await self._record(attempt, bound, admitted)
        attempt.timing.held_ns = time.perf_counter_ns()
        return AdmittedCall(
            transaction_id=attempt.transaction_id,
            facts=attempt.facts,
            request=attempt.request,
            price=found.price,
            bound=bound,
            charges=admitted.charges,
            standing=tightest(admitted.standings),
            hold_ms=attempt.view.snapshot.hold_ms,
            target=target,
            span=attempt.span,
            timing=attempt.timing,
        )

    def _connection(self, attempt: "_Attempt", dialect: str) -> Connection:
        vendor = attempt.facts.vendor
        connection = self._sandbox if vendor == SANDBOX else attempt.view.snapshot.connections.get(vendor)
        if connection is None:
            if vendor == self._default_vendor and attempt.view.catalog.find(vendor, attempt.request.model) is None:
                raise self._unpriced(attempt, vendor)  # connecting the vendor would not help
            message = f"no connection to vendor {vendor!r}; make one: farthing connections set {vendor} --key-env NAME"
            if vendor == SANDBOX:
                message = "the sandbox vendor is switched off here; name the model of a connected vendor"
            raise self._denied(attempt, 400, "no_vendor_connection", message)
        if connection.dialect != dialect:
            message = f"vendor {vendor!r} speaks {connection.dialect}, but this route is {dialect}'s; use its own route"
            raise self._denied(attempt, 400, "no_vendor_connection", message)
        return connection

    def _price(self, attempt: "_Attempt", connection: Connection) -> tuple[Found, Bound]:
        request = attempt.request
        found = attempt.view.catalog.find(connection.prices_as, request.model)
        if found is None:
            raise self._unpriced(attempt, connection.vendor)
        attempt.facts = replace(attempt.facts, model_priced=found.model_priced, match=found.match)
        try:
            bound = strict_bound(
                found.price,
                request.input_tokens_bound,
                request.output_tokens_limit,
                request.choices,
                request.components,
            )
        except UnboundedError as error:
            raise self._denied(attempt, 400, "invalid_request", str(error), param=error.param) from error
        except UnpricedComponentError as error:
            raise self._denied(attempt, 400, "unpriced_feature", str(error), param="model") from error
        return found, bound

    def _unpriced(self, attempt: "_Attempt", vendor: str) -> RefusedError:
        message = f"model {attempt.request.model!r} of vendor {vendor!r} has no price, so its cost has no bound"
        return self._denied(attempt, 400, "unknown_model", message, param="model")

    def _vendor_key(self, attempt: "_Attempt", connection: Connection) -> str | None:
        if connection.sealed_key is None:
            return None
        try:
            return self._open_sealed(attempt.facts.identity.org, connection.vendor, connection.sealed_key)
        except ValueError as error:
            raise self._denied(attempt, 400, "no_vendor_connection", str(error)) from error

    async def _hold(self, attempt: "_Attempt", bound: Bound) -> Admitted:
        snapshot = attempt.view.snapshot
        budgets = tuple(attempt.view.budgets.matching(attempt.facts.identity))
        context = encode_facts(attempt.facts)
        now_ms = self._clock.now_ms()
        for _ in range(_PROPOSALS):
            proposals = propose(budgets, now_ms)
            request = HoldRequest(
                snapshot.org, attempt.transaction_id, bound.amount_nano, proposals, snapshot.hold_ms, context
            )
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
                raise self._exhausted(attempt, bound, answer)
            now_ms = answer.now_ms
        raise rebuilding("the budgets' windows are turning over; try again in a second")

    async def _record(self, attempt: "_Attempt", bound: Bound, admitted: Admitted) -> None:
        reservation = Reservation(
            transaction_id=attempt.transaction_id,
            time_ms=admitted.now_ms,  # the fold compares it with other instants of the hot state's clock
            facts=attempt.facts,
            estimate_mode="strict",
            input_tokens_bound=bound.input_tokens,
            output_tokens_bound=bound.output_tokens,
            held_nano=bound.amount_nano,
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

    def _exhausted(self, attempt: "_Attempt", bound: Bound, answer: Refused) -> RefusedError:
        first = answer.exhausted[0]
        resets_at = format_time(first.resets_at_ms)
        message = (
            f"budget {first.budget_id} of {first.scope} has ${format_usd(first.remaining_nano)} left of "
            f"${format_usd(first.limit_nano)}, and this call could cost up to ${format_usd(bound.amount_nano)}; "
        )
        # Holds end in milliseconds to minutes: the window's end would be a wrong thing to wait for.
        is_held_up = all(each.limit_nano - each.spent_nano >= bound.amount_nano for each in answer.exhausted)
        headers: tuple[tuple[bytes, bytes], ...]
        if is_held_up:
            message += f"${format_usd(first.held_nano)} is held by other calls and may come free shortly"
            headers = ((b"retry-after", b"1"),)
        else:
            message += f"it resets at {resets_at}"
            headers = ((b"x-should-retry", b"false"), *_worth_waiting(answer, bound.amount_nano))
        fields = {
            "budget_id": first.budget_id,
            "scope": first.scope,
            "limit_usd": format_usd(first.limit_nano),
            "spent_usd": format_usd(first.spent_nano),
            "held_usd": format_usd(first.held_nano),
            "remaining_usd": format_usd(first.remaining_nano),
            "estimate_usd": format_usd(bound.amount_nano),
            "resets_at": resets_at,
        }
        return self._denied(
            attempt, 402, "budget_exhausted", message, fields=fields, headers=headers, bound=bound, budget=first
        )

    def _denied(
        self,
        attempt: "_Attempt",
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        fields: Mapping[str, object] | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        bound: Bound | None = None,
        budget: Standing | None = None,
    ) -> RefusedError:
        """The refusal of an identified call, on its way to the ledger."""
        denial = Denial(
            transaction_id=attempt.transaction_id,
            time_ms=time.time_ns() // 1_000_000,
            facts=attempt.facts,
            code=code,
            reason=message,
            estimate_nano=bound.amount_nano if bound is not None else 0,
            budget_id=budget.budget_id if budget is not None else None,
            scope=budget.scope if budget is not None else None,
            limit_nano=budget.limit_nano if budget is not None else None,
            spent_nano=budget.spent_nano if budget is not None else None,
            held_nano=budget.held_nano if budget is not None else None,
        )
        try:
            self._outbox.append([OutboxEvent(denial, event_headers(attempt.span))])
        except (OutboxFullError, UnavailableError) as error:
            # It cost nothing: the client is told the true reason, and the missing event is no missing money.
            log.warning("denial_not_recorded", transaction_id=attempt.transaction_id, code=code, reason=str(error))
        transaction = (self._transaction_header, attempt.transaction_id.encode())
        return RefusedError(
            status,
            code,
            message,
            param=param,
            fields={**(fields or {}), "transaction_id": attempt.transaction_id},
            headers=(*headers, transaction),
        )


def _worth_waiting(answer: Refused, amount_nano: int) -> tuple[tuple[bytes, bytes], ...]:
    """``Retry-After``, when every budget in the way turns soon and has room for the call then."""
    wait_ms = max(each.resets_at_ms for each in answer.exhausted) - answer.now_ms
    if wait_ms > _SHORT_WAIT_MS or any(each.limit_nano < amount_nano for each in answer.exhausted):
        return ()
    return ((b"retry-after", b"%d" % max(1, -(-wait_ms // 1000))),)


@dataclass(slots=True)
class _Attempt:
    """A call while it is being decided; `facts` fill up on the way."""

    transaction_id: str
    facts: CallFacts
    view: OrgView
    request: RequestFacts
    span: CallSpan
    timing: Timing
