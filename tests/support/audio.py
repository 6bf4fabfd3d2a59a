"""Audio files of a known length, made by hand."""

import struct
from typing import Final

MP3_FRAME_BYTES: Final = 417
MP3_FRAME_SAMPLES: Final = 1_152
_OGG_PAGE_BYTES: Final = 60_000


def wave(seconds: float = 1, rate_hz: int = 8_000) -> bytes:
    """A WAV file of silence: mono, 16 bit."""
    size = int(seconds * rate_hz) * 2
    head = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt "
    head += struct.pack("<IHHIIHH", 16, 1, 1, rate_hz, rate_hz * 2, 2, 16)
    return head + b"data" + struct.pack("<I", size) + bytes(size)


def mp3(frames: int = 100) -> bytes:
    """An MP3 file at a constant 128 kbit/s and 44.1 kHz: each frame has 1,152 samples."""
    return (b"\xff\xfb\x90\x00" + bytes(MP3_FRAME_BYTES - 4)) * frames


def compressed_wave(seconds: float, size: int) -> bytes:
    """A WAV file of MP3 (format 0x55), whose ``fact`` chunk states a length at 48 kHz."""
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 0x55, 2, 48_000, 16_000, 4, 16)
    head += b"fact" + struct.pack("<II", 4, int(seconds * 48_000)) + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", len(head) + size) + head + bytes(size)


def xing(frames: int, size: int, more: int = 0) -> bytes:
    """An MP3 file whose first frame is a table that states so many frames in so many bytes; `more` come after them."""
    table = b"Xing" + struct.pack(">III", 3, frames, size + MP3_FRAME_BYTES)
    first = b"\xff\xfb\x90\x00" + bytes(32) + table
    whole = -(-(size + more) // MP3_FRAME_BYTES)
    return first.ljust(MP3_FRAME_BYTES, b"\x00") + mp3(whole)


def webm(size: int = 10_000) -> bytes:
    """The head of a WebM file, which states no length, and bytes after it."""
    return b"\x1a\x45\xdf\xa3" + bytes(size - 4)


def flac(seconds: float, size: int, rate_hz: int = 16_000, channels: int = 1, bits: int = 16) -> bytes:
    """A FLAC file whose header states a length (RFC 9639, 8.2), and so many bytes after it."""
    samples = (rate_hz << 44) | (channels - 1 << 41) | (bits - 1 << 36) | int(seconds * rate_hz)
    info = struct.pack(">HH", 4_096, 4_096) + bytes(6) + struct.pack(">Q", samples) + bytes(16)
    return b"fLaC\x80" + len(info).to_bytes(3, "big") + info + bytes(size)


def opus(seconds: float, size: int) -> bytes:
    """An Opus file in Ogg (RFC 7845) of about so many bytes, whose last page states the length at 48 kHz."""
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, 48_000, 0, 0)
    pages = -(-size // _OGG_PAGE_BYTES)
    parts = [_ogg_page(0, head, 0, 2), _ogg_page(0, b"OpusTags" + bytes(8), 1)]
    for number in range(pages):
        last = 4 if number == pages - 1 else 0
        parts.append(_ogg_page(int(48_000 * seconds), bytes(_OGG_PAGE_BYTES), 2 + number, last))
    return b"".join(parts)


def mp4(seconds: float, size: int) -> bytes:
    """An MP4 file of AAC whose ``mvhd`` states a length (ISO/IEC 14496-12, 8.2.2), and so many bytes of audio."""
    length = _box(b"mvhd", bytes(12) + struct.pack(">II", 1_000, int(seconds * 1_000)) + bytes(80))
    entry = (
        bytes(6) + b"\x00\x01" + bytes(8) + struct.pack(">HHHHHH", 1, 16, 0, 0, 16_000, 0) + _box(b"esds", bytes(28))
    )
    track = _box(b"stsd", bytes(4) + struct.pack(">I", 1) + _box(b"mp4a", entry))
    for kind in (b"stbl", b"minf", b"mdia", b"trak"):
        track = _box(kind, track)
    return _box(b"ftyp", b"M4A " + bytes(4) + b"M4A mp42") + _box(b"moov", length + track) + _box(b"mdat", bytes(size))


def _ogg_page(granule: int, body: bytes, number: int, flags: int = 0) -> bytes:
    lacing = bytes([255]) * (len(body) // 255) + bytes([len(body) % 255])
    return b"OggS" + struct.pack("<BBqIIIB", 0, flags, granule, 1, number, 0, len(lacing)) + lacing + body


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body
