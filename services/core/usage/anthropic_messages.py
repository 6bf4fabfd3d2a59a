"""Usage of Anthropic's messages: answers, event streams and the results of batches.

Anthropic counts the three kinds of input beside each other (``input_tokens`` holds neither what was read from the cache
nor what was written to it) and reports a stream's usage cumulatively: ``message_start`` has the input and a provisional
output, each ``message_delta`` the totals so far, whatever fields it has. Sources: the Messages API reference, and the
guides to prompt caching, streaming and compaction.
"""

from collections.abc import Mapping
from typing import Any, Final

from services.core.usage.folding import Fold
from services.core.usage.reading import Reading, as_count, count_at, counts_at, items_of, text_at, text_bytes

NEEDED: Final = ("input_tokens", "output_tokens")

_INPUT: Final = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_SPLIT: Final = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
_BESIDE: Final = (
    ("reasoning_tokens", ("output_tokens_details", "thinking_tokens")),
    ("web_searches", ("server_tool_use", "web_search_requests")),
    ("web_fetches", ("server_tool_use", "web_fetch_requests")),
)
_CONTEXT: Final = ("service_tier", "speed", "inference_geo")
# What a stream's first event can't know yet: it reports the few tokens of the answer that there were by then.
_PROVISIONAL: Final = frozenset({"output_tokens", "output_tokens_details", "iterations", "server_tool_use"})
# Deltas that show thoughts: later models show a summary of them ("Extended thinking"), and then seal it.
_SUMMARIES: Final = ("thinking_delta", "signature_delta")
# Names of strings in an answer that no model wrote.
_UNWRITTEN: Final = frozenset({"type", "id", "role", "tool_use_id"})


def read_usage(value: object) -> dict[str, int]:
    """The counts of a ``usage`` object, in which each total holds its parts; malformed ones are as good as missing.

    A compaction's own tokens are charged beside the totals, so they are added to them.
    """
    counts = _totals(value)
    for step in items_of(value, "iterations"):
        if step.get("type") == "compaction":
            for name, count in _totals(step).items():
                # A total that is missing stays so: a part of it must not pass for it.
                if name in counts or name not in NEEDED:
                    counts[name] = counts.get(name, 0) + count
    return counts


def _totals(value: object) -> dict[str, int]:
    counts = counts_at(value, _BESIDE)
    plain, written, read = (count_at(value, (name,)) for name in _INPUT)
    five_minutes, one_hour = (count_at(value, ("cache_creation", name)) for name in _SPLIT)
    if written is None and (five_minutes is not None or one_hour is not None):
        written = (five_minutes or 0) + (one_hour or 0)
    if plain is not None:
        counts["input_tokens"] = plain + (written or 0) + (read or 0)
    for name, count in (
        ("cache_read_tokens", read),
        ("cache_write_tokens", written),
        ("cache_write_1h_tokens", one_hour),
        ("output_tokens", count_at(value, ("output_tokens",))),
    ):
        if count is not None:
            counts[name] = count
    return counts


def context_of(usage: object) -> dict[str, str]:
    """What a ``usage`` object says picks the rates besides the model."""
    found = {name: text_at(usage, name) for name in _CONTEXT}
    context = {name: value for name, value in found.items() if value is not None}
    if context.get("service_tier") == "batch":
        context["processing"] = "batch"
    return context


def written_bytes(blocks: object) -> int:
    """The UTF-8 length of what the model wrote in content blocks: not what the vendor's tools brought back."""
    if not isinstance(blocks, list):
        return 0
    return text_bytes([each for each in blocks if not _is_result(each)], _UNWRITTEN)


def _is_result(block: object) -> bool:
    return isinstance(block, dict) and str(block.get("type")).endswith("_tool_result")


