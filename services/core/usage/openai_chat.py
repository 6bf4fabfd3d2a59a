"""Usage of OpenAI chat completions, read off a JSON body or an event stream as its bytes come in.

The readers decide nothing about money and never change a byte. `loads` may be a faster JSON parser than the standard
library's; it must raise a `ValueError` for what it can't read.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.core.usage.sse import Segment, event_data

# Far above what any model writes. A longer answer is passed on all the same; its use is estimated from its length.
MAX_BODY_BYTES: Final = 67_108_864

# No call uses this many tokens: a larger count is a vendor's error, and is not multiplied by a price.
MAX_COUNT: Final = 1_000_000_000

_COUNTS: Final = (
    ("input_tokens", ("prompt_tokens",)),
    ("output_tokens", ("completion_tokens",)),
    ("cache_read_tokens", ("prompt_tokens_details", "cached_tokens")),
    ("cache_write_tokens", ("prompt_tokens_details", "cache_write_tokens")),
    ("audio_input_tokens", ("prompt_tokens_details", "audio_tokens")),
    ("audio_output_tokens", ("completion_tokens_details", "audio_tokens")),
    ("reasoning_tokens", ("completion_tokens_details", "reasoning_tokens")),
)

_Loads = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a response says of its own use.

    `usage` has the counts the vendor reported, none it did not (an explicit zero is there). `text_bytes` is the UTF-8
    length of the generated text seen, or of whatever could not be read. `complete`: the response came to its own end.
    """

    usage: Mapping[str, int]
    text_bytes: int
    complete: bool


def read_usage(value: object) -> dict[str, int]:
    """The counts of a ``usage`` object; malformed ones are as good as missing."""
    counts = {}
    for name, path in _COUNTS:
        found = value
        for step in path:
            found = found.get(step) if isinstance(found, dict) else None
        if isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= MAX_COUNT:
            counts[name] = found
    return counts


class BodyReader:
    """Reads one JSON body."""

    def __init__(self, loads: _Loads = json.loads) -> None:
        self._loads = loads
        self._chunks: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes."""
        self._size += len(chunk)
        if self._size <= MAX_BODY_BYTES:
            self._chunks.append(chunk)
        else:
            self._chunks.clear()

    def finish(self) -> Reading:
        """The reading, once the body has ended or broken off."""
        try:
            body = self._loads(b"".join(self._chunks))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            return Reading({}, self._size, complete=False)
        return Reading(read_usage(body.get("usage")), _text_bytes(_choices(body, "message")), complete=True)


class StreamReader:
    """Reads a stream, segment by segment. The last usage reported is the one that counts."""

    def __init__(self, loads: _Loads = json.loads) -> None:
        self._loads = loads
        self._usage: dict[str, int] = {}
        self._text_bytes = 0
        self._complete = False

    def read(self, segment: Segment) -> bool:
        """Takes the next segment; true when it is the extra chunk that reports usage and carries nothing else."""
        if not segment.whole:
            self._text_bytes += len(segment.data)
            return False
        data = event_data(segment.data)
        if data is None:
            return False
        if data == b"[DONE]":
            self._complete = True
            return False
        try:
            chunk = self._loads(data)
        except (ValueError, RecursionError):
            self._text_bytes += len(data)
            return False
        if not isinstance(chunk, dict):
            return False
        self._text_bytes += _text_bytes(_choices(chunk, "delta"))
        reported = chunk.get("usage")
        if not isinstance(reported, dict):
            return False
        self._usage = read_usage(reported) or self._usage
        only_usage: bool = chunk.get("choices") == []
        self._complete = self._complete or only_usage
        return only_usage

    def finish(self) -> Reading:
        """The reading so far. A stream is complete once it said ``[DONE]`` or sent its closing usage chunk."""
        return Reading(self._usage, self._text_bytes, self._complete)


def _choices(answer: dict[str, Any], part: str) -> list[object]:
    choices = answer.get("choices")
    if not isinstance(choices, list):
        return []
    return [choice.get(part) for choice in choices if isinstance(choice, dict)]


def _text_bytes(value: object) -> int:
    # Whatever strings a message has count, tool calls, refusals and vendors' own fields included. A stack, not a
    # recursion: a vendor's answer may nest deeper than Python's frames go.
    size = 0
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, str):
            size += len(each) if each.isascii() else len(each.encode(errors="surrogatepass"))
        elif isinstance(each, dict):
            stack += [inner for name, inner in each.items() if name != "role"]
        elif isinstance(each, list):
            stack += each
    return size
