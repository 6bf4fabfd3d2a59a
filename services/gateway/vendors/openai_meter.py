"""Usage metered off an OpenAI chat response as its bytes pass, and the usage chunk taken out that nobody asked for."""

import zlib
from collections.abc import Iterator, Mapping
from typing import Final

import orjson

from services.core.estimate import fill_in_usage
from services.core.usage.openai_chat import BodyReader, Reading, StreamReader
from services.core.usage.sse import EventSplitter
from services.gateway.vendors import Meter, Metered, RequestFacts

# Bounds what one step of decompression can put into memory.
_INFLATE_BYTES: Final = 65_536
_AUTO_DETECT: Final = 32 + zlib.MAX_WBITS
_INFLATED: Final = frozenset({b"gzip", b"x-gzip", b"deflate"})


def meter_for(facts: RequestFacts, status: int, headers: Mapping[bytes, bytes]) -> Meter:
    """The meter of a response with this head.

    What the response is, is for its content type to say, never for the text in it. Only a successful answer is charged
    for. A usage chunk can only be taken out of a stream that is not compressed: ask for one that isn't.
    """
    if not 200 <= status < 300:
        return _FreeMeter()
    content_type = headers.get(b"content-type", b"").strip().lower()
    if content_type.startswith(b"text/event-stream") or (facts.stream and not content_type):
        return _StreamMeter(facts, headers)
    return _BodyMeter(facts, headers)


class _FreeMeter:
    """A refusal or failure of the vendor's: nothing was used."""

    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def finish(self) -> tuple[bytes, Metered]:
        return b"", Metered({}, "none", complete=True)


class _BodyMeter:
    """One JSON body."""

    def __init__(self, facts: RequestFacts, headers: Mapping[bytes, bytes]) -> None:
        self._facts = facts
        self._decoder = _Decoder(headers)
        self._reader = BodyReader(orjson.loads)

    def feed(self, chunk: bytes) -> bytes:
        for piece in self._decoder.decode(chunk):
            self._reader.feed(piece)
        return chunk

    def finish(self) -> tuple[bytes, Metered]:
        return b"", _metered(self._facts, self._reader.finish(), self._decoder)


class _StreamMeter:
    """An event stream. Bytes go on at once; only while a usage chunk is to be hidden, an unfinished event waits."""

    def __init__(self, facts: RequestFacts, headers: Mapping[bytes, bytes]) -> None:
        self._facts = facts
        self._decoder = _Decoder(headers)
        self._splitter = EventSplitter()
        self._reader = StreamReader(orjson.loads)
        self._hides = facts.hide_usage_chunk and self._decoder.plain

    def feed(self, chunk: bytes) -> bytes:
        kept = []
        for piece in self._decoder.decode(chunk):
            for segment in self._splitter.feed(piece):
                if not self._reader.read(segment):
                    kept.append(segment.data)
        return b"".join(kept) if self._hides else chunk

    def finish(self) -> tuple[bytes, Metered]:
        rest = self._splitter.finish()
        hidden = self._reader.read(rest)
        passed_on = rest.data if self._hides and not hidden else b""
        return passed_on, _metered(self._facts, self._reader.finish(), self._decoder)


class _Decoder:
    """Undoes gzip and deflate for the meter's own use. Anything else is unreadable: its bytes are counted, no more."""

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        encoding = headers.get(b"content-encoding", b"").strip().lower()
        self.plain = encoding in (b"", b"identity")
        self.unread_bytes = 0
        self._inflater = zlib.decompressobj(_AUTO_DETECT) if encoding in _INFLATED else None

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        """The chunk's content, in pieces of bounded size."""
        if self.plain:
            yield chunk
            return
        if self._inflater is None:
            self.unread_bytes += len(chunk)
            return
        data = chunk
        try:
            while data:
                piece = self._inflater.decompress(data, _INFLATE_BYTES)
                data = self._inflater.unconsumed_tail
                if piece:
                    yield piece
        except zlib.error:
            self._inflater = None
            self.unread_bytes += len(chunk)


def _metered(facts: RequestFacts, reading: Reading, decoder: _Decoder) -> Metered:
    usage, source = fill_in_usage(
        reading.usage,
        reading.text_bytes + decoder.unread_bytes,
        facts.input_tokens_bound,
        facts.output_tokens_limit,
        facts.choices,
    )
    return Metered(usage, source, reading.complete)
