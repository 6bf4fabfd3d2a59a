"""Usage of OpenAI's responses route (and its compaction): JSON, event streams, and answers still under way."""

from collections.abc import Mapping
from typing import Any, Final

from services.core.usage.folding import Fold
from services.core.usage.openai_chat import (
    NEEDED,
    context_of,
    error_code,
    first_counts,
    note_cost,
    outside_output,
)
from services.core.usage.reading import Path, Reading, count_at, items_of, text_at, text_bytes

# Output tokens hold the reasoning, input tokens the cached and written ones (OpenAI, "Responses": usage).
_PLACES: Final[Mapping[str, tuple[Path, ...]]] = {
    "input_tokens": (("input_tokens",),),
    "output_tokens": (("output_tokens",),),
    "cache_read_tokens": (("input_tokens_details", "cached_tokens"),),
    "cache_write_tokens": (("input_tokens_details", "cache_write_tokens"),),
    "cache_write_1h_tokens": (("input_tokens_details", "cache_write_tokens_details", "ttl_12h_tokens"),),
    "audio_input_tokens": (("input_tokens_details", "audio_tokens"),),
    "image_input_tokens": (("input_tokens_details", "image_tokens"),),
    "reasoning_tokens": (("output_tokens_details", "reasoning_tokens"),),
    "audio_output_tokens": (("output_tokens_details", "audio_tokens"),),
    "web_searches": (("server_side_tool_usage_details", "web_search_calls"),),  # xAI
    "social_searches": (("server_side_tool_usage_details", "x_search_calls"),),
    "code_executions": (("server_side_tool_usage_details", "code_interpreter_calls"),),
}
_UNDER_WAY: Final = ("queued", "in_progress")
_ENDS: Final = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
# What the deltas repeat in full, and what says nothing.
_SKIPPED: Final = frozenset({"role", "type", "id", "status", "obfuscation"})


def read_usage(value: object) -> dict[str, int]:
    """The counts of a ``usage`` object; malformed ones are as good as missing."""
    counts = first_counts(value, _PLACES)
    if "output_tokens" in counts:
        counts["output_tokens"] += outside_output(value, counts)
    note_cost(value, counts)
    return counts


def count_tools(response: Mapping[str, Any]) -> dict[str, int]:
    """The calls of tools that the vendor ran and charges for by the call.

    A search is charged, looking at a page that it found is not (OpenAI, "Web search": output and citations). Where the
    answer counts the searches by itself, that count is the vendor's and stands.
    """
    items = items_of(response, "output")
    counts = {}
    searches = sum(
        each.get("type") == "web_search_call" and text_at(each, "action", "type") in (None, "search") for each in items
    )
    counted = count_at(response, ("tool_usage", "web_search", "num_requests"))
    if counted is not None or searches:
        counts["web_searches"] = searches if counted is None else counted
    files = sum(each.get("type") == "file_search_call" for each in items)
    if files:
        counts["file_searches"] = files
    return counts


def read_response(response: Mapping[str, Any]) -> Reading:
    """The reading of a response, whatever its state.

    One that is queued or in progress has used what nobody knows yet: it is complete as an answer, and its `job` and
    `status` say that more is to come. One that was cancelled early or failed at once may report no usage at all.
    """
    status = text_at(response, "status")
    return Reading(
        {**count_tools(response), **read_usage(response.get("usage"))},
        text_bytes(response.get("output"), _SKIPPED),
        complete=True,
        model=text_at(response, "model"),
        context=context_of(response),
        failed=error_code(response),
        job=text_at(response, "id") if status in _UNDER_WAY else None,
        status=status,
    )


class ResponsesShape:
    """`reading.AnswerShape` of responses."""

    needed = NEEDED

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of a ``response`` or ``response.compaction``."""
        return read_response(body)

    def fold(self) -> "ResponsesFold":
        """A fresh fold of ``response.*`` events."""
        return ResponsesFold()


class ResponsesFold(Fold):
    """`reading.StreamFold` of responses: the last event has the whole response, usage included.

    Until then the deltas are counted. A stream that breaks off names the response by `job`: one in the background goes
    on without its reader.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: Mapping[str, Any] = {}
        self._ended: Reading | None = None

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes an event; none of this protocol only reports usage."""
        kind = text_at(value, "type") or name or ""
        response = value.get("response")
        if isinstance(response, dict):
            self._known = response
            if kind in _ENDS:
                self._ended = read_response(response)
        elif kind.endswith(".delta"):
            size = text_bytes(value.get("delta"))
            self._text_bytes += size
            if kind.startswith("response.reasoning_summary"):
                self._summary_bytes += size
        elif kind == "response.output_item.done":
            item = value.get("item")
            for count, number in count_tools({"output": [item]}).items():
                self._usage[count] = self._usage.get(count, 0) + number
        elif kind == "error":
            self._failed = text_at(value, "code") or error_code(value) or "error"
        return False

    def reading(self) -> Reading:
        """The reading so far."""
        if self._ended is not None:
            return self._ended
        return Reading(
            self._usage,
            self._text_bytes,
            complete=False,
            model=text_at(self._known, "model"),
            failed=self._failed,
            job=text_at(self._known, "id"),
            status=text_at(self._known, "status"),
        )
