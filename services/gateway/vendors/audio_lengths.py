"""How long audio is, by what its container says; for bounds, and for answers that report no usage.

A container that states its length is believed as far as its bytes bear it out: no format takes more of them a second
than its maximum bitrate, so a header that states less time than they last at that is wrong, and counts as stating none.
Where none is stated (WebM from a browser, a stream), or the container is none that is known, the length is bounded by
the lowest bitrate that speech codecs have: 4 kbit/s, below AMR's 4.75 and Opus's 6.
"""

import io
import math
from dataclasses import dataclass
from typing import Final

from tinytag import TinyTag

_LEAST_BYTES_PER_SECOND: Final = 500
# A container's last frame may be cut anywhere, and decoders add silence at either end.
_SLACK_MS: Final = 1_000
# MP3 has no bitrate above 320 kbit/s. Opus ends at 510 for two channels; encoders of AAC and Vorbis at about the same.
_MOST_MP3_BPS: Final = 320_000
_MOST_LOSSY_BPS: Final = 512_000
# What samples take follows from the header, which may state anything: 192 kHz with 24 bits in two channels at most.
_MOST_LOSSLESS_BPS: Final = 9_216_000
_SAMPLES: Final = frozenset({"audio/flac", "audio/wav", "audio/aiff"})
_LOSSY: Final = frozenset({"audio/mp4", "audio/ogg", "audio/wav", "audio/aiff"})
_HEADER_BYTES: Final = 1_024
_LONGEST_S: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class AudioLength:
    """`exact_ms` as the container states it, None where its bytes say otherwise; `most_ms` bounds it."""

    exact_ms: int | None
    most_ms: int


def audio_length(data: bytes) -> AudioLength:
    """The length of an audio file."""
    audio = _read(data)
    most_bps = None if audio is None else _most_bps(audio)
    if audio is None or audio.duration is None or most_bps is None or not 0 < audio.duration < _LONGEST_S:
        return _unstated(data)
    stated_ms = math.ceil(round(audio.duration * 1000, 3))
    least_ms = _at(data, most_bps)
    if least_ms > stated_ms + _SLACK_MS:
        return _unstated(data)
    exact_ms = max(stated_ms, least_ms)
    if _kind(audio) == "audio/mpeg" and audio.bitrate:
        # A table of frames that are not all there (files put together) states too little.
        likely_ms = _at(data, min(int(audio.bitrate * 1000), most_bps))
        if likely_ms > exact_ms + _SLACK_MS:
            return AudioLength(None, likely_ms + _SLACK_MS)
        exact_ms = max(exact_ms, likely_ms)
    return AudioLength(exact_ms, exact_ms + _SLACK_MS)


def _unstated(data: bytes) -> AudioLength:
    return AudioLength(None, math.ceil(len(data) * 1000 / _LEAST_BYTES_PER_SECOND) + _SLACK_MS)


def _read(data: bytes) -> TinyTag | None:
    try:
        return TinyTag.get(file_obj=io.BytesIO(data), tags=False)
    # A damaged file makes the library raise whatever its parsers stumble over.
    except Exception:
        return None


def _kind(audio: TinyTag) -> str:
    return (audio.mime_type or "").partition(";")[0]


def _most_bps(audio: TinyTag) -> int | None:
    """The most bits a second that audio of this format can have; None for a format that is not known here."""
    kind = _kind(audio)
    if kind == "audio/mpeg":
        return _MOST_MP3_BPS
    if kind in _SAMPLES and audio.is_lossless:
        # Samples in a WAV file may be padded; of FLAC the bitrate is what is to be checked.
        padded = audio.bitrate * 1000 if kind == "audio/wav" and audio.bitrate else 0
        stated = (audio.samplerate or 0) * (audio.channels or 0) * (audio.bitdepth or 0)
        bps = min(max(int(padded), stated), _MOST_LOSSLESS_BPS)
        return bps or _MOST_LOSSLESS_BPS
    return _MOST_LOSSY_BPS if kind in _LOSSY else None


def _at(data: bytes, bps: int) -> int:
    """How many ms a file lasts at a bitrate, without what it may have beside its audio."""
    if bps <= 0:
        return 0
    return max(0, (len(data) - _HEADER_BYTES - _tag_bytes(data)) * 8_000 // bps)


def _tag_bytes(data: bytes) -> int:
    """How long the ID3v2 tag is that an MP3 file may begin with, cover and all; no player takes it for audio.

    Four bytes of seven bits each, after the tag's name, version and flags (ID3v2.4.0, 3.1).
    """
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size
