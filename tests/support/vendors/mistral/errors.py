"""Mistral's error bodies: its gateway, its validation and its models each have their own."""

from typing import Any

from tests.support.vendors.framing import dump
from tests.support.vendors.server import Answer, error_answer


def error(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error of the API."""
    return {"object": "error", "message": message, "type": kind, "param": param, "code": code}


def validation(place: str = "messages", message: str = "Field required", kind: str = "missing") -> dict[str, Any]:
    """The error of a body that does not fit (422), as it is documented."""
    return {"detail": [{"type": kind, "loc": ["body", place], "msg": message, "input": {}}]}


BODIES: dict[int, dict[str, Any]] = {
    400: error("Invalid model: mistral-none", "invalid_model", "1500"),
    401: {"detail": "Unauthorized"},
    403: {"detail": "Forbidden"},
    404: {"detail": "Not Found"},
    413: {"message": "Request size limit exceeded"},
    422: validation(),
    429: error("Requests rate limit exceeded", "rate_limited", "1300"),
    500: error("Internal server error", "internal_server_error", "1000"),
    503: error("Service unavailable.", "unreachable_backend", "1100"),
}


def failure(status: int, retry_after: str | None = None, body: object = None, **options: Any) -> Answer:
    """The answer of a failed request, by status; 429 names 1 s unless told otherwise."""
    wait = "1" if status == 429 and retry_after is None else retry_after
    return error_answer(BODIES[status] if body is None else body, status, wait, **options)


def stream_error(message: str = "Service unavailable.") -> bytes:
    """The event of a stream that fails after it began with status 200."""
    return b"data: " + dump(error(message, "unreachable_backend", "1100")) + b"\n\n"
