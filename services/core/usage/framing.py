"""Streams cut into frames: server-sent events, the elements of one long JSON array, or lines of JSON.

Bytes may be split anywhere; the frames' raw bytes, in order, are always the stream's bytes. Time grows with the bytes
and no faster, however they are cut. Memory stays bounded: what is too long to be a usage report is handed on in pieces,
unread.
"""

import re
from typing import Final, Literal, NamedTuple, Protocol

# No usage report is nearly this long; but the last event of some streams repeats the whole answer beside its usage.
MAX_FRAME_BYTES: Final = 8 * 1024 * 1024

# Two line ends. A CRLF must never be taken for both.
_BLANK_LINE: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n?|\n)")
_LONGEST_BLANK_LINE: Final = len(b"\r\n\r\n")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_BOM: Final = b"\xef\xbb\xbf"

# JSON up to its next bracket, strings skipped whole; and the rest of a string, with or without its end.
_TO_BRACKET: Final = re.compile(rb'(?s)(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+')
_REST_OF_TEXT: Final = re.compile(rb'(?s)(?:[^"\\]++|\\.)*+(")?')
_BETWEEN_ELEMENTS: Final = b" \t\r\n,[]"

Buffer = bytes | bytearray


class Frame(NamedTuple):
    """Bytes of a stream up to the end of an event, element or line.

    `data` is the JSON text in it, None when it has none; `name` the event's name (SSE). Not `whole`: a piece of one
    that is too long to be read.
    """

    raw: bytes
    whole: bool = True
    data: bytes | None = None
    name: str | None = None


class Splitter(Protocol):
    """Cuts one stream into frames."""

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait for the end of their frame."""

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that `chunk` completes."""

    def finish(self) -> Frame:
        """What is left when the stream has ended: a frame without its end, or nothing."""


def splitter_for(framing: Literal["sse", "json_array", "lines"]) -> Splitter:
    """A splitter for a stream that comes in this framing."""
    if framing == "sse":
        return EventSplitter()
    return ElementSplitter() if framing == "json_array" else LineSplitter()


class EventSplitter:
    """Server-sent events: any line end, comments, many data lines, a byte order mark."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._begun = False
        self._torn = False
        self._has_cr = False

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait for the end of their frame."""
        return len(self._pending)

    def feed(self, chunk: bytes) -> list[Frame]:
        """The events that `chunk` completes."""
        self._has_cr = self._has_cr or b"\r" in chunk
        if not self._pending and not self._has_cr and chunk.find(b"\n\n") == len(chunk) - 2 >= 0:
            return [self._frame(chunk)]  # One event, as servers send them: nothing to search, nothing to copy.
        buffer: Buffer = chunk
        searched = 0
        if self._pending:
            searched = max(0, len(self._pending) - _LONGEST_BLANK_LINE + 1)
            self._pending += chunk
            buffer = self._pending
        frames = []
        begin = 0
        while (end := self._end_of_event(buffer, searched)) > 0:
            frames.append(self._frame(bytes(buffer[begin:end])))
            begin = searched = end
        _keep_from(begin, buffer, self._pending)
        if len(self._pending) > MAX_FRAME_BYTES:
            frames.append(_shed(self._pending, len(self._pending) - _LONGEST_BLANK_LINE))
            self._torn = self._begun = True
        return frames

    def finish(self) -> Frame:
        """The event without its blank line that the stream ended in, or nothing."""
        rest = self._frame(bytes(self._pending))
        self._pending.clear()
        return rest

    def _end_of_event(self, buffer: Buffer, start: int) -> int:
        """Where the first event ends whose blank line is not before `start`; 0 when that is not known yet."""
        if not self._has_cr:  # Much quicker than the pattern, and nearly every stream is like this.
            found = buffer.find(b"\n\n", start)
            return 0 if found < 0 else found + len(b"\n\n")
        match = _BLANK_LINE.search(buffer, start)
        # After a CR the LF that may follow belongs to the same line end.
        if match is None or (match.end() == len(buffer) and buffer.endswith(b"\r")):
            return 0
        return match.end()

    def _frame(self, raw: bytes) -> Frame:
        begun, torn = self._begun, self._torn
        self._begun, self._torn = True, False
        if torn or len(raw) > MAX_FRAME_BYTES:
            return Frame(raw, False)
        name, data = event_fields(raw if begun else raw.removeprefix(_BOM))
        return Frame(raw, True, data, name)


