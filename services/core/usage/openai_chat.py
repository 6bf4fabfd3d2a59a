"""Usage of OpenAI's chat completions, which many servers speak, each with some counts in places of its own.

Where they were published: OpenAI, "Chat completions"; DeepSeek, "Create chat completion"; Groq, "API reference"; xAI,
"Consumption and rate limits"; OpenRouter, "Usage accounting"; Perplexity, "Pricing"; Moonshot, "Chat"; vLLM,
`stream_options.continuous_usage_stats`; Mistral, "Audio".
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from services.core.usage.folding import Fold
from services.core.usage.reading import Path, Reading, as_count, count_at, items_of, text_at, text_bytes

NEEDED: Final = ("input_tokens", "output_tokens")

# Where aggregators put what a model shows of its thoughts, which may be a summary or sealed (OpenRouter, "Reasoning
# tokens"). Servers that show all of them do so in ``reasoning_content``.
_SUMMARIES: Final = ("reasoning", "reasoning_details")

NANO_PER_USD: Final = 1_000_000_000
# xAI states costs in ticks, ten thousand million of them a dollar.
TICKS_PER_NANO: Final = 10
# A vendor's own cost is kept for comparison only; what is larger is an error of the vendor's.
MAX_VENDOR_COST_NANO: Final = 1_000_000 * NANO_PER_USD

# For each count, the places where it may be, the most particular first: the first that has it is believed.
_PLACES: Final[Mapping[str, tuple[Path, ...]]] = {
    "input_tokens": (("prompt_tokens",),),
    "output_tokens": (("completion_tokens",),),
    "cache_read_tokens": (
        ("prompt_tokens_details", "cached_tokens"),
        ("prompt_cache_hit_tokens",),  # DeepSeek
        ("cached_tokens",),  # Moonshot, Together
    ),
    "cache_write_tokens": (("prompt_tokens_details", "cache_write_tokens"),),
    "cache_write_1h_tokens": (("prompt_tokens_details", "cache_write_tokens_details", "ttl_12h_tokens"),),
    "audio_input_tokens": (("prompt_tokens_details", "audio_tokens"),),
    "audio_cache_read_tokens": (("prompt_tokens_details", "cached_tokens_details", "audio_tokens"),),
    "image_input_tokens": (("prompt_tokens_details", "image_tokens"),),
    "video_input_tokens": (("prompt_tokens_details", "video_tokens"),),  # OpenRouter
    "audio_output_tokens": (("completion_tokens_details", "audio_tokens"),),
    "image_output_tokens": (("completion_tokens_details", "image_tokens"),),
    "reasoning_tokens": (("completion_tokens_details", "reasoning_tokens"), ("reasoning_tokens",)),
    "accepted_prediction_tokens": (("completion_tokens_details", "accepted_prediction_tokens"),),
    "rejected_prediction_tokens": (("completion_tokens_details", "rejected_prediction_tokens"),),
    "citation_tokens": (("citation_tokens",),),  # Perplexity
    "web_searches": (
        ("num_search_queries",),  # Perplexity
        ("server_tool_use", "web_search_requests"),  # OpenRouter
        ("server_side_tool_usage_details", "web_search_calls"),  # xAI
        ("num_sources_used",),  # xAI's live search, which is charged by the source
    ),
    "social_searches": (("server_side_tool_usage_details", "x_search_calls"),),
    "code_executions": (("server_side_tool_usage_details", "code_interpreter_calls"),),
}


def read_usage(value: object) -> dict[str, int]:
    """The counts of a ``usage`` object; malformed ones are as good as missing."""
    counts = first_counts(value, _PLACES)
    seconds = count_at(value, ("prompt_audio_seconds",))
    if seconds is not None:  # Mistral: the audio of the input, by its length
        counts["audio_ms"] = seconds * 1000
    if "output_tokens" in counts:
        counts["output_tokens"] += outside_output(value, counts)
    note_cost(value, counts)
    return counts


def first_counts(value: object, places: Mapping[str, tuple[Path, ...]]) -> dict[str, int]:
    """Each count from the first of its places that has one."""
    counts: dict[str, int] = {}
    if not isinstance(value, dict):
        return counts
    for name, paths in places.items():
        for path in paths:
            found = value.get(path[0])
            for step in path[1:]:
                found = found.get(step) if isinstance(found, dict) else None
            # Most places lead nowhere, and most of the rest to a plain number: this runs for every answer.
            count = None if found is None else as_count(found)
            if count is not None:
                counts[name] = count
                break
    return counts


def outside_output(value: object, counts: Mapping[str, int]) -> int:
    """The tokens written beyond the output that the vendor reports.

    OpenAI's ``completion_tokens`` hold the reasoning. xAI's do not, and its total says so; nor do Perplexity's, which
    hold no citations either, while its total leaves out both; Google's leave reasoning to be seen from the total only.
    """
    written, reasoning = counts["output_tokens"], counts.get("reasoning_tokens", 0)
    if "citation_tokens" in counts:
        return counts["citation_tokens"] + reasoning
    total = count_at(value, ("total_tokens",))
    beyond = 0 if total is None else total - counts.get("input_tokens", total) - written
    if reasoning:
        return reasoning if beyond == reasoning or reasoning > written else 0
    return beyond if beyond > 0 and "audio_ms" not in counts else 0


def note_cost(usage: object, counts: dict[str, int]) -> None:
    """Adds what the vendor says that the call cost, in nano-dollars: for the record, never for the price."""
    cost = _cost_nano(usage)
    if cost is not None:
        counts["vendor_cost_nano"] = cost


def _cost_nano(usage: object) -> int | None:
    if not isinstance(usage, dict):
        return None
    ticks = usage.get("cost_in_usd_ticks")
    if type(ticks) is int and 0 <= ticks <= MAX_VENDOR_COST_NANO * TICKS_PER_NANO:
        return ticks // TICKS_PER_NANO
    cost = usage.get("cost")
    if isinstance(cost, dict):
        cost = cost.get("total_cost")
    if not isinstance(cost, int | float) or isinstance(cost, bool) or not 0 <= cost <= MAX_VENDOR_COST_NANO:
        return None
    nano = int((Decimal(repr(cost)) * NANO_PER_USD).to_integral_value())
    return nano if nano <= MAX_VENDOR_COST_NANO else None


def context_of(answer: Mapping[str, Any]) -> dict[str, str]:
    """The service tier that an answer says it was served in."""
    tier = text_at(answer, "service_tier")
    return {} if tier is None else {"service_tier": tier}


def error_code(answer: Mapping[str, Any]) -> str | None:
    """The code of an error inside a successful answer."""
    error = answer.get("error")
    if not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    return text_at(error, "code") or text_at(error, "type") or (str(code) if type(code) is int else "error")


class ChatShape:
    """`reading.AnswerShape` of chat completions, and of the legacy completions that report in the same words."""

    needed = NEEDED

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of a ``chat.completion`` or ``text_completion``."""
        texts = [each.get("message", each.get("text")) for each in items_of(body, "choices")]
        return Reading(
            read_usage(body.get("usage")),
            text_bytes(texts),
            complete=True,
            model=text_at(body, "model"),
            context=context_of(body),
            failed=error_code(body),
        )

    def fold(self) -> "ChatFold":
        """A fresh fold of ``chat.completion.chunk`` or ``text_completion`` events."""
        return ChatFold()


