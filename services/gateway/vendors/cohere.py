"""Cohere's dialect, versions 1 and 2 of its API."""

from collections.abc import Callable, Mapping
from typing import Final

import orjson

from services.core.usage.cohere_chat import ChatShape, ChatV1Shape
from services.core.usage.cohere_retrieval import EmbedShape, RerankShape
from services.gateway.vendors import Answers, RequestFacts, Route, RouteRequest
from services.gateway.vendors.cohere_chat import read_chat, read_chat_v1
from services.gateway.vendors.cohere_retrieval import read_embed, read_rerank
from services.gateway.vendors.envelope import bearer, event, with_fields
from services.gateway.vendors.fields import with_model

_BILLED: Final = "billed units in the answer"
_BILLED_LAST: Final = "billed units in the answer, or in the stream's last event"

CHAT: Final = Route("chat", "POST", "/v2/chat", "held", _BILLED_LAST)
CHAT_V1: Final = Route("chat.v1", "POST", "/v1/chat", "held", _BILLED_LAST)
EMBED: Final = Route("embed", "POST", "/v2/embed", "held", _BILLED)
EMBED_V1: Final = Route("embed.v1", "POST", "/v1/embed", "held", _BILLED)
RERANK: Final = Route("rerank", "POST", "/v2/rerank", "held", _BILLED)
RERANK_V1: Final = Route("rerank.v1", "POST", "/v1/rerank", "held", _BILLED)

_READERS: Final[Mapping[str, Callable[[RouteRequest], RequestFacts]]] = {
    CHAT.name: read_chat,
    CHAT_V1.name: read_chat_v1,
    EMBED.name: read_embed,
    EMBED_V1.name: read_embed,
    RERANK.name: read_rerank,
    RERANK_V1.name: read_rerank,
}


class CohereDialect:
    """Cohere's protocol, behind `vendors.Dialect`."""

    name = "cohere"
    routes = (
        CHAT,
        CHAT_V1,
        EMBED,
        EMBED_V1,
        RERANK,
        RERANK_V1,
        Route("tokenize", "POST", "/v1/tokenize", "free", "free of charge"),
        Route("detokenize", "POST", "/v1/detokenize", "free", "free of charge"),
        Route("check-api-key", "POST", "/v1/check-api-key", "free", "free of charge"),
        Route("models.list", "GET", "/v1/models", "free", "free of charge"),
        Route("models.retrieve", "GET", "/v1/models/{id}", "free", "free of charge"),
    )
    shapes: Mapping[str, Answers] = {
        CHAT.name: Answers(ChatShape()),
        CHAT_V1.name: Answers(ChatV1Shape(), "lines"),
        EMBED.name: Answers(EmbedShape()),
        EMBED_V1.name: Answers(EmbedShape()),
        RERANK.name: Answers(RerankShape()),
        RERANK_V1.name: Answers(RerankShape()),
    }
    versions = ("v1", "v2")
    base_has_version = False
    default_base_url = "https://api.cohere.com"
    key_headers = ("authorization",)

    def read_request(self, request: RouteRequest) -> RequestFacts:
        """The facts of a request; raises `RequestRefusedError` naming the field."""
        return _READERS[request.route.name](request)

    def renamed(self, request: RouteRequest, model: str) -> RouteRequest:
        """The request for another model."""
        return with_model(request, model)

    def credential_headers(self, vendor_key: str | None) -> tuple[tuple[bytes, bytes], ...]:
        """The key as a bearer token; nothing without a key."""
        return bearer(vendor_key)

    def error_body(
        self, status: int, code: str, message: str, param: str | None, fields: Mapping[str, object]
    ) -> bytes:
        """``{"message", "id", "code", "param", …fields}``: Cohere's clients show the whole of it."""
        envelope = {"message": message, "id": fields.get("transaction_id"), "code": code, "param": param}
        return orjson.dumps(with_fields(envelope, fields))

    def stream_error(self, code: str, message: str, fields: Mapping[str, object]) -> bytes:
        """A ``message-end`` that says it ended in an error."""
        delta = {"finish_reason": "ERROR", "error": message, "code": code}
        return event(orjson.dumps({"type": "message-end", "delta": with_fields(delta, fields)}), b"message-end")