class ElementSplitter:
    """One JSON array whose elements come one by one (``[{…}\\n,\\r\\n{…}]``): each frame ends with an element.

    An object instead of the array (a vendor's error) is an element, too.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._at = 0
        self._depth = 0
        # Where in `_pending` the element under way begins, and how deep its surroundings are.
        self._begin: int | None = None
        self._base = 0
        self._in_text = False
        self._torn = False

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait for the end of their frame."""
        return len(self._pending)

    def feed(self, chunk: bytes) -> list[Frame]:
        """The elements that `chunk` completes."""
        self._pending += chunk
        buffer = self._pending
        frames = []
        sent = 0
        while self._to_bracket():
            opens = buffer[self._at] in b"{["
            self._depth += 1 if opens else -1
            if opens and self._begin is None and self._depth <= 2 and buffer[self._at] == ord("{"):
                self._begin, self._base = self._at, self._depth - 1
            self._at += 1
            if self._begin is not None and self._depth <= self._base:
                raw, data = bytes(buffer[sent : self._at]), bytes(buffer[self._begin : self._at])
                readable = not self._torn and len(raw) <= MAX_FRAME_BYTES
                frames.append(Frame(raw, True, data) if readable else Frame(raw, False))
                sent, self._begin, self._torn = self._at, None, False
        self._drop(sent)
        if len(buffer) > MAX_FRAME_BYTES:
            self._torn = self._torn or self._begin is not None
            frames.append(_shed(buffer, self._at))
            self._at, self._begin = 0, None if self._begin is None else 0
        return frames

    def finish(self) -> Frame:
        """The bracket that closes the array, or what else was left: an element that broke off, or no JSON at all."""
        raw = bytes(self._pending)
        self._pending.clear()
        return Frame(raw, False) if self._torn else Frame(raw, True, raw.strip(_BETWEEN_ELEMENTS) or None)

    def _to_bracket(self) -> bool:
        """Moves on to the next bracket that is not in a string; false when it is still to come."""
        if self._in_text:
            rest = _REST_OF_TEXT.match(self._pending, self._at)
            assert rest is not None, "it matches nothing, too"
            self._at = rest.end()
            if rest.group(1) is None:
                return False
            self._in_text = False
        skipped = _TO_BRACKET.match(self._pending, self._at)
        assert skipped is not None, "it matches nothing, too"
        self._at = skipped.end()
        if self._at < len(self._pending) and self._pending[self._at] == ord('"'):
            self._in_text = True
            self._at += 1
            return self._to_bracket()
        return self._at < len(self._pending)

    def _drop(self, sent: int) -> None:
        del self._pending[:sent]
        self._at -= sent
        if self._begin is not None:
            self._begin -= sent


class LineSplitter:
    """One JSON value a line."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._begun = False
        self._torn = False

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait for the end of their frame."""
        return len(self._pending)

    def feed(self, chunk: bytes) -> list[Frame]:
        """The lines that `chunk` completes."""
        buffer: Buffer = chunk
        searched = 0
        if self._pending:
            searched = len(self._pending)
            self._pending += chunk
            buffer = self._pending
        frames = []
        begin = 0
        while (end := buffer.find(b"\n", searched) + 1) > 0:
            frames.append(self._frame(bytes(buffer[begin:end])))
            begin = searched = end
        _keep_from(begin, buffer, self._pending)
        if len(self._pending) > MAX_FRAME_BYTES:
            frames.append(_shed(self._pending, len(self._pending)))
            self._torn = self._begun = True
        return frames

    def finish(self) -> Frame:
        """The line that has no end, or nothing."""
        rest = self._frame(bytes(self._pending))
        self._pending.clear()
        return rest

    def _frame(self, raw: bytes) -> Frame:
        begun, torn = self._begun, self._torn
        self._begun, self._torn = True, False
        if torn or len(raw) > MAX_FRAME_BYTES:
            return Frame(raw, False)
        return Frame(raw, True, (raw if begun else raw.removeprefix(_BOM)).strip() or None)


def _keep_from(begin: int, buffer: Buffer, pending: bytearray) -> None:
    """Leaves in `pending` what `buffer` has from `begin` on; it is `pending` itself, or the chunk when it is empty."""
    if buffer is pending:
        del pending[:begin]
    elif begin < len(buffer):
        pending += buffer[begin:] if begin else buffer


def _shed(pending: bytearray, size: int) -> Frame:
    """Takes `size` bytes off the front, as a piece that is not read."""
    piece = bytes(pending[:size])
    del pending[:size]
    return Frame(piece, False)


def event_fields(event: bytes) -> tuple[str | None, bytes | None]:
    """Name and data of one event, its data lines joined by LF; None for what it has not (a comment has neither)."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return None, event[6:-2]  # One line and a blank one: nearly every event there is.
    lines = _LINE_END.split(event) if b"\r" in event else event.split(b"\n")
    name = None
    data = []
    for line in lines:
        if line.startswith(b"data:"):
            data.append(line[6:] if line.startswith(b" ", 5) else line[5:])
        elif line == b"data":
            data.append(b"")
        elif line.startswith(b"event:"):
            name = line[6:].removeprefix(b" ").decode("utf-8", "replace") or None
    if len(data) == 1:
        return name, data[0]
    return name, b"\n".join(data) if data else None
