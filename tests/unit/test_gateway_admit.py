"""What is refused and why, what is held, and that nothing reaches a vendor before its reservation is on disk."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.adapters.memory import MemoryHotState, MemoryStore
from services.adapters.outbox import SqliteOutbox
from services.core.events import Denial, Reservation
from services.core.hotstate import HoldRequest, ReserveAnswer, StaleWindow
from services.core.money import format_usd, parse_usd
from services.core.ports import OutboxFullError, UnavailableError
from services.core.windows import CalendarSpan, CalendarWindow
from tests.support.asgi import Client, request
from tests.support.gateway import (
    AWAY,
    NOWHERE,
    RefusingOutbox,
    ScriptedAnswer,
    World,
    assert_refused,
    chat,
    until,
    world,
)

OK = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}'


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def test_a_call_is_held_and_recorded_before_its_vendor_sees_it(there: World) -> None:
    budget_id = await there.org.set_budget("1.00")
    await there.sync()
    there.vendor.head_at = asyncio.Event()
    there.answer(ScriptedAnswer([OK]))
    calling = asyncio.create_task(there.call(x_spend_agent="ada"))
    await until(lambda: there.vendor.requests)
    (reservation,) = there.events()
    assert isinstance(reservation, Reservation)
    assert there.held_nano() == reservation.held_nano > 0
    assert [each.budget_id for each in reservation.charges] == [budget_id]
    assert reservation.facts.identity.team == "ml"
    assert reservation.facts.identity.agent == "ada"
    assert (reservation.facts.vendor, reservation.facts.route) == ("openai", "chat.completions")
    assert (reservation.facts.model_priced, reservation.facts.match) == ("gpt-4o-mini", "exact")
    assert reservation.time_ms == there.clock.now_ms, "the hot state's clock, not this host's"
    assert reservation.expires_at_ms == there.clock.now_ms + there.org.snapshot.hold_ms
    assert reservation.output_tokens_bound == 100
    there.vendor.head_at.set()
    client = await calling
    assert client.status == 200
    assert client.header("x-spend-transaction-id") == reservation.transaction_id
    assert there.settlement().charges == reservation.charges


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": ""},
        {"authorization": "Bearer nonsense"},
        {"authorization": f"Bearer fk_live_{'x' * 40}"},
        {"authorization": "Basic Zm9vOmJhcg=="},
    ],
)
async def test_a_call_without_a_good_key_is_refused(there: World, headers: dict[str, str]) -> None:
    assert_refused(await there.call(**headers), 401, "invalid_key")
    assert there.events() == []


@pytest.mark.parametrize("name", ["x-spend-key", "x-api-key"])
async def test_a_key_may_come_in_another_header(there: World, name: str) -> None:
    there.answer(ScriptedAnswer([OK]))
    client = await there.call(authorization="", **{name: there.key})
    assert client.status == 200


async def test_a_contradicting_identity_is_refused_by_name(there: World) -> None:
    assert_refused(await there.call(x_spend_team="ops"), 403, "identity_mismatch", "x-spend-team", "'ops'", "'ml'")
    assert there.events() == []


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"x_spend_agent": "a b"}, "x-spend-agent"),
        ({"x_spend_agent": "a\x0bb"}, "x-spend-agent"),
        ({"x_spend_user": "\xff"}, "x-spend-user"),
        ({"x_spend_tags": ",".join(f"t{number}" for number in range(17))}, "x-spend-tags"),
        ({"x_spend_vendor": "a b"}, "x-spend-vendor"),
        ({"x_custom": "a\x00b"}, "x-custom"),
        ({"x_custom": "x" * 8193}, "x-custom"),
    ],
)
async def test_a_header_that_cannot_be_read_is_refused_by_name(
    there: World, headers: dict[str, str], named: str
) -> None:
    client = await there.call(**headers)
    assert_refused(client, 400, "invalid_request", named)
    assert client.json()["error"]["param"] == named
    assert there.events() == []
    assert there.held_nano() == 0


async def test_two_values_of_one_identity_header_are_refused(there: World) -> None:
    headers = [*there.headers(), ("x-spend-agent", "ada"), ("x-spend-agent", "bob")]
    client = await request(there.assembly.app, "/v1/chat/completions", chat(), headers=headers)
    assert_refused(client, 400, "invalid_request", "x-spend-agent")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_request", None),
        (b"{not json", "invalid_request", None),
        (b"[1]", "invalid_request", None),
        ({"messages": []}, "invalid_request", "model"),
        (chat(max_tokens=-1), "invalid_request", "max_tokens"),
        (chat(service_tier="turbo"), "unpriced_feature", "service_tier"),
        (chat(model="gpt-nobody-priced"), "unknown_model", "model"),
        (chat(modalities=["text", "audio"], audio={"voice": "alloy"}), "unpriced_feature", "model"),
    ],
)
async def test_a_body_that_cannot_be_priced_is_refused(
    there: World, body: object, code: str, param: str | None
) -> None:
    await there.org.set_budget("1.00")
    await there.sync()
    client = await there.call(body)
    assert_refused(client, 400, code)
    assert client.json()["error"]["param"] == param
    assert there.held_nano() == 0
    assert there.vendor.requests == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{not json", "invalid_request"),
        (chat(max_tokens=-1), "invalid_request"),
        (chat(tools=[{"type": "web_search"}]), "unpriced_feature"),
    ],
)
async def test_a_request_that_cannot_be_read_is_on_record(there: World, body: object, code: str) -> None:
    client = await there.call(body, x_spend_agent="ada")
    (denial,) = there.events()
    assert isinstance(denial, Denial)
    assert (denial.code, denial.facts.model_requested, denial.facts.match) == (code, "", "none")
    assert (denial.facts.vendor, denial.facts.route) == ("openai", "chat.completions")
    assert denial.facts.identity.agent == "ada"
    assert denial.reason == client.json()["error"]["message"]
    assert denial.transaction_id == client.header("x-spend-transaction-id")
    assert denial.transaction_id == client.json()["error"]["transaction_id"]


async def test_a_denied_model_is_on_record(there: World) -> None:
    client = await there.call(chat(model="gpt-nobody-priced"))
    (denial,) = there.events()
    assert isinstance(denial, Denial)
    assert (denial.code, denial.facts.model_requested, denial.facts.match) == (
        "unknown_model",
        "gpt-nobody-priced",
        "none",
    )
    assert denial.transaction_id == client.header("x-spend-transaction-id")
    assert denial.transaction_id == client.json()["error"]["transaction_id"]


async def test_an_exhausted_budget_is_a_402_with_all_there_is_to_know(there: World) -> None:
    budget_id = await there.org.set_budget("0.00001", "team", "ml")
    await there.org.set_budget("1.00")
    await there.sync()
    client = await there.call()
    assert_refused(client, 402, "budget_exhausted", budget_id, "team:ml", "$0.000010000")
    error = client.json()["error"]
    assert error["budget_id"] == budget_id
    assert error["scope"] == "team:ml"
    assert error["remaining_usd"] == error["limit_usd"] == "0.000010000"
    assert error["spent_usd"] == error["held_usd"] == "0.000000000"
    assert parse_usd(error["estimate_usd"]) > parse_usd(error["limit_usd"])
    assert error["resets_at"] == "2025-10-10T00:00:00.000Z"
    assert client.header("x-should-retry") == "false"
    assert client.header("retry-after") is None
    (denial,) = there.events()
    assert isinstance(denial, Denial)
    assert (denial.budget_id, denial.scope, denial.code) == (budget_id, "team:ml", "budget_exhausted")
    assert format_usd(denial.estimate_nano) == error["estimate_usd"]
    assert there.held_nano() == 0
    assert there.vendor.requests == []


async def test_a_budget_that_resets_soon_says_when_to_retry(there: World) -> None:
    await there.org.set_budget("0.0002", window=CalendarWindow("hour", "UTC"))
    there.clock.now_ms = 1_760_000_400_000 - 10_500  # the next hour is 10.5 s away
    await there.sync()
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call()).status == 200
    for figures in there.hot_state.store.state(there.org.name).windows.values():
        figures.spent_nano, figures.held_nano = figures.held_nano, 0  # as once it is folded, had it cost all it might
    client = await there.call()
    assert_refused(client, 402, "budget_exhausted", "it resets at")
    assert client.header("retry-after") == "11"
    assert client.header("x-should-retry") == "false"


async def test_a_budget_that_is_only_held_up_says_to_come_back_shortly(there: World) -> None:
    """The same budget a moment later has room: nobody should wait for its window's end, or never ask again."""
    await there.org.set_budget("0.0002", "team", "ml", CalendarWindow("month", "UTC"))
    await there.sync()
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call()).status == 200
    client = await there.call()
    assert_refused(client, 402, "budget_exhausted", "is held by other calls")
    assert client.header("retry-after") == "1"
    assert client.header("x-should-retry") is None
    assert "it resets at" not in client.json()["error"]["message"]


