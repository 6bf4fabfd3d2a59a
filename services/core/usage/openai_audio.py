"""Usage of OpenAI's audio routes: speech (characters or tokens), transcriptions and translations (time or tokens)."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from services.core.usage.folding import Fold
from services.core.usage.openai_chat import NEEDED, error_code, first_counts
from services.core.usage.reading import MAX_COUNT, Path, Reading, text_at, text_bytes

_PLACES: Final[Mapping[str, tuple[Path, ...]]] = {
    "input_tokens": (("input_tokens",),),
    "output_tokens": (("output_tokens",),),
    "audio_input_tokens": (("input_token_details", "audio_tokens"), ("input_tokens_details", "audio_tokens")),
    "audio_output_tokens": (("output_token_details", "audio_tokens"), ("output_tokens_details", "audio_tokens")),
}

# 24 kHz, 16 bit, mono, one token each 50 ms (OpenAI, "Text to speech" and "Managing costs"). No compressed format that
# the route offers is below 16 kbit/s, which is a hundred bytes a token.
PCM_BYTES_PER_TOKEN: Final = 2_400
COMPRESSED_BYTES_PER_TOKEN: Final = 100


def read_usage(value: object) -> dict[str, int]:
    """The counts of a ``usage`` object: ``tokens``, or a ``duration`` in seconds."""
    counts = first_counts(value, _PLACES)
    billed_ms = milliseconds(value.get("seconds")) if isinstance(value, dict) else None
    if billed_ms is not None:
        counts["audio_ms"] = billed_ms
    return counts


def milliseconds(seconds: object) -> int | None:
    """A number of seconds as whole milliseconds, rounded up; None for what is none."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds <= MAX_COUNT / 1000:
        return None
    # Binary fractions of a microsecond are no reason to round up: 1.1 s are 1,100 ms.
    return math.ceil(round(seconds * 1000, 3))


def whole_seconds_ms(duration_ms: int) -> int:
    """A duration as it is billed: OpenAI reports 9 s for 8.47 s of audio ("Create transcription", verbose example)."""
    return -(-duration_ms // 1000) * 1000


class TranscriptionShape:
    """`reading.AnswerShape` of transcriptions and translations. `by_time`: the model is priced by the time it hears.

    Text, SRT and VTT answers report nothing.
    """

    def __init__(self, *, by_time: bool = True) -> None:
        self.needed: tuple[str, ...] = ("audio_ms",) if by_time else NEEDED
        self._by_time = by_time

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of a JSON answer. A verbose one without usage, as translations are, still has its duration."""
        counts = read_usage(body.get("usage"))
        duration_ms = milliseconds(body.get("duration"))
        if self._by_time and not counts and duration_ms is not None:
            counts["audio_ms"] = whole_seconds_ms(duration_ms)
        return Reading(counts, text_bytes(body.get("text")), complete=True, failed=error_code(body))

    def opaque(self, size: int) -> Reading:
        """The reading of an answer that is no JSON: `size` bytes of text."""
        return Reading({}, size, complete=True)

    def fold(self) -> "TranscriptionFold":
        """A fresh fold of ``transcript.text.*`` events."""
        return TranscriptionFold()


class _AudioFold(Fold):
    """A stream of pieces, each in one field of an event, and usage in the last event."""

    piece: ClassVar[str]
    field: ClassVar[str]
    end: ClassVar[str]

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes an event; none of this protocol only reports usage."""
        self._failed = error_code(value) or self._failed
        kind = text_at(value, "type") or name
        if kind == self.piece:
            self._text_bytes += text_bytes(value.get(self.field))
        elif kind == self.end:
            self._usage = read_usage(value.get("usage"))
            self._complete = True
        return False


class TranscriptionFold(_AudioFold):
    """`reading.StreamFold` of transcriptions."""

    piece = "transcript.text.delta"
    field = "delta"
    end = "transcript.text.done"


class SpeechShape:
    """`reading.AnswerShape` of speech. `by_character`: the request alone says what is charged.

    Otherwise tokens are charged, and only an event stream reports them; plain audio is estimated by its length, a token
    for each `bytes_per_token`.
    """

    def __init__(self, *, by_character: bool = False, bytes_per_token: int = COMPRESSED_BYTES_PER_TOKEN) -> None:
        self.needed: tuple[str, ...] = () if by_character else NEEDED
        self._bytes_per_token = bytes_per_token

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of a JSON answer, which OpenAI does not send here and others might."""
        return Reading(read_usage(body.get("usage")), 0, complete=True, failed=error_code(body))

    def opaque(self, size: int) -> Reading:
        """The reading of `size` bytes of audio."""
        return Reading({}, -(-size // self._bytes_per_token), complete=True)

    def fold(self) -> "SpeechFold":
        """A fresh fold of ``speech.audio.*`` events."""
        return SpeechFold(self._bytes_per_token)


class SpeechFold(_AudioFold):
    """`reading.StreamFold` of speech: the pieces are audio in base64."""

    piece = "speech.audio.delta"
    field = "audio"
    end = "speech.audio.done"

    def __init__(self, bytes_per_token: int) -> None:
        super().__init__()
        self._bytes_per_token = bytes_per_token

    def reading(self) -> Reading:
        """The reading so far, with a byte for each token that so much audio is estimated to be."""
        estimated = -(-self._text_bytes * 3 // (4 * self._bytes_per_token))
        return Reading(self._usage, estimated, self._complete, failed=self._failed)
