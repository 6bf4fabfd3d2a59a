"""The ledger's HTTP face: what callers may ask (relayed by the gateway) and what our own services need."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, FastAPI, Path, Query, Request, Response

from services.core.codec_fields import format_time
from services.core.identity import IdentityError, check_name
from services.core.ports import LedgerStore
from services.ledger import errors
from services.ledger.answers import (
    BillingSpendAnswer,
    ErrorAnswer,
    EstimatesAnswer,
    ReconciliationAnswer,
    SpendAnswer,
    TransactionAnswer,
    TransactionsAnswer,
)
from services.ledger.auth import Gate, scope_of
from services.ledger.backfill import call_sums, calls_fields, query_of
from services.ledger.billing import BillingQuery, billing_spend
from services.ledger.errors import ApiError, json_answer
from services.ledger.fences import next_offsets
from services.ledger.image import Images, image_fields, next_offsets_fields
from services.ledger.parameters import BillingParameters, EstimatesParameters, PageParameters, SpendParameters
from services.ledger.query import estimates, find_transaction, list_transactions, spend
from services.ledger.reconcile import Reconciler

# A call's events are in the ledger this long after it at most, unless something is away.
PATIENCE_S: Final = 1.0
_PAUSE_S: Final = 0.05

_ERRORS: Final = {
    400: "A parameter can't be taken as it is; `field` names it.",
    401: "No key, or one that is unknown or revoked.",
    403: "The key's pins or its role do not allow this.",
    404: "There is no such thing, or none that this key may see.",
    500: "A fault of Farthing's.",
    503: "An engine is away or too slow, or the hot state is being rebuilt; the call may be repeated.",
}

Readiness = Callable[[], Awaitable[str | None]]
router = APIRouter()


@dataclass(frozen=True, slots=True)
class Context:
    """What requests are answered from. `readiness` says why the ledger can't serve, or None."""

    store: LedgerStore
    gate: Gate
    reconciler: Reconciler
    readiness: Readiness


