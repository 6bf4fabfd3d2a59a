"""The management API as one FastAPI application. Building it needs no engines, so it can be described."""

from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services import __version__
from services.control import errors
from services.control.agents.routes import router as agents
from services.control.audit.routes import router as audit
from services.control.budgets.routes import router as budgets
from services.control.cap_policies.routes import router as cap_policies
from services.control.catalogs.routes import router as catalogs
from services.control.connections.routes import router as connections
from services.control.context import Context
from services.control.delegations.routes import router as delegations
from services.control.keys.routes import router as keys
from services.control.orgs.routes import router as orgs
from services.control.overrides.routes import router as overrides
from services.control.prices.routes import router as prices
from services.control.route_rules.routes import router as rules
from services.control.teams.routes import router as teams
from services.core.ports import UnavailableError

MAX_BODY_BYTES: Final = 65_536
MAX_CATALOG_BYTES: Final = 16 * 1024 * 1024

_CATALOGS_PATH: Final = "/api/v1/catalogs"

_ERRORS: Final = {
    400: "A field can't be taken as it is; `field` names it.",
    401: "No key, or one that is unknown or revoked.",
    403: "A key that may not manage.",
    404: "There is no such thing.",
    409: "The request contradicts what is there.",
    413: f"The body is larger than {MAX_BODY_BYTES} bytes (a price catalog: than {MAX_CATALOG_BYTES}).",
    500: "A fault of Farthing's.",
    503: "The database is away; nothing is known of the effect, and the call may be repeated.",
}


class BodyLimit:
    """Refuses bodies larger than `MAX_BODY_BYTES`, a catalog's than `MAX_CATALOG_BYTES`, before they are read whole."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI call."""
        taken = 0
        most = MAX_CATALOG_BYTES if scope.get("path") == _CATALOGS_PATH else MAX_BODY_BYTES

        async def receive_limited() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise HTTPException(413, f"the body is larger than {most} bytes")
            return message

        await self._app(scope, receive_limited, send)


def build_api() -> FastAPI:
    """The API. Whoever serves it sets ``app.state.context`` first."""
    app = FastAPI(
        title="Farthing management API",
        version=__version__,
        redirect_slashes=False,
        # FastAPI would trace every probe and dependency; the spans of a call are ours.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    errors.install(app)
    app.add_middleware(BodyLimit)
    documented: dict[int | str, dict[str, Any]] = {
        status: {"model": errors.ErrorAnswer, "description": text} for status, text in _ERRORS.items()
    }
    api = APIRouter(prefix="/api/v1", responses=documented)
    for router in (orgs, teams, agents, keys, budgets, connections, rules, prices, overrides, catalogs, audit):
        api.include_router(router)
    app.include_router(api)
    admin_api = APIRouter(prefix="/api/admin", responses=documented)
    admin_api.include_router(cap_policies)
    app.include_router(admin_api)
    app.include_router(delegations)
    app.add_api_route("/healthz", _healthz, include_in_schema=False)
    app.add_api_route("/readyz", _readyz, include_in_schema=False)
    app.openapi = lambda: _describe(app)  # type: ignore[method-assign]
    return app


def _describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, without FastAPI's own 422: a request that is not valid gets our 400."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema


async def _healthz() -> JSONResponse:
    return JSONResponse({"status": "ok"})


async def _readyz(request: Request) -> JSONResponse:
    context: Context = request.app.state.context
    if not context.started.is_set():
        return JSONResponse({"status": "starting", "reason": "the database is not migrated yet"}, 503)
    try:
        async with context.database.snapshot() as connection:
            await connection.execute("SELECT 1")
    except UnavailableError as error:
        return JSONResponse({"status": "unavailable", "reason": str(error)}, 503)
    return JSONResponse({"status": "ok"})
