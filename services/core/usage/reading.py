"""What readers of vendors' answers share: the reading itself, how counts come from JSON, and the two kinds of reader.

A reader decides nothing about money and never changes a byte. What is particular to a protocol is an `AnswerShape`: how
a JSON answer says what it used, and how the events of a stream add up.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

from services.core.usage.framing import Frame, splitter_for

# Far above what any model writes. A longer answer is passed on all the same; its use is estimated from its length.
MAX_BODY_BYTES: Final = 67_108_864

# A body of nothing but commas and brackets takes a hundred times its length to parse. Long answers are long in strings,
# or lists of numbers, which are seldom shorter than a dozen bytes.
MAX_BODY_VALUES: Final = 4_000_000

# No call uses this many units: a larger count is a vendor's error, and is not multiplied by a price.
MAX_COUNT: Final = 1_000_000_000

# No rates go by a longer word of a vendor's, and what it says goes into an event, which has a bound.
MAX_CONTEXT_CHARS: Final = 128

Loads = Callable[[bytes], Any]
Path = tuple[str, ...]
Framing = Literal["sse", "json_array", "lines"]

_DONE_ENDS: Final = (b"]", b" ", b"\t")
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Reading:
    """What a response says of its own use.

    `usage` has the counts the vendor reported (names as in `core.components`, and others for the record only), none it
    did not; an explicit zero is there. Totals hold all their parts: cached, written and audio tokens are in
    ``input_tokens``, reasoning tokens in ``output_tokens``, whatever way the vendor counts. `text_bytes` is the UTF-8
    length of the generated text seen, or of whatever could not be read. `complete`: the response came to its own end.
    `model` is the one that answered, by its own word; `context` what the vendor says picks the rates besides the model
    (``{"service_tier": "priority"}``). `failed` is the code of an error that the vendor reports inside a successful
    answer. `job` and `status` are the id and state of work that goes on after the answer (a batch, a background call).
    """

    usage: Mapping[str, int]
    text_bytes: int
    complete: bool
    model: str | None = None
    context: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    failed: str | None = None
    job: str | None = None
    status: str | None = None

    @property
    def brief_context(self) -> dict[str, str]:
        """`context`, of each text as much as may go into an event."""
        return {name: value[:MAX_CONTEXT_CHARS] for name, value in self.context.items()}


class StreamFold(Protocol):
    """Adds up the events of one stream."""

    def take(self, name: str | None, value: Mapping[str, Any]) -> bool:
        """Takes an event's name (SSE only) and JSON object; true when it only reports usage that nobody asked for."""

    def done(self) -> None:
        """Takes the ``[DONE]`` that ends some streams."""

    @property
    def has_text(self) -> bool:
        """Whether any of the answer's own text has come. A summary of thoughts is none: it shows only part of them."""

    @property
    def text_bytes(self) -> int:
        """The UTF-8 length of all text so far, summaries of thoughts included."""

    @property
    def own_bytes(self) -> int:
        """That of the answer's own text; of what came after its beginning, summaries may be in it."""

    def reading(self) -> Reading:
        """The reading so far, without the bytes that could not be read."""


class AnswerShape(Protocol):
    """How the answers of one route say what they used.

    A shape whose answers need not be JSON has ``opaque(size)``, too: the reading of that many bytes of anything else.
    """

    @property
    def needed(self) -> tuple[str, ...]:
        """The counts that every complete answer reports; what is missing of them is estimated."""

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of a JSON answer."""

    def fold(self) -> StreamFold:
        """A fresh fold for a stream."""


class BodyReader:
    """Reads one JSON body as its bytes come in."""

    def __init__(self, shape: AnswerShape, loads: Loads = json.loads) -> None:
        self._shape = shape
        self._loads = loads
        self._body = bytearray()
        self._size = 0
        # How a route's answers are read that need not be JSON (audio, subtitles): their length is all there is.
        self._opaque: Callable[[int], Reading] | None = getattr(shape, "opaque", None)
        self._is_opaque = False

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes."""
        if self._opaque is not None and self._size == 0 and chunk and not chunk.lstrip().startswith(b"{"):
            self._is_opaque = True
        self._size += len(chunk)
        if self._is_opaque:
            return
        if self._size <= MAX_BODY_BYTES:
            self._body += chunk
        else:
            self._body.clear()

    def finish(self) -> Reading:
        """The reading, once the body has ended or broken off."""
        if self._opaque is not None and (self._is_opaque or not self._size):
            return self._opaque(self._size)
        body = self._parsed()
        return _checked(self._shape.whole(body)) if isinstance(body, dict) else Reading({}, self._size, complete=False)

    def _parsed(self) -> object:
        if self._size > MAX_BODY_VALUES and sum(map(self._body.count, (b",", b"{", b"["))) > MAX_BODY_VALUES:
            return None
        try:
            return self._loads(bytes(self._body))
        except (ValueError, RecursionError):
            return None


