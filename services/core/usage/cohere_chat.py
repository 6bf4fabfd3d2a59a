"""Usage of Cohere's chat, both versions.

What is charged are the ``billed_units``; ``tokens`` beside them count Cohere's own prompt, too, and are not charged.
Sources: the Chat API references of v1 and v2.
"""

from collections.abc import Mapping
from typing import Any, Final

from services.core.usage.folding import Fold
from services.core.usage.reading import Reading, counts_at, items_of, text_at, text_bytes

NEEDED: Final = ("input_tokens", "output_tokens")

_COUNTS: Final = (
    ("input_tokens", ("billed_units", "input_tokens")),
    ("output_tokens", ("billed_units", "output_tokens")),
    ("cache_read_tokens", ("cached_tokens",)),
    ("search_units", ("billed_units", "search_units")),
    ("prompt_tokens", ("tokens", "input_tokens")),
)
_UNWRITTEN: Final = frozenset({"type", "id", "role"})
# Reasons to finish that are failures of the vendor's; running into a limit is none.
_FAILURES: Final = ("ERROR", "ERROR_TOXIC", "TIMEOUT")


def read_usage(value: object) -> dict[str, int]:
    """The counts of v2's ``usage`` or v1's ``meta``; malformed ones are as good as missing.

    `prompt_tokens` are the input with Cohere's own prompt, and `search_units` those of a chat: for the record only.
    """
    return counts_at(value, _COUNTS)


def failure_of(answer: object) -> str | None:
    """The code of a failure that an answer finished with."""
    reason = text_at(answer, "finish_reason")
    return reason.lower() if reason in _FAILURES else None


class ChatShape:
    """`reading.AnswerShape` of v2 chat. Answers do not name their model."""

    needed = NEEDED

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of an answer."""
        written = text_bytes(body.get("message"), _UNWRITTEN)
        return Reading(read_usage(body.get("usage")), written, complete=True, failed=failure_of(body))

    def fold(self) -> "ChatFold":
        """A fresh fold of chat events."""
        return ChatFold()


class ChatFold(Fold):
    """`reading.StreamFold` of v2 chat: usage comes with ``message-end``, which completes the stream."""

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes an event; none is there for its usage only."""
        delta = value.get("delta")
        if value.get("type") != "message-end":
            message = delta.get("message") if isinstance(delta, dict) else None
            if not str(value.get("type")).startswith("citation-"):
                self._text_bytes += text_bytes(message, _UNWRITTEN)
            return False
        self._complete = True
        self._failed = failure_of(delta)
        self._usage = read_usage(delta.get("usage") if isinstance(delta, dict) else None) or self._usage
        return False

    def done(self) -> None:
        """The end, by the vendor's own word; usage has come by then."""
        self._complete = True


class ChatV1Shape:
    """`reading.AnswerShape` of v1 chat."""

    needed = NEEDED

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of an answer."""
        written = text_bytes([body.get("text"), body.get("tool_calls")], _UNWRITTEN)
        return Reading(read_usage(body.get("meta")), written, complete=True, failed=failure_of(body))

    def fold(self) -> "ChatV1Fold":
        """A fresh fold of v1's events, which come as lines of JSON or as server-sent events."""
        return ChatV1Fold()


class ChatV1Fold(Fold):
    """`reading.StreamFold` of v1 chat: ``stream-end`` has the whole answer once more, its usage included."""

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes an event; none is there for its usage only."""
        kind = value.get("event_type")
        if kind == "stream-end":
            response = value.get("response")
            self._complete = True
            self._failed = failure_of(value)
            self._usage = read_usage(response.get("meta") if isinstance(response, dict) else None)
        elif kind == "text-generation":
            self._text_bytes += text_bytes(value.get("text"))
        elif kind == "tool-calls-chunk":
            self._text_bytes += text_bytes([value.get("text"), value.get("tool_call_delta")], _UNWRITTEN)
        elif kind == "search-queries-generation":
            self._text_bytes += text_bytes([each.get("text") for each in items_of(value, "search_queries")])
        return False
