"""A stream that names no limit is held step by step, and ended before it costs more than its budgets have (BU-6)."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.adapters.outbox import SqliteOutbox
from services.core.events import HoldResized, Reservation
from services.core.money import format_usd
from services.core.ports import OutboxFullError
from services.gateway.sizing import STEP_TOKENS
from tests.support.asgi import Client, scope_of
from tests.support.gateway import AWAY, CHAT_PATH, RefusingOutbox, ScriptedAnswer, World, chat, until, world
from tests.support.growing import (
    DONE,
    MOST_TOKENS,
    OUTPUT_NANO,
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
STEP_NANO = STEP_TOKENS * OUTPUT_NANO


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, hot_state_type=SlowHotState) as made:
        await set_budgets(made, budget(PLENTY))
        yield made


def slow(there: World) -> SlowHotState:
    assert isinstance(there.hot_state, SlowHotState)
    return there.hot_state


async def input_nano(there: World) -> int:
    """What the input of these tests' requests is held at."""
    there.answer(streamed(usage(1), DONE))
    await there.call(asking())
    held = [each for each in there.events() if isinstance(each, Reservation)][-1].held_nano
    state = there.hot_state.store.state("default")
    state.windows.clear()
    state.holds.clear()
    state.due.clear()
    there.outbox.forget(10**9)
    there.vendor.requests.clear()
    return held - STEP_NANO


def assert_cut(there: World, content: bytes, sent: bytes, code: str = "budget_exhausted") -> dict[str, Any]:
    """The error that ended a stream after `sent`; what its settlement says is checked on the way."""
    settlement = there.settlement()
    assert settlement.outcome == "cut_off"
    assert settlement.cost_nano <= settlement.held_nano
    assert content.startswith(sent)
    told = content[len(sent) :].strip()
    assert told.startswith(b"data: ")
    error: dict[str, Any] = orjson.loads(told.removeprefix(b"data: "))["error"]
    assert error["code"] == code
    assert error["transaction_id"] == settlement.transaction_id
    return error


# ---- what is held -------------------------------------------------------------------------------------------------


