"""What a reservation's holder is told when the hot state does not decide."""

from pathlib import Path

import pytest

from services.core.hotstate import StaleWindow
from tests.support.gateway import world
from tests.support.reservations import Ledger, post, reserve


@pytest.mark.parametrize("deed", ["reserve", "resize"])
async def test_windows_that_turn_over_again_and_again_are_not_said_to_be_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    async with world(tmp_path, relay_transport=Ledger()) as there:
        await there.org.set_budget("1.00")
        await there.sync()
        reservation_id = (await reserve(there)).json()["reservation_id"]

        async def stale(_request: object) -> StaleWindow:
            return StaleWindow(there.org.snapshot.version, there.clock.now_ms)

        monkeypatch.setattr(there.hot_state, deed, stale)
        if deed == "reserve":
            told = await reserve(there)
        else:
            told = await post(there, f"/{reservation_id}/extend", {"amount_usd": "0.50"})
        assert (told.status, told.json()["error"]) == (503, "state_rebuilding")
        assert "windows are turning over" in told.json()["message"]