async def test_waiting_is_not_advised_where_it_does_not_help(there: World) -> None:
    await there.org.set_budget("0.000001", window=CalendarWindow("hour", "UTC"))
    there.clock.now_ms = 1_760_000_400_000 - 10_500
    await there.sync()
    client = await there.call()
    assert_refused(client, 402, "budget_exhausted")
    assert client.header("retry-after") is None


async def test_all_concurrent_calls_that_fit_pass_and_no_more(there: World) -> None:
    there.answer(ScriptedAnswer([OK]))
    await there.call()
    held_nano = there.settlement().held_nano
    await there.org.set_budget(format_usd(held_nano * 7 + held_nano // 2), "team", "ml")
    await there.sync()
    there.vendor.head_at = asyncio.Event()
    there.answer(*(ScriptedAnswer([OK]) for _ in range(30)))
    calls = [asyncio.create_task(there.call()) for _ in range(30)]
    await until(lambda: len(there.vendor.requests) == 8 and len(there.events()) == 2 + 7 + 23)
    assert there.held_nano() == held_nano * 7
    there.vendor.head_at.set()
    statuses = [(await each).status for each in calls]
    assert (statuses.count(200), statuses.count(402)) == (7, 23)


# ---- the spend state is not to be trusted ---------------------------------------------------------------------------


def assert_unavailable(client: Client, there: World, code: str = "state_rebuilding") -> None:
    assert_refused(client, 503, code)
    assert client.header("retry-after") == "1"
    assert there.vendor.requests == []


async def test_a_cold_org_is_refused(there: World) -> None:
    there.hot_state.store.state("default").epoch = None
    assert_unavailable(await there.call(), there)
    assert there.events() == []


async def test_a_wiped_hot_state_is_refused_even_with_a_cached_key(there: World) -> None:
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call()).status == 200
    there.vendor.requests.clear()
    there.hot_state.store.wipe()
    assert_unavailable(await there.call(), there)
    await there.sync()
    assert_unavailable(await there.call(), there)


class BrokenHotState(MemoryHotState):
    """Takes the hold, and then fails to say so, `failures` times; `release_failures` releases fail."""

    failures = 1
    release_failures = 1

    async def reserve(self, request: HoldRequest) -> ReserveAnswer:
        answer = await super().reserve(request)
        if self.failures > 0:
            self.failures -= 1
            raise UnavailableError("the answer was lost")
        return answer

    async def release(self, org: str, reservation_id: str) -> bool:
        if self.release_failures > 0:
            self.release_failures -= 1
            raise UnavailableError("the answer was lost")
        return await super().release(org, reservation_id)


async def test_a_hot_state_that_does_not_answer_is_refused_and_its_hold_taken_back(tmp_path: Path) -> None:
    async with world(tmp_path, hot_state_type=BrokenHotState) as there:
        await there.org.set_budget("1.00")
        await there.sync()
        assert_unavailable(await there.call(), there)
        assert there.events() == []
        assert there.held_nano() > 0
        await until(lambda: not there.hot_state.store.state("default").holds)
        assert there.held_nano() == 0


async def test_a_call_that_cannot_be_recorded_is_not_made(tmp_path: Path) -> None:
    with contextlib.closing(SqliteOutbox(tmp_path / "refusing.sqlite", 100)) as real:
        recorder = RefusingOutbox(real, lambda event: AWAY if isinstance(event, Reservation) else None)
        async with world(tmp_path, recorder=recorder) as there:
            await there.org.set_budget("1.00")
            await there.sync()
            client = await there.call()
            assert_unavailable(client, there, "ledger_backlog")
            await until(lambda: not there.hot_state.store.state("default").holds)
            assert there.held_nano() == 0


async def test_a_full_outbox_refuses_before_anything_is_held(tmp_path: Path) -> None:
    async with world(tmp_path, outbox_limit=2) as there:
        there.answer(ScriptedAnswer([OK]), ScriptedAnswer([OK]))
        assert (await there.call()).status == 200
        assert_refused(await there.call(), 503, "ledger_backlog")
        assert len(there.vendor.requests) == 1
        assert len(there.hot_state.store.state("default").holds) == 1
        assert len(there.events()) == 2, "the settlement of a call taken on is kept whatever the limit"


async def test_a_denial_that_cannot_be_recorded_is_told_all_the_same(tmp_path: Path) -> None:
    with contextlib.closing(SqliteOutbox(tmp_path / "refusing.sqlite", 100)) as real:
        recorder = RefusingOutbox(real, lambda _event: OutboxFullError("full"))
        async with world(tmp_path, recorder=recorder) as there:
            assert_refused(await there.call(chat(model="nobody-priced-it")), 400, "unknown_model")


# ---- windows --------------------------------------------------------------------------------------------------------


async def test_windows_follow_the_hot_states_clock_not_this_hosts(there: World) -> None:
    await there.org.set_budget("1.00", window=CalendarWindow("hour", "UTC"))
    await there.sync()
    there.clock.now_ms += 5 * 3_600_000  # and the gateway has not heard of it
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call()).status == 200
    (charge,) = there.settlement().charges
    assert charge.window == "c:1760014800000:1760018400000"


