"""Usage of Mistral's chat and fill-in-the-middle completions, of its embeddings and its classifiers.

``prompt_tokens`` holds the cached tokens, ``completion_tokens`` what was thought. Audio in the input is charged by its
length, ``prompt_audio_seconds``, beside the tokens (Mistral, "API reference", "Prompt caching", "Audio").
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from services.core.usage.folding import Fold, WholeFold
from services.core.usage.reading import Reading, count_at, counts_at, items_of, text_at, text_bytes

NEEDED: Final = ("input_tokens", "output_tokens")

_COUNTS: Final = (
    ("input_tokens", ("prompt_tokens",)),
    ("output_tokens", ("completion_tokens",)),
    # The older place first: where both are there, the newer one holds.
    ("cache_read_tokens", ("num_cached_tokens",)),
    ("cache_read_tokens", ("prompt_tokens_details", "cached_tokens")),
    ("reasoning_tokens", ("completion_tokens_details", "reasoning_tokens")),
)
# What is written beside the text itself: kinds of chunks, and ids of calls.
_NO_TEXT: Final = frozenset({"role", "type", "id", "index"})


def read_usage(value: object) -> dict[str, int]:
    """The counts of a ``usage`` object; malformed ones are as good as missing."""
    counts = counts_at(value, _COUNTS)
    seconds = count_at(value, ("prompt_audio_seconds",))
    if seconds is not None:
        counts["audio_ms"] = seconds * 1000
    return counts


def context_of(answer: Mapping[str, Any]) -> dict[str, str]:
    """The service tier that an answer says it was served in."""
    tier = text_at(answer, "usage", "service_tier") or text_at(answer, "service_tier")
    return {} if tier is None else {"service_tier": tier.lower()}


def error_code(value: Mapping[str, Any]) -> str | None:
    """The code of an error that came as an answer, None when it is no error."""
    if value.get("object") != "error" and not isinstance(value.get("error"), dict):
        return None
    found = value.get("error", value)
    return text_at(found, "type") or text_at(found, "code") or "error"


class EventFold(Fold):
    """What is common to the folds of streams: one with an error in it is not complete, whatever else it says."""

    def reading(self) -> Reading:
        """The reading so far."""
        found = super().reading()
        return found if found.failed is None else replace(found, complete=False)


class ChatShape:
    """`reading.AnswerShape` of chat and fill-in-the-middle completions."""

    needed = NEEDED

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of a ``chat.completion``."""
        failed = error_code(body)
        return Reading(
            read_usage(body.get("usage")),
            text_bytes([each.get("message") for each in items_of(body, "choices")], _NO_TEXT),
            complete=failed is None,
            model=text_at(body, "model"),
            context=context_of(body),
            failed=failed,
        )

    def fold(self) -> "ChatFold":
        """A fresh fold of ``chat.completion.chunk`` events."""
        return ChatFold()


class ChatFold(EventFold):
    """`reading.StreamFold` of completions: usage comes unasked, in the chunk that ends the stream."""

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes a chunk; none is there for its usage alone."""
        self._text_bytes += text_bytes([each.get("delta") for each in items_of(value, "choices")], _NO_TEXT)
        self._model = text_at(value, "model") or self._model
        self._context = context_of(value) or self._context
        self._failed = error_code(value) or self._failed
        reported = read_usage(value.get("usage"))
        if reported:
            self._usage = reported
            self._complete = True
        return False

    def done(self) -> None:
        """The end, by the vendor's own word."""
        self._complete = True


class InputShape:
    """`reading.AnswerShape` of answers that cost their input only: embeddings, moderations, classifications."""

    needed: tuple[str, ...] = ("input_tokens",)

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of an answer. Tokens it counts as written are none that anybody pays."""
        usage = read_usage(body.get("usage"))
        usage.pop("output_tokens", None)
        failed = error_code(body)
        return Reading(usage, 0, failed is None, text_at(body, "model"), context_of(body), failed)

    def fold(self) -> WholeFold:
        """A fold for the shape's sake: these answers are never streamed."""
        return WholeFold(self)
