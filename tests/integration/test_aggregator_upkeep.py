"""Upkeep by real aggregator processes: killed in the middle of a round, and begun again."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from services.adapters.valkey_log import ValkeyLog
from services.core.budgets import Budget
from services.core.hotstate import OrgImage
from services.core.ports import LedgerImage
from services.core.windows import LifetimeWindow
from tests.support.aggregator_rig import Rig, Station
from tests.support.history import TOPICS
from tests.support.valkey import ValkeyServer

LIVE = Budget("bud_live", "org", "default", LifetimeWindow(), 10**15, thresholds=())
GONE = [f"bud_gone_{number}" for number in range(4_000)]
DAY_MS = 86_400_000
_COUNT = """
local count = 0
for _, key in ipairs(redis.call('KEYS', '{default}:b:bud_gone_*')) do
  count = count + (redis.call('PTTL', key) > tonumber(ARGV[1]) and 1 or 0)
end
return count
"""


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    with ValkeyServer(tmp_path / "log", appendonly="always") as log, ValkeyServer(tmp_path / "hot") as hot:
        settings, connect = {"FARTHING_LOG_URL": log.url}, partial(ValkeyLog, log.url)
        with Station(tmp_path, hot.url, settings, connect) as station:
            rig = Rig(station)
            await rig.open()
            await rig.publish_org("default", 2, LIVE)
            spent = {(budget_id, "l"): 5 for budget_id in (LIVE.budget_id, *GONE)}
            producers = {(TOPICS[1], 0, f"gw_{number}"): number + 1 for number in range(2_000)}
            rig.ledger.images["default"] = LedgerImage(dict(rig.begin), OrgImage(spent, {}, {}, producers))
            yield rig
            await rig.close()


def ends(rig: Rig) -> int:
    """How many of the budgets that are gone have figures with an end."""
    return int(rig.command("EVAL", _COUNT, 0, 89 * DAY_MS))


async def test_a_round_that_was_killed_is_begun_again_and_nothing_is_lost(rig: Rig) -> None:
    # The process that rebuilds the org goes its first round before there is anything.
    first = rig.station.spawn()
    await rig.until_warm()
    assert await first.terminate() == 0
    rig.command("DEL", "upkeep:turn")
    before = rig.figures()
    second = rig.station.spawn()

    async def is_begun() -> bool:
        return ends(rig) > 0

    await rig.until(is_begun, lambda: "some figures have an end")
    await second.kill()
    assert 0 < ends(rig) < len(GONE), "it was in the middle of it"
    assert rig.figures() == before
    third = rig.station.spawn()
    await rig.until_running(third)
    assert rig.command("PTTL", "upkeep:turn") > 0, "the turn is taken for some hours; here it is given at once"
    await third.kill()
    rig.command("DEL", "upkeep:turn")
    rig.station.spawn()

    async def is_done() -> bool:
        return ends(rig) == len(GONE)

    await rig.until(is_done, lambda: f"{ends(rig)} figures have an end")
    assert rig.command("PTTL", "{default}:b:bud_live:l") == -1
    assert rig.figures() == before, "what has an end is there until then"

    async def are_noted() -> bool:
        values = rig.command("HVALS", f"{{default}}:p:{TOPICS[1]}:0")
        return len(values) == 2_000 and all("." in value for value in values)

    await rig.until(are_noted, lambda: "every silent producer is noted")
