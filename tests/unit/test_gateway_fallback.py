"""What is tried when a vendor fails: the next target, with the hold moved and never doubled, settled once (GW-5)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.adapters.memory import MemoryHotState
from services.adapters.outbox import SqliteOutbox
from services.core.events import HoldResized, Reservation, Settlement
from services.core.hotstate import HoldRequest, ReserveAnswer
from services.core.money import format_usd
from services.core.ports import NotSentError, TimedOutError, UnavailableError
from services.core.snapshot import Connection, Overrides, RouteRule, Target
from services.core.vendor_port import VendorRequest
from services.gateway import forward
from tests.support.asgi import Client, request
from tests.support.gateway import (
    AWAY,
    EVENT_STREAM,
    RefusingOutbox,
    ScriptedAnswer,
    ScriptedVendor,
    World,
    asking,
    assert_refused,
    chat,
    stream_events,
    until,
    world,
)

OK = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}'
ENTRIES = tuple(
    {"vendor": vendor, "model": model, "prices": [{"usd": {"input": usd, "output": usd}}], "max_output_tokens": 100}
    for vendor, model, usd in (
        ("dear", "big", "100.000000000"),
        ("dearest", "huge", "1000.000000000"),
        ("cheap", "small", "0.010000000"),
    )
)
DEAR, DEAREST, CHEAP = Target("dear", "big"), Target("dearest", "huge"), Target("cheap", "small")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "RETRY_PAUSES_S", (0.0, 0.0))


async def set_up(there: World, *fallbacks: Target, budget_usd: str = "100.00") -> str:
    connections = {
        **there.org.snapshot.connections,
        **{
            name: Connection(name, "openai", f"https://{name}.test/v1", f"sealed:sk-{name}", name)
            for name in ("dear", "dearest", "cheap")
        },
        "other": Connection("other", "anthropic", "https://other.test", "sealed:x", "dear"),
        "sealed": Connection("sealed", "openai", "https://sealed.test", "garbled", "dear"),
    }
    await there.org.publish(
        connections=connections,
        overrides=Overrides("own", ENTRIES),
        rules=(RouteRule("openai", "chat.completions", fallbacks=fallbacks),),
    )
    budget_id = await there.org.set_budget(budget_usd)
    await there.sync()
    return budget_id


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def failing(*statuses: int) -> list[ScriptedAnswer]:
    return [ScriptedAnswer([b"down"], status) for status in statuses]


def kinds(there: World) -> list[str]:
    return [type(each).__name__ for each in there.events()]


def hosts(there: World) -> list[str]:
    return [each.url.split("/")[2] for each in there.vendor.requests]


async def test_a_failing_vendor_is_followed_by_the_next_at_its_own_price(there: World) -> None:
    budget_id = await set_up(there, DEAR)
    there.answer(*failing(500, 502, 503), ScriptedAnswer([OK]))
    client = await there.call()
    assert client.status == 200, client.content
    assert hosts(there) == ["vendor.test"] * 3 + ["dear.test"]
    assert b'"model":"big"' in there.vendor.requests[-1].body
    assert (b"authorization", b"Bearer sk-dear") in there.vendor.requests[-1].headers
    assert kinds(there) == ["Reservation", "HoldResized", "Settlement"]
    reservation, resized, settlement = there.events()
    assert isinstance(reservation, Reservation)
    assert isinstance(resized, HoldResized)
    assert isinstance(settlement, Settlement)
    assert (resized.facts.vendor, resized.facts.model_priced, resized.facts.model_requested) == (
        "dear",
        "big",
        "gpt-4o-mini",
    )
    assert resized.held_nano > reservation.held_nano
    assert settlement.held_nano == resized.held_nano
    assert settlement.facts == resized.facts
    assert settlement.facts.catalog_version.endswith("+own")
    assert resized.charges == reservation.charges == settlement.charges
    # 15 tokens at $100 a million.
    assert settlement.cost_nano == 1_500_000
    assert [(each.vendor, each.model, each.outcome, each.http_status) for each in settlement.attempts] == [
        *(("openai", "gpt-4o-mini", "failed", status) for status in (500, 502, 503)),
        ("dear", "big", "answered", 200),
    ]
    assert settlement.retry_count == 3
    assert client.header("x-spend-retry-count") == "3"
    assert client.header("x-spend-model") == "big"
    assert client.header("x-spend-cost") == "0.001500000"
    assert client.header("x-spend-budget-id") == budget_id
    assert client.header("x-spend-budget-remaining") == format_usd(100_000_000_000 - 1_500_000)


async def test_an_unreachable_vendor_is_followed_too_and_a_stream_comes_from_the_next(there: World) -> None:
    await set_up(there, CHEAP)
    there.answer(*[NotSentError("refused")] * 3, ScriptedAnswer(stream_events(), headers=EVENT_STREAM))
    client = await there.call(asking())
    assert (client.status, client.content) == (200, b"".join(stream_events()))
    settlement = there.settlement()
    assert [each.outcome for each in settlement.attempts] == ["unreachable"] * 3 + ["answered"]
    assert (settlement.outcome, settlement.facts.vendor) == ("completed", "cheap")
    # 15 tokens at $0.01 a million.
    assert settlement.cost_nano == 150


class WatchedVendor(ScriptedVendor):
    """Notes what is held whenever a vendor is asked."""

    def __init__(self, there: list[World]) -> None:
        super().__init__()
        self.there = there
        self.held: list[int] = []

    async def send(self, request: VendorRequest) -> ScriptedAnswer:
        self.held.append(self.there[0].held_nano())
        return await super().send(request)


async def test_a_hold_is_moved_and_never_doubled(tmp_path: Path) -> None:
    here: list[World] = []
    vendor = WatchedVendor(here)
    async with world(tmp_path, vendors=vendor) as there:
        here.append(there)
        await set_up(there, DEAR, CHEAP, DEAREST)
        vendor.script.extend([*failing(500, 500, 500) * 3, ScriptedAnswer([OK])])
        assert (await there.call()).status == 200
        first, *sizes = (each for each in there.events() if isinstance(each, Reservation | HoldResized))
        amounts = [first.held_nano, *(each.held_nano for each in sizes)]
        # What a cheaper vendor's holds less is free when it is folded: nobody folds here.
        assert vendor.held == [amounts[0]] * 3 + [amounts[1]] * 6 + [amounts[3]]
        assert amounts[2] < amounts[0] < amounts[1] < amounts[3], "down and up, as the prices are"
        assert there.settlement().held_nano == amounts[3]
        (hold,) = there.hot_state.store.state("default").holds.values()
        assert hold.amount_nano == amounts[3]
        assert '"dearest"' in hold.context


@pytest.mark.parametrize(
    "useless",
    [
        DEAREST,  # no room
        Target("nobody", "m"),  # no connection
        Target("cheap", "nobody-priced-it"),  # no price
        Target("other", "big"),  # another dialect
        Target("sealed", "big"),  # a key that can't be opened
    ],
    ids=["room", "connection", "price", "dialect", "key"],
)
async def test_a_target_that_can_not_be_had_is_passed_over(there: World, useless: Target) -> None:
    await set_up(there, useless, CHEAP, budget_usd="0.05")
    there.answer(*failing(500, 500, 500), ScriptedAnswer([OK]))
    client = await there.call()
    assert client.status == 200, client.content
    assert hosts(there) == ["vendor.test"] * 3 + ["cheap.test"]
    assert kinds(there) == ["Reservation", "HoldResized", "Settlement"]


@pytest.mark.parametrize("useless", [DEAREST, Target("nobody", "m")])
async def test_without_a_target_the_failure_is_told_as_it_was(there: World, useless: Target) -> None:
    await set_up(there, useless, budget_usd="0.05")
    there.answer(*failing(500, 500), ScriptedAnswer([b"the third answer"], 503))
    client = await there.call()
    assert (client.status, client.content) == (503, b"the third answer")
    settlement = there.settlement()
    assert (settlement.outcome, settlement.cost_nano, settlement.facts.vendor) == ("vendor_error", 0, "openai")
    assert kinds(there) == ["Reservation", "Settlement"]
    assert len(settlement.attempts) == 3


async def test_the_last_failure_is_told_and_nothing_was_used(there: World) -> None:
    """The client asked one question: the answer is that of whoever was asked last, and its vendor is named."""
    await set_up(there, DEAR, CHEAP)
    there.answer(*failing(500, 500, 500), *[NotSentError("refused")] * 3, *failing(503, 503))
    there.answer(ScriptedAnswer([b"cheap is down"], 529))
    client = await there.call()
    assert (client.status, client.content) == (529, b"cheap is down")
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage_source, settlement.cost_nano) == ("vendor_error", "none", 0)
    assert settlement.facts.vendor == "cheap"
    assert [each.vendor for each in settlement.attempts] == ["openai"] * 3 + ["dear"] * 3 + ["cheap"] * 3


async def test_a_last_target_that_is_unreachable_is_named(there: World) -> None:
    await set_up(there, CHEAP)
    there.answer(*failing(500, 500, 500), *[NotSentError("refused")] * 3)
    client = await there.call()
    assert_refused(client, 502, "vendor_unreachable", "'cheap'")
    assert there.settlement().cost_nano == 0


@pytest.mark.parametrize("failure", [TimedOutError("late"), UnavailableError("the line broke")])
async def test_a_vendor_that_may_have_done_it_is_followed_by_nobody(there: World, failure: Exception) -> None:
    await set_up(there, CHEAP)
    there.answer(failure)
    client = await there.call()
    assert client.status in (502, 504)
    assert len(there.vendor.requests) == 1
    settlement = there.settlement()
    assert (settlement.outcome, settlement.usage_source) == ("partial", "estimated")
    assert settlement.cost_nano == settlement.held_nano > 0


async def test_a_fallback_that_may_have_done_it_is_charged_at_its_own_bound(there: World) -> None:
    await set_up(there, DEAR)
    there.answer(*failing(500, 500, 500), TimedOutError("late"))
    assert (await there.call()).status == 504
    settlement = there.settlement()
    assert (settlement.outcome, settlement.facts.vendor) == ("partial", "dear")
    assert settlement.cost_nano == settlement.held_nano
    resized = next(each for each in there.events() if isinstance(each, HoldResized))
    assert settlement.held_nano == resized.held_nano


@pytest.mark.parametrize("status", [400, 401, 404, 429])
async def test_a_refusal_is_no_failure(there: World, status: int) -> None:
    await set_up(there, CHEAP)
    there.answer(ScriptedAnswer([b"no"], status))
    assert (await there.call()).status == status
    assert len(there.vendor.requests) == 1


async def test_a_caller_with_a_key_of_its_own_stays_with_its_vendor(there: World) -> None:
    await set_up(there, CHEAP)
    there.answer(*failing(500, 500, 500))
    client = await there.call(x_vendor_key="sk-own")
    assert client.status == 500
    assert hosts(there) == ["vendor.test"] * 3
    assert kinds(there) == ["Reservation", "Settlement"]


async def test_a_fallbacks_own_rule_says_how_long_it_may_take(there: World) -> None:
    await set_up(there, CHEAP)
    rules = (*there.org.snapshot.rules, RouteRule("cheap", timeout_ms=7_000), RouteRule("openai", timeout_ms=3_000))
    await there.org.publish(rules=rules)
    await there.sync()
    there.answer(*failing(500, 500, 500), ScriptedAnswer([OK]))
    assert (await there.call()).status == 200
    assert there.vendor.requests[0].timeout_s == 3.0
    assert there.vendor.requests[-1].timeout_s == 7.0


async def test_a_hold_that_has_ended_meanwhile_is_not_moved(tmp_path: Path) -> None:
    """A reaper has it: what it holds is on its way into the log."""
    async with world(tmp_path) as there:
        await set_up(there, CHEAP)
        there.vendor.head_at = asyncio.Event()
        there.answer(*failing(500, 500, 500))
        calling = asyncio.create_task(there.call())
        await until(lambda: there.vendor.requests)
        there.clock.now_ms += there.org.snapshot.hold_ms
        (due,) = await there.hot_state.claim_due("default", 5)
        there.vendor.head_at.set()
        client = await calling
        assert client.status == 500
        assert kinds(there) == ["Reservation", "Settlement"]
        assert due.amount_nano == there.held_nano()


class BrokenHotState(MemoryHotState):
    """Can't be reached when a hold is to be moved."""

    async def resize(self, request: HoldRequest) -> ReserveAnswer | None:
        raise UnavailableError("it is away")


