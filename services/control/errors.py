"""The errors of the management API: one form for all of them, ``{"error", "message", "field"?}``."""

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from services.core.identity import IdentityError
from services.core.ports import UnavailableError
from services.core.windows import WindowError

_log = structlog.get_logger(__name__)

# What pydantic calls a mistake, in words that say how to mend it. Texts never repeat what was sent: it may be a secret.
_MISTAKES = {
    "missing": "is required",
    "null": "must not be null; leave it out, and it stays as it is",
    "string_type": "must be a JSON string",
    "string_too_short": "must not be empty",
    "string_too_long": "is too long",
    "string_unicode": "is not valid unicode",
    "string_pattern_mismatch": "can't be the name of anything here",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
_TEXTS = {
    400: "the body is not JSON",
    404: "there is nothing at this path; /docs lists what there is",
    405: "this path does not take this method; /docs lists what it takes",
}


class ErrorAnswer(BaseModel):
    """Every error of this API: `error` for programs, `message` for people, `field` the first field that was wrong."""

    error: str = Field(examples=["invalid_request"])
    message: str = Field(examples=["limit_usd must not be negative; 0 blocks everything"])
    field: str | None = Field(default=None, examples=["limit_usd"])


class ApiError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field


def invalid(field: str, message: str) -> ApiError:
    """400: a field of the request can't be taken as it is."""
    return ApiError(400, "invalid_request", message, field)


def not_found(what: str) -> ApiError:
    """404: the org has no such thing."""
    return ApiError(404, "not_found", f"there is no {what}")


def conflict(code: str, message: str, field: str | None = None) -> ApiError:
    """409: the request contradicts what is there."""
    return ApiError(409, code, message, field)


def answer(status: int, code: str, message: str, field: str | None = None, **headers: str) -> JSONResponse:
    """An error as it leaves; header names are given with underscores."""
    body = ErrorAnswer(error=code, message=message, field=field).model_dump(exclude_none=True)
    return JSONResponse(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def install(app: FastAPI) -> None:
    """Gives every error of `app` the one form."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(IdentityError, _named_field)
    app.add_exception_handler(WindowError, _named_field)
    app.add_exception_handler(UnavailableError, _unavailable)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(Exception, _internal)


def describe(errors: list[dict[str, object]]) -> tuple[str | None, str]:
    """Field and message of the first of pydantic's errors, but a field that is unknown before one that is missing.

    A misspelt name is both at once, and only the first says what to do.
    """
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    location = first["loc"]
    assert isinstance(location, tuple)
    kind = str(first["type"])
    if kind == "json_invalid":
        return None, "the body is not JSON"
    # What was sent as a name may be of any length and any characters; it goes back short and in ASCII.
    field = ".".join(str(part)[:64].encode("ascii", "backslashreplace").decode() for part in location[1:]) or None
    if kind == "extra_forbidden":
        return field, f"{field} is not a field of this request; /docs lists those it takes"
    if field is None:
        return None, "the body must be a JSON object, with content-type application/json"
    return field, f"{field} {_MISTAKES.get(kind) or _lower_first(str(first['msg']))}"


def _lower_first(text: str) -> str:
    return "is not right: " + text[:1].lower() + text[1:]


async def _api_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    headers = {"www_authenticate": "Bearer"} if error.status == 401 else {}
    return answer(error.status, error.code, error.message, error.field, **headers)


async def _validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    field, message = describe(list(error.errors()))
    return answer(400, "invalid_request", message, field)


async def _named_field(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, IdentityError | WindowError)
    return answer(400, "invalid_request", str(error), error.field)


async def _unavailable(request: Request, error: Exception) -> JSONResponse:
    _log.warning("unavailable", path=request.url.path, reason=str(error))
    return answer(503, "unavailable", "control can't reach its database; try again", retry_after="1")


async def _http_exception(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "invalid_request")
    return answer(error.status_code, code, _TEXTS.get(error.status_code, error.detail))


async def _internal(_request: Request, _error: Exception) -> JSONResponse:
    # Starlette raises the error again after this answer, and the server logs it with its traceback.
    return answer(500, "internal", "something went wrong here; the log of control says what")
