"""A call's hold moved to another target: resized in one step, never doubled, and recorded (GW-5)."""

import asyncio
from dataclasses import replace

from services.core.budgets import Proposal, tightest
from services.core.codec import encode_facts
from services.core.estimate import strict_bound
from services.core.events import HoldResized
from services.core.hotstate import Admitted, HoldRequest
from services.core.ports import HotState, OutboxEvent, OutboxFullError, UnavailableError
from services.core.snapshot import Target
from services.core.windows import parse_span
from services.gateway.admit import AdmittedCall
from services.gateway.body import READ_IN_THREAD_BYTES
from services.gateway.connect import Connector
from services.gateway.observe import event_headers
from services.gateway.record import Recorder
from services.gateway.snapshots import HotClock, OrgView
from services.gateway.vendors import Dialect, RequestFacts, RouteRequest


class Mover:
    """Moves admitted calls to other targets."""

    def __init__(self, connector: Connector, hot_state: HotState, outbox: Recorder, clock: HotClock) -> None:
        self._connector = connector
        self._hot_state = hot_state
        self._outbox = outbox
        self._clock = clock

    async def move(self, call: AdmittedCall, view: OrgView, to: Target) -> AdmittedCall | None:
        """The call with its hold moved to what it can cost at another vendor, and that recorded; else None.

        None: the target is of another dialect, has no connection or price, or the call's budgets have no room for it.
        """
        asked = call.asked
        connection = self._connector.connection(view.snapshot, to.vendor, brings_key=False)
        # A caller's own key is for its own vendor alone.
        if connection is None or connection.dialect != asked.candidate.dialect.name or asked.own_key is not None:
            return None
        priced = view.prices.find(connection.prices_as, to.model, self._clock.now_ms())
        if priced is None:
            return None
        try:
            request, facts = await _for_model(asked.candidate.dialect, asked.request, to.model)
            bound = strict_bound(priced.price, facts.demand)
            target = self._connector.target(view.snapshot.org, connection, None)
        except ValueError:
            return None
        candidate = replace(asked.candidate, params=request.params)
        moved = replace(
            call,
            facts=replace(
                call.facts,
                vendor=to.vendor,
                model_priced=priced.model_priced,
                match=priced.match,
                catalog_version=priced.catalog_version,
            ),
            asked=replace(asked, candidate=candidate, request=request),
            request=facts,
            price=priced.price,
            bound=bound,
            held_nano=bound.amount_nano,
            estimate_mode="strict",
            target=target,
            rule=view.snapshot.rule(to.vendor, call.facts.route),
        )
        return await self._resize(moved, view)

    async def _resize(self, call: AdmittedCall, view: OrgView) -> AdmittedCall | None:
        limits = {each.budget_id: each for each in view.snapshot.budgets}
        proposals = tuple(
            Proposal(each.budget_id, each.scope, parse_span(each.window), limits[each.budget_id].limit_nano)
            for each in call.charges
            if each.budget_id in limits
        )
        context = encode_facts(call.facts)
        request = HoldRequest(view.snapshot.org, call.transaction_id, call.held_nano, proposals, call.hold_ms, context)
        try:
            answer = await self._hot_state.resize(request)
        except UnavailableError:
            return None
        if not isinstance(answer, Admitted):
            return None
        resized = HoldResized(
            transaction_id=call.transaction_id,
            time_ms=answer.now_ms,
            facts=call.facts,
            held_nano=call.held_nano,
            charges=call.charges,
            expires_at_ms=answer.expires_at_ms,
        )
        try:
            self._outbox.append([OutboxEvent(resized, event_headers(call.span))])
        except (OutboxFullError, UnavailableError):
            return None  # the hold is larger than it was recorded to be, and ends with the call's settlement
        call.standing = tightest(answer.standings)
        return call


async def _for_model(dialect: Dialect, request: RouteRequest, model: str) -> tuple[RouteRequest, RequestFacts]:
    """The request for another model, and its facts. Raises `RequestRefusedError`."""

    def read() -> tuple[RouteRequest, RequestFacts]:
        renamed = dialect.renamed(request, model)
        return renamed, dialect.read_request(renamed)

    return await asyncio.to_thread(read) if len(request.body) > READ_IN_THREAD_BYTES else read()
