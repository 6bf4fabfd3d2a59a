"""What the aggregator needs of each org's configuration, and which of its budgets are backfilled."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from services.aggregator.snapshots import MAX_KEPT, Snapshots, UnreadableSnapshotError
from services.core.backfill import BudgetWindow, ImpliedBudgets
from services.core.budgets import Budget, Charge, owner_id
from services.core.events import CallFacts
from services.core.hotstate import Marks
from services.core.matching import Expressions
from services.core.parts import ROUTE as PART_ROUTE
from services.core.ports import Directory, HotState, UnavailableError
from services.core.snapshot import Snapshot

LARGE_BUDGETS: Final = 200
_NOTHING: Final = ImpliedBudgets(())


class NotPublishedError(UnavailableError):
    """What control had published of an org is lost, and not there again yet."""


@dataclass(frozen=True, slots=True)
class OrgConfig:
    """An org's budgets by id, as of configuration `version` (0: none is published).

    `implied` are those that are backfilled: the fold goes on from there. `pending` are those that are not yet.
    """

    version: int
    budgets: Mapping[str, Budget]
    token: str
    implied: ImpliedBudgets
    pending: ImpliedBudgets

    def find(self, budget_id: str) -> Budget | None:
        """The budget of an id, that of one value of it included."""
        return self.budgets.get(owner_id(budget_id))


class _UnknownBudgets(ImpliedBudgets):
    """Backfilled budgets of which nothing is known but that no call of `horizon` or later implies one.

    `charges` raises `unreadable` for any other call.
    """

    def __init__(self, horizon: int, unreadable: UnreadableSnapshotError) -> None:
        super().__init__(())
        self.horizon = horizon
        self._unreadable = unreadable

    def charges(self, facts: CallFacts, admitted_at_ms: int, charged: Collection[BudgetWindow]) -> tuple[Charge, ...]:
        """None for a call that implies none, whatever the budgets are."""
        if facts.config_version >= self.horizon or facts.route == PART_ROUTE:
            return ()
        raise self._unreadable


class Configs:
    """Configurations as the hot state has them, kept until they change."""

    def __init__(
        self,
        hot: HotState,
        directory: Directory,
        expressions: Expressions | None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._hot = hot
        self._directory = directory
        self._expressions = expressions
        self.snapshots = snapshots or Snapshots(directory)
        self._kept: dict[str, OrgConfig] = {}
        # Kept, but no longer what is published.
        self._outdated: set[str] = set()
        # Whose marks have changed, and may be lost: what is not kept is not compared.
        self._forgotten: set[str] = set()
        self._generation: int | None = None

    async def of(self, org: str) -> OrgConfig:
        """The org's configuration. Raises `UnavailableError`, and `UnreadableSnapshotError` while it can't be read."""
        config = self._kept.get(org)
        if config is None or org in self._outdated:
            # The marks first: the snapshot is then at least as new as the one that they were set by.
            marks = await self._hot.marks(org, ())
            snapshot = await self.snapshots.latest(org)
            # A large one takes long to compile, and the fold must not wait for it more than it has to.
            is_large = snapshot is not None and len(snapshot.budgets) > LARGE_BUDGETS
            compiled = asyncio.to_thread(self._config, snapshot, marks) if is_large else None
            config = self._config(snapshot, marks) if compiled is None else await compiled
            if config.version < max(marks.filled.values(), default=0):
                # As after a wipe, or where the last writes were lost. To fold by these marks without the budgets would
                # leave out what calls imply.
                raise UnavailableError(f"org {org} has backfilled budgets that control has yet to publish again")
            self._drop(org)
            while len(self._kept) >= MAX_KEPT:
                self._drop(next(iter(self._kept)))
            self._kept[org] = config
        return config

    async def lately(self, org: str) -> OrgConfig:
        """The org's configuration, or the one before it while that can't be read. Raises as `of` if there is none."""
        try:
            return await self.of(org)
        except UnreadableSnapshotError:
            earlier = self._kept.get(org)
            if earlier is None:
                raise
            return earlier

    async def to_fold_by(self, org: str) -> OrgConfig:
        """A configuration whose `token` and `implied` are good to fold by, if nothing else of it is.

        While the published one can't be read, it is the one before it, if the same budgets are backfilled still. Else
        `implied` tells of calls as new as the last backfilled budget that they imply nothing, and raises
        `UnreadableSnapshotError` for older ones, which only the budgets could tell of. Raises as `of` otherwise.
        """
        try:
            return await self.of(org)
        except UnreadableSnapshotError as unreadable:
            marks, earlier = await self._hot.marks(org, ()), self._kept.get(org)
            if earlier is not None and earlier.token == marks.token:
                return earlier
            horizon = max(marks.filled.values(), default=0)
            return OrgConfig(0, {}, marks.token, _UnknownBudgets(horizon, unreadable), _NOTHING)

    async def implied(self, org: str) -> ImpliedBudgets:
        """All budgets that calls of earlier configurations are charged to, as published now. For a rebuild.

        None of an org that was never published. Raises `NotPublishedError` while that can't be told from one whose
        budgets are lost: with them unknown, its caps would be checked without their past. For the same reason it raises
        `UnreadableSnapshotError` while they can't be read.
        """
        before = (await self._directory.pulse()).generation
        snapshot = await self.snapshots.latest(org)
        if snapshot is None:
            # Once a bare state has a generation, all orgs are there, and listed or being so. It is another generation
            # if the state was lost while this was asked. Of a cluster one server may have lost its orgs, which are
            # listed on another.
            is_listed = org in await self._directory.orgs()
            if is_listed or before is None or (await self._directory.pulse()).generation != before:
                raise NotPublishedError(f"org {org} can't be rebuilt: control has yet to publish it again")
            return _NOTHING
        return ImpliedBudgets(snapshot.budgets, self._expressions)

    def forget(self, org: str) -> None:
        """Reads the org's configuration and marks anew when they are asked for next."""
        self._drop(org)
        self._forgotten.add(org)

    def _drop(self, org: str) -> None:
        self._kept.pop(org, None)
        self._outdated.discard(org)

    async def refresh(self) -> Mapping[str, int] | None:
        """Reads what has changed anew when it is asked for next. The version of each published org; None when nothing
        was published since."""
        generation = (await self._directory.pulse()).generation
        if generation is not None and generation == self._generation:
            return None
        versions = await self._directory.published_versions()
        self._outdated |= {org for org, config in self._kept.items() if config.version != versions.get(org)}
        self._generation = generation
        return versions

    async def check_marks(self) -> list[str]:
        """Forgets the orgs whose marks are no longer those that are kept here, or not all there; answers which.

        So it does for those that were forgotten since it was called last.
        """
        for org, config in list(self._kept.items()):
            # What still waits was lost with a hot state, and rebuilt before control had published its budgets again.
            if config.pending.since or (config.token and (await self._hot.marks(org, ())).token != config.token):
                self.forget(org)
        changed, self._forgotten = sorted(self._forgotten), set()
        return changed

    def _config(self, snapshot: Snapshot | None, marks: Marks) -> OrgConfig:
        if snapshot is None:
            return OrgConfig(0, {}, marks.token, _NOTHING, _NOTHING)
        filled = [each for each in snapshot.budgets if marks.filled.get(each.budget_id) == each.since_version]
        missing = [each for each in snapshot.budgets if marks.filled.get(each.budget_id) != each.since_version]
        return OrgConfig(
            snapshot.version,
            {each.budget_id: each for each in snapshot.budgets},
            marks.token,
            ImpliedBudgets(filled, self._expressions),
            ImpliedBudgets(missing, self._expressions),
        )