async def test_a_hot_state_that_is_away_leaves_the_failure(tmp_path: Path) -> None:
    async with world(tmp_path, hot_state_type=BrokenHotState) as there:
        await set_up(there, CHEAP, DEAR)
        there.answer(*failing(500, 500, 500))
        assert (await there.call()).status == 500
        assert kinds(there) == ["Reservation", "Settlement"]


async def test_a_move_that_can_not_be_recorded_is_not_made(tmp_path: Path) -> None:
    with contextlib.closing(SqliteOutbox(tmp_path / "refusing.sqlite", 100)) as real:
        recorder = RefusingOutbox(real, lambda event: AWAY if isinstance(event, HoldResized) else None)
        async with world(tmp_path, recorder=recorder) as there:
            await set_up(there, DEAR)
            there.answer(*failing(500, 500, 500))
            with capture_logs():
                assert (await there.call()).status == 500
            assert hosts(there) == ["vendor.test"] * 3


async def test_a_budget_that_is_deleted_meanwhile_is_still_the_calls(there: World) -> None:
    """A call is decided by one view of its org, from its admission to its end."""
    await set_up(there, CHEAP)
    there.vendor.head_at = asyncio.Event()
    there.answer(*failing(500, 500, 500))
    calling = asyncio.create_task(there.call())
    await until(lambda: there.vendor.requests)
    held_nano = there.held_nano()
    await there.org.publish(budgets=())
    await there.sync()
    there.answer(ScriptedAnswer([OK]))
    there.vendor.head_at.set()
    assert (await calling).status == 200
    assert there.settlement().held_nano < held_nano


