"""Audio files of a known length, made by hand."""

import struct
from typing import Final

MP3_FRAME_BYTES: Final = 417
MP3_FRAME_SAMPLES: Final = 1_152


def wave(seconds: float = 1, rate_hz: int = 8_000) -> bytes:
    """A WAV file of silence: mono, 16 bit."""
    size = int(seconds * rate_hz) * 2
    head = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt "
    head += struct.pack("<IHHIIHH", 16, 1, 1, rate_hz, rate_hz * 2, 2, 16)
    return head + b"data" + struct.pack("<I", size) + bytes(size)


def mp3(frames: int = 100) -> bytes:
    """An MP3 file at a constant 128 kbit/s and 44.1 kHz: each frame has 1,152 samples."""
    return (b"\xff\xfb\x90\x00" + bytes(MP3_FRAME_BYTES - 4)) * frames


def webm(size: int = 10_000) -> bytes:
    """The head of a WebM file, which states no length, and bytes after it."""
    return b"\x1a\x45\xdf\xa3" + bytes(size - 4)
