"""What the aggregator needs of each org's configuration, and which of its budgets are backfilled."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.core.backfill import ImpliedBudgets
from services.core.budgets import Budget, owner_id
from services.core.hotstate import Marks
from services.core.matching import Expressions
from services.core.ports import Directory, HotState, UnavailableError
from services.core.snapshot import decode_snapshot

MAX_KEPT: Final = 10_000
LARGE_BYTES: Final = 200_000
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


class Configs:
    """Configurations as the hot state has them, kept until they change."""

    def __init__(self, hot: HotState, directory: Directory, expressions: Expressions | None) -> None:
        self._hot = hot
        self._directory = directory
        self._expressions = expressions
        self._kept: dict[str, OrgConfig] = {}
        # Whose marks have changed, and may be lost: what is not kept is not compared.
        self._forgotten: set[str] = set()
        self._generation: int | None = None

    async def of(self, org: str) -> OrgConfig:
        """The org's configuration. Raises `UnavailableError`."""
        config = self._kept.get(org)
        if config is None:
            # The marks first: the snapshot is then at least as new as the one that they were set by.
            marks = await self._hot.marks(org, ())
            body = await self._directory.snapshot(org)
            # A large one takes long to compile, and the fold must not wait for it more than it has to.
            is_large = body is not None and len(body) > LARGE_BYTES
            config = await asyncio.to_thread(self._config, body, marks) if is_large else self._config(body, marks)
            if config.version < max(marks.filled.values(), default=0):
                # As after a wipe, or where the last writes were lost. To fold by these marks without the budgets would
                # leave out what calls imply.
                raise UnavailableError(f"org {org} has backfilled budgets that control has yet to publish again")
            while len(self._kept) >= MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[org] = config
        return config

    async def implied(self, org: str) -> ImpliedBudgets:
        """All budgets that calls of earlier configurations are charged to, as published now. For a rebuild.

        None of an org that was never published. Raises `NotPublishedError` while that can't be told from one whose
        budgets are lost: with them unknown, its caps would be checked without their past.
        """
        before = (await self._directory.pulse()).generation
        body = await self._directory.snapshot(org)
        if body is None:
            # Once a bare state has a generation, all orgs are there, and listed or being so. It is another generation
            # if the state was lost while this was asked. Of a cluster one server may have lost its orgs, which are
            # listed on another.
            is_listed = org in await self._directory.orgs()
            if is_listed or before is None or (await self._directory.pulse()).generation != before:
                raise NotPublishedError(f"org {org} can't be rebuilt: control has yet to publish it again")
            return _NOTHING
        return ImpliedBudgets(decode_snapshot(body).budgets, self._expressions)

    def forget(self, org: str) -> None:
        """Reads the org's configuration and marks anew when they are asked for next."""
        self._kept.pop(org, None)
        self._forgotten.add(org)

    async def refresh(self) -> Mapping[str, int] | None:
        """Forgets what has changed. The version of each published org; None when nothing was published since."""
        generation = (await self._directory.pulse()).generation
        if generation is not None and generation == self._generation:
            return None
        versions = await self._directory.published_versions()
        for org in [org for org, config in self._kept.items() if config.version != versions.get(org)]:
            del self._kept[org]
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

    def _config(self, body: bytes | None, marks: Marks) -> OrgConfig:
        if body is None:
            return OrgConfig(0, {}, marks.token, _NOTHING, _NOTHING)
        snapshot = decode_snapshot(body)
        filled = [each for each in snapshot.budgets if marks.filled.get(each.budget_id) == each.since_version]
        missing = [each for each in snapshot.budgets if marks.filled.get(each.budget_id) != each.since_version]
        return OrgConfig(
            snapshot.version,
            {each.budget_id: each for each in snapshot.budgets},
            marks.token,
            ImpliedBudgets(filled, self._expressions),
            ImpliedBudgets(missing, self._expressions),
        )
