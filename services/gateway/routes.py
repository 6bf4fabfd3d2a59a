"""The one address: a raw ASGI dispatcher, because a framework's layers would cost most of the gateway's speed."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from services.gateway.body import Message, Receive, Send
from services.gateway.calls import GovernedCalls
from services.gateway.delegations.serve import PATH as BUDGETS
from services.gateway.delegations.serve import DelegationApi
from services.gateway.refusal import RefusedError
from services.gateway.relay import Relay
from services.gateway.reservations.serve import PATH as RESERVATIONS
from services.gateway.reservations.serve import ReservationApi
from services.gateway.respond import send_ok, send_plain, send_refusal
from services.gateway.table import Place, RouteTable, spelled
from services.gateway.vendors import Dialect
from services.gateway.vendors.registry import dialect_of

Readiness = Callable[[], Awaitable[str | None]]

# What most calls' paths begin with, so that nothing else needs to be looked at first.
_VERSIONED: Final = ("/v1/", "/v1beta/", "/v2/")
_CONTROL_PATHS: Final = ("/api", "/docs", "/openapi.json", "/redoc")
_LEDGER_PATHS: Final = (
    *("/v1/transactions", "/v1/spend", "/v1/estimates", "/v1/reconciliation"),
    "/api/admin/billing/spend",
)


@dataclass(frozen=True, slots=True)
class Surface:
    """What is behind the one address. `readiness` says why not ready, or None."""

    table: RouteTable
    calls: GovernedCalls
    control: Relay
    ledger: Relay
    reservations: ReservationApi
    delegations: DelegationApi
    readiness: Readiness


class Gateway:
    """The ASGI application."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway speaks HTTP only, not {scope['type']}")
        path: str = scope["path"]
        surface = self._surface
        if "/." in path and any(segment in (".", "..") for segment in path.split("/")):
            await send_plain(send, 404, "not_found", f"there is nothing at {path[:200]}")
        elif _is_below(path, _LEDGER_PATHS):
            await surface.ledger.serve(scope, receive, send)
        elif _is_below(path, (RESERVATIONS,)):
            await surface.reservations.serve(scope, receive, send)
        elif _is_below(path, (BUDGETS,)):
            await surface.delegations.serve(scope, receive, send)
        elif path.startswith(_VERSIONED):
            await self._vendor_path(scope, receive, send)
        elif path in ("/healthz", "/readyz"):
            await self._health(path, send)
        elif _is_below(path, _CONTROL_PATHS):
            await surface.control.serve(scope, receive, send)
        else:
            await self._vendor_path(scope, receive, send)

    async def _vendor_path(self, scope: Message, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        has_api_version = b"api-version=" in scope["query_string"]
        place = self._surface.table.find(method, spelled(scope["raw_path"]), has_api_version=has_api_version)
        if place.candidates or (place.is_vendors and not place.allowed):
            await self._surface.calls.serve(scope, receive, send, place)
        elif place.allowed:
            await send_refusal(send, _dialect(place), _wrong_method(path, method, place.allowed))
        else:
            await send_plain(send, 404, "not_found", f"there is nothing at {path[:200]}")

    async def _health(self, path: str, send: Send) -> None:
        reason = None if path == "/healthz" else await self._surface.readiness()
        if reason is None:
            await send_ok(send, {"status": "ok"})
        else:
            await send_plain(send, 503, "not_ready", reason, headers=[(b"retry-after", b"1")])


def _is_below(path: str, roots: tuple[str, ...]) -> bool:
    return path.startswith(roots) and any(path == root or path.startswith(root + "/") for root in roots)


def _dialect(place: Place) -> Dialect:
    """The dialect that a refusal at a place without candidates is written in."""
    return dialect_of(place.vendor or "")


def _wrong_method(path: str, method: str, allowed: tuple[str, ...]) -> RefusedError:
    right = ", ".join(allowed)
    message = f"{path[:200]} takes {right}, not {method}"
    return RefusedError(405, "method_not_allowed", message, headers=((b"allow", right.encode()),))
