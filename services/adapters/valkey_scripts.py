"""The Lua scripts of the hot state, and how keys, charges and windows are written for them."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

from services.adapters.valkey_connection import Argument, HotConnection, RefusedError
from services.core.budgets import Charge, Proposal
from services.core.hotstate import (
    CLAIM_MS,
    CLOCK_MARGIN_MS,
    CORRECTION_MS,
    EXPIRY_PRODUCER,
    MAX_FIGURE,
    SESSION_IDLE_MS,
    TOLD_AGAIN_MS,
    TOMBSTONE_MS,
    WINDOW_GRACE_MS,
    Hold,
)
from services.core.windows import CalendarSpan, RollingSpan, SessionSpan, Span, parse_span

_NAMES: Final = (
    "reserve",
    "resize",
    "release",
    "claim",
    "peek",
    "apply",
    "crossed",
    "load",
    "clear",
    "publish",
    "announce",
    "forward",
    "backfill",
    "marks",
    "keys",
    "silent",
)
# The first line has the server refuse a script it has no memory for before it begins, not halfway; but for one that
# frees memory.
_FLAGS: Final = {"clear": " flags=allow-oom"}
# The scripts' own copies of core's constants, so that neither twin can drift.
_HEAD: Final = (
    f"local MAX_FIGURE, EXPIRY_PRODUCER = '{MAX_FIGURE}', '{EXPIRY_PRODUCER}'\n"
    f"local WINDOW_GRACE_MS, TOMBSTONE_MS, CLAIM_MS = {WINDOW_GRACE_MS}, {TOMBSTONE_MS}, {CLAIM_MS}\n"
    f"local CLOCK_MARGIN_MS, SESSION_IDLE_MS = {CLOCK_MARGIN_MS}, {SESSION_IDLE_MS}\n"
    f"local CORRECTION_MS, TOLD_AGAIN_MS = {CORRECTION_MS}, {TOLD_AGAIN_MS}\n"
)
_CHARGE_END: Final = '"]'


@dataclass(frozen=True, slots=True)
class Script:
    """A script's whole text and the digest by which the server knows it."""

    source: str
    digest: str

    @classmethod
    def of(cls, source: str) -> "Script":
        """The script of this text."""
        return cls(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

    async def run(self, connection: HotConnection, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Any:
        """The script's answer. A server that does not know it yet is sent its text. Raises as `execute` does."""
        try:
            return await connection.execute("EVALSHA", self.digest, len(keys), *keys, *arguments)
        except RefusedError as error:
            if error.code != "NOSCRIPT":
                raise
        return await connection.execute("EVAL", self.source, len(keys), *keys, *arguments)


def load_scripts() -> Mapping[str, Script]:
    """Every script by its name."""
    folder = files("services.adapters") / "lua"
    shared = _HEAD + (folder / "common.lua").read_text()
    texts = {name: shared + (folder / f"{name}.lua").read_text() for name in _NAMES}
    return {name: Script.of(f"#!lua{_FLAGS.get(name, '')}\n{text}") for name, text in texts.items()}


def org_key(org: str, name: str) -> str:
    """A key of an org. All of them hash to one slot."""
    return f"{{{org}}}:{name}"


def figures_key(org: str, budget_id: str, span: Span) -> str:
    """The key of a window's figures, or of a rolling budget's ring."""
    if not isinstance(span, RollingSpan):
        return f"{{{org}}}:b:{budget_id}:{span.key()}"
    return f"{{{org}}}:r:{budget_id}:{span.bucket_ms}:{span.count}"


def charges_json(charges: Iterable[Charge]) -> str:
    """Charges as a hold keeps them; equal charges are equal text."""
    return f"[{','.join(_charge_start(each.budget_id, each.scope) + each.window + _CHARGE_END for each in charges)}]"


def parse_charges(text: bytes) -> tuple[Charge, ...]:
    """The charges of `charges_json` text."""
    return tuple(Charge(*each) for each in json.loads(text))


class Call:
    """A script's keys and arguments as they grow. Each key is declared once; the arguments name it by its number."""

    def __init__(self, org: str, keys: Iterable[str], arguments: Iterable[Argument]) -> None:
        self._org = org
        self._first = tuple(keys), tuple(arguments)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Drops all but the keys and arguments that it began with."""
        keys, arguments = self._first
        self._numbers = {key: number for number, key in enumerate(keys, 1)}
        self._figures: dict[tuple[str, str], int] = {}
        self.arguments = list(arguments)

    @property
    def keys(self) -> list[Argument]:
        """The declared keys, in the order of their numbers."""
        return list(self._numbers)

    def number(self, name: str) -> int:
        """The number of a key of the org."""
        return self._declare(org_key(self._org, name))

    def figures_number(self, budget_id: str, window: str) -> int:
        """The number of the key of a window's figures or ring."""
        number = self._figures.get((budget_id, window))
        if number is None:
            number = self._declare(figures_key(self._org, budget_id, parse_span(window)))
            self._figures[budget_id, window] = number
        return number

    def add(self, *arguments: Argument) -> None:
        """Appends arguments."""
        self.arguments.extend(arguments)

    def add_charges(self, charges: Sequence[Charge]) -> None:
        """Appends how many charges there are and, of each, the number of its figures and its window."""
        self.add(len(charges))
        for each in charges:
            self.add(self.figures_number(each.budget_id, each.window), each.window)

    def add_implied(self, charges: Sequence[Charge]) -> None:
        """Appends implied charges: the same, and then their JSON, where there are any."""
        self.add_charges(charges)
        if charges:
            self.add(charges_json(charges))

    def add_hold(self, name: str, hold: Hold) -> None:
        """Appends a hold, as ``load.lua`` has it."""
        self.add(hold.phase, self.number(f"h:{name}"), hold.resized_at_ms, hold.option)
        charges = charges_json(hold.charges)
        if hold.phase == "held":
            self.add(name, hold.amount_nano, charges, hold.context, hold.expires_at_ms, hold.admitted_at_ms)
            self.add_charges(hold.charges)
            self.add_implied(hold.implied)
        else:
            self.add(hold.amount_nano, charges, hold.expires_at_ms, hold.admitted_at_ms)
            self.add(hold.booked_nano, hold.forget_at_ms or 0)

    def _declare(self, key: str) -> int:
        return self._numbers.setdefault(key, len(self._numbers) + 1)


@lru_cache(maxsize=16_384)
def proposal_arguments(org: str, proposal: Proposal, is_fixed: bool = False) -> tuple[bytes, tuple[bytes, ...]]:
    """A proposal for ``reserve.lua`` or ``resize.lua``: its key, and the six words that these scripts speak of.

    A span that `is_fixed` is given as it is. Gateways propose the same spans for as long as they last, hence the cache.
    """
    span = proposal.span
    start = _charge_start(proposal.budget_id, proposal.scope)
    charge = start + span.key() + _CHARGE_END
    words: tuple[str | int, ...]
    if isinstance(span, CalendarSpan):
        words = ("f" if is_fixed else "c", span.start_ms, span.end_ms, proposal.limit_nano, charge)
    elif isinstance(span, RollingSpan):
        ring = f"{start}r:{span.bucket_ms}:{span.count}:"
        words = ("r", span.bucket_ms, span.count, proposal.limit_nano, charge if is_fixed else ring)
    else:
        words = ("s" if isinstance(span, SessionSpan) else "l", 0, 0, proposal.limit_nano, charge)
    key = figures_key(org, proposal.budget_id, span)
    return key.encode(), tuple(str(word).encode() for word in (*words, proposal.full_rule))


@lru_cache(maxsize=16_384)
def _charge_start(budget_id: str, scope: str) -> str:
    # A window's key has nothing that needs quoting: the text of a charge is this, key, and `"]`.
    return json.dumps([budget_id, scope], ensure_ascii=False, separators=(",", ":"))[:-1] + ',"'