class StreamReader:
    """Reads a stream, frame by frame, in whatever framing it comes."""

    def __init__(self, shape: AnswerShape, framing: Framing = "sse", loads: Loads = json.loads) -> None:
        self._fold = shape.fold()
        self._frames = splitter_for(framing)
        self._loads = loads
        self._unread_bytes = 0

    @property
    def has_text(self) -> bool:
        """Whether any of the answer's own text has come."""
        return self._fold.has_text

    def progress(self) -> tuple[int, int]:
        """The most text that there can be in what was fed so far, in bytes, and how much of it is the answer's own.

        A frame that has no end yet counts in full.
        """
        fold = self._fold
        return fold.text_bytes + self._unread_bytes + self._frames.pending_bytes, fold.own_bytes

    def so_far(self) -> Reading:
        """The reading of the frames that have come, while the stream goes on."""
        return _checked(self._fold.reading())

    def feed(self, chunk: bytes) -> list[tuple[bytes, bool]]:
        """The frames that `chunk` completes, as sent, each with whether it is one that only reports usage."""
        return [(frame.raw, self._read(frame)) for frame in self._frames.feed(chunk)]

    def finish(self) -> tuple[bytes, bool, Reading]:
        """What was left without its end, whether it only reports usage, and the reading."""
        rest = self._frames.finish()
        hidden = self._read(rest)
        found = _checked(self._fold.reading())
        if self._unread_bytes:
            found = replace(found, text_bytes=found.text_bytes + self._unread_bytes)
        return rest.raw, hidden, found

    def _read(self, frame: Frame) -> bool:
        if not frame.whole:
            self._unread_bytes += len(frame.raw)
            return False
        if frame.data is None:
            return False
        if frame.data.endswith(_DONE_ENDS) and frame.data.strip() == b"[DONE]":
            self._fold.done()
            return False
        try:
            value = self._loads(frame.data)
        except (ValueError, RecursionError):
            self._unread_bytes += len(frame.data)
            return False
        if not isinstance(value, dict):
            self._unread_bytes += len(frame.data)
            return False
        return self._fold.take(frame.name, value)


def _checked(found: Reading) -> Reading:
    """The reading without counts that sums have made larger than any count; a vendor's own cost is none."""
    if not found.usage or max(found.usage.values()) <= MAX_COUNT:
        return found
    kept = {name: count for name, count in found.usage.items() if count <= MAX_COUNT or name.endswith("_nano")}
    return replace(found, usage=kept)


def count_at(value: object, path: Path) -> int | None:
    """The count at a path of nested objects; None when it is missing or no count."""
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return as_count(value)


def as_count(value: object) -> int | None:
    """The value as a count: a whole number from 0 to `MAX_COUNT` (a whole float is one, too); else None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT:
        return value
    return None


def counts_at(value: object, paths: Iterable[tuple[str, Path]]) -> dict[str, int]:
    """The counts found at the paths, by name; malformed ones are as good as missing."""
    counts = {}
    for name, path in paths:
        found = count_at(value, path)
        if found is not None:
            counts[name] = found
    return counts


def text_at(value: object, *path: str) -> str | None:
    """The non-empty string at a path of nested objects; else None."""
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value if isinstance(value, str) and value else None


def items_of(value: object, name: str) -> Sequence[Mapping[str, Any]]:
    """The objects in the list that an object has under a name; none when it has no such list."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list):
        return ()
    return [each for each in found if isinstance(each, dict)]


def text_bytes(value: object, skipped: frozenset[str] = frozenset({"role"})) -> int:
    """The UTF-8 length of every string in a value but those under `skipped` names.

    Tool calls, refusals and vendors' own fields count. A stack, not a recursion: a vendor's answer may nest deeper than
    Python's frames go.
    """
    size = 0
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, str):
            size += len(each) if each.isascii() else len(each.encode(errors="surrogatepass"))
        elif isinstance(each, dict):
            stack += [inner for name, inner in each.items() if name not in skipped]
        elif isinstance(each, list):
            stack += each
    return size
