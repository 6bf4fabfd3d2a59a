"""A governed call, start to end: identify, admit, forward, deliver. The hot path."""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import unquote_plus

from services.core.identity import Identity, is_key_text
from services.gateway.admit import AdmittedCall, Admitter, Asked
from services.gateway.body import AT_ONCE_NS, READ_IN_THREAD_BYTES, ClientGoneError, Message, Receive, Send, read_body
from services.gateway.connect import Choice, Connector, likely_dialect, own_key
from services.gateway.deliver import Delivery
from services.gateway.extend import CutOffError
from services.gateway.fallback import Fallbacks
from services.gateway.forward import VendorFailedError, may_be_at_work
from services.gateway.free import FreeCalls
from services.gateway.headers import CallHeaders, HeaderReader
from services.gateway.identify import Authenticator
from services.gateway.jobs.addresses import Rewrite, rewrites
from services.gateway.jobs.keeper import Keeper
from services.gateway.jobs.submit import Submissions
from services.gateway.jobs.watch import Watch
from services.gateway.models import ModelList
from services.gateway.observe import Observer
from services.gateway.refusal import RefusedError, rebuilding
from services.gateway.renew import LiveHold, LiveHolds
from services.gateway.respond import ResponseHeaders, send_refusal
from services.gateway.settle import Settled, Settler, at_bound
from services.gateway.snapshots import OrgView
from services.gateway.table import Place, RouteTable
from services.gateway.timing import Timing
from services.gateway.unpriced import NO_DEMAND, UNREAD, unpriced_facts, unpriced_place
from services.gateway.vendors import Dialect, RequestFacts, RequestRefusedError, RouteRequest
from services.gateway.vendors.registry import dialect_of

# What the server tells the caller of a request that it has cancelled.
_CANCELLED_STATUS: Final = 500


@dataclass(frozen=True, slots=True)
class Serving:
    """What serving calls takes. The bounds are what one call may hold in memory."""

    table: RouteTable
    authenticator: Authenticator
    connector: Connector
    admitter: Admitter
    fallbacks: Fallbacks
    holds: LiveHolds
    settler: Settler
    free: FreeCalls
    watch: Watch
    submissions: Submissions
    keeper: Keeper
    models: ModelList
    observer: Observer
    header_prefix: str
    max_body_bytes: int
    max_response_bytes: int