class MessagesShape:
    """`reading.AnswerShape` of messages."""

    needed = NEEDED

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of a ``message``."""
        usage = body.get("usage")
        return Reading(
            read_usage(usage),
            written_bytes(body.get("content")),
            complete=True,
            model=text_at(body, "model"),
            context=context_of(usage),
            failed=text_at(body, "error", "type"),
        )

    def fold(self) -> "MessagesFold":
        """A fresh fold of message events."""
        return MessagesFold()


class MessagesFold(Fold):
    """`reading.StreamFold` of messages: of each field the last report counts. ``message_stop`` completes a stream."""

    def __init__(self) -> None:
        super().__init__()
        self._reported: dict[str, Any] = {}
        self._searches = 0

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes an event; none is there for its usage only."""
        kind = value.get("type")
        if kind == "content_block_delta":
            delta = value.get("delta")
            size = text_bytes(delta, _UNWRITTEN)
            # Thinking that is not shown is estimated by the vendor as it goes on: a token counts as a byte here.
            self._text_bytes += size + (count_at(delta, ("estimated_tokens",)) or 0)
            if text_at(delta, "type") in _SUMMARIES:
                self._summary_bytes += size
        elif kind == "content_block_start":
            block = value.get("content_block")
            self._text_bytes += written_bytes([block])
            self._searches += text_at(block, "type") == "server_tool_use" and text_at(block, "name") == "web_search"
        elif kind == "message_start":
            message = value.get("message")
            self._model = text_at(message, "model")
            self._report(message, final=False)
        elif kind == "message_delta":
            self._report(value, final=True)
        elif kind == "message_stop":
            self._complete = True
        elif kind == "error":
            self._failed = text_at(value, "error", "type") or "error"
        return False

    def _report(self, holder: object, *, final: bool) -> None:
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if not isinstance(usage, dict):
            return
        given = {name: each for name, each in usage.items() if each is not None and (final or name not in _PROVISIONAL)}
        if "cache_creation" not in given:
            _keep_split(self._reported, given)
        self._reported |= given

    def reading(self) -> Reading:
        """The reading so far."""
        self._usage, self._context = read_usage(self._reported), context_of(self._reported)
        if self._searches:
            # Begun searches count until a report says how many of them are charged.
            self._usage.setdefault("web_searches", self._searches)
        return super().reading()


def _keep_split(before: Mapping[str, Any], given: dict[str, Any]) -> None:
    """Carries on the split of cache writes, which later reports leave out.

    What was written since then, by rounds of the vendor's own tools, is of the dearer kind when any of it was.
    """
    written = as_count(given.get("cache_creation_input_tokens"))
    one_hour = count_at(before, ("cache_creation", "ephemeral_1h_input_tokens"))
    if written is None or not one_hour:
        return
    five_minutes = min(count_at(before, ("cache_creation", "ephemeral_5m_input_tokens")) or 0, written)
    given["cache_creation"] = dict(zip(_SPLIT, (five_minutes, written - five_minutes), strict=True))


class BatchShape:
    """`reading.AnswerShape` of a batch as such: its id and how it stands. It uses nothing before its results."""

    needed = ()

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of a ``message_batch``."""
        job, status = text_at(body, "id"), text_at(body, "processing_status")
        return Reading({}, 0, complete=True, job=job, status=status)

    def fold(self) -> MessagesFold:
        """Batches are not streamed: a fold that finds nothing."""
        return MessagesFold()


class BatchResultsShape:
    """`reading.AnswerShape` of a batch's results: lines of one request's result each, which only succeeded ones cost.

    A line is priced by itself (`whole`), since long-context tiers go by its own input; a fold only adds the lines up.
    """

    needed = ()

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of one line, ``{"custom_id", "result"}``; `job` is its custom id, `status` the result's type."""
        result = body.get("result")
        message = result.get("message") if isinstance(result, dict) else None
        found = MessagesShape().whole(message if isinstance(message, dict) else {})
        return Reading(
            found.usage,
            found.text_bytes,
            complete=True,
            model=found.model,
            context={**found.context, "processing": "batch"},
            failed=text_at(result, "error", "error", "type"),
            job=text_at(body, "custom_id"),
            status=text_at(result, "type"),
        )

    def fold(self) -> "BatchResultsFold":
        """A fresh fold of result lines."""
        return BatchResultsFold()


class BatchResultsFold(Fold):
    """`reading.StreamFold` of result lines: their sum. They have no end of their own: with any line it is complete."""

    def __init__(self) -> None:
        super().__init__()
        self._context = {"processing": "batch"}

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes a line."""
        found = BatchResultsShape().whole(value)
        for count, quantity in found.usage.items():
            self._usage[count] = self._usage.get(count, 0) + quantity
        self._text_bytes += found.text_bytes
        self._complete = True
        self._model = found.model or self._model
        return False