class CountingHotState(MemoryHotState):
    """Counts the proposals it gets."""

    reserves = 0

    async def reserve(self, request: HoldRequest) -> ReserveAnswer:
        self.reserves += 1
        return await super().reserve(request)


async def test_the_hot_states_clock_is_learnt_from_its_answers(tmp_path: Path) -> None:
    async with world(tmp_path, hot_state_type=CountingHotState) as there:
        await there.org.set_budget("1.00", window=CalendarWindow("hour", "UTC"))
        await there.sync()
        there.clock.now_ms += 5 * 3_600_000
        there.answer(ScriptedAnswer([OK]), ScriptedAnswer([OK]))
        assert isinstance(there.hot_state, CountingHotState)
        await there.call()
        assert there.hot_state.reserves == 2, "the first proposal was stale"
        await there.call()
        assert there.hot_state.reserves == 3


class RestlessHotState(MemoryHotState):
    """Finds every proposed window stale."""

    def __init__(self, clock: Callable[[], int], store: MemoryStore | None = None) -> None:
        super().__init__(clock, store)
        self.spans: list[CalendarSpan] = []

    async def reserve(self, request: HoldRequest) -> ReserveAnswer:
        span = request.proposals[0].span
        assert isinstance(span, CalendarSpan)
        self.spans.append(span)
        return StaleWindow(1, span.end_ms)


