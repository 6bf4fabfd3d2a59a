"""Usage of Gemini's generateContent, plain and streamed (Google, "Gemini API: UsageMetadata").

``promptTokenCount`` holds the cached tokens; ``toolUsePromptTokenCount`` is beside it, ``thoughtsTokenCount`` beside
``candidatesTokenCount``, and the total is the sum of the four. Zeros are left out, as everywhere in protobuf's JSON.
Every chunk of a stream repeats the usage so far, so the last report is the whole.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from services.core.usage.folding import Fold
from services.core.usage.reading import Reading, as_count, count_at, items_of, text_at, text_bytes

NEEDED: Final = ("input_tokens", "output_tokens")

# These models are charged for a prompt that was grounded at all, later ones for each distinct query (Google, "Gemini
# API pricing").
_BY_PROMPT: Final = re.compile(r"(?:.*/)?gemini-[12]\.")

# Pages of documents are read as images, and priced as such.
_INPUT_PARTS: Final = {
    "AUDIO": "audio_input_tokens",
    "IMAGE": "image_input_tokens",
    "DOCUMENT": "image_input_tokens",
    "VIDEO": "video_input_tokens",
}
_CACHE_PARTS: Final = {
    "AUDIO": "audio_cache_read_tokens",
    "IMAGE": "image_cache_read_tokens",
    "DOCUMENT": "image_cache_read_tokens",
}
_OUTPUT_PARTS: Final = {
    "AUDIO": "audio_output_tokens",
    "IMAGE": "image_output_tokens",
    "DOCUMENT": "image_output_tokens",
    "VIDEO": "video_output_tokens",
}
_TIERS: Final = {"on_demand": "standard", "on_demand_flex": "flex", "on_demand_priority": "priority"}
# A signature is opaque and no generated text; a media type is none either.
_NO_TEXT: Final = frozenset({"role", "thoughtSignature", "mimeType"})
_UNFINISHED: Final = "FINISH_REASON_UNSPECIFIED"


def searches_by_prompt(model: str) -> bool:
    """Whether a model charges Google searches by the grounded prompt, however many queries it makes."""
    return _BY_PROMPT.match(model) is not None


def read_usage(value: object) -> dict[str, int]:
    """The counts of a ``usageMetadata`` object, in our names; malformed ones are as good as missing."""
    usage: dict[str, int] = {}
    prompt = count_at(value, ("promptTokenCount",))
    tools = count_at(value, ("toolUsePromptTokenCount",))
    if prompt is not None:
        usage["input_tokens"] = prompt + (tools or 0)
    output = _output(value, prompt, tools or 0)
    if output is not None:
        usage["output_tokens"] = output
    for name, field in (("cache_read_tokens", "cachedContentTokenCount"), ("reasoning_tokens", "thoughtsTokenCount")):
        found = count_at(value, (field,))
        if found is not None:
            usage[name] = found
    for fields, names in (
        (("promptTokensDetails", "promptTokenDetails", "toolUsePromptTokensDetails"), _INPUT_PARTS),
        (("cacheTokensDetails",), _CACHE_PARTS),
        (("candidatesTokensDetails",), _OUTPUT_PARTS),
    ):
        _add_parts(usage, value, fields, names)
    return usage


def _output(value: object, prompt: int | None, tools: int) -> int | None:
    """Answer and thoughts together. Where the answer's count was left out, the total says what is left for it."""
    candidates = count_at(value, ("candidatesTokenCount",))
    thoughts = count_at(value, ("thoughtsTokenCount",))
    if candidates is not None:
        return candidates + (thoughts or 0)
    total = count_at(value, ("totalTokenCount",))
    if total is not None and prompt is not None:
        return max(total - prompt - tools, thoughts or 0)
    return thoughts


def _add_parts(usage: dict[str, int], value: object, fields: Iterable[str], names: Mapping[str, str]) -> None:
    for field in fields:
        for detail in items_of(value, field):
            name = names.get(str(detail.get("modality")))
            count = as_count(detail.get("tokenCount"))
            if name is not None and count is not None:
                usage[name] = usage.get(name, 0) + count


