"""What becomes of holds that nobody settled in time: from the management API to what the reaper books."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.aggregator.reaper import Reaper
from services.control.errors import ErrorAnswer
from services.core.budgets import Charge, Proposal
from services.core.codec import decode, encode_facts
from services.core.events import Expiry, Stamped
from services.core.fold import step_of
from services.core.hotstate import HoldRequest, OrgImage
from services.core.ports import TopicPartition
from services.core.snapshot import decode_snapshot
from services.core.windows import LifetimeSpan
from tests.support.aggregation import Told
from tests.support.control import Control, running_control
from tests.support.history import TOPICS, Caller
from tests.support.hot_rig import NOW_MS
from tests.support.hot_state import turn_clock, with_turned_clock
from tests.support.memory_log import MemoryLog

HELD_NANO = 1_000
HOLD_MS = 60_000
SPAN = LifetimeSpan()
CHARGE = Charge("bud_1", "org:default", SPAN.key())
PROPOSAL = Proposal(CHARGE.budget_id, CHARGE.scope, SPAN, 10**12)
PLACE = TopicPartition(TOPICS[1], 0)


@dataclass
class Scene:
    """A real control, a hot state in Valkey on a clock that the test turns, and a reaper that reads from it."""

    control: Control
    hot: ValkeyHotState
    connection: ValkeyConnection
    log: MemoryLog
    reaper: Reaper
    now_ms: int = NOW_MS

    async def change(self, expired_holds: str) -> Any:
        """The org after a change that has to succeed."""
        return await self.control.ask("PATCH", "org", {"expired_holds": expired_holds})

    async def hold(self, name: str) -> None:
        """What a gateway does when it admits a call."""
        facts = encode_facts(Caller(self.now_ms).facts)
        answer = await self.hot.reserve(HoldRequest("default", name, HELD_NANO, (PROPOSAL,), HOLD_MS, facts))
        assert answer.charges == (CHARGE,), answer

    async def expire(self) -> Expiry:
        """Lets the only hold there is outlive its time; what the reaper tells of it, once that is folded."""
        self.now_ms += HOLD_MS
        await turn_clock(self.connection, self.now_ms)
        offset = len(self.log.messages(PLACE))
        await self.reaper.reap()
        [message] = self.log.messages(PLACE)[offset:]
        stamped = decode(message.value)
        assert isinstance(stamped.event, Expiry)
        await self.fold(stamped, offset)
        return stamped.event

    async def settle_late(self, name: str, cost_nano: int) -> None:
        """The gateway comes back, and says what the call has cost."""
        offset = len(self.log.messages(PLACE))
        await self.log.publish([Caller(self.now_ms).settlement(name, cost_nano, HELD_NANO)])
        [message] = self.log.messages(PLACE)[offset:]
        await self.fold(decode(message.value), offset)

    async def fold(self, stamped: Stamped, offset: int) -> None:
        """Counts an event, as the aggregator does."""
        step = step_of(stamped, offset)
        assert step is not None
        await self.hot.apply("default", PLACE, [replace(step, charges=(CHARGE,))], offset + 1)

    async def figures(self) -> tuple[int, int]:
        """What the budget has spent and holds."""
        standings = await self.hot.peek("default", [PROPOSAL])
        assert standings is not None
        [standing] = standings
        return standing.spent_nano, standing.held_nano


@pytest.fixture
async def scene(postgres_dsn: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    connection = ValkeyConnection(valkey_url)
    hot, directory = with_turned_clock(ValkeyHotState(connection)), ValkeyDirectory(connection)
    await turn_clock(connection, NOW_MS)
    async with running_control(postgres_dsn, tmp_path, hot, directory) as control:
        await control.context.publisher.reconcile()
        assert await hot.load("default", OrgImage({}, {}, {}, {}), "epoch-1")
        log = MemoryLog(dict.fromkeys(TOPICS, 1))
        yield Scene(control, hot, connection, log, Reaper(log, hot, directory, Told()))
    await connection.close()


async def is_booked_on_gateways(scene: Scene) -> bool:
    body = await scene.control.directory.snapshot("default")
    assert body is not None
    return decode_snapshot(body).book_expired


async def test_an_org_books_expired_holds_until_it_says_otherwise(scene: Scene) -> None:
    assert (await scene.control.ask("GET", "org"))["expired_holds"] == "booked"
    await scene.hold("txn_1")
    event = await scene.expire()
    assert (event.transaction_id, event.held_nano, event.booked_nano) == ("txn_1", HELD_NANO, HELD_NANO)
    assert await scene.figures() == (HELD_NANO, 0)
    await scene.settle_late("txn_1", 300)
    assert await scene.figures() == (300, 0)


async def test_the_reaper_does_as_the_org_says_when_a_hold_expires(scene: Scene) -> None:
    await scene.hold("txn_1")
    changed = await scene.change("released")
    assert changed["expired_holds"] == (await scene.control.ask("GET", "org"))["expired_holds"] == "released"
    assert await is_booked_on_gateways(scene) is False
    event = await scene.expire()
    assert (event.transaction_id, event.held_nano, event.booked_nano) == ("txn_1", HELD_NANO, 0)
    assert await scene.figures() == (0, 0)
    await scene.settle_late("txn_1", 300)
    assert await scene.figures() == (300, 0)
    await scene.hold("txn_2")
    await scene.change("booked")
    assert await is_booked_on_gateways(scene) is True
    assert (await scene.expire()).booked_nano == HELD_NANO


async def test_the_change_is_audited_and_leaves_the_other_settings(scene: Scene) -> None:
    await scene.control.ask("PATCH", "org", {"allow_unpriced_routes": True})
    before = await scene.control.ask("GET", "org")
    after = await scene.change("released")
    assert after == {**before, "expired_holds": "released", "config_version": before["config_version"] + 1}
    [entry] = (await scene.control.ask("GET", "audit?limit=1"))["entries"]
    assert (entry["action"], entry["target"], entry["config_version"]) == (
        "org.update",
        "default",
        after["config_version"],
    )
    assert (entry["before"]["expired_holds"], entry["after"]["expired_holds"]) == ("booked", "released")
    assert entry["actor"].startswith("key_")
    again = await scene.control.ask("PATCH", "org", {"allow_unpriced_routes": False})
    assert again["expired_holds"] == "released"


async def test_settings_that_are_so_already_make_no_version(scene: Scene) -> None:
    await scene.change("released")
    before = await scene.control.ask("GET", "org")
    audit = await scene.control.ask("GET", "audit")
    same = {name: before[name] for name in ("unknown_models", "allow_unpriced_routes", "expired_holds")}
    same["unknown_models"] = {"policy": before["unknown_models"]["policy"]}
    assert await scene.control.ask("PATCH", "org", same) == before == await scene.control.ask("GET", "org")
    assert await scene.control.ask("GET", "audit") == audit
    assert (await scene.control.ask("GET", "status"))["published"] is True
    assert (await scene.change("booked"))["config_version"] == before["config_version"] + 1


@pytest.mark.parametrize("value", ["book", "", True, 0])
async def test_no_other_word_is_taken(scene: Scene, value: Any) -> None:
    response = await scene.control.call("PATCH", "org", {"expired_holds": value})
    assert response.status_code == 400, response.text
    error = ErrorAnswer.model_validate_json(response.content, strict=True)
    assert (error.error, error.field) == ("invalid_request", "expired_holds")
    assert "booked" in error.message
    assert "released" in error.message
