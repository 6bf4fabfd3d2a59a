"""Google's error bodies; its front ends answer a failed stream with the same body, in an array without ``alt=sse``."""

from typing import Any

from tests.support.vendors.framing import dump
from tests.support.vendors.server import Answer, error_answer

KINDS = {
    400: ("INVALID_ARGUMENT", "* GenerateContentRequest.contents: contents is not specified"),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    403: ("PERMISSION_DENIED", "Method doesn't allow unregistered callers."),
    404: ("NOT_FOUND", "models/gemini-none is not found for API version v1beta."),
    413: ("INVALID_ARGUMENT", "Request payload size exceeds the limit: 20971520 bytes."),
    429: ("RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing details."),
    500: ("INTERNAL", "An internal error has occurred. Please retry."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "The request timed out. Please try again."),
}


def error(code: int, status: str, message: str, details: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """An error body."""
    body: dict[str, Any] = {"code": code, "message": message, "status": status}
    return {"error": body if details is None else {**body, "details": details}}


def error_info(reason: str) -> dict[str, Any]:
    """A detail that names the reason."""
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}


def retry_info(delay: str) -> dict[str, Any]:
    """A detail that says how long to wait."""
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


# A key that is not known is a bad request for Google, not an unauthenticated one.
INVALID_KEY = error(
    400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", [error_info("API_KEY_INVALID")]
)


def body_of(status: int, message: str | None = None) -> dict[str, Any]:
    """The error body of a status."""
    name, text = KINDS[status]
    return error(status, name, message or text, [retry_info("1s")] if status == 429 else None)


def failure(
    status: int, retry_after: str | None = None, message: str | None = None, as_array: bool = False, **options: Any
) -> Answer:
    """The answer of a failed request, by status. Google names the wait in the body; a header only if asked for.

    `as_array`: as streamGenerateContent without ``alt=sse`` fails.
    """
    body = body_of(status, message)
    return error_answer([body] if as_array else body, status, retry_after, **options)


def stream_error(status: int = 503) -> bytes:
    """The piece of a stream of events that fails after it began with status 200."""
    return b"data: " + dump(body_of(status)) + b"\r\n\r\n"


def array_error(status: int = 503) -> bytes:
    """The pieces that end a streamed array with an error."""
    return b"\n,\r\n" + dump(body_of(status)) + b"\n]\n"
