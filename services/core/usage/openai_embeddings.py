"""Usage of OpenAI's embeddings: tokens read, none written."""

from collections.abc import Mapping
from typing import Any, Final

from services.core.usage.folding import SilentFold
from services.core.usage.openai_chat import note_cost
from services.core.usage.reading import Reading, count_at, counts_at, text_at

_COUNTS: Final = (
    ("image_input_tokens", ("prompt_tokens_details", "image_tokens")),
    ("audio_input_tokens", ("prompt_tokens_details", "audio_tokens")),
)


class EmbeddingsShape:
    """`reading.AnswerShape` of embeddings. They never stream, and their numbers are no text."""

    needed = ("input_tokens",)

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of a list of embeddings. Some servers report the total only, which is the same here."""
        used = body.get("usage")
        counts = counts_at(used, _COUNTS)
        for name in ("prompt_tokens", "total_tokens"):
            tokens = count_at(used, (name,))
            if tokens is not None:
                counts["input_tokens"] = tokens
                break
        note_cost(used, counts)
        return Reading(counts, 0, complete=True, model=text_at(body, "model"))

    def fold(self) -> SilentFold:
        """A fold that finds nothing."""
        return SilentFold()