async def test_another_route_of_the_vendor_has_no_fallback(there: World) -> None:
    await set_up(there, CHEAP)
    rule = replace(there.org.snapshot.rules[0], route="embeddings")
    await there.org.publish(rules=(rule,))
    await there.sync()
    there.answer(*failing(500, 500, 500))
    assert (await there.call()).status == 500


async def test_an_answer_that_is_given_up_for_another_is_closed(there: World) -> None:
    await set_up(there, CHEAP)
    answers = failing(500, 500, 500)
    there.answer(*answers, ScriptedAnswer([OK]))
    client: Client = await request(
        there.assembly.app, "/v1/chat/completions", chat(), headers=there.headers(x_spend_agent="ada")
    )
    assert client.status == 200
    assert all(each.closed for each in answers)


async def test_so_is_one_whose_caller_is_cut_off_before_another_is_asked(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await set_up(there, CHEAP)
    answers = failing(500, 500, 500)
    there.answer(*answers)
    asked = asyncio.Event()

    async def never(_request: HoldRequest) -> ReserveAnswer | None:
        asked.set()
        await asyncio.Event().wait()
        return None

    monkeypatch.setattr(there.hot_state, "resize", never)
    calling = asyncio.create_task(there.call(x_spend_agent="ada"))
    await asked.wait()
    calling.cancel()
    await asyncio.wait({calling})
    assert all(each.closed for each in answers)


MESSAGE = (
    b'{"type":"message","model":"small","content":[],"stop_reason":"end_turn","usage":{"input_tokens":10,'
    b'"output_tokens":5}}'
)


async def test_a_message_is_taken_over_by_who_speaks_its_dialect_only(there: World) -> None:
    await set_up(there)
    connections = {
        **there.org.snapshot.connections,
        "anthropic": Connection("anthropic", "anthropic", "https://anthropic.test", "sealed:sk-a", "dear"),
        "another": Connection("another", "anthropic", "https://another.test", "sealed:sk-b", "cheap"),
    }
    # An OpenAI dialect's vendor comes first, and has a price, a key and room: only its dialect stands in the way.
    rule = RouteRule("anthropic", "messages", fallbacks=(CHEAP, Target("another", "small")))
    await there.org.publish(connections=connections, rules=(rule,))
    await there.sync()
    there.answer(*failing(500, 500, 500), ScriptedAnswer([MESSAGE]))
    client = await there.call({**chat(), "model": "big"}, path="/v1/messages")
    assert (client.status, client.content) == (200, MESSAGE)
    assert hosts(there) == ["anthropic.test"] * 3 + ["another.test"]
    assert (b"x-api-key", b"sk-b") in there.vendor.requests[-1].headers
    settlement = there.settlement()
    # 15 tokens at $0.01 a million.
    assert (settlement.facts.vendor, settlement.usage_source, settlement.cost_nano) == ("another", "reported", 150)
