"""Upkeep of the hot state: an end for what is kept without one of its own, once nobody can ask for it any more.

Everything else goes by itself, at an instant that is set when it is written (docs/hot-state.md). Three things can't:

- the sequence of a producer, because only its silence says that it is gone;
- the figures and told thresholds of a budget for all time, because only control knows that the budget is gone;
- the mark of a backfilled budget, for the same reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from services.core.hotstate import OrgState
from services.core.ports import TopicPartition

DAY_MS: Final = 86_400_000
# A producer that nothing was heard of for so long is forgotten: many times as long as the log keeps what is folded.
SILENT_DAYS: Final = 90
# Figures for all time outlive their budget by this much. Within it, a database that was restored finds them again.
GONE_MS: Final = 90 * DAY_MS


@dataclass(frozen=True, slots=True)
class Endless:
    """A key about a budget for all time: its figures, or which thresholds were told of.

    `key` is opaque to whoever looks; `has_end` says that the key goes by itself at some instant.
    """

    org: str
    budget_id: str
    key: str
    has_end: bool


@dataclass(frozen=True, slots=True)
class Page:
    """What there is to see to among the next keys of a server. `cursor` leads on; None: that was the last page.

    `marked` are orgs that have marks; `producers` are the sequences of an org's producers in a partition. What is there
    the whole time is on a page at least once.
    """

    cursor: str | None
    endless: tuple[Endless, ...] = ()
    marked: tuple[str, ...] = ()
    producers: tuple[tuple[str, TopicPartition], ...] = ()


class Upkeep(Protocol):
    """What upkeep needs of the hot state. No call keeps a server busy for more than a millisecond or so."""

    async def take_turn(self, keep_ms: int) -> bool:
        """Whether it is the caller's turn: one caller's, once in `keep_ms`. Raises `UnavailableError`, as all here."""

    async def servers(self) -> tuple[str, ...]:
        """A name for each server that has keys."""

    async def look(self, server: str, cursor: str) -> Page:
        """The page of a server's keys that a cursor leads to; the empty one leads to the first."""

    async def forget_silent(self, org: str, place: TopicPartition, cursor: str) -> str | None:
        """`forget_silent` for some of a partition's producers, atomically; where to go on, None: that were all."""

    async def end_soon(self, keys: Sequence[Endless]) -> None:
        """Lets keys that have no end go `GONE_MS` from now."""

    async def keep(self, keys: Sequence[Endless]) -> None:
        """Has keys stay for as long as nobody says otherwise."""


def forget_silent(state: OrgState, topic: str, partition: int, now_ms: int) -> None:
    """Notes which producers of a partition have been silent since somebody last looked, and drops those that have been
    for `SILENT_DAYS`. Twin of ``silent.lua``.

    What a dropped producer publishes later is taken as new. Its sequences go on from where they were, so that nothing
    of it is left out.
    """
    today = now_ms // DAY_MS
    for place in [each for each in state.producers if each[:2] == (topic, partition)]:
        since = state.silent.get(place)
        if since is None:
            state.silent[place] = today
        elif today - since > SILENT_DAYS:  # the first of them was not a whole one
            del state.producers[place], state.silent[place]