def build_api(context: Context) -> FastAPI:
    """The ASGI application."""
    api = FastAPI(
        title="Farthing ledger",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        # FastAPI would trace every probe and dependency; the spans of a call are ours.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    api.state.context = context
    api.state.images = Images(context.store)
    api.include_router(router)
    errors.install(api)
    return api


def _documented(model: type[Any], text: str, *errors_told: int) -> dict[int | str, dict[str, Any]]:
    """The answers of a route, for its description."""
    told: dict[int | str, dict[str, Any]] = {200: {"model": model, "description": text}}
    for status in (400, 401, 403, *errors_told, 500, 503):
        told[status] = {"model": ErrorAnswer, "description": _ERRORS[status]}
    return told


@router.get("/healthz", include_in_schema=False)
async def healthz() -> Response:
    """Up."""
    return json_answer({"status": "ok"})


@router.get("/readyz", include_in_schema=False)
async def readyz(request: Request) -> Response:
    """Able to serve: 200, or 503 with the reason."""
    reason = await _context(request).readiness()
    if reason is not None:
        return json_answer({"status": "waiting", "reason": reason}, 503)
    return json_answer({"status": "ok"})


@router.get("/v1/transactions/{transaction_id}", responses=_documented(TransactionAnswer, "The transaction.", 404))
async def one_transaction(
    request: Request,
    transaction_id: Annotated[str, Path(description="As the gateway's answer to the call told it: txn_…")],
    wait: Annotated[bool, Query(description="false: answer at once, with what is known now.")] = True,
) -> Response:
    """All that is known of one call. Waits a moment for events of a call that has only just ended."""
    context = _context(request)
    _refuse_parameters(request, "wait")
    scope = scope_of(await context.gate.caller(request), {}, None, None, None)
    deadline_s = time.monotonic() + (PATIENCE_S if wait else 0.0)
    while True:
        transaction = await find_transaction(context.store, scope, _check_id(transaction_id))
        is_final = transaction is not None and transaction.state != "held"
        if is_final or time.monotonic() >= deadline_s:
            break
        await asyncio.sleep(_PAUSE_S)
    if transaction is None:
        raise _unknown(transaction_id)
    return json_answer(transaction.fields())


@router.get(
    "/v1/transactions", responses=_documented(TransactionsAnswer, "A page; ask for the next by its next_cursor.")
)
async def transactions(request: Request, parameters: Annotated[PageParameters, Query()]) -> Response:
    """Transactions, newest first, a page at a time."""
    context = _context(request)
    record = await context.gate.caller(request)
    scope = scope_of(record, parameters.filters(), parameters.model, *parameters.span_ms())
    page = await list_transactions(context.store, scope, parameters.state, parameters.limit, parameters.cursor)
    return json_answer({"transactions": [each.fields() for each in page.transactions], "next_cursor": page.next_cursor})


@router.get("/v1/spend", responses=_documented(SpendAnswer, "The sums."))
async def spend_by(request: Request, parameters: Annotated[SpendParameters, Query()]) -> Response:
    """Spend by one dimension over a span of time, dearest first, with totals."""
    context = _context(request)
    record = await context.gate.caller(request)
    since_ms, until_ms = parameters.spend_span_ms(time.time_ns() // 1_000_000)
    scope = scope_of(record, parameters.filters(), parameters.model, since_ms, until_ms)
    told = {
        "org": record.org,
        "by": parameters.by,
        "since": format_time(since_ms) if since_ms is not None else None,
        "until": format_time(until_ms) if until_ms is not None else None,
    }
    return json_answer(told | await spend(context.store, scope, parameters.by))


@router.get(
    "/api/admin/billing/spend",
    responses=_documented(BillingSpendAnswer, "A page; ask for the next by its nextCursor."),
)
async def billing_spend_by(request: Request, parameters: Annotated[BillingParameters, Query()]) -> Response:
    """Spend by billing class, project or session, dearest first, a page at a time. Needs an org_admin key."""
    context = _context(request)
    record = await context.gate.admin(request, "spend by billing class")
    if parameters.org_id not in (None, record.org):
        message = f"this key is of org {record.org!r} only; leave orgId out, or use a key of that org"
        raise ApiError(403, "forbidden", message, "orgId")
    scope = scope_of(record, {"project": parameters.project}, None, None, None, parameters.billing_class)
    query = BillingQuery(scope, parameters.by, parameters.window)
    since_ms = parameters.since_ms(time.time_ns() // 1_000_000)
    return json_answer(await billing_spend(context.store, query, since_ms, parameters.limit, parameters.cursor))


@router.get("/v1/estimates", responses=_documented(EstimatesAnswer, "The figures."))
async def estimates_and_costs(request: Request, parameters: Annotated[EstimatesParameters, Query()]) -> Response:
    """What was held for calls and what they cost, over a span of time: how often the estimate was too low."""
    context = _context(request)
    record = await context.gate.caller(request)
    since_ms, until_ms = parameters.spend_span_ms(time.time_ns() // 1_000_000)
    scope = scope_of(record, parameters.filters(), parameters.model, since_ms, until_ms)
    told = {
        "org": record.org,
        "since": format_time(since_ms) if since_ms is not None else None,
        "until": format_time(until_ms) if until_ms is not None else None,
        "rows": await estimates(context.store, scope),
    }
    return json_answer(told)


@router.get("/v1/reconciliation", responses=_documented(ReconciliationAnswer, "The comparison."))
async def reconciliation(request: Request) -> Response:
    """Hot state, ledger and log of the caller's org, side by side. Needs an org_admin key."""
    context = _context(request)
    _refuse_parameters(request)
    record = await context.gate.admin(request, "reconciliation")
    return json_answer(await context.reconciler.reconcile(record.org))


@router.get("/internal/v1/next-offsets", include_in_schema=False)
async def all_next_offsets(request: Request) -> Response:
    """The next offset the ledger will take of each partition it has rows of."""
    context = _context(request)
    context.gate.check_service(request)
    return json_answer(next_offsets_fields(await next_offsets(context.store)))


@router.get("/internal/v1/orgs/{org}/image", include_in_schema=False)
async def image(request: Request, org: str) -> Response:
    """An org's figures for the rebuild of its hot state; see `services.ledger.image`."""
    context = _context(request)
    context.gate.check_service(request)
    images: Images = request.app.state.images
    return json_answer(image_fields(await images.of(org, time.time_ns() // 1_000_000)))


@router.post("/internal/v1/orgs/{org}/calls", include_in_schema=False)
async def calls(request: Request, org: str) -> Response:
    """What an org's calls did cost, for budgets that are made after them; see `services.ledger.backfill`."""
    context = _context(request)
    context.gate.check_service(request)
    try:
        query = query_of(orjson.loads(await request.body()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ApiError(400, "invalid_request", f"the question can't be read: {error}") from error
    return json_answer(calls_fields(await call_sums(context.store, org, query)))


def _context(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


def _refuse_parameters(request: Request, *known: str) -> None:
    for name in set(request.query_params) - set(known):
        raise ApiError(400, "invalid_request", f"{name} is not a parameter of this request", name)


def _check_id(transaction_id: str) -> str:
    try:
        return check_name("transaction_id", transaction_id)
    except IdentityError as error:
        raise _unknown(transaction_id) from error


def _unknown(transaction_id: str) -> ApiError:
    return ApiError(404, "not_found", f"there is no transaction {transaction_id[:64]}")
