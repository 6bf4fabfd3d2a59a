"""The official clients in a stream that is ended for want of room: each is told, in its own way, and asks no more."""

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from services.core.budgets import Budget
from services.core.events import HoldResized, Reservation, Settlement
from services.core.money import parse_usd
from services.core.snapshot import Overrides
from tests.support.client_scenarios import HOMES
from tests.support.client_world import client_world
from tests.support.clients import CLIENTS, MODELS, ask, drive
from tests.support.gateway import DAY, recorded, until
from tests.support.vendors import Answer
from tests.support.vendors.server import Received

# A step is 4,096 tokens of $10 a million: there is room for one, and for a small part of another.
LIMIT: Final = "0.050000000"
MOST_WORDS: Final = 4_000
# What beside their own a client sends, so that the model's maximum is all that bounds its answer.
UNLIMITED: Final = {"anthropic": {"extra_body": {"compaction": {"type": "enabled"}}}}
EXCEPTIONS: Final = {
    "openai": "APIError",
    "anthropic": "APIStatusError",
    "google-genai": "ClientError",
    "mistralai": "ResponseValidationError",
}


@pytest.mark.parametrize("name", [*EXCEPTIONS, "cohere"])
def test_a_stream_that_is_cut_off_is_the_clients_own_error(name: str) -> None:
    # A thread of its own, because a test may have an event loop going already.
    with tempfile.TemporaryDirectory(prefix="farthing-clients-") as place, ThreadPoolExecutor(1) as thread:
        outcome, events, arrivals = thread.submit(asyncio.run, run(name, Path(place))).result()
    held, *grown, settlement = events
    assert isinstance(held, Reservation)
    assert held.estimate_mode == "stepped"
    assert [type(each) for each in grown] == [HoldResized], "what there was room for was used"
    assert isinstance(settlement, Settlement)
    assert settlement.outcome == "cut_off"
    assert settlement.cost_nano <= settlement.held_nano <= parse_usd(LIMIT)
    assert arrivals == 1, "nobody asks again"
    assert 0 < outcome["chunks"] < MOST_WORDS
    if name == "cohere":
        # A stream of Cohere's ends in an error without an exception.
        assert (outcome["ok"], outcome["data"]) == (True, {"finish_reason": "ERROR"})
        return
    assert not outcome["ok"]
    assert outcome["exception"].rpartition(".")[2] == EXCEPTIONS[name], outcome
    assert "budget bud_thrifty of team:thrifty has $" in str(outcome["message"]) + str(outcome["body"])
    if name == "openai":
        assert (outcome["code"], outcome["type"]) == ("budget_exhausted", "insufficient_quota")
        assert outcome["body"]["budget_id"] == "bud_thrifty"
        assert outcome["body"]["transaction_id"] == settlement.transaction_id


async def run(name: str, place: Path) -> tuple[dict[str, Any], list[Any], int]:
    """What a client made of it, what was recorded, and how many requests it made."""
    vendor = CLIENTS[name].vendor
    async with client_world(vendor, place) as world:
        price = {
            "vendor": vendor,
            "model": MODELS[vendor][""],
            "prices": [{"usd": {"input": "0.001000000", "output": "10.000000000"}}],
            "max_output_tokens": 100_000,
            "context_window": 200_000,
        }
        thrifty = Budget("bud_thrifty", "team", "thrifty", DAY, parse_usd(LIMIT), extend=True)
        await world.org.publish(overrides=Overrides("ov_cut", (price,)), budgets=(thrifty,))
        key = await world.org.make_key(team="thrifty")
        await world.live()

        def talkative(request: Received) -> Answer:
            answer = world.vendor.responder(request)
            middle = len(answer.pieces) // 2
            repeated = (answer.pieces[middle],) * MOST_WORDS
            return replace(answer, pieces=(*answer.pieces[:middle], *repeated, *answer.pieces[middle + 1 :]))

        world.vendor.otherwise = talkative
        asked = ask(name, "stream", world.gateway.url, key, HOMES.get(vendor, ""), request=UNLIMITED.get(name, {}))
        (outcome,) = await asyncio.to_thread(drive, name, [asked], 60)
        await until(lambda: any(isinstance(each, Settlement) for each in recorded(world.outbox)))
        return outcome, recorded(world.outbox), sum(world.arrivals.values())
