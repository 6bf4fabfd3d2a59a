"""Mistral's dialect. Agents and conversations are not in it: their model and their tools can't be seen here."""

from collections.abc import Callable, Mapping
from typing import Final

import orjson

from services.core.usage.mistral_chat import ChatShape, InputShape
from services.core.usage.mistral_documents import OcrShape, TranscriptionShape
from services.core.usage.reading import AnswerShape
from services.gateway.vendors import Answers, RequestFacts, Route, RouteRequest
from services.gateway.vendors.envelope import bearer, event, stream_status, with_fields
from services.gateway.vendors.fields import invalid, with_model
from services.gateway.vendors.mistral_chat import read_chat, read_fim
from services.gateway.vendors.mistral_documents import read_classified, read_embeddings, read_ocr, read_transcription

_IN_ANSWER: Final = "usage in the answer, or in the stream's last chunk"
_INPUT: Final = "usage in the answer; without it, the request's bytes"

CHAT: Final = Route("chat.completions", "POST", "/v1/chat/completions", "held", _IN_ANSWER)
FIM: Final = Route("fim.completions", "POST", "/v1/fim/completions", "held", _IN_ANSWER)
EMBEDDINGS: Final = Route("embeddings", "POST", "/v1/embeddings", "held", "usage in the answer")
OCR: Final = Route("ocr", "POST", "/v1/ocr", "held", "pages processed, in the answer's usage_info")
TRANSCRIPTIONS: Final = Route(
    "audio.transcriptions", "POST", "/v1/audio/transcriptions", "held", "seconds heard, in the answer's usage"
)
_CLASSIFIERS: Final = tuple(
    Route(name, "POST", f"/v1/{name.replace('.', '/')}", "held", _INPUT)
    for name in ("moderations", "chat.moderations", "classifications", "chat.classifications")
)
MODELS: Final = Route("models", "GET", "/v1/models", "free", "free")
MODEL: Final = Route("models.get", "GET", "/v1/models/{model}", "free", "free")

_Reader = Callable[[RouteRequest], RequestFacts]
_READERS: Final[Mapping[str, _Reader]] = {
    CHAT.name: read_chat,
    FIM.name: read_fim,
    EMBEDDINGS.name: read_embeddings,
    OCR.name: read_ocr,
    TRANSCRIPTIONS.name: read_transcription,
    **dict.fromkeys((each.name for each in _CLASSIFIERS), read_classified),
}
_SHAPES: Final[Mapping[str, AnswerShape]] = {
    CHAT.name: ChatShape(),
    FIM.name: ChatShape(),
    EMBEDDINGS.name: InputShape(),
    OCR.name: OcrShape(),
    TRANSCRIPTIONS.name: TranscriptionShape(),
    **dict.fromkeys((each.name for each in _CLASSIFIERS), InputShape()),
}
_ERROR_TYPES: Final = {
    401: "authentication_error",
    402: "payment_required",
    403: "permission_error",
    404: "not_found",
    429: "rate_limited",
    503: "unreachable_backend",
}


class MistralDialect:
    """Mistral's protocol, behind `vendors.Dialect`."""

    name = "mistral"
    routes = (CHAT, FIM, EMBEDDINGS, OCR, TRANSCRIPTIONS, *_CLASSIFIERS, MODELS, MODEL)
    shapes: Mapping[str, Answers] = {name: Answers(shape) for name, shape in _SHAPES.items()}
    versions = ("v1",)
    base_has_version = False
    default_base_url = "https://api.mistral.ai"
    key_headers = ("authorization",)

    def read_request(self, request: RouteRequest) -> RequestFacts:
        """The facts of a request; raises `RequestRefusedError` naming the field."""
        return _READERS[request.route.name](request)

    def renamed(self, request: RouteRequest, model: str) -> RouteRequest:
        """The request for another model. Raises `RequestRefusedError` where none can stand in."""
        if request.route.name == EMBEDDINGS.name:
            raise invalid("model", "the embeddings of another model can't stand in for this one's")
        if request.route.name == TRANSCRIPTIONS.name:
            raise invalid("model", "a form is not changed: no other model can stand in")
        return with_model(request, model)

    def credential_headers(self, vendor_key: str | None) -> tuple[tuple[bytes, bytes], ...]:
        """The key as a bearer token; nothing without a key."""
        return bearer(vendor_key)

    def error_body(
        self, status: int, code: str, message: str, param: str | None, fields: Mapping[str, object]
    ) -> bytes:
        """``{"object": "error", "message", "type", "param", "code", …fields}``: Mistral's envelope is flat."""
        kind = _ERROR_TYPES.get(status, "internal_server_error" if status >= 500 else "invalid_request_error")
        envelope = {"object": "error", "message": message, "type": kind, "param": param, "code": code}
        return orjson.dumps(with_fields(envelope, fields))

    def stream_error(self, code: str, message: str, fields: Mapping[str, object]) -> bytes:
        """An event with the error; clients fail on it."""
        return event(self.error_body(stream_status(code), code, message, None, fields))
