"""A call that lasts longer than its hold lives keeps it: renewed in time, on record, by one sweep for all (BU-5)."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.adapters.outbox import SqliteOutbox
from services.core.events import HoldResized, Reservation, Settlement
from services.core.hotstate import OrgImage
from services.core.ports import NotSentError, UnavailableError
from services.core.snapshot import Overrides, RouteRule, Target
from services.gateway import forward, renew
from tests.support.asgi import Client, scope_of
from tests.support.gateway import CHAT_PATH, RefusingOutbox, ScriptedAnswer, World, chat, until, world
from tests.support.growing import (
    DONE,
    MOST_TOKENS,
    SlowHotState,
    asking,
    begin,
    budget,
    fold_all,
    reservation,
    resizes,
    set_budgets,
    streamed,
    text,
    usage,
)
from tests.support.timing import CallClock

PLENTY = 10**12
HOLD_S = 900
DAY_MS = 86_400_000
WHOLE = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}'


@pytest.fixture
def call_clock(monkeypatch: pytest.MonkeyPatch) -> CallClock:
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", (0.0, 0.0))
    return CallClock(monkeypatch)


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, hot_state_type=SlowHotState) as made:
        await set_budgets(made, budget(PLENTY, extend=False))
        yield made


def slow(there: World) -> SlowHotState:
    assert isinstance(there.hot_state, SlowHotState)
    return there.hot_state


async def turn(there: World, clock: CallClock, seconds: float) -> None:
    """Lets time pass for everyone, and the sweep look after it."""
    clock.move(seconds)
    there.clock.now_ms += int(seconds * 1000)
    there.assembly.holds.sweep()
    await there.assembly.holds.finish()


async def waiting(there: World, body: object) -> tuple[asyncio.Event, asyncio.Task[None]]:
    """A call whose vendor says no more until the event is set."""
    gate = asyncio.Event()
    if body == chat():
        there.answer(ScriptedAnswer([WHOLE[:5], gate, WHOLE[5:]]))
    else:
        there.answer(streamed(text(5), gate, usage(5), DONE))
    _, calling = begin(there, body)
    await until(lambda: there.vendor.requests)
    for _ in range(20):
        await asyncio.sleep(0)
    return gate, calling


every_kind = pytest.mark.parametrize("body", [chat(), chat(stream=True)], ids=["whole", "stream"])


@every_kind
async def test_a_call_longer_than_its_holds_life_keeps_its_hold(
    there: World, call_clock: CallClock, body: object
) -> None:
    gate, calling = await waiting(there, body)
    held = reservation(there)
    for _ in range(40):
        await turn(there, call_clock, 100)
        assert await there.hot_state.claim_due("default", 10) == (), "no reaper takes it for dead"
    assert there.held_nano() == held.held_nano
    gate.set()
    await calling
    settlement = there.settlement()
    assert (settlement.outcome, settlement.held_nano) == ("completed", held.held_nano)
    # Every 300 seconds, and seen to every 100.
    assert 12 <= len(resizes(there)) <= 14
    last = resizes(there)[-1]
    assert {(each.held_nano, each.charges) for each in resizes(there)} == {(held.held_nano, held.charges)}
    assert last.expires_at_ms == last.time_ms + HOLD_S * 1000


async def test_a_short_call_renews_nothing(there: World, call_clock: CallClock) -> None:
    gate, calling = await waiting(there, chat())
    await turn(there, call_clock, 299)
    assert slow(there).resized == []
    gate.set()
    await calling
    await turn(there, call_clock, 10_000)
    assert slow(there).resized == [], "what has ended is looked after no more"


async def test_a_renewal_is_refused_by_no_budget(there: World, call_clock: CallClock) -> None:
    gate, calling = await waiting(there, chat())
    await set_budgets(there, budget(1))
    await turn(there, call_clock, 301)
    assert len(resizes(there)) == 1
    assert resizes(there)[0].charges == reservation(there).charges
    gate.set()
    await calling


async def test_a_renewal_keeps_the_window_that_its_call_was_admitted_in(there: World, call_clock: CallClock) -> None:
    there.clock.now_ms = (there.clock.now_ms // DAY_MS + 1) * DAY_MS - 60_000
    await there.sync()
    gate, calling = await waiting(there, chat())
    await turn(there, call_clock, 301)
    await there.sync()
    await turn(there, call_clock, 301)
    assert [each.charges for each in resizes(there)] == [reservation(there).charges] * 2
    assert there.held_nano() == reservation(there).held_nano
    gate.set()
    await calling


async def test_a_renewed_call_is_still_known_to_be_paid_by_a_parent(there: World, call_clock: CallClock) -> None:
    parent = budget(PLENTY, extend=False)
    child = budget(1, "team", "ml", extend=False, parent_id=parent.budget_id, child_mode="fallback")
    await set_budgets(there, parent, child)
    gate, calling = await waiting(there, chat())
    assert reservation(there).parent_charged == (child.budget_id,)
    await turn(there, call_clock, 301)
    gate.set()
    await calling
    assert len(resizes(there)) == 1
    assert there.settlement().parent_charged == (child.budget_id,)


async def test_a_hot_state_that_is_away_is_asked_again_before_the_hold_is_over(
    there: World, call_clock: CallClock
) -> None:
    gate, calling = await waiting(there, chat())
    slow(there).is_away = True
    for _ in range(5):
        await turn(there, call_clock, 61)
    tries = len(slow(there).resized)
    for _ in range(4):
        await turn(there, call_clock, 1)
    assert len(slow(there).resized) == tries == 1, "but not every second"
    await turn(there, call_clock, 31)
    assert len(slow(there).resized) == 2
    slow(there).is_away = False
    await turn(there, call_clock, 31)
    assert len(resizes(there)) == 1
    gate.set()
    await calling


async def test_a_call_whose_hold_is_gone_goes_on_and_its_settlement_corrects_that(
    there: World, call_clock: CallClock
) -> None:
    gate, calling = await waiting(there, chat())
    there.clock.now_ms += 901_000
    assert len(await there.hot_state.claim_due("default", 10)) == 1
    for _ in range(5):
        await turn(there, call_clock, 301)
    assert len(slow(there).resized) == 1, "it is asked for once"
    assert resizes(there) == []
    gate.set()
    await calling
    assert there.settlement().outcome == "completed"


async def test_a_renewal_that_cannot_be_recorded_stops_nothing(tmp_path: Path, call_clock: CallClock) -> None:
    outbox = SqliteOutbox(tmp_path / "own.sqlite", 100)
    away = UnavailableError("the disk is gone")
    refusing = RefusingOutbox(outbox, lambda each: away if isinstance(each, HoldResized) else None)
    async with world(tmp_path, recorder=refusing) as there:
        there.outbox = outbox
        await set_budgets(there, budget(PLENTY))
        gate, calling = await waiting(there, chat())
        await turn(there, call_clock, 301)
        gate.set()
        await calling
        assert there.settlement().outcome == "completed"
    outbox.close()


async def test_calls_that_wait_for_their_head_are_looked_after_too(there: World, call_clock: CallClock) -> None:
    there.vendor.head_at = asyncio.Event()
    there.answer(ScriptedAnswer([WHOLE]))
    _, calling = begin(there, chat())
    await until(lambda: there.vendor.requests)
    await turn(there, call_clock, 301)
    assert len(resizes(there)) == 1
    there.vendor.head_at.set()
    await calling


async def test_a_renewal_never_undoes_an_extension(there: World, call_clock: CallClock) -> None:
    """Both are under way at once: the later one knows of the earlier."""
    await set_budgets(there, budget(PLENTY))
    gate = asyncio.Event()
    there.answer(streamed(text(2_500), gate, usage(600), DONE))
    slow(there).gate.clear()
    client, calling = begin(there, asking())
    await until(lambda: len(slow(there).resized) == 1)
    call_clock.move(301)
    there.assembly.holds.sweep()
    await asyncio.sleep(0.01)
    assert len(slow(there).resized) == 1, "the second waits for the first"
    slow(there).gate.set()
    await until(lambda: len(resizes(there)) >= 2)
    amounts = [each.amount_nano for each in slow(there).resized]
    assert amounts == sorted(amounts)
    assert there.held_nano() == amounts[-1] > reservation(there).held_nano
    gate.set()
    await calling
    assert client.content.endswith(DONE)


async def test_batches_keep_the_life_they_were_held_for(there: World, call_clock: CallClock) -> None:
    body = {"model": "gpt-4o-mini", "input": "Hello", "background": True, "max_output_tokens": 100}
    there.answer(ScriptedAnswer([orjson.dumps({"id": "resp_1", "status": "queued", "model": "gpt-4o-mini"})]))
    there.vendor.head_at = asyncio.Event()
    _, calling = begin(there, body, "/v1/responses")
    await until(lambda: there.vendor.requests)
    held = [each for each in there.events() if isinstance(each, Reservation)][-1]
    assert held.expires_at_ms == there.clock.now_ms + 2 * 3_600_000
    await turn(there, call_clock, 3_000)
    assert slow(there).resized == []
    there.vendor.head_at.set()
    await calling


async def test_the_sweep_goes_on_by_itself(
    there: World, call_clock: CallClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renew, "SWEEP_S", 0.001)
    sweeping = asyncio.create_task(there.assembly.holds.run())
    gate, calling = await waiting(there, chat())
    call_clock.move(301)
    await until(lambda: resizes(there))
    gate.set()
    await calling
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)


async def test_a_call_that_another_vendor_answers_is_renewed_as_its(there: World, call_clock: CallClock) -> None:
    await there.org.connect("second", "https://second.test/v1")
    rule = RouteRule("openai", fallbacks=(Target("second", "gpt-4o"),))
    overrides = Overrides(
        "ov_1", ({"vendor": "openai", "model": "gpt-4o", "prices": [{"usd": {"input": "5", "output": "20"}}]},)
    )
    await there.org.publish(rules=(rule,), overrides=overrides)
    await there.sync()
    gate = asyncio.Event()
    there.answer(NotSentError("down"), NotSentError("down"), NotSentError("down"))
    there.answer(ScriptedAnswer([WHOLE[:5], gate, WHOLE[5:]]))
    _, calling = begin(there, chat())
    await until(lambda: len(there.vendor.requests) == 4)
    await until(lambda: resizes(there))
    moved = resizes(there)[0]
    assert moved.facts.vendor == "second"
    await asyncio.sleep(0.01)
    await turn(there, call_clock, 301)
    renewed = resizes(there)[-1]
    assert len(resizes(there)) == 2
    assert (renewed.facts, renewed.held_nano, renewed.charges) == (moved.facts, moved.held_nano, moved.charges)
    gate.set()
    await calling
    assert there.settlement().held_nano == moved.held_nano


async def test_an_extension_for_a_vendor_that_has_failed_leaves_the_hold_to_the_next_one(
    there: World, call_clock: CallClock
) -> None:
    """It has waited while the hold was moved, and its amount is by the prices of the vendor before."""
    await there.org.connect("second", "https://second.test/v1")
    dear = {"vendor": "openai", "model": "dear", "prices": [{"usd": {"input": "5", "output": "20"}}]}
    overrides = Overrides("ov_1", ({**dear, "max_output_tokens": MOST_TOKENS},))
    await there.org.publish(rules=(RouteRule("openai", fallbacks=(Target("second", "dear"),)),), overrides=overrides)
    await set_budgets(there, budget(PLENTY))
    gate = asyncio.Event()
    there.answer(NotSentError("down"), NotSentError("down"), NotSentError("down"))
    there.answer(streamed(text(5), gate, usage(5), DONE))
    slow(there).gate.clear()
    client, calling = begin(there, asking())
    await until(lambda: slow(there).resized)
    call_clock.move(10)  # 2,500 tokens may have been thought
    there.assembly.holds.sweep()
    slow(there).gate.set()
    await until(lambda: client.chunks)
    assert len(slow(there).resized) == 1
    (moved,) = resizes(there)
    assert moved.held_nano > reservation(there).held_nano
    gate.set()
    await calling
    assert there.settlement().held_nano == there.held_nano() == moved.held_nano


async def test_a_settled_call_whose_client_is_slow_to_take_its_end_holds_nothing(
    there: World, call_clock: CallClock
) -> None:
    there.answer(streamed(text(5), usage(5), DONE))
    client, gate = Client(body=(orjson.dumps(chat(stream=True)),)), asyncio.Event()

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            await gate.wait()
        await client.send(message)

    scope = scope_of(CHAT_PATH, there.headers())
    calling = asyncio.ensure_future(there.assembly.app(scope, client.receive, send))
    await until(lambda: any(isinstance(each, Settlement) for each in there.events()))
    await turn(there, call_clock, 301)
    gate.set()
    await calling
    assert slow(there).resized == []


async def test_a_state_that_is_rebuilt_from_the_log_knows_of_renewals_and_extensions(
    there: World, call_clock: CallClock
) -> None:
    await set_budgets(there, budget(PLENTY))
    gate = asyncio.Event()
    there.answer(streamed(text(2_500), text(5), gate, usage(600), DONE))
    _, calling = begin(there, asking())
    await until(lambda: resizes(there))
    await turn(there, call_clock, 301)
    known = there.hot_state.store.state("default").holds[reservation(there).transaction_id]
    assert known.expires_at_ms == there.clock.now_ms + HOLD_S * 1000
    there.hot_state.store.states.clear()
    await there.hot_state.load("default", OrgImage({}, {}, {}, {}), "epoch-2")
    await fold_all(there)
    rebuilt = there.hot_state.store.state("default").holds[reservation(there).transaction_id]
    assert (rebuilt.amount_nano, rebuilt.expires_at_ms) == (known.amount_nano, known.expires_at_ms)
    assert rebuilt.amount_nano > reservation(there).held_nano
    gate.set()
    await calling
