"""OpenAI's error bodies and the error events of its streams."""

from typing import Any

from tests.support.vendors.framing import dump, named_events
from tests.support.vendors.server import Answer, error_answer


def error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


INVALID_KEY = error(
    "Incorrect API key provided: sk-none. You can find your API key at https://platform.openai.com/account/api-keys.",
    "invalid_request_error",
    code="invalid_api_key",
)
BAD_REQUEST = error(
    "Invalid type for 'temperature': expected a decimal, but got a string instead.",
    "invalid_request_error",
    "temperature",
    "invalid_type",
)
FORBIDDEN = error(
    "Project `proj_none` does not have access to model `gpt-4o`", "invalid_request_error", code="model_not_found"
)
NOT_FOUND = error(
    "The model `gpt-none` does not exist or you do not have access to it.",
    "invalid_request_error",
    code="model_not_found",
)
TOO_LARGE = error("Maximum content size limit (26214400) exceeded (26214401 bytes read)", "invalid_request_error")
RATE_LIMITED = error(
    "Rate limit reached for gpt-4o on requests per min (RPM): Limit 3, Used 3, Requested 1.",
    "requests",
    code="rate_limit_exceeded",
)
QUOTA_EXCEEDED = error(
    "You exceeded your current quota, please check your plan and billing details.",
    "insufficient_quota",
    code="insufficient_quota",
)
SERVER_ERROR = error("The server had an error while processing your request. Sorry about that!", "server_error")
OVERLOADED = error("The engine is currently overloaded, please try again later", "server_error", code="overloaded")

BODIES: dict[int, dict[str, Any]] = {
    400: BAD_REQUEST,
    401: INVALID_KEY,
    403: FORBIDDEN,
    404: NOT_FOUND,
    413: TOO_LARGE,
    429: RATE_LIMITED,
    500: SERVER_ERROR,
    503: OVERLOADED,
}
LIMITS = (
    ("x-ratelimit-limit-requests", "3"),
    ("x-ratelimit-remaining-requests", "0"),
    ("x-ratelimit-reset-requests", "20s"),
)


def failure(status: int, retry_after: str | None = None, **options: Any) -> Answer:
    """The answer of a failed request: 400, 401, 403, 404, 413, 429, 500 or 503. 429 names 1 s unless told otherwise."""
    limited = status == 429
    wait = "1" if limited and retry_after is None else retry_after
    return error_answer(BODIES[status], status, wait, LIMITS if limited else (), **options)


def stream_error(message: str = "The server had an error while processing your request.") -> bytes:
    """The event of a chat stream that fails: an error object in the place of a chunk, and no ``[DONE]`` after it."""
    return b"data: " + dump(error(message, "server_error")) + b"\n\n"


def response_error(sequence: int, message: str = "The server had an error.", code: str = "server_error") -> bytes:
    """The ``error`` event of a responses stream."""
    event = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": sequence}
    return named_events([event])[0]
