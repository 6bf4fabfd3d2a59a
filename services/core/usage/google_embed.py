"""Usage of Gemini's embedContent and batchEmbedContents: newer models report it, older ones say nothing."""

from collections.abc import Mapping
from typing import Any, Final

from services.core.usage.folding import WholeFold
from services.core.usage.google_generate import read_usage
from services.core.usage.reading import Reading, count_at, items_of, text_at

NEEDED: Final = ("input_tokens",)


class EmbedShape:
    """`reading.AnswerShape` of embeddings. They write no tokens."""

    needed = NEEDED

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of an ``EmbedContentResponse`` or ``BatchEmbedContentsResponse``."""
        usage = read_usage(body.get("usageMetadata"))
        usage.pop("output_tokens", None)
        if "input_tokens" not in usage:
            counts = [count_at(each, ("statistics", "tokenCount")) for each in items_of(body, "embeddings")]
            known = [count for count in counts if count is not None]
            if known and len(known) == len(counts):
                usage["input_tokens"] = sum(known)
        return Reading(usage, 0, complete=True, model=text_at(body, "modelVersion"))

    def fold(self) -> WholeFold:
        """A fold for the shape's sake: embeddings are never streamed."""
        return WholeFold(self)
