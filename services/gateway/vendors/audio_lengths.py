"""How long audio is, by what its container says; for bounds, and for answers that report no usage.

A container that states its length is believed. Where it states none (WebM from a browser, a stream), or is none that is
known, the length is bounded by the lowest bitrate that speech codecs have: 4 kbit/s, below AMR's 4.75 and Opus's 6.
"""

import io
import math
from dataclasses import dataclass
from typing import Final

from tinytag import TinyTag

_LEAST_BYTES_PER_SECOND: Final = 500
# A container's last frame may be cut anywhere, and decoders add silence at either end.
_SLACK_MS: Final = 1_000
# Formats whose length follows from their bitrate: a header that states less time than the bytes take is wrong.
_BY_BITRATE: Final = frozenset({"audio/mpeg", "audio/wav"})
_HEADER_BYTES: Final = 1_024
_LONGEST_S: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class AudioLength:
    """`exact_ms` as the container states it, None where it states nothing; `most_ms` bounds it either way."""

    exact_ms: int | None
    most_ms: int


def audio_length(data: bytes) -> AudioLength:
    """The length of an audio file."""
    stated_ms = _stated_ms(data)
    if stated_ms is None:
        return AudioLength(None, math.ceil(len(data) * 1000 / _LEAST_BYTES_PER_SECOND) + _SLACK_MS)
    return AudioLength(stated_ms, stated_ms + _SLACK_MS)


def _stated_ms(data: bytes) -> int | None:
    try:
        audio = TinyTag.get(file_obj=io.BytesIO(data), tags=False)
    # A damaged file makes the library raise whatever its parsers stumble over.
    except Exception:
        return None
    length = audio.duration
    if length is None or not 0 < length < _LONGEST_S:
        return None
    if audio.mime_type in _BY_BITRATE:
        if not audio.bitrate:
            return None
        # Headers written before their data, and tables of frames that are not all there, state too little.
        length = max(length, (len(data) - _HEADER_BYTES) * 8 / (audio.bitrate * 1000))
    return math.ceil(round(length * 1000, 3))