async def test_windows_are_proposed_three_times_at_most(tmp_path: Path) -> None:
    async with world(tmp_path, hot_state_type=RestlessHotState) as there:
        await there.org.set_budget("1.00")
        await there.sync()
        assert_unavailable(await there.call(), there)
        assert isinstance(there.hot_state, RestlessHotState)
        assert len(there.hot_state.spans) == len({each.start_ms for each in there.hot_state.spans}) == 3


# ---- the sandbox ----------------------------------------------------------------------------------------------------


async def test_the_sandboxs_models_go_to_the_sandbox_without_a_key(there: World) -> None:
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call(chat(model="sandbox-small"))).status == 200
    (sent,) = there.vendor.requests
    assert sent.url == f"{NOWHERE}/v1/chat/completions"
    assert b"authorization" not in dict(sent.headers)
    assert there.settlement().facts.vendor == "sandbox"


async def test_without_a_sandbox_its_models_are_the_default_vendors_business(tmp_path: Path) -> None:
    async with world(tmp_path, sandbox_url=None) as there:
        assert_refused(await there.call(chat(model="sandbox-small")), 400, "unknown_model", "'openai'")
        client = await there.call(chat(model="sandbox-small"), x_spend_vendor="sandbox")
        assert_refused(client, 400, "no_vendor_connection", "switched off")


async def test_connecting_the_default_vendor_is_not_advised_for_a_model_without_a_price(there: World) -> None:
    await there.org.disconnect("openai")
    await there.sync()
    assert_refused(await there.call(chat(model="gpt-nobody-priced")), 400, "unknown_model", "gpt-nobody-priced")
    assert_refused(await there.call(), 400, "no_vendor_connection", "connections set openai")
