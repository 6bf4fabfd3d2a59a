"""Anthropic's error bodies and the error event of its streams."""

from typing import Any

from tests.support.vendors.framing import named_events
from tests.support.vendors.server import Answer, error_answer

KINDS = {
    400: ("invalid_request_error", "messages: at least one message is required"),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "Your credit balance is too low to access the Anthropic API."),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "model: claude-none"),
    413: ("request_too_large", "Request exceeds the maximum allowed number of bytes"),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit of 50 requests per minute."),
    500: ("api_error", "Internal server error"),
    503: ("api_error", "Service temporarily unavailable"),
    504: ("timeout_error", "Request timed out"),
    529: ("overloaded_error", "Overloaded"),
}
LIMITS = (
    ("anthropic-ratelimit-requests-limit", "50"),
    ("anthropic-ratelimit-requests-remaining", "0"),
    ("anthropic-ratelimit-requests-reset", "2026-01-02T03:05:05Z"),
)


def error(kind: str, message: str, request_id: str | None = "req_011CSHoEeqs5C35K2UUqR7Fy") -> dict[str, Any]:
    """An error body."""
    body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
    return body if request_id is None else {**body, "request_id": request_id}


def failure(status: int, retry_after: str | None = None, message: str | None = None, **options: Any) -> Answer:
    """The answer of a failed request, by status; 429 names 1 s unless told otherwise."""
    kind, text = KINDS[status]
    wait = "1" if status == 429 and retry_after is None else retry_after
    more = LIMITS if status == 429 else ()
    return error_answer(error(kind, message or text), status, wait, more, **options)


def stream_error(kind: str = "overloaded_error", message: str = "Overloaded") -> bytes:
    """The event of a stream that fails after it began with status 200."""
    return named_events([error(kind, message, None)])[0]