class ChatFold(Fold):
    """`reading.StreamFold` of chat completions. The last usage reported is the one that counts.

    A stream is complete once it said ``[DONE]``, sent its closing usage chunk, or reported usage as it finished.
    """

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes a chunk; true for the extra one that reports usage and carries nothing else."""
        choices = items_of(value, "choices")
        deltas = [each.get("delta", each.get("text")) for each in choices]
        if not self.has_text:
            self._summary_bytes += sum(
                text_bytes(each.get(name)) for each in deltas if isinstance(each, dict) for name in _SUMMARIES
            )
        self._text_bytes += text_bytes(deltas)
        self._model = text_at(value, "model") or self._model
        self._context = context_of(value) or self._context
        self._failed = error_code(value) or self._failed
        reported = _reported(value, choices)
        if reported is None:
            return False
        self._usage = read_usage(reported) or self._usage
        only_usage: bool = value.get("choices") == [] and reported is value.get("usage")
        finished = any(text_at(each, "finish_reason") for each in choices)
        self._complete = self._complete or only_usage or finished
        return only_usage

    def done(self) -> None:
        """The end, by the vendor's own word."""
        self._complete = True


def _reported(chunk: Mapping[str, Any], choices: Any) -> Mapping[str, Any] | None:
    """A chunk's usage: its own, or where Groq (``x_groq``) and Moonshot (in the choice) put it."""
    own = chunk.get("usage")
    if isinstance(own, dict):
        return own
    groq = chunk.get("x_groq")
    held = [groq, *choices] if isinstance(groq, dict) else choices
    found: list[dict[str, Any]] = [each["usage"] for each in held if isinstance(each.get("usage"), dict)]
    return found[-1] if found else None
