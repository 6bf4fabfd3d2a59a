"""Mutation that knows what it mutates: JSON by its keys, types and nesting, streams by their events, bytes by marks."""

import json
from random import Random
from typing import Any, Final

import orjson

from tests.fuzz import corpus
from tests.fuzz.corpus import Seed

_NUMBERS: Final = (
    0, 1, -1, 2, 1.0, 1.5, -0.0, 1e9, 1e300, -1e300, 10**9, 10**9 + 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30,
)  # fmt: skip
_TEXTS: Final = (
    "",
    "0",
    "1",
    "null",
    "true",
    "[DONE]",
    "data: {}",
    "\r\n\r\n",
    "\x00",
    "\u2028",
    "é👋",
    "x" * 300,
    '"}]',
)
_MARKS: Final = (
    b"\r", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"data:", b"data: ", b"event: ", b":", b"{", b"}",
    b"[", b"]", b'"', b"\\", b",", b"null", b"[DONE]", b"\x00", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"1e999", b"-",
    b"NaN", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", b"9" * 5000, b"[" * 2000, b'{"a":' * 300,
)  # fmt: skip
_LINE_ENDS: Final = (b"\n", b"\n", b"\r\n", b"\r")
_COMMENTS: Final = (b": ping", b"id: 7", b"retry: 9", b"event: ping", b"data", b"junk")


class Mutator:
    """One seeded source of mutated inputs."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self._words = corpus.words()

    # ---- JSON -------------------------------------------------------------------------------------------------------

    def text(self, text: bytes) -> bytes:
        """A JSON text with a few of its values changed; now and then no JSON any more."""
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return self.raw(text)
        for _ in range(self.random.choice((1, 1, 2, 3, 6))):
            value = self._changed(value)
        written = self._written(value)
        return self.raw(written) if self.random.random() < 0.1 else written

    def _written(self, value: Any) -> bytes:
        choice = self.random.random()
        try:
            if choice < 0.8:
                return orjson.dumps(value, option=orjson.OPT_INDENT_2 if choice < 0.2 else 0)
        except (orjson.JSONEncodeError, RecursionError):
            pass
        try:
            return json.dumps(value, ensure_ascii=choice < 0.9).encode("utf-8", "surrogatepass")
        except RecursionError:
            return b"{}"

    def _changed(self, root: Any) -> Any:
        """The value with one place in it changed."""
        if not isinstance(root, dict | list) or not root or self.random.random() < 0.03:
            return self._replaced(root)
        holder = root
        while True:
            place = self.random.choice(list(holder)) if isinstance(holder, dict) else self.random.randrange(len(holder))
            inner = holder[place]
            if not inner or not isinstance(inner, dict | list) or self.random.random() < 0.3:
                break
            holder = inner
        choice = self.random.random()
        if choice < 0.55:
            holder[place] = self._replaced(holder[place])
        elif choice < 0.7:
            del holder[place]
        elif isinstance(holder, dict):
            # Under another name, or a new field beside it.
            name = self.random.choice(self._words)
            holder[name] = holder.pop(place) if choice < 0.85 else self._replaced(holder[place])
        else:
            holder.insert(place, holder[place] if self.random.random() < 0.5 else self._replaced(None))
        return root

    def _replaced(self, value: Any) -> Any:
        choice = self.random.randrange(10)
        if choice < 3 or (choice < 7 and isinstance(value, int | float)):
            return self.random.choice(_NUMBERS)
        if choice < 5:
            return self.random.choice(_TEXTS)
        if choice < 7:
            return self.random.choice(self._words)
        if choice == 7:
            return self.random.choice(([], {}, None, True, False, [value], {"a": value}, [[value]], [None, value, 1]))
        if choice == 8:
            return {self.random.choice(self._words): value, self.random.choice(self._words): self._replaced(None)}
        for _ in range(self.random.choice((2, 20, 300))):
            value = [value] if self.random.random() < 0.5 else {"a": value}
        return value

    # ---- bytes ------------------------------------------------------------------------------------------------------

    def raw(self, data: bytes) -> bytes:
        """The bytes with a few of them changed, marks put in, or pieces gone, twice there or elsewhere."""
        for _ in range(self.random.choice((1, 1, 2, 4))):
            start = self.random.randint(0, len(data))
            end = min(len(data), start + self.random.choice((0, 1, 2, 8, 100)))
            choice = self.random.randrange(7)
            if choice == 0:
                data = data[:start] + self.random.choice(_MARKS) + data[end:]
            elif choice == 1:
                data = data[:start] + self.random.choice(_MARKS) + data[start:]
            elif choice == 2:
                data = data[:start] + data[end:]
            elif choice == 3:
                data = data[:end] + data[start:end] + data[end:]
            elif choice == 4:
                data = data[:start]
            elif choice == 5:
                data = data[:start] + self.random.randbytes(end - start) + data[end:]
            elif start < len(data):
                data = data[:start] + bytes((data[start] ^ (1 << self.random.randrange(8)),)) + data[start + 1 :]
        return data

    # ---- streams ----------------------------------------------------------------------------------------------------

    def events(self, seed: Seed) -> list[tuple[str | None, bytes]]:
        """The events of an answer with some changed, gone, twice there, out of order, or another answer's."""
        events = list(seed.events)
        for _ in range(self.random.choice((0, 1, 1, 2, 4))):
            place = self.random.randrange(len(events)) if events else 0
            choice = self.random.randrange(8)
            if not events or choice == 0:
                events.insert(place, self.random.choice(self.random.choice(corpus.answers()).events))
            elif choice == 1:
                del events[place]
            elif choice == 2:
                events.insert(self.random.randint(0, len(events)), events[place])
            elif choice == 3:
                events[place] = (self.random.choice((None, self.random.choice(self._words))), events[place][1])
            elif choice == 4:
                del events[place + 1 :]
            else:
                events[place] = (events[place][0], self.text(events[place][1]))
        return events

    def framed(self, events: list[tuple[str | None, bytes]], framing: str) -> bytes:
        """The events as a stream, in any way its framing allows."""
        if framing == "json_array":
            comma = self.random.choice((b",", b",\r\n", b"\n,\r\n"))
            return b"[" + comma.join([data for _, data in events]) + self.random.choice((b"]", b"\n]\n", b""))
        if framing == "lines":
            return b"".join([data + self.random.choice((b"\n", b"\n", b"\r\n", b"\n\n")) for _, data in events])
        if self.random.random() < 0.5:
            named = [b"event: " + name.encode() + b"\n" if name else b"" for name, _ in events]
            return b"".join([head + b"data: " + data + b"\n\n" for head, (_, data) in zip(named, events, strict=True)])
        stream = [b"\xef\xbb\xbf" * (self.random.random() < 0.2)]
        for name, data in events:
            lines = [b"event:" + name.encode()] if name else []
            lines += [b"data:" + b" " * self.random.randrange(2) + line for line in data.splitlines()]
            for _ in range(self.random.choice((0, 0, 1))):
                lines.insert(self.random.randint(0, len(lines)), self.random.choice(_COMMENTS))
            stream.append(self.random.choice(_LINE_ENDS).join([*lines, b"", b""]))
        return b"".join(stream)

    def pieces(self, data: bytes) -> list[bytes]:
        """The bytes cut into chunks: one, a few, or one for each byte."""
        choice = self.random.random()
        if choice < 0.4 or not data:
            return [data]
        if choice < 0.43 and len(data) < 1500:
            return [data[at : at + 1] for at in range(len(data))]
        cuts = sorted(self.random.randrange(len(data)) for _ in range(self.random.choice((1, 2, 5, 20))))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
