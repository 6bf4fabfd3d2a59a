"""A call's hold moved to another target: resized in one step, never doubled, and recorded (GW-5)."""

from dataclasses import replace
from typing import Final

from services.core.budgets import Proposal, tightest
from services.core.calibrate import Calibration
from services.core.codec import encode_facts
from services.core.estimate import strict_bound
from services.core.events import HoldResized
from services.core.hotstate import Admitted, HoldRequest, StaleWindow
from services.core.matching import Matching, asks_for_session, closed_cap, proposals_for
from services.core.ports import HotState, OutboxEvent, OutboxFullError, UnavailableError
from services.core.reserve import left_out
from services.core.snapshot import Target
from services.core.windows import parse_span
from services.gateway.admit import AdmittedCall
from services.gateway.connect import Connector
from services.gateway.hold import counted_now, has_ended_part, held_now
from services.gateway.observe import event_headers
from services.gateway.options import calibration_key, for_model
from services.gateway.record import Recorder
from services.gateway.refusal import RefusedError
from services.gateway.sizing import size_hold
from services.gateway.snapshots import HotClock, OrgView

_PROPOSALS: Final = 3


class Mover:
    """Moves admitted calls to other targets."""

    def __init__(
        self,
        connector: Connector,
        hot_state: HotState,
        outbox: Recorder,
        clock: HotClock,
        calibration: Calibration,
    ) -> None:
        self._connector = connector
        self._hot_state = hot_state
        self._outbox = outbox
        self._clock = clock
        self._calibration = calibration

    async def move(self, call: AdmittedCall, view: OrgView, to: Target) -> AdmittedCall | None:
        """The call with its hold moved to what it can cost at another vendor, and that recorded; else None.

        What it falls under is decided again: budgets of a vendor, a model or a billing class let it go and take it on.
        None: the target is of another dialect, has no connection or price, or the call's budgets have no room for it
        or can't be checked yet; or a part (BU-9) that the call is charged to has ended.
        """
        asked = call.asked
        connection = self._connector.connection(view.snapshot, to.vendor, brings_key=False)
        if has_ended_part(call.charges, view.budgets):
            return None
        # A caller's own key is for its own vendor alone.
        if connection is None or connection.dialect != asked.candidate.dialect.name or asked.own_key is not None:
            return None
        priced = view.prices.find(connection.prices_as, to.model, self._clock.now_ms())
        if priced is None:
            return None
        facts = replace(
            call.facts,
            vendor=to.vendor,
            auth_mode=connection.auth_mode,
            model_priced=priced.model_priced,
            match=priced.match,
            catalog_version=priced.catalog_version,
            config_version=view.snapshot.version,
        )
        try:
            request, read = await for_model(asked.candidate.dialect, asked.request, to.model)
            bound = strict_bound(priced.price, read.demand)
            target = self._connector.target(view.snapshot.org, connection, None)
            matching = view.budgets.matching(facts, (*call.models, to.model))
        except ValueError:
            return None
        # Of a limit that was set to 0 meanwhile the figures would let pass whatever holds no more than before.
        if closed_cap(matching, 0) is not None:
            return None
        if facts.identity.session is None and asks_for_session(matching) is not None:
            return None
        facts = replace(facts, flags=tuple(dict.fromkeys((*facts.flags, *matching.flags))))
        budgets = [each.budget for each in matching.applicable]
        size = size_hold(budgets, bound, read, priced.price, calibration_key(facts), self._calibration)
        moved = replace(
            call,
            facts=facts,
            asked=asked.by(request),
            request=read,
            price=priced.price,
            bound=bound,
            held_nano=size.amount_nano,
            estimate_mode=size.mode,
            target=target,
            rule=view.snapshot.rule(to.vendor, call.facts.route),
        )
        if view.pasts.unknown:
            try:
                await view.pasts.wait(matching.applicable)
            except RefusedError:
                return None
        return await self._resize(moved, view, matching)

    async def _resize(self, call: AdmittedCall, view: OrgView, matching: Matching) -> AdmittedCall | None:
        context = encode_facts(call.facts)
        now_ms = self._clock.now_ms()
        for _ in range(_PROPOSALS):
            proposals = _proposals(call, view, matching, now_ms)
            request = HoldRequest(
                view.snapshot.org, call.transaction_id, call.held_nano, proposals, call.hold_ms, context
            )
            try:
                answer = await self._hot_state.resize(request)
            except UnavailableError:
                return None
            if isinstance(answer, Admitted):
                return self._record(call, proposals, answer)
            if not isinstance(answer, StaleWindow):
                return None
            self._clock.learn(answer.now_ms)
            now_ms = answer.now_ms
        return None

    def _record(self, call: AdmittedCall, proposals: tuple[Proposal, ...], answer: Admitted) -> AdmittedCall | None:
        resized = HoldResized(
            transaction_id=call.transaction_id,
            time_ms=answer.now_ms,
            facts=call.facts,
            held_nano=call.held_nano,
            charges=answer.charges,
            expires_at_ms=answer.expires_at_ms,
        )
        try:
            self._outbox.append([OutboxEvent(resized, event_headers(call.span))])
        except (OutboxFullError, UnavailableError):
            # The hold has another amount and other charges than was recorded; all of it ends with the settlement.
            return None
        call.charges = answer.charges
        call.parent_charged = left_out(proposals, answer.charges)
        call.standing = tightest(answer.standings)
        return call


def _proposals(call: AdmittedCall, view: OrgView, matching: Matching, now_ms: int) -> tuple[Proposal, ...]:
    """What the call falls under now. What it is charged to already keeps its window (P9), while its budget has that.

    From here on the call's events are of the present configuration, and that implies nothing of a budget that it has
    given another window (`core.backfill`): they have to name a span of the new one. A budget that is gone from the
    configuration can't say any more whether it matches: it stays charged.
    """
    spans = {each.budget_id: parse_span(each.window) for each in counted_now(call.charges, view.budgets)}
    falls_under = proposals_for(matching, call.facts.identity.session, now_ms)
    gone = [each for each in call.charges if view.budgets.find(each.budget_id) is None]
    return (
        *(
            replace(each, span=spans[each.budget_id], is_fixed=True) if each.budget_id in spans else each
            for each in falls_under
        ),
        *held_now(gone, view.budgets, now_ms),
    )
