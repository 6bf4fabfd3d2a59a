"""Anthropic's dialect."""

from collections.abc import Callable, Mapping
from typing import Final

import orjson

from services.core.usage.anthropic_messages import BatchResultsShape, BatchShape, MessagesShape
from services.gateway.vendors import Answers, RequestFacts, Route, RouteRequest
from services.gateway.vendors.anthropic_batches import read_batch
from services.gateway.vendors.anthropic_messages import read_messages
from services.gateway.vendors.envelope import bearer, event, key_header, stream_status, with_fields
from services.gateway.vendors.fields import invalid, with_model

MESSAGES: Final = Route(
    "messages", "POST", "/v1/messages", "held", "usage in the answer; in a stream, the last report of each field"
)
COUNT_TOKENS: Final = Route("messages.count_tokens", "POST", "/v1/messages/count_tokens", "free", "free of charge")
BATCHES: Final = Route(
    "messages.batches", "POST", "/v1/messages/batches", "submitted", "usage in the results, at the batch price"
)
BATCH_RESULTS: Final = Route(
    "messages.batches.results", "GET", "/v1/messages/batches/{id}/results", "watched", "settles what was submitted"
)

_READERS: Final[Mapping[str, Callable[[RouteRequest], RequestFacts]]] = {
    MESSAGES.name: read_messages,
    BATCHES.name: read_batch,
}

# Anthropic, "Errors".
_ERROR_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# Access tokens, unlike API keys, are taken as bearer tokens only.
_BEARER_PREFIX: Final = "sk-ant-oat"


class AnthropicDialect:
    """Anthropic's protocol, behind `vendors.Dialect`. Its version and beta headers pass through."""

    name = "anthropic"
    routes = (
        MESSAGES,
        COUNT_TOKENS,
        BATCHES,
        Route("messages.batches.list", "GET", "/v1/messages/batches", "watched", "free of charge"),
        Route("messages.batches.retrieve", "GET", "/v1/messages/batches/{id}", "watched", "free of charge"),
        BATCH_RESULTS,
        Route("messages.batches.cancel", "POST", "/v1/messages/batches/{id}/cancel", "watched", "free of charge"),
        Route("messages.batches.delete", "DELETE", "/v1/messages/batches/{id}", "free", "free of charge"),
        Route("models.list", "GET", "/v1/models", "free", "free of charge"),
        Route("models.retrieve", "GET", "/v1/models/{id}", "free", "free of charge"),
    )
    shapes: Mapping[str, Answers] = {
        MESSAGES.name: Answers(MessagesShape()),
        BATCHES.name: Answers(BatchShape()),
        BATCH_RESULTS.name: Answers(BatchResultsShape(), "lines"),
    }
    versions = ("v1",)
    base_has_version = False
    default_base_url = "https://api.anthropic.com"
    key_headers = ("x-api-key", "authorization")

    def read_request(self, request: RouteRequest) -> RequestFacts:
        """The facts of a request; raises `RequestRefusedError` naming the field."""
        return _READERS[request.route.name](request)

    def renamed(self, request: RouteRequest, model: str) -> RouteRequest:
        """The request for another model; raises `RequestRefusedError` for a batch, which has no one model."""
        if request.route.name != MESSAGES.name:
            raise invalid("requests", "a batch names its model in each request; it can't be sent to another")
        return with_model(request, model)

    def credential_headers(self, vendor_key: str | None) -> tuple[tuple[bytes, bytes], ...]:
        """The key as ``x-api-key``, an access token as a bearer token; nothing without a key."""
        is_token = vendor_key is not None and vendor_key.startswith(_BEARER_PREFIX)
        return bearer(vendor_key) if is_token else key_header(b"x-api-key", vendor_key)

    def error_body(
        self, status: int, code: str, message: str, param: str | None, fields: Mapping[str, object]
    ) -> bytes:
        """``{"type": "error", "error": {"type", "message", "code", "param", "details", …fields}, "request_id"}``.

        Anthropic's clients show ``details.error_code`` as the error's code.
        """
        kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        envelope = {"type": kind, "message": message, "code": code, "param": param, "details": {"error_code": code}}
        error = with_fields(envelope, fields)
        return orjson.dumps({"type": "error", "error": error, "request_id": fields.get("transaction_id")})

    def stream_error(self, code: str, message: str, fields: Mapping[str, object]) -> bytes:
        """An ``error`` event; Anthropic's clients raise it."""
        body = self.error_body(stream_status(code), code, message, None, fields)
        return event(body, b"error")
