"""Google's dialect: the Gemini API, and the same calls by the paths of Vertex AI's global endpoint."""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Final

import orjson

from services.core.usage.google_embed import EmbedShape
from services.core.usage.google_generate import GenerateShape
from services.core.usage.reading import Framing
from services.gateway.vendors import Answers, Billing, RequestFacts, Route, RouteRequest
from services.gateway.vendors.envelope import event, key_header, stream_status, with_fields
from services.gateway.vendors.fields import invalid, with_path_model
from services.gateway.vendors.google_embed import read_batch, read_embed
from services.gateway.vendors.google_generate import read_generate

_GENERATE: Final = ("generateContent", "usageMetadata in the answer")
_STREAM: Final = ("streamGenerateContent", "usageMetadata in the stream's last chunk")
_EMBED: Final = ("embedContent", "usageMetadata in the answer; without it, the request's bytes")
_BATCH: Final = ("batchEmbedContents", "usageMetadata in the answer; without it, the request's bytes")
_COUNT: Final = ("countTokens", "free")

# Vertex AI has the same calls below its publishers. Only its global endpoint has the prices of the Gemini API.
_VERTEX: Final = ("publishers/google/models", "projects/{id}/locations/global/publishers/google/models")


def _routes() -> tuple[Route, ...]:
    found = []
    places = [
        *product(("v1beta", "v1", "v1alpha"), ("models", "tunedModels")),
        *product(("v1", "v1beta1"), _VERTEX),
    ]
    for version, place in places:
        for name, known_by in (_GENERATE, _STREAM, _EMBED, _BATCH, _COUNT):
            if place != "models" and name in ("embedContent", "batchEmbedContents"):
                continue
            billing: Billing = "free" if name == "countTokens" else "held"
            found.append(Route(name, "POST", f"/{version}/{place}/{{model}}:{name}", billing, known_by))
    for version in ("v1beta", "v1", "v1alpha"):
        found.append(Route("models", "GET", f"/{version}/models", "free", "free"))
        found.append(Route("models.get", "GET", f"/{version}/models/{{model}}", "free", "free"))
    return tuple(found)


_READERS: Final[Mapping[str, Callable[[RouteRequest], RequestFacts]]] = {
    "generateContent": read_generate,
    "streamGenerateContent": read_generate,
    "embedContent": read_embed,
    "batchEmbedContents": read_batch,
}

# HTTP statuses and the codes that go with them (google.rpc.Code); 402 has none of its own.
_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class GoogleDialect:
    """Gemini's protocol, behind `vendors.Dialect`."""

    name = "google"
    routes = _routes()
    shapes: Mapping[str, Answers] = {
        "generateContent": Answers(GenerateShape()),
        "streamGenerateContent": Answers(GenerateShape(), "json_array"),
        "embedContent": Answers(EmbedShape()),
        "batchEmbedContents": Answers(EmbedShape()),
    }
    versions = ("v1beta", "v1", "v1alpha", "v1beta1")
    base_has_version = False
    default_base_url = "https://generativelanguage.googleapis.com"
    key_headers = ("x-goog-api-key",)

    def read_request(self, request: RouteRequest) -> RequestFacts:
        """The facts of a request; raises `RequestRefusedError` naming the field."""
        return _READERS[request.route.name](request)

    def renamed(self, request: RouteRequest, model: str) -> RouteRequest:
        """The request for another model, which is in its path. Raises `RequestRefusedError` where none can stand in."""
        if request.route.name in ("embedContent", "batchEmbedContents"):
            raise invalid("model", "the embeddings of another model can't stand in for this one's")
        if "/tunedModels/" in request.route.path:
            raise invalid("model", "another model can't stand in for a tuned one")
        return with_path_model(request, model)

    def credential_headers(self, vendor_key: str | None) -> tuple[tuple[bytes, bytes], ...]:
        """The key in Google's own header; nothing without a key."""
        return key_header(b"x-goog-api-key", vendor_key)

    def error_body(
        self, status: int, code: str, message: str, param: str | None, fields: Mapping[str, object]
    ) -> bytes:
        """``{"error": {"code", "message", "status", "reason", "param", …fields, "details"}}``.

        ``code`` is the HTTP status, as Google has it; our own is the ``reason``, there and in the details.
        """
        kind = _STATUSES.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT")
        envelope = {"code": status, "message": message, "status": kind, "reason": code, "param": param}
        info = {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": code.upper(),
            "domain": "farthing",
            "metadata": {name: str(value) for name, value in fields.items()},
        }
        return orjson.dumps({"error": {**with_fields(envelope, fields), "details": [info]}})

    def stream_error(self, code: str, message: str, fields: Mapping[str, object], framing: Framing = "sse") -> bytes:
        """An event with the error, or the last element of the array that a stream without ``alt=sse`` is.

        Google's clients raise it.
        """
        error = self.error_body(stream_status(code), code, message, None, fields)
        return b"\n,\r\n" + error + b"\n]\n" if framing == "json_array" else event(error)