class GenerateShape:
    """`reading.AnswerShape` of generateContent. `model` is the one asked for, if the answer names none."""

    needed = NEEDED

    def __init__(self, model: str = "") -> None:
        self._model = model

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of a ``GenerateContentResponse``."""
        fold = GenerateFold(self._model)
        fold.take(None, body)
        fold.done()
        return fold.reading()

    def fold(self) -> "GenerateFold":
        """A fresh fold of a stream's responses."""
        return GenerateFold(self._model)


class GenerateFold(Fold):
    """`reading.StreamFold` of streamGenerateContent, whether in events or in one array.

    A stream has no closing event: it is complete once every candidate seen has said why it finished, or the prompt was
    blocked.
    """

    def __init__(self, model: str = "") -> None:
        super().__init__()
        self._asked = model
        self._uncounted_bytes = 0
        self._finished: dict[object, bool] = {}
        self._queries: set[str] = set()
        self._grounded = False

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes one response; none is there for its usage alone."""
        candidates = items_of(value, "candidates")
        size = text_bytes([each.get("content") for each in candidates], _NO_TEXT)
        if not self.has_text:
            parts = [part for each in candidates for part in items_of(each.get("content"), "parts")]
            self._summary_bytes += text_bytes([part for part in parts if part.get("thought") is True], _NO_TEXT)
        self._text_bytes += size
        self._take_usage(value, size)
        for candidate in candidates:
            reason = text_at(candidate, "finishReason")
            index = str(candidate.get("index", 0))
            self._finished[index] = self._finished.get(index, False) or reason not in (None, _UNFINISHED)
            self._take_grounding(candidate.get("groundingMetadata"))
        blocked = text_at(value, "promptFeedback", "blockReason") is not None
        self._complete = blocked or (bool(self._finished) and all(self._finished.values()))
        self._model = text_at(value, "modelVersion") or self._model
        self._context = _context_of(value) or self._context
        error = value.get("error")
        if isinstance(error, dict):
            self._failed = text_at(error, "status") or str(error.get("code", "error"))
        return False

    def done(self) -> None:
        """The end of a JSON answer."""
        self._complete = True

    def reading(self) -> Reading:
        """The reading so far."""
        usage = dict(self._usage)
        size = self._text_bytes
        complete = self._complete and self._failed is None
        if not complete and (self._uncounted_bytes or "output_tokens" not in usage):
            # Text came that no report counts yet. What was thought is known, and is more than its bytes show.
            usage.pop("output_tokens", None)
            size += usage.get("reasoning_tokens", 0)
        searches = self._searches()
        if searches:
            usage["web_searches"] = searches
        return Reading(usage, size, complete, self._model, self._context, self._failed)

    def _take_usage(self, value: Mapping[str, Any], size: int) -> None:
        reported = value.get("usageMetadata")
        self._uncounted_bytes += size
        if not isinstance(reported, dict):
            return
        self._usage = {**self._usage, **read_usage(reported)}
        if count_at(reported, ("candidatesTokenCount",)) is not None:
            self._uncounted_bytes = 0

    def _take_grounding(self, value: object) -> None:
        if not isinstance(value, dict):
            return
        for name in ("webSearchQueries", "imageSearchQueries"):
            queries = value.get(name)
            if isinstance(queries, list):
                # Empty queries are not billed, and the same one only once.
                self._queries.update(each for each in queries if isinstance(each, str) and each)
        self._grounded = self._grounded or any("web" in each for each in items_of(value, "groundingChunks"))

    def _searches(self) -> int:
        if searches_by_prompt(self._model or self._asked):
            return int(self._grounded or bool(self._queries))
        return len(self._queries)


def _context_of(value: Mapping[str, Any]) -> dict[str, str]:
    """The service tier that an answer says it was served in."""
    for found in (
        text_at(value, "usageMetadata", "serviceTier"),
        text_at(value, "usageMetadata", "trafficType"),
    ):
        if found is not None:
            tier = found.lower().removeprefix("service_tier_")
            tier = _TIERS.get(tier, tier)
            if tier in ("standard", "flex", "priority"):
                return {"service_tier": tier}
    return {}
