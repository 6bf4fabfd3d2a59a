"""The one address: a raw ASGI dispatcher, because a framework's layers would cost most of the gateway's speed."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from services.core.identity import IdentityError, check_name
from services.gateway.body import Message, Receive, Send
from services.gateway.calls import GovernedCalls, VendorRoute
from services.gateway.models import ModelList
from services.gateway.refusal import RefusedError
from services.gateway.relay import Relay
from services.gateway.respond import send_ok, send_plain, send_refusal
from services.gateway.vendors import Dialect

Readiness = Callable[[], Awaitable[str | None]]

_MODELS: Final = "/v1/models"
_CONTROL_PATHS: Final = ("/api", "/docs", "/openapi.json", "/redoc")
_LEDGER_PATHS: Final = ("/v1/transactions", "/v1/spend", "/v1/reconciliation")


@dataclass(frozen=True, slots=True)
class Surface:
    """What is behind the one address. `routes` are billable ones by path; `readiness` says why not ready, or None."""

    calls: GovernedCalls
    routes: Mapping[str, VendorRoute]
    dialect: Dialect
    models: ModelList
    control: Relay
    ledger: Relay
    readiness: Readiness


class Gateway:
    """The ASGI application."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._calls = surface.calls
        self._routes = surface.routes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway speaks HTTP only, not {scope['type']}")
        path: str = scope["path"]
        route = self._routes.get(path)
        if route is not None and scope["method"] == "POST":
            await self._calls.serve(scope, receive, send, route, None)
            return
        await self._dispatch(path, scope, receive, send)

    async def _dispatch(self, path: str, scope: Message, receive: Receive, send: Send) -> None:
        surface = self._surface
        if path in ("/healthz", "/readyz"):
            await self._health(path, send)
        elif any(segment in (".", "..") for segment in path.split("/")):
            await send_plain(send, 404, "not_found", f"there is nothing at {path[:200]}")
        elif _is_below(path, _CONTROL_PATHS):
            await surface.control.serve(scope, receive, send)
        elif _is_below(path, _LEDGER_PATHS):
            await surface.ledger.serve(scope, receive, send)
        else:
            await self._vendor_path(path, scope, receive, send)

    async def _vendor_path(self, path: str, scope: Message, receive: Receive, send: Send) -> None:
        vendor, below = _vendor_of(path)
        route = self._routes.get(below)
        method: str = scope["method"]
        if route is not None and method == "POST":
            await self._calls.serve(scope, receive, send, route, vendor)
        elif below == _MODELS and method == "GET":
            await self._surface.models.serve(scope, send, vendor)
        elif route is not None or below == _MODELS:
            await self._refuse(send, _wrong_method(path, method, "GET" if below == _MODELS else "POST"))
        elif below.startswith("/v1/") or below == "/v1":
            message = f"{method} {path[:200]} is not a route this gateway can price, so it is not passed on"
            await self._refuse(send, RefusedError(404, "unknown_route", message))
        else:
            await send_plain(send, 404, "not_found", f"there is nothing at {path[:200]}")

    async def _refuse(self, send: Send, refusal: RefusedError) -> None:
        await send_refusal(send, self._surface.dialect, refusal)

    async def _health(self, path: str, send: Send) -> None:
        reason = None if path == "/healthz" else await self._surface.readiness()
        if reason is None:
            await send_ok(send, {"status": "ok"})
        else:
            await send_plain(send, 503, "not_ready", reason, headers=[(b"retry-after", b"1")])


def _vendor_of(path: str) -> tuple[str | None, str]:
    """The vendor that a path names (``/openai/v1/…``), and the rest of the path."""
    _, first, *rest = path.split("/", 2)
    if first == "v1" or not rest:
        return None, path
    try:
        return check_name("vendor", first), "/" + rest[0]
    except IdentityError:
        return None, path


def _is_below(path: str, roots: tuple[str, ...]) -> bool:
    return path.startswith(roots) and any(path == root or path.startswith(root + "/") for root in roots)


def _wrong_method(path: str, method: str, right: str) -> RefusedError:
    message = f"{path[:200]} takes {right}, not {method}"
    return RefusedError(405, "method_not_allowed", message, headers=((b"allow", right.encode()),))