async def test_a_stream_without_a_limit_is_held_at_a_step(there: World) -> None:
    there.answer(streamed(text(9), usage(2), DONE))
    await there.call(asking())
    held, settlement = reservation(there), there.settlement()
    assert (held.estimate_mode, settlement.estimate_mode) == ("stepped", "stepped")
    # The bound is told all the same: what the step leaves out is the rest of the model's longest answer.
    assert held.output_tokens_bound == MOST_TOKENS
    there.answer(ScriptedAnswer([b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}']))
    await there.call({name: value for name, value in asking().items() if name not in ("stream", "stream_options")})
    whole = [each for each in there.events() if isinstance(each, Reservation)][-1]
    assert whole.estimate_mode == "strict"
    least_nano = (whole.input_tokens_bound - held.input_tokens_bound) * OUTPUT_NANO
    assert abs(whole.held_nano - held.held_nano - (MOST_TOKENS - STEP_TOKENS) * OUTPUT_NANO - least_nano) < STEP_NANO
    assert held.held_nano < STEP_NANO + held.input_tokens_bound * OUTPUT_NANO
    assert resizes(there) == [], "a short answer needs no more"


@pytest.mark.parametrize(
    ("body", "changes", "mode"),
    [
        (asking(), [{}], "stepped"),
        (asking(n=3), [{}], "stepped"),
        (asking(), [{}, {"kind": "team", "value": "ml"}], "stepped"),
        (asking(), [{}, {"kind": "team", "value": "ml", "extend": False}], "strict"),
        (asking(), [{}, {"kind": "team", "value": "ml", "extend": False, "enforcement": "monitor"}], "stepped"),
        (asking(), [{}, {"kind": "team", "value": "ml", "extend": False, "when_full": "alert"}], "stepped"),
        (asking(), [{}, {"kind": "team", "value": "ops", "extend": False}], "stepped"),
        (asking(), [{"enforcement": "monitor"}], "strict"),
        (asking(), [{"extend": False}], "strict"),
        (asking(), [], "strict"),
        (asking(max_tokens=9_000), [{}], "strict"),
        (chat(), [{}], "strict"),
    ],
)
async def test_a_step_is_held_only_where_it_can_be_extended_and_every_budget_lets_it(
    there: World, body: dict[str, Any], changes: list[dict[str, Any]], mode: str
) -> None:
    await set_budgets(there, *(budget(PLENTY, **each) for each in changes))
    there.answer(streamed(usage(1), DONE))
    await there.call(body)
    assert reservation(there).estimate_mode == mode


async def test_a_step_that_does_not_fit_is_refused_and_never_made_smaller(there: World) -> None:
    least_nano = await input_nano(there)
    await set_budgets(there, budget(least_nano + STEP_NANO - 1))
    client = await there.call(asking())
    assert client.status == 402
    assert client.json()["error"]["estimate_usd"] == format_usd(least_nano + STEP_NANO)
    assert there.held_nano() == 0
    await set_budgets(there, budget(least_nano + STEP_NANO))
    there.answer(streamed(usage(1), DONE))
    assert (await there.call(asking())).status == 200


# ---- extension ----------------------------------------------------------------------------------------------------


async def test_a_long_stream_extends_its_hold_step_by_step(there: World) -> None:
    pieces = [text(500) for _ in range(24)]
    there.answer(streamed(*pieces, usage(3_000), DONE))
    client = await there.call(asking())
    assert client.content == b"".join([*pieces, usage(3_000), DONE])
    settlement, held = there.settlement(), reservation(there).held_nano
    assert settlement.outcome == "completed"
    grown = [each.held_nano for each in resizes(there)]
    # 12,000 bytes are 12,000 tokens at most: begun at 2,048, 6,144 and 10,240.
    assert grown == [held + STEP_NANO, held + 2 * STEP_NANO, held + (MOST_TOKENS - STEP_TOKENS) * OUTPUT_NANO]
    assert settlement.held_nano == grown[-1] == there.held_nano()
    assert settlement.charges == reservation(there).charges == resizes(there)[-1].charges
    assert resizes(there)[0].expires_at_ms == there.clock.now_ms + 900_000


async def test_the_whole_bound_is_the_most_that_is_held(there: World) -> None:
    there.answer(streamed(*(text(1000) for _ in range(60)), usage(15_000), DONE))
    await there.call(asking())
    assert resizes(there)[-1].held_nano == reservation(there).held_nano + (MOST_TOKENS - STEP_TOKENS) * OUTPUT_NANO
    assert len(resizes(there)) == 3, "once all is held there is nothing more to ask for"
    assert there.settlement().outcome == "completed"


async def test_nothing_waits_for_an_extension_while_there_is_margin(there: World) -> None:
    slow(there).gate.clear()
    gate = asyncio.Event()
    there.answer(streamed(text(2_100), text(1_900), gate, text(200), usage(1_000), DONE))
    client, calling = begin(there)
    await until(lambda: len(client.chunks) == 2)
    assert len(slow(there).resized) == 1, "it has begun beside the stream"
    gate.set()
    await asyncio.sleep(0.02)
    assert len(client.chunks) == 2, "4,200 tokens are more than is held: only now does it wait"
    slow(there).gate.set()
    await calling
    assert client.content == b"".join([text(2_100), text(1_900), text(200), usage(1_000), DONE])
    assert there.settlement().outcome == "completed"


async def test_a_stream_without_room_ends_with_an_error_and_costs_no_more_than_it_held(there: World) -> None:
    least_nano = await input_nano(there)
    await set_budgets(there, budget(least_nano + STEP_NANO))
    answer = streamed(text(4_000), text(90), text(90), text(90), usage(9_999), DONE)
    there.answer(answer)
    client = await there.call(asking())
    error = assert_cut(there, client.content, text(4_000) + text(90))
    assert error["budget_id"] == there.org.snapshot.budgets[0].budget_id
    assert error["limit_usd"] == format_usd(least_nano + STEP_NANO)
    assert error["message"].startswith(f"budget {error['budget_id']} of org:default has $")
    assert error["type"] == "insufficient_quota"
    assert client.ended
    assert answer.closed
    settlement = there.settlement()
    assert (settlement.usage_source, settlement.http_status) == ("estimated", 200)
    assert settlement.usage["output_tokens"] == STEP_TOKENS
    assert settlement.cost_nano == settlement.held_nano == least_nano + STEP_NANO
    assert there.held_nano() == settlement.held_nano


async def test_a_smaller_step_is_taken_where_there_is_no_room_for_a_whole_one(there: World) -> None:
    least_nano = await input_nano(there)
    await set_budgets(there, budget(least_nano + STEP_NANO + 1_000 * OUTPUT_NANO))
    pieces = [text(500) for _ in range(12)]
    there.answer(streamed(*pieces, usage(9_999), DONE))
    client = await there.call(asking())
    assert_cut(there, client.content, b"".join(pieces[:10]))
    assert [each.held_nano for each in resizes(there)] == [least_nano + STEP_NANO + 1_000 * OUTPUT_NANO]
    assert there.settlement().usage["output_tokens"] == STEP_TOKENS + 1_000


async def test_a_smaller_step_is_one_that_every_budget_has_room_for(there: World) -> None:
    least_nano = await input_nano(there)
    tight_nano = least_nano + STEP_NANO + 1_000 * OUTPUT_NANO
    await set_budgets(there, budget(tight_nano + 500 * OUTPUT_NANO), budget(tight_nano))
    there.answer(streamed(*(text(500) for _ in range(12)), usage(9_999), DONE))
    await there.call(asking())
    assert [each.held_nano for each in resizes(there)] == [tight_nano]


async def test_a_stream_that_ends_within_its_hold_is_none_the_worse_for_a_refusal(there: World) -> None:
    least_nano = await input_nano(there)
    await set_budgets(there, budget(least_nano + STEP_NANO))
    there.answer(streamed(*(text(500) for _ in range(8)), usage(1_000), DONE))
    client = await there.call(asking())
    assert client.content.endswith(DONE)
    assert there.settlement().outcome == "completed"
    assert resizes(there) == []


async def test_room_that_comes_free_is_found_at_the_end_of_the_hold(there: World) -> None:
    least_nano = await input_nano(there)
    await set_budgets(there, budget(least_nano + STEP_NANO))
    gate = asyncio.Event()
    there.answer(streamed(text(3_000), gate, text(3_000), usage(2_000), DONE))
    client, calling = begin(there)
    await until(lambda: len(slow(there).resized) >= 1 and client.chunks)
    await set_budgets(there, replace(there.org.snapshot.budgets[0], limit_nano=PLENTY))
    gate.set()
    await calling
    assert there.settlement().outcome == "completed"
    assert len(resizes(there)) == 1


async def test_a_limit_lowered_meanwhile_counts_and_a_removed_budget_does_not(there: World) -> None:
    least_nano = await input_nano(there)
    tight = budget(least_nano + STEP_NANO)
    await set_budgets(there, tight)
    gate = asyncio.Event()
    there.answer(streamed(text(10), gate, text(6_000), usage(2_000), DONE))
    client, calling = begin(there, x_spend_trailer="true")
    await until(lambda: client.chunks)
    await set_budgets(there)
    gate.set()
    await calling
    assert there.settlement().outcome == "completed"
    assert b"budget_remaining_usd" not in client.content, "there is none that anything could be left of"
    assert [each.budget_id for each in there.settlement().charges] == [tight.budget_id], "it stays charged"
    there.outbox.forget(10**9)
    wide = budget(PLENTY)
    await set_budgets(there, wide)
    gate = asyncio.Event()
    there.answer(streamed(text(10), gate, text(6_000), usage(2_000), DONE))
    client, calling = begin(there)
    await until(lambda: client.chunks)
    await set_budgets(there, replace(wide, limit_nano=1))
    gate.set()
    await calling
    assert_cut(there, client.content, text(10))


async def test_a_fallback_child_that_is_full_lets_its_parent_pay_for_the_rest(there: World) -> None:
    least_nano = await input_nano(there)
    parent = budget(PLENTY)
    child = budget(least_nano + STEP_NANO, "team", "ml", parent_id=parent.budget_id, child_mode="fallback")
    await set_budgets(there, parent, child)
    there.answer(streamed(text(6_000), usage(1_500), DONE))
    await there.call(asking())
    settlement = there.settlement()
    assert settlement.outcome == "completed"
    assert settlement.parent_charged == (child.budget_id,)
    assert [each.budget_id for each in settlement.charges] == [parent.budget_id]
    assert resizes(there)[-1].charges == settlement.charges
    assert there.held_nano() == settlement.held_nano + reservation(there).held_nano, "the child holds on until the fold"
    await fold_all(there)
    assert there.held_nano() == 0, "nothing is left at the child"


# ---- when it can't be known ---------------------------------------------------------------------------------------


async def test_a_stream_ends_when_the_hot_state_is_away_at_the_end_of_its_hold(there: World) -> None:
    slow(there).is_away = True
    there.answer(streamed(text(4_000), text(500), usage(2_000), DONE))
    client = await there.call(asking())
    error = assert_cut(there, client.content, text(4_000), "state_rebuilding")
    assert "can't be reached" in error["message"]


async def test_a_stream_ends_when_the_hot_state_is_cold(there: World) -> None:
    gate = asyncio.Event()
    there.answer(streamed(text(10), gate, text(6_000), usage(2_000), DONE))
    client, calling = begin(there)
    await until(lambda: client.chunks)
    there.hot_state.store.state("default").epoch = None
    gate.set()
    await calling
    assert_cut(there, client.content, text(10), "state_rebuilding")


async def test_a_stream_ends_when_its_extension_cannot_be_recorded(tmp_path: Path) -> None:
    outbox = SqliteOutbox(tmp_path / "own.sqlite", 100)
    refusing = RefusingOutbox(outbox, lambda each: OutboxFullError("full") if isinstance(each, HoldResized) else None)
    async with world(tmp_path, recorder=refusing) as there:
        await set_budgets(there, budget(PLENTY))
        there.outbox = outbox
        there.answer(streamed(text(4_000), text(500), usage(2_000), DONE))
        client = await there.call(asking())
        assert_cut(there, client.content, text(4_000), "ledger_backlog")
        assert there.settlement().held_nano == reservation(there).held_nano
    outbox.close()


# ---- where the error can be told ----------------------------------------------------------------------------------


async def tight(there: World) -> None:
    await set_budgets(there, budget(await input_nano(there) + STEP_NANO))


async def test_an_event_that_is_half_out_is_ended_before_the_error(there: World) -> None:
    await tight(there)
    whole = text(4_000)
    more = text(500)
    there.answer(streamed(whole[:2_000], whole[2_000:] + more[:50], more[50:] + text(9), usage(1), DONE))
    client = await there.call(asking())
    assert_cut(there, client.content, whole + more)


async def test_a_stream_that_can_be_told_nothing_is_cut(there: World) -> None:
    await tight(there)
    whole, long = text(4_000), text(9_000)
    there.answer(streamed(whole + long[:50], long[50:4_000], long[4_000:]))
    client = await there.call(asking())
    assert not client.ended
    assert client.content == whole + long[:50], "what is half there may be text in full"
    assert there.settlement().outcome == "cut_off"
    assert there.settlement().cost_nano <= there.settlement().held_nano


async def test_who_asked_for_the_trailing_comment_gets_it(there: World) -> None:
    await tight(there)
    there.answer(streamed(text(5_000), usage(1), DONE))
    client = await there.call(asking(), x_spend_trailer="true")
    assert b'"outcome":"cut_off"' in client.content.rpartition(b": spend ")[2]


async def test_the_vendor_is_let_go_before_a_slow_client_is_told(there: World) -> None:
    await tight(there)
    answer = streamed(text(5_000), usage(1), DONE)
    there.answer(answer)
    client, closed = Client(body=(orjson.dumps(asking()),)), []

    async def send(message: Any) -> None:
        closed.append(answer.closed)
        await client.send(message)

    await there.assembly.app(scope_of(CHAT_PATH, there.headers()), client.receive, send)
    assert closed == [False, True]


# ---- races --------------------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_during_an_extension_is_settled_within_the_hold(there: World) -> None:
    slow(there).gate.clear()
    answer = streamed(text(4_500), asyncio.Event())
    there.answer(answer)
    client, calling = begin(there)
    await until(lambda: slow(there).resized)
    client.hang_up()
    await asyncio.wait_for(calling, 5)
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage["output_tokens"]) == ("partial", STEP_TOKENS)
    assert settlement.cost_nano == settlement.held_nano == reservation(there).held_nano
    assert answer.closed
    slow(there).gate.set()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert resizes(there) == [], "what comes too late is not on record"


async def test_a_vendor_that_ends_during_an_extension_leaks_no_hold(there: World) -> None:
    slow(there).gate.clear()
    there.answer(streamed(text(2_500), usage(600), DONE))
    client = await there.call(asking())
    assert client.content.endswith(DONE)
    settlement = there.settlement()
    assert settlement.outcome == "completed"
    await fold_all(there)
    slow(there).gate.set()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert (there.held_nano(), resizes(there)) == (0, [])
    assert spent(there) == settlement.cost_nano


async def test_a_resize_that_lands_before_its_settlement_is_folded_is_taken_out_with_it(there: World) -> None:
    slow(there).gate.clear()
    there.answer(streamed(text(2_500), usage(600), DONE))
    await there.call(asking())
    slow(there).gate.set()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert there.held_nano() > there.settlement().held_nano
    await fold_all(there)
    assert (there.held_nano(), spent(there)) == (0, there.settlement().cost_nano)


async def test_a_resize_folded_after_its_settlement_changes_nothing(there: World) -> None:
    there.answer(streamed(text(2_500), text(10), usage(600), DONE))
    await there.call(asking())
    assert len(resizes(there)) == 1
    await fold_all(there, last=HoldResized)
    assert (there.held_nano(), spent(there)) == (0, there.settlement().cost_nano)


def spent(there: World) -> int:
    return sum(each.spent_nano for each in there.hot_state.store.state("default").windows.values())


# ---- what can't be seen -------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> CallClock:
    return CallClock(monkeypatch)


async def sweep(there: World) -> None:
    there.assembly.holds.sweep()
    await asyncio.sleep(0.02)


async def test_a_hold_grows_while_a_model_thinks(there: World, clock: CallClock) -> None:
    gate = asyncio.Event()
    there.answer(streamed(b": thinking\n\n", gate, text(10), usage(9_000), DONE))
    client, calling = begin(there)
    await until(lambda: client.chunks)
    for _ in range(5):
        clock.move(7)
        await sweep(there)
    # 35 seconds may be 8,750 tokens.
    assert reservation(there).held_nano + 2 * STEP_NANO == resizes(there)[-1].held_nano
    gate.set()
    await calling
    assert there.settlement().outcome == "completed"
    assert there.settlement().cost_nano <= there.settlement().held_nano


async def test_a_hold_grows_while_a_model_thinks_between_what_it_writes(there: World, clock: CallClock) -> None:
    gate = asyncio.Event()
    there.answer(streamed(text(10), gate, text(10), usage(5_000), DONE))
    client, calling = begin(there)
    await until(lambda: client.chunks)
    await asyncio.sleep(0.01)
    clock.move(12)
    await sweep(there)
    assert len(resizes(there)) == 1, "3,000 tokens may have been thought"
    gate.set()
    await calling
    assert there.settlement().outcome == "completed"


async def test_a_slow_writer_does_not_think_between_its_words(there: World, clock: CallClock) -> None:
    gates = [asyncio.Event() for _ in range(30)]
    there.answer(streamed(*(each for gate in gates for each in (gate, text(2))), usage(60), DONE))
    client, calling = begin(there)
    await until(lambda: client.answered.is_set())
    for number, gate in enumerate(gates):
        await asyncio.sleep(0.002)
        clock.move(1.5)
        await sweep(there)
        gate.set()
        await until(lambda: len(client.chunks) > number)  # noqa: B023 - it is over by the next round
    await calling
    assert resizes(there) == []


async def test_a_hold_grows_while_a_model_thinks_before_its_head(there: World, clock: CallClock) -> None:
    there.vendor.head_at = asyncio.Event()
    there.answer(streamed(text(10), usage(5_000), DONE))
    client, calling = begin(there)
    await until(lambda: there.vendor.requests)
    clock.move(10)
    await sweep(there)
    assert len(resizes(there)) == 1
    there.vendor.head_at.set()
    await calling
    assert client.status == 200
    assert there.settlement().outcome == "completed"


async def test_a_model_that_thinks_for_longer_than_can_be_held_is_cut_off(there: World, clock: CallClock) -> None:
    await tight(there)
    answer = streamed(text(10), asyncio.Event())
    there.answer(answer)
    client, calling = begin(there)
    await until(lambda: client.chunks)
    clock.move(17)
    await sweep(there)
    await asyncio.wait_for(calling, 5)
    assert_cut(there, client.content, text(10))
    assert answer.closed


async def test_before_its_head_such_a_call_is_refused(there: World, clock: CallClock) -> None:
    await tight(there)
    there.vendor.head_at = asyncio.Event()
    client, calling = begin(there)
    await until(lambda: there.vendor.requests)
    clock.move(17)
    await sweep(there)
    await asyncio.wait_for(calling, 5)
    assert (client.status, client.json()["error"]["code"]) == (402, "budget_exhausted")
    settlement = there.settlement()
    assert (settlement.outcome, settlement.cost_nano) == ("cut_off", settlement.held_nano)


async def test_time_in_which_the_client_does_not_read_is_none_that_the_model_thinks(
    there: World, clock: CallClock
) -> None:
    gate = asyncio.Event()
    there.answer(streamed(text(10), text(10), usage(5), DONE))
    client, begun = Client(body=(orjson.dumps(asking()),)), asyncio.Event()

    async def slow_send(message: Any) -> None:
        await client.send(message)
        if message.get("body") and not begun.is_set():
            begun.set()
            await gate.wait()

    scope = scope_of(CHAT_PATH, there.headers())
    calling = asyncio.ensure_future(there.assembly.app(scope, client.receive, slow_send))
    await begun.wait()
    clock.move(200)
    await sweep(there)
    gate.set()
    await calling
    assert resizes(there) == []
    assert there.settlement().outcome == "completed"


# ---- what the vendor says -----------------------------------------------------------------------------------------


async def test_usage_that_a_stream_reports_as_it_goes_counts_instead_of_its_bytes(there: World) -> None:
    await tight(there)

    def said(size: int, tokens: int) -> bytes:
        return text(size, usage={"prompt_tokens": 10, "completion_tokens": tokens})

    # 30,000 bytes that are known to be no more than 3,000 tokens.
    pieces = [said(500, 50 * number) for number in range(1, 61)]
    there.answer(streamed(*pieces, usage(3_000), DONE))
    client = await there.call(asking())
    assert client.content == b"".join([*pieces, usage(3_000), DONE])
    assert there.settlement().outcome == "completed"
    assert resizes(there) == []


async def test_what_nobody_could_see_is_charged_all_the_same_when_the_vendor_says_so(there: World) -> None:
    """A model that thinks faster than any known one: its answer is out, and money that is spent is never left out."""
    await tight(there)
    there.answer(streamed(text(10), usage(5_000), DONE))
    client = await there.call(asking())
    assert client.content.endswith(DONE)
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage["output_tokens"]) == ("completed", 5_000)
    assert settlement.cost_nano > settlement.held_nano


