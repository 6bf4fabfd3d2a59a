"""Which route an answer is of, where its caller does not say."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import orjson

from services.core.usage.framing import splitter_for

# How many events of a stream are looked at, and in how much of it: the first ones say what it is.
_EVENTS: Final = 8
_HEADS: Final = (2_048, 262_144)

# The vendors' own words for what an answer is, and the routes that answer so. Where there are two, they are read alike.
_BY_WORD: Final = {
    "chat.completion": ("chat.completions", "fim.completions"),
    "chat.completion.chunk": ("chat.completions", "fim.completions"),
    "text_completion": ("completions",),
    "response": ("responses",),
    "response.compaction": ("responses.compact",),
    "message": ("messages",),
    "message_start": ("messages",),
    "message-start": ("chat",),
    "stream-start": ("chat.v1",),
    "message_batch": ("messages.batches",),
    "image_generation.partial_image": ("images.generations",),
    "image_generation.completed": ("images.generations",),
    "image_edit.completed": ("images.edits",),
    "speech.audio.delta": ("audio.speech",),
    "speech.audio.done": ("audio.speech",),
    "transcript.text.delta": ("audio.transcriptions",),
    "transcript.text.done": ("audio.transcriptions",),
    "transcription.language": ("audio.transcriptions",),
    "transcription.text.delta": ("audio.transcriptions",),
    "transcription.segment": ("audio.transcriptions",),
    "transcription.done": ("audio.transcriptions",),
}

# Else what an answer has at its top, the first that fits; all its names must be there.
_BY_FIELDS: Final = (
    (("candidates",), ("generateContent", "streamGenerateContent")),
    (("usageMetadata", "modelVersion"), ("generateContent", "streamGenerateContent")),
    (("embedding",), ("embedContent",)),
    (("embeddings",), ("embed", "batchEmbedContents")),
    (("results", "meta"), ("rerank",)),
    (("message", "finish_reason"), ("chat",)),
    (("text", "generation_id"), ("chat.v1",)),
    (("pages", "usage_info"), ("ocr",)),
    (("text", "usage"), ("audio.transcriptions",)),
    (("text", "duration"), ("audio.transcriptions",)),
    (("data", "usage", "created"), ("images.generations",)),
    (("custom_id", "result"), ("messages.batches.results",)),
    (("choices",), ("chat.completions",)),
)


class UnknownRouteError(ValueError):
    """Nothing in the answer says what it is."""


def route_of(routes: Sequence[str], values: Sequence[Any], *, is_stream: bool) -> str:
    """The one of a vendor's `routes` that answers with `values` (one body, or a stream's events).

    Raises `UnknownRouteError`.
    """
    for value in values[:_EVENTS]:
        if not isinstance(value, dict):
            continue
        found = [each for each in _routes_by_word(value) if each in routes] or _routes_by_fields(routes, value)
        if found:
            return _preferred(found, is_stream)
    raise UnknownRouteError("nothing in the answer says which route it is of: say which (route)")


def values_of(transcript: bytes) -> list[Any]:
    """The JSON values of a transcript's first events, in whatever framing it is."""
    begin = transcript.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    found: list[Any] = []
    for size in _HEADS:
        splitter = splitter_for("json_array" if begin == b"[" else "lines" if begin == b"{" else "sse")
        for frame in [*splitter.feed(transcript[:size]), splitter.finish()][:_EVENTS]:
            if frame.data is not None:
                with suppress(orjson.JSONDecodeError):
                    found.append(orjson.loads(frame.data))
        if found:
            break
    return found


def _routes_by_word(value: dict[str, Any]) -> tuple[str, ...]:
    for name in ("object", "type", "event_type"):
        word = value.get(name)
        if isinstance(word, str):
            if word.startswith("response.") and word != "response.compaction":
                return ("responses",)
            if word in _BY_WORD:
                return _BY_WORD[word]
    if value.get("object") == "list" and "usage" in value:
        return ("embeddings",)
    return ()


def _routes_by_fields(routes: Sequence[str], value: dict[str, Any]) -> list[str]:
    for names, known in _BY_FIELDS:
        if all(name in value for name in names):
            found = [each for each in known if each in routes]
            if found:
                return found
    return []


def _preferred(found: Sequence[str], is_stream: bool) -> str:
    """Of routes whose answers are read alike, the one that fits how it came."""
    streaming = [each for each in found if each.startswith("stream")]
    if is_stream and streaming:
        return streaming[0]
    return next((each for each in found if each not in streaming), found[0])
