"""Usage metered off a response as its bytes pass, and the usage chunk taken out that nobody asked for."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import brotli
import orjson
import zstandard

from services.core.estimate import fill_in_usage
from services.core.events import UsageSource
from services.core.usage.reading import MAX_BODY_BYTES, BodyReader, Reading, StreamReader
from services.gateway.vendors import RequestFacts

# Bounds what one step of decompression can put into memory.
_STEP_BYTES: Final = 65_536
# A compressed answer that is longer than any body and grew by more than this is made to cost time: it goes on unread.
_MOST_GROWTH: Final = 32
# Each member of a gzip stream costs time even when it is empty. Servers send one; one for each flush is the most seen.
_MOST_MEMBERS: Final = 10_000
# What a receiver of zstd over HTTP has to support, and no sender may exceed (RFC 9659).
_ZSTD_WINDOW_BYTES: Final = 8 * 1024 * 1024
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS
_RAW_DEFLATE: Final = -zlib.MAX_WBITS

Sink = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Metered:
    """What a response used: `usage` by count (`core.components`), where it comes from, and the reading behind it.

    `complete` is false when the response broke off before its own end.
    """

    usage: Mapping[str, int]
    source: UsageSource
    complete: bool
    reading: Reading | None = None


class Meter(Protocol):
    """Reads usage off one response as its bytes pass. `feed` returns the bytes for the client, at once."""

    @property
    def has_text(self) -> bool:
        """Whether text of a streamed answer has been seen."""

    def progress(self) -> tuple[int, int]:
        """The most text that there can be in what was fed so far, in bytes, and how much of it is the answer's own.

        Summaries of thoughts are none of its own. A token is at least one byte.
        """

    def so_far(self) -> Reading:
        """What a stream has said of its own use by now."""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to hand on: the chunk itself, but for a usage chunk that is hidden."""

    def finish(self) -> tuple[bytes, Metered]:
        """Bytes still held back, and what was used. Call once, at the end or where the response broke off."""


def meter_for(facts: RequestFacts, status: int, headers: Mapping[bytes, bytes]) -> Meter:
    """The meter of a response with this head (names in lower case).

    What the response is, is for its content type to say, never for the text in it. Only a successful answer is charged
    for. A usage chunk can only be taken out of a stream that is not compressed: ask for one that isn't.
    """
    if not 200 <= status < 300:
        return _FreeMeter()
    return _StreamMeter(facts, headers) if is_stream(facts, headers) else _BodyMeter(facts, headers)


