"""Usage of OpenAI's images routes: tokens (GPT image models), or images counted (models priced by the image)."""

from collections.abc import Mapping
from typing import Any, Final

from services.core.usage.folding import Fold
from services.core.usage.openai_chat import NEEDED, error_code, first_counts
from services.core.usage.reading import Path, Reading, text_at

_PLACES: Final[Mapping[str, tuple[Path, ...]]] = {
    "input_tokens": (("input_tokens",),),
    "output_tokens": (("output_tokens",),),
    "image_input_tokens": (("input_tokens_details", "image_tokens"),),
    "cache_read_tokens": (("input_tokens_details", "cached_tokens"), ("cached_tokens",)),
    "image_cache_read_tokens": (
        ("input_tokens_details", "cached_tokens_details", "image_tokens"),
        ("cached_tokens_details", "cached_image_tokens"),
    ),
    "image_output_tokens": (("output_tokens_details", "image_tokens"),),
}
_ENDS: Final = ("image_generation.completed", "image_edit.completed")


def read_usage(value: object) -> dict[str, int]:
    """The counts of a ``usage`` object. Output that is not split, as in streams, is images: they were asked for."""
    counts = first_counts(value, _PLACES)
    if "output_tokens" in counts:
        counts.setdefault("image_output_tokens", counts["output_tokens"])
    return counts


class ImagesShape:
    """`reading.AnswerShape` of generations, edits and variations. `by_image`: the model is priced by the image."""

    def __init__(self, *, by_image: bool = False) -> None:
        self._by_image = by_image
        self.needed: tuple[str, ...] = ("images",) if by_image else NEEDED

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of an answer; each entry of ``data`` is an image."""
        if self._by_image:
            data = body.get("data")
            counts = {"images": len(data)} if isinstance(data, list) else {}
        else:
            counts = read_usage(body.get("usage"))
        return Reading(counts, 0, complete=True, model=text_at(body, "model"), failed=error_code(body))

    def fold(self) -> "ImagesFold":
        """A fresh fold of ``image_generation.*`` or ``image_edit.*`` events."""
        return ImagesFold(by_image=self._by_image)


class ImagesFold(Fold):
    """`reading.StreamFold` of images: partial images first, then the whole one with the usage of all of them."""

    def __init__(self, *, by_image: bool) -> None:
        super().__init__()
        self._by_image = by_image
        self._images = 0

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes an event; none of this protocol only reports usage."""
        kind = text_at(value, "type") or name
        self._failed = error_code(value) or self._failed
        if kind in _ENDS:
            self._images += 1
            self._usage = {"images": self._images} if self._by_image else read_usage(value.get("usage")) or self._usage
            self._complete = True
        return False
