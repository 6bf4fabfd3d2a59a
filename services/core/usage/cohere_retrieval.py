"""Usage of Cohere's embed and rerank, both versions: ``meta.billed_units``. They are not streamed."""

from collections.abc import Mapping
from typing import Any, Final

from services.core.usage.folding import SilentFold
from services.core.usage.reading import Reading, count_at

_SEARCH_UNITS: Final = ("meta", "billed_units", "search_units")


class EmbedShape:
    """`reading.AnswerShape` of embeddings: text tokens, image tokens, or images where a model is priced by those."""

    needed = ("input_tokens",)

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of an answer. What ``billed_units`` leaves out is not charged; without it, nothing is known."""
        text, image, images, plain = (
            count_at(body, ("meta", "billed_units", name))
            for name in ("text_tokens", "image_tokens", "images", "input_tokens")
        )
        usage: dict[str, int] = {}
        if (text, image, images, plain) != (None, None, None, None):
            # With the text tokens by themselves, the input tokens may be the sum of both kinds; else they are text.
            usage["input_tokens"] = (
                (plain or 0) + (image or 0) if text is None else max(plain or 0, text + (image or 0))
            )
        if image is not None:
            usage["image_input_tokens"] = image
        elif images is not None:
            usage["images"] = images
        return Reading(usage, 0, complete=True)

    def fold(self) -> SilentFold:
        """Nothing is streamed."""
        return SilentFold()


class RerankShape:
    """`reading.AnswerShape` of rerank, charged by search unit."""

    needed = ("rerank_searches",)

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of an answer."""
        units = count_at(body, _SEARCH_UNITS)
        return Reading({} if units is None else {"rerank_searches": units}, 0, complete=True)

    def fold(self) -> SilentFold:
        """Nothing is streamed."""
        return SilentFold()