def is_stream(facts: RequestFacts, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a response with this head comes in frames."""
    kind = _media_type(headers)
    if kind == b"text/event-stream" or not facts.stream:
        return kind == b"text/event-stream"
    # An array that comes element by element says it is JSON, which it is; lines have several types, but never that one.
    return not kind or facts.framing == "json_array" or (facts.framing == "lines" and kind != b"application/json")


def is_events(facts: RequestFacts, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a response with this head is a stream of server-sent events."""
    kind = _media_type(headers)
    return kind == b"text/event-stream" or (not kind and facts.stream and facts.framing == "sse")


def _media_type(headers: Mapping[bytes, bytes]) -> bytes:
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


_NOTHING_SAID: Final = Reading({}, 0, complete=False)


class _NoStream:
    """The part of a meter that only streams have something to tell by."""

    has_text = False

    def progress(self) -> tuple[int, int]:
        return 0, 0

    def so_far(self) -> Reading:
        return _NOTHING_SAID


class _FreeMeter(_NoStream):
    """A refusal or failure of the vendor's: nothing was used."""

    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def finish(self) -> tuple[bytes, Metered]:
        return b"", Metered({}, "none", complete=True)


class _BodyMeter(_NoStream):
    """One JSON body."""

    def __init__(self, facts: RequestFacts, headers: Mapping[bytes, bytes]) -> None:
        self._facts = facts
        self._reader = BodyReader(facts.shape, orjson.loads)
        self._decoder = Decoder(headers, self._reader.feed)

    def feed(self, chunk: bytes) -> bytes:
        self._decoder.feed(chunk)
        return chunk

    def finish(self) -> tuple[bytes, Metered]:
        return b"", _metered(self._facts, self._reader.finish(), self._decoder)


class _StreamMeter:
    """A stream. Bytes go on at once; only while a usage chunk is to be hidden, an unfinished event waits."""

    def __init__(self, facts: RequestFacts, headers: Mapping[bytes, bytes]) -> None:
        self._facts = facts
        framing = "sse" if _media_type(headers) == b"text/event-stream" else facts.framing
        self._reader = StreamReader(facts.shape, framing, orjson.loads)
        self._decoder = Decoder(headers, self._reader.feed)
        self._hides = facts.hide_usage_chunk and self._decoder.plain

    @property
    def has_text(self) -> bool:
        """Whether text of the answer has been seen; what can't be read is none."""
        return self._reader.has_text

    def progress(self) -> tuple[int, int]:
        seen_bytes, own_bytes = self._reader.progress()
        return seen_bytes + self._decoder.unread_bytes, own_bytes

    def so_far(self) -> Reading:
        return self._reader.so_far()

    def feed(self, chunk: bytes) -> bytes:
        if self._hides:
            return b"".join([raw for raw, only_usage in self._reader.feed(chunk) if not only_usage])
        self._decoder.feed(chunk)
        return chunk

    def finish(self) -> tuple[bytes, Metered]:
        rest, only_usage, reading = self._reader.finish()
        passed_on = rest if self._hides and not only_usage else b""
        return passed_on, _metered(self._facts, reading, self._decoder)


class Decoder:
    """Undoes a content encoding for the meter's own use, into `sink`, in pieces of bounded size.

    What it can't read is counted by its bytes, no more: encodings that are unknown or stacked, what follows a fault,
    and what grows so much that reading it would cost time.
    """

    def __init__(self, headers: Mapping[bytes, bytes], sink: Sink) -> None:
        names = [name.strip().lower() for name in headers.get(b"content-encoding", b"").split(b",")]
        encodings = [name for name in names if name not in (b"", b"identity")]
        self.plain = not encodings
        self.unread_bytes = 0
        self._sink = sink
        self._received = 0
        self._decoded = 0
        self._inflate: Sink | None = None
        if len(encodings) == 1:
            self._inflate = _inflate_into(self._take, encodings[0])

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the response."""
        if self.plain:
            self._sink(chunk)
            return
        for at in range(0, len(chunk), _STEP_BYTES):
            step = chunk[at : at + _STEP_BYTES]
            self._received += len(step)
            try:
                if self._inflate is not None:
                    self._inflate(step)
                    continue
            except (zlib.error, brotli.error, zstandard.ZstdError, _UnreadError):
                self._inflate = None
            self.unread_bytes += len(step)

    def _take(self, piece: bytes) -> None:
        self._decoded += len(piece)
        if self._decoded > MAX_BODY_BYTES + _MOST_GROWTH * self._received:
            raise _UnreadError
        self._sink(piece)


class _UnreadError(Exception):
    """What follows is not worth its time."""


def _inflate_into(take: Sink, encoding: bytes) -> Sink | None:
    if encoding in (b"gzip", b"x-gzip", b"deflate"):
        return _Zlib(take, encoding == b"deflate").feed
    if encoding == b"br":
        return _Brotli(take).feed
    return _Zstd(take).feed if encoding == b"zstd" else None


class _Zlib:
    """gzip with any number of members, or deflate: meant to be in zlib's wrapping, but some servers send it bare."""

    def __init__(self, take: Sink, deflate: bool) -> None:
        self._take = take
        self._head: bytes | None = b"" if deflate else None
        self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._members = 1

    def feed(self, data: bytes) -> None:
        if self._head is not None:
            data = self._head + data
            if len(data) < 2:
                self._head = data
                return
            self._head = None
            # RFC 1950: the method (8), and a check that makes the first two bytes a multiple of 31.
            if data[0] & 0x0F != 8 or (data[0] << 8 | data[1]) % 31:
                self._inflater = zlib.decompressobj(_RAW_DEFLATE)
        piece = b""
        # Without input left there still may be output that the last step had no room for.
        while data or len(piece) == _STEP_BYTES:
            if self._inflater.eof:
                self._next_member()
            piece = self._inflater.decompress(data, _STEP_BYTES)
            data = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            if piece:
                self._take(piece)

    def _next_member(self) -> None:
        self._members += 1
        if self._members > _MOST_MEMBERS:
            raise _UnreadError
        self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)


class _Brotli:
    def __init__(self, take: Sink) -> None:
        self._take = take
        self._inflater = brotli.Decompressor()

    def feed(self, data: bytes) -> None:
        piece = self._inflater.process(data, output_buffer_limit=_STEP_BYTES)
        while piece:
            self._take(piece)
            if self._inflater.is_finished():
                return
            piece = self._inflater.process(b"", output_buffer_limit=_STEP_BYTES)


class _Zstd:
    """Frames of zstd, one after another. Only its writer hands output on in pieces of bounded size."""

    def __init__(self, take: Sink) -> None:
        self._take = take
        unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._writer = unpacker.stream_writer(self, write_size=_STEP_BYTES)  # type: ignore[arg-type]

    def feed(self, data: bytes) -> None:
        self._writer.write(data)

    def write(self, piece: bytes) -> int:
        """What the writer hands on."""
        self._take(piece)
        return len(piece)


def _metered(facts: RequestFacts, reading: Reading, decoder: Decoder) -> Metered:
    usage, source = fill_in_usage(
        {**facts.counted, **reading.usage},
        facts.shape.needed,
        reading.text_bytes + decoder.unread_bytes,
        facts.demand,
    )
    if facts.is_unpriced:
        return Metered({}, "none", complete=True, reading=reading)  # an unknown cost is not a reported one of zero
    if source == "reported" and facts.counted and not reading.usage:
        source = "counted"
    return Metered(usage, source, reading.complete, reading)