class GovernedCalls:
    """Serves vendors' routes."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._reader = HeaderReader(serving.header_prefix)
        self._names = ResponseHeaders(serving.header_prefix)
        self._trailer_header = serving.header_prefix + "trailer"

    async def serve(self, scope: Message, receive: Receive, send: Send, place: Place) -> None:
        """Serves one request to a place of a vendor's API."""
        timing, asked_place = Timing(), place
        serving = self._serving
        dialect = place.candidates[0].dialect if place.candidates else dialect_of(place.vendor or "")
        try:
            headers = self._reader.read(scope["headers"])
            query = own_query(headers, scope["query_string"].decode("latin-1"))
            dialect = likely_dialect(headers, place)
            identity = await serving.authenticator.identify(headers)
            view = await serving.admitter.view(identity.org)
            if not place.candidates:
                dialect = serving.connector.spoken(view.snapshot, headers, place)
                place = unpriced_place(scope["method"], place, dialect, view, serving.table)
            choice = serving.connector.choose(view.snapshot, headers, place)
            dialect = choice.candidate.dialect
            if serving.models.is_asked_for(choice.candidate):
                await serving.models.serve(send, view, choice.vendor)
                return
            rewrite = rewrites(scope, place, choice.candidate)
            if choice.candidate.route.billing == "watched":
                await serving.watch.serve(scope["method"], receive, send, view, choice, headers, query, rewrite)
                return
            if choice.candidate.route.billing == "free":
                await serving.free.serve(scope["method"], receive, send, view, choice, headers, query)
                return
            timing.identified_ns = time.perf_counter_ns()
            body = await read_body(receive, headers.content_length, self._serving.max_body_bytes)
            timing.read_ns = time.perf_counter_ns()
            took_ns = timing.read_ns - timing.identified_ns
            if took_ns > AT_ONCE_NS or await serving.admitter.view(identity.org) is not view:
                identity, view, choice = await self._anew(scope["method"], headers, asked_place, choice)
            request = RouteRequest(
                choice.candidate.route, body, choice.candidate.params, query, headers.content_type, headers.forwarded
            )
            asked = await self._asked(identity, choice, request, view, headers, timing)
            if asked.facts.lines:  # a vendor may have taken minutes to tell them
                identity, view, _ = await self._anew(scope["method"], headers, asked_place, choice)
                asked = replace(asked, identity=identity)
            call = await self._serving.admitter.admit(asked, view, timing)
        except RefusedError as refusal:
            self._serving.observer.denied(refusal.code)
            await send_refusal(send, dialect, refusal)
            return
        except ClientGoneError:
            return
        hold = serving.holds.begin(call)
        try:
            await self._carry_out(hold, view, headers, receive, send, rewrite)
        finally:
            serving.holds.end(hold)

    async def _anew(
        self, method: str, headers: CallHeaders, place: Place, before: Choice
    ) -> tuple[Identity, OrgView, Choice]:
        """Who asks, and what is meant, by what is in force now. Raises `RefusedError`."""
        connector = self._serving.connector
        identity = await self._serving.authenticator.identify(headers)
        view = await self._serving.admitter.view(identity.org)
        if not place.candidates:
            dialect = connector.spoken(view.snapshot, headers, place)
            place = unpriced_place(method, place, dialect, view, self._serving.table)
        choice = connector.choose(view.snapshot, headers, place)
        now, then = choice.candidate, before.candidate
        if (now.dialect, now.route.billing) != (then.dialect, then.route.billing):
            raise rebuilding("the vendor's connection was changed while this request came; send it again")
        return identity, view, choice

    async def _asked(
        self,
        identity: Identity,
        choice: Choice,
        request: RouteRequest,
        view: OrgView,
        headers: CallHeaders,
        timing: Timing,
    ) -> Asked:
        """What the call asks for; raises `RefusedError`."""
        submissions, dialect = self._serving.submissions, choice.candidate.dialect
        vendor, key = choice.vendor, own_key(headers, dialect)
        try:
            if submissions.has_input_file(choice.candidate):
                vendor = submissions.vendor_of(choice)
                facts = await submissions.read(request, choice, view, key)
                timing.read_ns = time.perf_counter_ns()  # the file is a part of what the caller asks for
                job = submissions.job_of(choice.candidate, facts) if facts.lines else None
            else:
                facts = await read_request(dialect, request)
                job = submissions.job_of(choice.candidate, facts)
        except RefusedError as refusal:
            cause = refusal.__cause__
            if not isinstance(cause, RequestRefusedError):
                raise
            # Who asks is known, so it is on record what was refused to whom.
            unread = RequestFacts("", False, NO_DEMAND, UNREAD, request.body)
            asked = Asked(identity, choice.candidate, request, unread, vendor, key, headers.trace)
            raise self._serving.admitter.refused(asked, view, timing, cause) from cause
        return Asked(identity, choice.candidate, request, facts, vendor, key, headers.trace, job)

    async def _carry_out(
        self,
        hold: LiveHold,
        view: OrgView,
        headers: CallHeaders,
        receive: Receive,
        send: Send,
        rewrite: Rewrite | None,
    ) -> None:
        dialect = hold.call.asked.candidate.dialect
        settled: Settled | None = None
        try:
            response = await self._serving.fallbacks.send(hold, view, headers.forwarded)
        except asyncio.CancelledError:
            # Its hold's expiry may count nothing, and nobody else will know what its vendor was asked for.
            self._settle_unanswered(hold.call, was_sent=may_be_at_work(hold.call), http_status=_CANCELLED_STATUS)
            raise
        except CutOffError as cut:
            settled = self._serving.settler.settle(hold.call, "cut_off", at_bound(hold.call), cut.refusal.status)
            await send_refusal(send, dialect, cut.refusal, self._names.of_call(hold.call, settled))
            return
        except VendorFailedError as failure:
            status, code = (504, "vendor_timeout") if failure.timed_out else (502, "vendor_unreachable")
            settled = self._settle_unanswered(failure.call, was_sent=failure.was_sent, http_status=status)
            refusal = RefusedError(status, code, str(failure), fields={"transaction_id": failure.call.transaction_id})
            await send_refusal(send, dialect, refusal, self._names.of_call(failure.call, settled))
            return
        delivery = Delivery(
            hold=hold,
            response=response,
            dialect=dialect,
            settler=self._serving.settler,
            keeper=self._serving.keeper,
            names=self._names,
            receive=receive,
            send=send,
            buffer_bytes=self._serving.max_response_bytes,
            with_trailer=headers.spend.get(self._trailer_header, "").lower() == "true",
            rewrite=rewrite,
        )
        await delivery.run()

    def _settle_unanswered(self, call: AdmittedCall, *, was_sent: bool, http_status: int) -> Settled | None:
        """Settles a call whose vendor has not answered, without waiting; None for one that may have become a job."""
        if was_sent and call.asked.job is not None:
            self._serving.keeper.settle_at_bound(call, http_status)
            return None
        return self._serving.settler.settle_unanswered(call, was_sent=was_sent, http_status=http_status)


async def read_request(dialect: Dialect, request: RouteRequest) -> RequestFacts:
    """The facts of a request; raises `RefusedError` (400)."""
    if request.route.billing == "unpriced":
        return unpriced_facts(request)
    try:
        # The many small requests of a batch take longer, for the same bytes, than one large one.
        share = 16 if request.route.billing == "submitted" else 1
        if len(request.body) * share > READ_IN_THREAD_BYTES:
            return await asyncio.to_thread(dialect.read_request, request)
        return dialect.read_request(request)
    except RequestRefusedError as error:
        raise RefusedError(400, error.code, str(error), param=error.param) from error


def own_query(headers: CallHeaders, query: str) -> str:
    """The query as it goes on. Google's clients may send a key in it: ours is taken out, and so is any other.

    A key in a query ends up in logs, so a vendor's is never passed on that way: it goes into the header it belongs in.
    Raises `RefusedError` (400) for one that could not be in a header.
    """
    if "key=" not in query and "%" not in query:
        return query
    kept = []
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if unquote_plus(name) != "key":
            kept.append(pair)
            continue
        text = unquote_plus(value)
        if not (text.isascii() and text.isprintable()):
            raise RefusedError(400, "invalid_request", "the key in the query holds what no key can", param="key")
        if is_key_text(text):
            if headers.key is None or not is_key_text(headers.key):
                headers.key = text
        elif text:
            headers.credentials.setdefault("x-goog-api-key", text)
    return "&".join(kept)
