"""What a refusal says of waiting: when a budget resets, that its room is only held, or that it never has enough."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.budgets import Standing
from services.core.codec_fields import format_time
from services.core.hotstate import Ring
from services.core.money import format_usd
from services.core.windows import LifetimeWindow, RollingWindow, Window
from services.gateway.deny import outlook
from tests.support.budgets import DAY, ask, budget, hold_of, priced_world, set_budgets, spend
from tests.support.gateway import World, assert_refused
from tests.support.reservations import Ledger, post

ROLLING = RollingWindow(3_600_000)
STEP_MS = 60_000


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with priced_world(tmp_path, relay_transport=Ledger()) as made:
        yield made


def spend_in_ring(there: World, budget_id: str, *spent: tuple[int, int]) -> None:
    """Has a rolling budget spend so many nano-dollars so many steps ago each, and hold nothing."""
    state, now_step = there.hot_state.store.state(there.org.name), there.clock.now_ms // STEP_MS
    buckets = {now_step - steps: nano for nano, steps in spent}
    state.rings[budget_id, STEP_MS, 60] = Ring(now_step - 60, sum(buckets.values()), 0, buckets)


async def test_a_rolling_budget_resets_when_enough_has_left_it(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_r", window=ROLLING, limit_nano=2 * dear))
    spend_in_ring(there, "bud_r", (dear // 2, 50), (dear, 40), (dear // 2, 5))
    client = await ask(there)
    error = client.json()["error"]
    enough_at_ms = (there.clock.now_ms // STEP_MS - 40 + 61) * STEP_MS
    assert error["retry_at"] == error["resets_at"] == format_time(enough_at_ms)
    assert_refused(client, 402, "budget_exhausted", f"it resets at {format_time(enough_at_ms)}")
    told = (await post(there, body={"amount_usd": format_usd(dear)})).json()
    assert told["retry_at"] == told["resets_at"] == format_time(enough_at_ms)
    assert told["message"].endswith(f"it resets at {format_time(enough_at_ms)}")
    there.clock.now_ms = enough_at_ms - 1
    assert (await ask(there)).status == 402
    there.clock.now_ms = enough_at_ms
    assert (await ask(there)).status == 200


@pytest.mark.parametrize("window", [ROLLING, DAY, LifetimeWindow()])
@pytest.mark.parametrize("is_nothing", [True, False])
async def test_a_limit_that_the_call_never_fits_says_that_waiting_brings_nothing(
    there: World, window: Window, is_nothing: bool
) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_s", window=window, limit_nano=0 if is_nothing else dear - 1))
    client = await ask(there)
    assert_refused(client, 402, "budget_exhausted", "waiting brings nothing")
    told = (await post(there, body={"amount_usd": format_usd(dear)})).json()
    error = client.json()["error"]
    for fields in (error, told):
        assert fields["message"].endswith("waiting brings nothing")
        assert "resets at" not in fields["message"]
        assert "retry_at" not in fields
        assert (fields["resets_at"] is None) is (window != DAY)


async def test_a_budget_in_the_way_that_is_only_held_up_does_not_say_that_it_resets(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_r", window=ROLLING, limit_nano=dear), budget("bud_d", limit_nano=dear))
    await ask(there)
    client = await ask(there)
    assert_refused(client, 402, "budget_exhausted", "is held by other calls")
    told = (await post(there, body={"amount_usd": format_usd(dear)})).json()
    assert told["message"].endswith("is held by other calls and may come free shortly")
    assert told["remaining_usd"] == format_usd(0), "what is held is not left"
    assert (told["limit_usd"], told["held_usd"]) == (format_usd(dear), format_usd(dear))


async def test_the_one_that_is_told_of_may_be_held_up_while_another_has_to_be_waited_for(there: World) -> None:
    dear = await hold_of(there, "dear")
    await set_budgets(there, budget("bud_a", window=ROLLING, limit_nano=dear), budget("bud_b", limit_nano=10 * dear))
    await ask(there)
    spend(there, "bud_b", 9 * dear)
    client = await ask(there)
    assert_refused(client, 402, "budget_exhausted", "bud_a", "is held by other calls")
    assert client.header("x-should-retry") == "false"
    assert client.json()["error"]["retry_at"] == "2025-10-10T00:00:00.000Z"


def test_a_window_that_is_over_gets_no_more_room() -> None:
    """A hold that is to grow is in the window of its beginning."""
    full = Standing("bud_d", "org:default", 10, 10, 0, resets_at_ms=5_000)
    assert outlook(full, 1, 4_999) == "it resets at 1970-01-01T00:00:05.000Z"
    assert outlook(full, 1, 5_000) == "its window is over, so waiting brings nothing"
