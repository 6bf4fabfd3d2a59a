"""What the reservation API tells beside the figures: how it stands, until when, and whether to ask again."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.adapters.memory_answers import MemoryAnswers
from services.core.codec_fields import parse_time
from services.core.hotstate import TOMBSTONE_MS
from services.core.windows import CalendarWindow
from tests.support.gateway import World, world
from tests.support.reservations import Ledger, get, post, reserve


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, relay_transport=Ledger()) as made:
        yield made


@pytest.mark.parametrize(
    ("body", "state"),
    [
        ({"cost_usd": "0.10", "outcome": "cancelled"}, "settled"),
        ({"cost_usd": "0", "outcome": "cancelled"}, "released"),
        ({"cost_usd": "0"}, "settled"),
    ],
)
async def test_only_what_was_cancelled_and_has_cost_nothing_is_told_as_released(
    there: World, body: dict[str, str], state: str
) -> None:
    path = f"/{(await reserve(there)).json()['reservation_id']}"
    assert (await post(there, path + "/settle", body)).json()["state"] == state
    assert (await get(there, path[1:])).json()["state"] == state


async def test_what_an_extension_leaves_out_stays_as_it_is(there: World) -> None:
    held = (await reserve(there, hold_seconds=600)).json()
    path = f"/{held['reservation_id']}/extend"
    there.clock.now_ms += 100_000
    await there.sync()
    grown = (await post(there, path, {"amount_usd": "0.50"})).json()
    # The gateway's clock is an estimate, so the time that is left is, too.
    assert abs(parse_time(grown["expires_at"]) - parse_time(held["expires_at"])) < 1_000
    longer = (await post(there, path, {"hold_seconds": 900})).json()
    assert longer["held_usd"] == "0.500000000"
    assert parse_time(longer["expires_at"]) == there.clock.now_ms + 900_000


async def test_a_refusal_says_whether_to_ask_again_and_when(there: World) -> None:
    """As that of a call does. Under a key there is no other answer to be had."""
    await there.org.set_budget("1.00", window=CalendarWindow("hour", "UTC"))
    await there.sync()

    async def told(amount: str, key: str | None = None, path: str = "") -> tuple[str | None, str | None]:
        headers = {} if key is None else {"idempotency_key": key}
        refused = await post(there, path, {"amount_usd": amount}, **headers)
        assert refused.status == 402
        return refused.header("retry-after"), refused.header("x-should-retry")

    name = (await reserve(there, "0.60")).json()["reservation_id"]
    extend = f"/{name}/extend"
    assert await told("1.01") == (None, "false")
    assert await told("0.50") == ("1", None), "but for what is held there is room"
    assert await told("0.50", "order-1") == (None, "false")
    assert await told("1.01", None, extend) == (None, "false")
    other = (await reserve(there, "0.30")).json()["reservation_id"]
    assert await told("0.80", None, extend) == ("1", None)
    assert await told("0.80", "more", extend) == await told("0.80", "more", extend) == (None, "false")
    hour_ms = 3_600_000
    state = there.hot_state.store.state("default")
    (figures,) = state.windows.values()
    figures.spent_nano = 700_000_000
    await post(there, f"/{other}/release")
    assert await told("0.50") == (None, "false"), "the hour's end is long away"
    there.clock.now_ms += hour_ms - there.clock.now_ms % hour_ms - 30_000
    await there.sync()
    await reserve(there, "0.01")
    assert await told("0.50") == ("30", "false")
    assert await told("0.50", "order-2") == ("30", "false")
    there.clock.now_ms += 40_000
    await there.sync()
    await reserve(there, "0.01")
    assert await told("0.50", "order-2") == (None, "false"), "that is past, and the answer stays"


async def test_an_end_that_was_lost_beside_the_hot_state_is_told_as_the_ledger_has_it(tmp_path: Path) -> None:
    """As when a server has lost its last writes. Another end would be ignored, so it must not be told as the one."""
    ledger = Ledger()
    async with world(tmp_path, relay_transport=ledger) as there:
        name = (await reserve(there, hold_seconds=86_400)).json()["reservation_id"]
        ended = await post(there, f"/{name}/settle", {"cost_usd": "0.10"})
        assert isinstance(there.ports.answers, MemoryAnswers)
        del there.ports.answers._kept["default", f"{name}/end"]
        ledger.events = there.events()
        there.clock.now_ms += TOMBSTONE_MS // 2 + 1_000
        await there.sync()
        assert (await post(there, f"/{name}/settle", {"cost_usd": "0.20"})).status == 409
        assert (await post(there, f"/{name}/settle", {"cost_usd": "0.10"})).json() == ended.json()
        assert there.settlement().cost_nano == 100_000_000
