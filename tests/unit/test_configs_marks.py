"""A hot state that was rebuilt before control had published its budgets again is found to want a backfill."""

import pytest

from services.core.budgets import Budget
from services.core.hotstate import OrgImage
from services.core.ports import UnavailableError
from services.core.snapshot import Snapshot, encode_snapshot
from services.core.windows import LifetimeWindow
from tests.support.aggregation import World

NEW = Budget("bud_1", "org", "default", LifetimeWindow(), 1_000, since_version=2)


async def test_what_waits_to_be_backfilled_is_looked_at_again() -> None:
    world = World()
    parts = world.parts()
    await world.hot.load("default", OrgImage({}, {}, {}, {}), "epoch-0")
    snapshot = encode_snapshot(Snapshot("default", 2, "v1", 900_000, True, (NEW,), {}))
    await world.directory.publish_org("default", 2, snapshot, {}, ())
    assert (await parts.configs.of("default")).pending.since == {"bud_1": 2}
    assert await parts.configs.check_marks() == ["default"]


async def test_what_is_backfilled_is_left_alone() -> None:
    world = World()
    parts = world.parts()
    snapshot = encode_snapshot(Snapshot("default", 2, "v1", 900_000, True, (NEW,), {}))
    await world.directory.publish_org("default", 2, snapshot, {}, ())
    await parts.rebuilder.rebuild(["default"])
    assert (await parts.configs.of("default")).implied.since == {"bud_1": 2}
    assert await parts.configs.check_marks() == []


async def test_nothing_is_folded_by_marks_whose_budgets_are_not_published() -> None:
    """Else calls of earlier configurations would not be charged to them, and nobody would ever know."""
    world = World()
    parts = world.parts()
    await world.hot.load("default", OrgImage({}, {}, {}, {}, filled={"bud_1": 2}), "epoch-0")
    with pytest.raises(UnavailableError, match="has yet to publish"):
        await parts.configs.of("default")
    snapshot = encode_snapshot(Snapshot("default", 2, "v1", 900_000, True, (NEW,), {}))
    await world.directory.publish_org("default", 2, snapshot, {}, ())
    assert (await parts.configs.of("default")).implied.since == {"bud_1": 2}
