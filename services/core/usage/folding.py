"""What the folds of most protocols have in common: the fields that a reading is made of, and what is never streamed."""

from collections.abc import Mapping
from typing import Any

from services.core.usage.reading import AnswerShape, Reading


class Fold:
    """The base of a `reading.StreamFold`: what its events have said so far, which its `take` keeps up to date."""

    def __init__(self) -> None:
        self._usage: dict[str, int] = {}
        self._text_bytes = 0
        # Of them, those that only sum up what was thought.
        self._summary_bytes = 0
        self._complete = False
        self._model: str | None = None
        self._context: dict[str, str] = {}
        self._failed: str | None = None

    @property
    def has_text(self) -> bool:
        """Whether any of the answer's own text has come."""
        return self._text_bytes > self._summary_bytes

    @property
    def text_bytes(self) -> int:
        """The UTF-8 length of all text so far."""
        return self._text_bytes

    @property
    def own_bytes(self) -> int:
        """That of the answer's own text, without what only sums up thoughts."""
        return self._text_bytes - self._summary_bytes

    def done(self) -> None:
        """Takes ``[DONE]``: nothing, where the protocol has none or its last event is the end."""

    def reading(self) -> Reading:
        """The reading so far."""
        return Reading(self._usage, self._text_bytes, self._complete, self._model, self._context, self._failed)


class SilentFold(Fold):
    """`reading.StreamFold` of a route that does not stream: whatever comes is no usage, and no end."""

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes anything."""
        return False


class WholeFold:
    """`reading.StreamFold` of answers that are not streamed: the last object is the answer, read by `shape`."""

    def __init__(self, shape: AnswerShape) -> None:
        self._shape = shape
        self._reading = Reading({}, 0, complete=False)

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes an answer."""
        self._reading = self._shape.whole(value)
        return False

    @property
    def has_text(self) -> bool:
        """Whether an answer has come: it comes as a whole."""
        return self._reading.complete

    @property
    def text_bytes(self) -> int:
        """The length of its text."""
        return self._reading.text_bytes

    @property
    def own_bytes(self) -> int:
        """The length of its text."""
        return self._reading.text_bytes

    def done(self) -> None:
        """Nothing ends what is not streamed."""

    def reading(self) -> Reading:
        """The reading so far."""
        return self._reading
