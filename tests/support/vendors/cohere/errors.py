"""Cohere's error bodies and the ends of its streams that failed."""

from typing import Any

from tests.support.vendors.cohere.answers import ID, chat_v1
from tests.support.vendors.framing import json_lines, named_events
from tests.support.vendors.server import Answer, error_answer

TEXTS = {
    400: "invalid request: message must be at least 1 token long or tool results must be specified.",
    401: "invalid api token",
    402: "please add or update your payment method to continue",
    403: "your API key is not permitted to use this endpoint",
    404: "model 'command-none' not found, make sure the correct model ID was used",
    413: "request too large",
    422: "invalid request: all elements in documents must have text",
    429: "You are using a Trial key, which is limited to 20 API calls / minute.",
    498: "invalid token",
    500: "internal server error, this has been reported to our developers",
    503: "service unavailable, please try again later",
}


def error(message: str, request_id: str | None = ID) -> dict[str, Any]:
    """An error body; it names no kind: the status is all there is."""
    return {"message": message} if request_id is None else {"id": request_id, "message": message}


def failure(status: int, retry_after: str | None = None, message: str | None = None, **options: Any) -> Answer:
    """The answer of a failed request, by status; 429 names 1 s unless told otherwise."""
    wait = "1" if status == 429 and retry_after is None else retry_after
    return error_answer(error(message or TEXTS[status]), status, wait, **options)


def stream_error_v2(message: str = "internal server error") -> bytes:
    """The last event of a v2 stream that failed: no usage."""
    delta = {"error": message, "finish_reason": "ERROR"}
    return named_events([{"type": "message-end", "id": ID, "delta": delta}])[0]


def stream_error_v1(text: str = "") -> bytes:
    """The last line of a v1 stream that failed: the answer so far, without ``meta``."""
    whole = chat_v1(text, finish_reason="ERROR")
    del whole["meta"]
    end = {"is_finished": True, "event_type": "stream-end", "finish_reason": "ERROR", "response": whole}
    return json_lines([end])[0]
