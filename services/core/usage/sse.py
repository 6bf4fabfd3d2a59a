"""Server-sent events, cut out of bytes that may be split anywhere: any line end, comments, many data lines, BOM."""

import re
from dataclasses import dataclass
from typing import Final

# No usage report is nearly this long. A longer event is passed on in pieces, unread, so that memory stays bounded.
MAX_EVENT_BYTES: Final = 262_144

# Two line ends. A CRLF must never be taken for both.
_BLANK_LINE: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n?|\n)")
_LONGEST_BLANK_LINE: Final = len(b"\r\n\r\n")
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of a stream up to the end of an event. Not `whole`: a piece of an event that is too long to be read."""

    data: bytes
    whole: bool


class EventSplitter:
    """Cuts a stream into segments. Their bytes, in order, are the stream's bytes, however these were split."""

    def __init__(self) -> None:
        self._pending = b""
        self._torn = False

    def feed(self, chunk: bytes) -> list[Segment]:
        """The segments that `chunk` completes."""
        buffer = self._pending + chunk
        begin = 0
        segments = []
        for match in _BLANK_LINE.finditer(buffer, max(0, len(self._pending) - _LONGEST_BLANK_LINE + 1)):
            end = match.end()
            if end == len(buffer) and buffer.endswith(b"\r"):
                break  # The LF that may follow belongs to this line end.
            segments.append(Segment(buffer[begin:end], not self._torn and end - begin <= MAX_EVENT_BYTES))
            begin, self._torn = end, False
        self._pending = buffer[begin:]
        if len(self._pending) > MAX_EVENT_BYTES:
            cut = len(self._pending) - _LONGEST_BLANK_LINE
            segments.append(Segment(self._pending[:cut], whole=False))
            self._pending, self._torn = self._pending[cut:], True
        return segments

    def finish(self) -> Segment:
        """What is left when the stream has ended: an event without its blank line, or nothing."""
        rest = Segment(self._pending, not self._torn)
        self._pending = b""
        return rest


def event_data(event: bytes) -> bytes | None:
    """The data of one event, its data lines joined by LF; None when it has none (a comment, a lone event name)."""
    data = []
    for line in event.removeprefix(_BOM).splitlines():
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line == b"data":
            data.append(b"")
    return b"\n".join(data) if data else None
