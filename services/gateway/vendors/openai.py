"""OpenAI's dialect: of OpenAI itself and of every server that is compatible with it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import orjson

from services.core.usage.openai_audio import SpeechShape, TranscriptionShape
from services.core.usage.openai_batch import BatchShape
from services.core.usage.openai_chat import ChatShape
from services.core.usage.openai_embeddings import EmbeddingsShape
from services.core.usage.openai_images import ImagesShape
from services.core.usage.openai_responses import ResponsesShape
from services.gateway.vendors import Answers, RequestFacts, Route, RouteRequest
from services.gateway.vendors import openai_routes as routes
from services.gateway.vendors.envelope import bearer, event, stream_status, with_fields
from services.gateway.vendors.fields import invalid, unpriced, with_model
from services.gateway.vendors.forms import is_form
from services.gateway.vendors.openai_audio import read_speech, read_transcription
from services.gateway.vendors.openai_batch import read_batch
from services.gateway.vendors.openai_chat import read_chat
from services.gateway.vendors.openai_images import read_images
from services.gateway.vendors.openai_responses import read_compaction, read_response
from services.gateway.vendors.openai_texts import read_completion, read_embedding


def _read_batch(request: RouteRequest) -> RequestFacts:
    """Refuses a batch without its input file, whose lines alone bound it: the gateway fetches and reads that first."""
    batch = read_batch(request.body)
    raise unpriced("input_file_id", f"what a batch can cost is in the lines of {batch.input_file_id!r}, not in here")


_READERS: Final[Mapping[str, Callable[[RouteRequest], RequestFacts]]] = {
    routes.CHAT.name: read_chat,
    routes.RESPONSES.name: read_response,
    routes.COMPACT.name: read_compaction,
    routes.COMPLETIONS.name: read_completion,
    routes.EMBEDDINGS.name: read_embedding,
    routes.IMAGES.name: read_images,
    routes.EDITS.name: read_images,
    routes.VARIATIONS.name: read_images,
    routes.SPEECH.name: read_speech,
    routes.TRANSCRIPTIONS.name: read_transcription,
    routes.TRANSLATIONS.name: read_transcription,
    routes.BATCHES.name: _read_batch,
}

_CHAT: Final = Answers(ChatShape())
_RESPONSES: Final = Answers(ResponsesShape())
_IMAGES: Final = Answers(ImagesShape())
_HEARD: Final = Answers(TranscriptionShape())
_BATCH: Final = Answers(BatchShape())
# A request may call for another way to read the answers of its route: its facts have the one that counts.
SHAPES: Final[Mapping[str, Answers]] = {
    routes.CHAT.name: _CHAT,
    routes.COMPLETIONS.name: _CHAT,
    routes.RESPONSES.name: _RESPONSES,
    routes.COMPACT.name: _RESPONSES,
    routes.GET_RESPONSE.name: _RESPONSES,
    routes.CANCEL_RESPONSE.name: _RESPONSES,
    routes.EMBEDDINGS.name: Answers(EmbeddingsShape()),
    routes.IMAGES.name: _IMAGES,
    routes.EDITS.name: _IMAGES,
    routes.VARIATIONS.name: Answers(ImagesShape(by_image=True)),
    routes.SPEECH.name: Answers(SpeechShape()),
    routes.TRANSCRIPTIONS.name: _HEARD,
    routes.TRANSLATIONS.name: _HEARD,
    routes.BATCHES.name: _BATCH,
    routes.GET_BATCH.name: _BATCH,
    routes.CANCEL_BATCH.name: _BATCH,
}

_ERROR_TYPES: Final = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}


class OpenAIDialect:
    """OpenAI's protocol, behind `vendors.Dialect`."""

    name = "openai"
    routes: Sequence[Route] = (*routes.HELD, *routes.JOBS, *routes.FREE)
    shapes = SHAPES
    versions: Sequence[str] = ("v1",)
    base_has_version = True
    default_base_url: str | None = "https://api.openai.com/v1"
    key_headers: Sequence[str] = ("authorization",)

    def read_request(self, request: RouteRequest) -> RequestFacts:
        """The facts of a request; raises `RequestRefusedError` naming the field."""
        return _READERS[request.route.name](request)

    def renamed(self, request: RouteRequest, model: str) -> RouteRequest:
        """The request for another model."""
        if is_form(request.content_type):
            raise invalid("model", "a form can't be sent on to another model; name the model that is to answer")
        return with_model(request, model)

    def credential_headers(self, vendor_key: str | None) -> tuple[tuple[bytes, bytes], ...]:
        """The key as a bearer token; nothing without a key."""
        return bearer(vendor_key)

    def error_body(
        self, status: int, code: str, message: str, param: str | None, fields: Mapping[str, object]
    ) -> bytes:
        """``{"error": {"message", "type", "param", "code", …fields}}``."""
        kind = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        envelope = {"message": message, "type": kind, "param": param, "code": code}
        return orjson.dumps({"error": with_fields(envelope, fields)})

    def stream_error(self, code: str, message: str, fields: Mapping[str, object]) -> bytes:
        """An event with the error; OpenAI's clients raise it.

        It is the ``error`` event of a stream of responses, too, which has the fields beside each other.
        """
        error = orjson.loads(self.error_body(stream_status(code), code, message, None, fields))
        told = {"type": "error", "sequence_number": 0, "code": code, "message": message, "param": None, **error}
        return event(orjson.dumps(told))
