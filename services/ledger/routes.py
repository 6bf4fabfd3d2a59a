"""The ledger's HTTP face: what callers may ask (relayed by the gateway) and what our own services need."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import APIRouter, FastAPI, Query, Request, Response

from services.core.codec import format_time
from services.core.identity import IdentityError, check_name
from services.core.ports import LedgerStore
from services.ledger import errors
from services.ledger.auth import Gate, scope_of
from services.ledger.errors import ApiError, json_answer
from services.ledger.fences import next_offsets
from services.ledger.image import image_fields, next_offsets_fields, org_image
from services.ledger.parameters import PageParameters, SpendParameters
from services.ledger.query import find_transaction, list_transactions, spend
from services.ledger.reconcile import Reconciler

# A call's events are in the ledger this long after it at most, unless something is away.
PATIENCE_S: Final = 1.0
_PAUSE_S: Final = 0.05

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
    api = FastAPI(title="Farthing ledger", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    api.state.context = context
    api.include_router(router)
    errors.install(api)
    return api


@router.get("/healthz")
async def healthz() -> Response:
    """Up."""
    return json_answer({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Able to serve: 200, or 503 with the reason."""
    reason = await _context(request).readiness()
    if reason is not None:
        return json_answer({"status": "waiting", "reason": reason}, 503)
    return json_answer({"status": "ok"})


@router.get("/v1/transactions/{transaction_id}")
async def one_transaction(request: Request, transaction_id: str) -> Response:
    """All that is known of one call. Waits a moment for events of a call that has only just ended."""
    context = _context(request)
    _refuse_parameters(request)
    scope = scope_of(await context.gate.caller(request), {}, None, None, None)
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        transaction = await find_transaction(context.store, scope, _check_id(transaction_id))
        is_final = transaction is not None and transaction.state != "held"
        if is_final or time.monotonic() >= deadline_s:
            break
        await asyncio.sleep(_PAUSE_S)
    if transaction is None:
        raise _unknown(transaction_id)
    return json_answer(transaction.fields())


@router.get("/v1/transactions")
async def transactions(request: Request, parameters: Annotated[PageParameters, Query()]) -> Response:
    """Transactions, newest first, a page at a time."""
    context = _context(request)
    record = await context.gate.caller(request)
    scope = scope_of(record, parameters.filters(), parameters.model, *parameters.span_ms())
    page = await list_transactions(context.store, scope, parameters.state, parameters.limit, parameters.cursor)
    return json_answer({"transactions": [each.fields() for each in page.transactions], "next_cursor": page.next_cursor})


@router.get("/v1/spend")
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


@router.get("/v1/reconciliation")
async def reconciliation(request: Request) -> Response:
    """Hot state, ledger and log of the caller's org, side by side."""
    context = _context(request)
    _refuse_parameters(request)
    record = await context.gate.admin(request)
    return json_answer(await context.reconciler.reconcile(record.org))


@router.get("/internal/v1/next-offsets")
async def all_next_offsets(request: Request) -> Response:
    """The next offset the ledger will take of each partition it has rows of."""
    context = _context(request)
    context.gate.check_service(request)
    return json_answer(next_offsets_fields(await next_offsets(context.store)))


@router.get("/internal/v1/orgs/{org}/image")
async def image(request: Request, org: str) -> Response:
    """An org's figures for the rebuild of its hot state; see `services.ledger.image`."""
    context = _context(request)
    context.gate.check_service(request)
    return json_answer(image_fields(await org_image(context.store, org, time.time_ns() // 1_000_000)))


def _context(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


def _refuse_parameters(request: Request) -> None:
    for name in request.query_params:
        raise ApiError(400, "invalid_request", f"{name} is not a parameter of this request", name)


def _check_id(transaction_id: str) -> str:
    try:
        return check_name("transaction_id", transaction_id)
    except IdentityError as error:
        raise _unknown(transaction_id) from error


def _unknown(transaction_id: str) -> ApiError:
    return ApiError(404, "not_found", f"there is no transaction {transaction_id[:64]}")
