"""Usage of Mistral's OCR, by the page, and of its transcriptions, by the time (Mistral, "API reference")."""

from collections.abc import Mapping
from typing import Any

from services.core.usage.folding import WholeFold
from services.core.usage.mistral_chat import NEEDED, EventFold, error_code, read_usage
from services.core.usage.reading import Reading, count_at, items_of, text_at, text_bytes


class OcrShape:
    """`reading.AnswerShape` of OCR. `annotated`: the request asked for annotations, which have a price of their own."""

    def __init__(self, *, annotated: bool = False) -> None:
        self.needed: tuple[str, ...] = ("pages", "annotated_pages") if annotated else ("pages",)
        self._annotated = annotated

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of an OCR answer: every page it processed is an annotated one where annotations were made."""
        usage = {}
        pages = count_at(body, ("usage_info", "pages_processed"))
        if pages is not None:
            usage["pages"] = pages
            if self._annotated or _is_annotated(body):
                usage["annotated_pages"] = pages
        failed = error_code(body)
        return Reading(usage, 0, failed is None, text_at(body, "model"), failed=failed)

    def fold(self) -> WholeFold:
        """A fold for the shape's sake: OCR is never streamed."""
        return WholeFold(self)


def _is_annotated(body: Mapping[str, Any]) -> bool:
    if text_at(body, "document_annotation") is not None:
        return True
    images = (image for page in items_of(body, "pages") for image in items_of(page, "images"))
    return any(image.get("image_annotation") is not None for image in images)


class TranscriptionShape:
    """`reading.AnswerShape` of transcriptions, charged by the time heard. `by_token`: and by tokens, as chat is."""

    def __init__(self, *, by_token: bool = False) -> None:
        self.needed: tuple[str, ...] = ("audio_ms", *NEEDED) if by_token else ("audio_ms",)
        self._by_token = by_token

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of a transcription."""
        failed = error_code(body)
        size = text_bytes(body.get("text"))
        return Reading(self.counts(body.get("usage")), size, failed is None, text_at(body, "model"), failed=failed)

    def counts(self, value: object) -> dict[str, int]:
        """The counts of a ``usage`` object that are charged for."""
        usage = read_usage(value)
        return usage if self._by_token else {name: count for name, count in usage.items() if name == "audio_ms"}

    def fold(self) -> "TranscriptionFold":
        """A fresh fold of ``transcription.*`` events."""
        return TranscriptionFold(self)


class TranscriptionFold(EventFold):
    """`reading.StreamFold` of transcriptions: pieces of text, and usage in the last event."""

    def __init__(self, shape: TranscriptionShape) -> None:
        super().__init__()
        self._shape = shape

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes an event; none of them only reports usage."""
        self._failed = error_code(value) or self._failed
        kind = text_at(value, "type") or name
        if kind == "transcription.text.delta":
            self._text_bytes += text_bytes(value.get("text"))
        elif kind == "transcription.done":
            self._usage = self._shape.counts(value.get("usage"))
            self._model = text_at(value, "model")
            self._complete = True
        return False
