"""The routes of OpenAI's dialect. One that costs money is held or submitted, or is not here and so refused by name."""

from typing import Final

from services.gateway.vendors import Billing, Route

_IN_ANSWER: Final = "usage in the answer, or in the stream's last event"
_FREE: Final = "free of charge"


def _free(name: str, method: str, path: str, billing: Billing = "free", known_by: str = _FREE) -> Route:
    return Route(name, method, path, billing, known_by)


CHAT: Final = Route(
    "chat.completions", "POST", "/v1/chat/completions", "held", "usage in the answer, or in the stream's last chunk"
)
COMPLETIONS: Final = Route(
    "completions", "POST", "/v1/completions", "held", "usage in the answer, or in the stream's last chunk"
)
RESPONSES: Final = Route("responses", "POST", "/v1/responses", "held", _IN_ANSWER)
COMPACT: Final = Route("responses.compact", "POST", "/v1/responses/compact", "held", "usage in the answer")
EMBEDDINGS: Final = Route("embeddings", "POST", "/v1/embeddings", "held", "usage in the answer")
IMAGES: Final = Route(
    "images.generations", "POST", "/v1/images/generations", "held", "tokens in the answer, or its images counted"
)
EDITS: Final = Route("images.edits", "POST", "/v1/images/edits", "held", "tokens in the answer, or its images counted")
VARIATIONS: Final = Route(
    "images.variations", "POST", "/v1/images/variations", "held", "tokens in the answer, or its images counted"
)
SPEECH: Final = Route(
    "audio.speech",
    "POST",
    "/v1/audio/speech",
    "held",
    "characters of the request, or tokens in the stream's last event",
)
TRANSCRIPTIONS: Final = Route(
    "audio.transcriptions", "POST", "/v1/audio/transcriptions", "held", "seconds or tokens in the answer, or the file"
)
TRANSLATIONS: Final = Route(
    "audio.translations", "POST", "/v1/audio/translations", "held", "the duration in the answer, or the file's"
)
BATCHES: Final = Route("batches", "POST", "/v1/batches", "submitted", "usage in each line of the output file")

# What a job in the background has used is in the response itself, and in the lines of a batch's output file.
GET_RESPONSE: Final = _free("responses.get", "GET", "/v1/responses/{id}", "watched", "usage in the response")
CANCEL_RESPONSE: Final = _free(
    "responses.cancel", "POST", "/v1/responses/{id}/cancel", "watched", "usage in the response"
)
GET_BATCH: Final = _free("batches.get", "GET", "/v1/batches/{id}", "watched", "its status and output file")
CANCEL_BATCH: Final = _free(
    "batches.cancel", "POST", "/v1/batches/{id}/cancel", "watched", "its status and output file"
)

HELD: Final = (
    CHAT,
    RESPONSES,
    COMPACT,
    COMPLETIONS,
    EMBEDDINGS,
    IMAGES,
    EDITS,
    VARIATIONS,
    SPEECH,
    TRANSCRIPTIONS,
    TRANSLATIONS,
)
JOBS: Final = (BATCHES, GET_RESPONSE, CANCEL_RESPONSE, GET_BATCH, CANCEL_BATCH)
FREE: Final = (
    _free("moderations", "POST", "/v1/moderations"),
    _free("models.list", "GET", "/v1/models"),
    _free("models.get", "GET", "/v1/models/{model}"),
    _free("responses.input_tokens", "POST", "/v1/responses/input_tokens"),
    _free("responses.delete", "DELETE", "/v1/responses/{id}"),
    _free("responses.input_items", "GET", "/v1/responses/{id}/input_items"),
    _free("chat.completions.list", "GET", "/v1/chat/completions"),
    _free("chat.completions.get", "GET", "/v1/chat/completions/{id}"),
    _free("chat.completions.update", "POST", "/v1/chat/completions/{id}"),
    _free("chat.completions.delete", "DELETE", "/v1/chat/completions/{id}"),
    _free("chat.completions.messages", "GET", "/v1/chat/completions/{id}/messages"),
    _free("files.create", "POST", "/v1/files"),
    _free("files.list", "GET", "/v1/files"),
    _free("files.get", "GET", "/v1/files/{id}"),
    _free("files.delete", "DELETE", "/v1/files/{id}"),
    _free("files.content", "GET", "/v1/files/{id}/content"),
    _free("batches.list", "GET", "/v1/batches", "watched", "its batches' status and output files"),
)
