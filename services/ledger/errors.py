"""Every error of the ledger's API in one form: ``{"error", "message", "field"?}``."""

from typing import Any, Final

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from services.core.identity import IdentityError
from services.core.ports import UnavailableError
from services.core.windows import WindowError
from services.ledger.query import CursorError

_log = structlog.get_logger("farthing.ledger")
_CODES: Final = {404: "not_found", 405: "method_not_allowed"}
_TEXTS: Final = {
    404: "there is nothing at this path; try /v1/transactions, /v1/spend or /v1/reconciliation",
    405: "this path takes GET only",
}


class ApiError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field


class HotStateUnavailableError(UnavailableError):
    """The hot state is away, bare or cold, and with it the keys."""


def json_answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Content as JSON, without the detour over a model."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def install(app: FastAPI) -> None:
    """Gives every error of `app` the one form."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(IdentityError, _named_field)
    app.add_exception_handler(WindowError, _named_field)
    app.add_exception_handler(CursorError, _cursor_error)
    app.add_exception_handler(UnavailableError, _unavailable)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _internal)


def _answer(
    status: int, code: str, message: str, field: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    content = {"error": code, "message": message} | ({"field": field} if field is not None else {})
    return json_answer(content, status, headers)


async def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {401: {"www-authenticate": "Bearer"}, 503: {"retry-after": "1"}}.get(error.status)
    return _answer(error.status, error.code, str(error), error.field, headers)


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = str(first["loc"][-1])
    if first["type"] == "extra_forbidden":
        return _answer(400, "invalid_request", f"{field} is not a parameter of this request", field)
    text = str(first["msg"]).removeprefix("Value error, ")
    return _answer(400, "invalid_request", f"{field}: {text[:1].lower()}{text[1:]}", field)


async def _named_field(_request: Request, error: Exception) -> Response:
    assert isinstance(error, IdentityError | WindowError)
    return _answer(400, "invalid_request", str(error), error.field)


async def _cursor_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, CursorError)
    message = f"cursor must be the {error.given_as} of an earlier answer, unchanged"
    return _answer(400, "invalid_request", message, "cursor")


async def _unavailable(request: Request, error: Exception) -> Response:
    _log.warning("unavailable", path=request.url.path, reason=str(error))
    if isinstance(error, HotStateUnavailableError):
        code, message = "state_rebuilding", "the hot state is away or being rebuilt; try again"
    else:
        code, message = "ledger_unavailable", "the ledger can't reach an engine it needs; try again"
    return _answer(503, code, message, headers={"retry-after": "1"})


async def _http_exception(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    return _answer(status, _CODES.get(status, "invalid_request"), _TEXTS.get(status, str(error.detail)))


async def _internal(_request: Request, _error: Exception) -> Response:
    # Starlette raises the error again after this answer, and the server logs it with its traceback.
    return _answer(500, "internal", "something went wrong here; the log of the ledger says what")
