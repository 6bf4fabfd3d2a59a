"""Budgets whose past is not known yet: their calls wait for it, and no cap is checked without it (BU-8).

A new budget, and one that got another window, starts with what its window already holds. The aggregator finds that out
and marks the budget in the hot state with the `since_version` that it did so for. Until that very mark is there, the
budget's figures are too small. A mark for an older version is of another window. A mark for a newer one says that the
budget got yet another window since, which the view that asks has still to learn of: its own was never made up for.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from services.core.budgets import Budget, owner_id
from services.core.ports import HotState, UnavailableError
from services.gateway.refusal import past_unknown, rebuilding

# How long after a gateway has learned of a budget its calls wait. Later ones are refused after one look: calls that
# all wait would soon fill the gateway, and those of other budgets with it.
PATIENCE_S: Final = 2.0
PAUSE_S: Final = 0.05
# So many are looked for beside the calls, each time.
_LOOKED_FOR: Final = 1_000


class Charged(Protocol):
    """A budget as a call is charged to it; the id is that of one value, for a budget of each."""

    @property
    def budget_id(self) -> str: ...

    @property
    def scope(self) -> str: ...


@dataclass(frozen=True, slots=True)
class UnknownPast:
    """Which past is looked for, and until when (`time.monotonic`) calls wait for it."""

    since_version: int
    patience_ends_s: float


class Pasts:
    """Of the budgets in one view of an org, those that refuse calls and whose past is not known yet, by id: `unknown`.

    There are none most of the time. Ask so before anything else: it is the only cost to a call. `since` are all that
    have a past (`pasts_to_know`).
    """

    def __init__(
        self, hot_state: HotState, org: str, since: Mapping[str, int], unknown: Mapping[str, UnknownPast]
    ) -> None:
        self.unknown: Final = dict(unknown)
        self._since = since
        self._hot_state = hot_state
        self._org = org
        self._wanted: dict[str, None] = {}
        self._next_look: asyncio.Task[Mapping[str, int] | None] | None = None
        self._looks: set[asyncio.Task[Mapping[str, int] | None]] = set()

    async def wait(self, charged: Collection[Charged]) -> None:
        """Returns when the pasts of all these budgets are known, at once for most.

        Raises `RefusedError` (503) when one is not for too long, and when the spend state is cold or can't be reached.
        """
        while waiting := {id_: each for each in charged if (id_ := owner_id(each.budget_id)) in self.unknown}:
            try:
                marks = await self._look_with_others(waiting)
            except UnavailableError as error:
                raise rebuilding("the spend state can't be reached; try again in a second") from error
            if marks is None:
                raise rebuilding("the spend state is being rebuilt; try again in a second")
            for budget_id, each in waiting.items():
                past = self.unknown.get(budget_id)
                if past is None:
                    continue
                is_overtaken = marks.get(budget_id, 0) > past.since_version
                if is_overtaken or time.monotonic() >= past.patience_ends_s:
                    raise past_unknown(each.budget_id, each.scope)

    def doubt(self) -> None:
        """No past is known any more: the hot state may have lost marks that were seen. What is there is found again."""
        if len(self.unknown) < len(self._since):
            patience_ends_s = time.monotonic() + PATIENCE_S
            for budget_id, version in self._since.items():
                self.unknown.setdefault(budget_id, UnknownPast(version, patience_ends_s))

    async def look(self) -> None:
        """Looks for unknown pasts now. Raises `UnavailableError`."""
        await self._look(tuple(islice(self.unknown, _LOOKED_FOR)))

    async def _look_with_others(self, budget_ids: Iterable[str]) -> Mapping[str, int] | None:
        """One look for all calls that come within `PAUSE_S`, whoever of them goes away."""
        self._wanted |= dict.fromkeys(budget_ids)
        look = self._next_look
        if look is None:
            look = self._next_look = asyncio.create_task(self._look_soon())
            self._looks.add(look)
            look.add_done_callback(self._forget)
        return await asyncio.shield(look)

    async def _look_soon(self) -> Mapping[str, int] | None:
        await asyncio.sleep(PAUSE_S)
        wanted, self._wanted, self._next_look = tuple(self._wanted), {}, None
        return await self._look(wanted)

    def _forget(self, look: "asyncio.Task[Mapping[str, int] | None]") -> None:
        self._looks.discard(look)
        if not look.cancelled():
            look.exception()  # when every call that waited has gone, nobody else asks for it

    async def _look(self, budget_ids: tuple[str, ...]) -> Mapping[str, int] | None:
        marks = await self._hot_state.filled(self._org, budget_ids)
        for budget_id in budget_ids:
            past = self.unknown.get(budget_id)
            if marks is not None and past is not None and marks.get(budget_id) == past.since_version:
                del self.unknown[budget_id]
        return marks


def pasts_to_know(budgets: Iterable[Budget]) -> dict[str, int]:
    """The budgets that refuse calls and have a past to be known: the `since_version` of each by id.

    One with a version of 0 has none: every call there ever was is charged to it, or, for a part of a budget (BU-9), it
    starts at nothing by what it is. One of nothing is full whatever it has spent: it refuses at once.
    """
    with_past = (each for each in budgets if each.since_version > 0 and each.limit_nano > 0)
    return {each.budget_id: each.since_version for each in with_past if each.full_rule != "pass"}


async def find_pasts(hot_state: HotState, org: str, since: Mapping[str, int], before: Pasts | None) -> Pasts:
    """What is not known of `since` (`pasts_to_know`). The patience for what was not known `before` goes on.

    A hot state that does not answer now is asked again by the first call.
    """
    try:
        marks = await hot_state.filled(org, tuple(since)) if since else None
    except UnavailableError:
        marks = None
    unknown: dict[str, UnknownPast] = {}
    patience_ends_s = time.monotonic() + PATIENCE_S
    for budget_id, version in since.items():
        if marks is None or marks.get(budget_id) != version:
            known = None if before is None else before.unknown.get(budget_id)
            if known is None or known.since_version != version:
                known = UnknownPast(version, patience_ends_s)
            unknown[budget_id] = known
    return Pasts(hot_state, org, since, unknown)