async def test_an_answer_that_is_no_stream_is_held_as_a_whole(there: World) -> None:
    body = b'{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":9000}}'
    there.answer(ScriptedAnswer([body]))
    client = await there.call(asking())
    assert client.content == body
    assert resizes(there)[-1].held_nano == reservation(there).held_nano + (MOST_TOKENS - STEP_TOKENS) * OUTPUT_NANO
    assert (there.settlement().outcome, there.settlement().usage["output_tokens"]) == ("completed", 9_000)


async def test_or_it_is_refused_where_there_is_no_room(there: World) -> None:
    await tight(there)
    answer = ScriptedAnswer([b'{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":9000}}'])
    there.answer(answer)
    client = await there.call(asking())
    assert (client.status, client.json()["error"]["code"]) == (402, "budget_exhausted")
    assert answer.closed
    assert there.settlement().cost_nano <= there.settlement().held_nano


async def test_a_refusal_of_the_vendors_costs_nothing_and_needs_no_more(there: World) -> None:
    await tight(there)
    there.answer(ScriptedAnswer([b'{"error":{"message":"no"}}'], 400))
    client = await there.call(asking())
    assert client.status == 400
    assert (there.settlement().outcome, there.settlement().cost_nano) == ("vendor_error", 0)


async def test_a_vendor_that_hangs_up_is_charged_within_the_hold(there: World) -> None:
    there.answer(AWAY)
    client = await there.call(asking())
    assert client.status == 502
    settlement = there.settlement()
    assert (settlement.outcome, settlement.cost_nano) == ("partial", settlement.held_nano)
