"""The official `openai` client, unmodified but for its base URL and key, through the gateway on a real Valkey."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from services.adapters.cel import Cel
from services.adapters.http_transport import HttpxTransport
from services.adapters.outbox import SqliteOutbox
from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_answers import ValkeyAnswers
from services.adapters.valkey_connection import ValkeyConnection
from services.adapters.valkey_jobs import ValkeyJobs
from services.core.budgets import propose
from services.core.events import Denial, Settlement
from services.core.money import format_usd
from services.gateway.assemble import Ports
from tests.support import openai_answers
from tests.support.gateway import (
    PEPPER,
    Dead,
    PublishedOrg,
    Serving,
    chat,
    open_sealed,
    options,
    recorded,
    serving,
    until,
)
from tests.support.valkey import ValkeyServer
from tests.support.vendors import Answer, StandInVendor, json_answer, stream_answer

REQUEST: dict[str, Any] = chat(temperature=0.5, user="u1")


@dataclass
class Setting:
    """A gateway on real Valkey, its org, the vendor behind it, and a key pinned to team ``ml``, agent ``ada``."""

    gateway: Serving
    org: PublishedOrg
    vendor: StandInVendor
    hot_state: ValkeyHotState
    outbox: SqliteOutbox
    key: str

    def client(self, **settings: Any) -> OpenAI:
        """A client that calls through the gateway."""
        return OpenAI(base_url=self.gateway.url + "/v1", api_key=self.key, **settings)

    def async_client(self, **settings: Any) -> AsyncOpenAI:
        """The same, asynchronous."""
        return AsyncOpenAI(base_url=self.gateway.url + "/v1", api_key=self.key, **settings)

    async def live(self) -> None:
        """Returns when the gateway has what was published last."""
        version = self.org.snapshot.version
        view = self.gateway.assembly.snapshots.view

        async def is_live() -> bool:
            return (await view(self.org.name)).snapshot.version == version

        async with asyncio.timeout(5):
            while not await is_live():  # noqa: ASYNC110 - the poller tells nobody
                await asyncio.sleep(0.01)

    async def figures(self) -> tuple[int, int]:
        """(spent, held) of the org's first budget."""
        proposals = propose(self.org.snapshot.budgets[:1], await self.hot_state.now_ms())
        standings = await self.hot_state.peek(self.org.name, proposals)
        assert standings is not None
        return standings[0].spent_nano, standings[0].held_nano


@pytest.fixture
async def setting(tmp_path: Path, openai_vendor: StandInVendor) -> AsyncIterator[Setting]:
    with (
        ValkeyServer(tmp_path / "valkey") as server,
        closing(SqliteOutbox(tmp_path / "outbox.sqlite", 10_000)) as outbox,
    ):
        connection = ValkeyConnection(server.url)
        hot_state, directory, vendors = ValkeyHotState(connection), ValkeyDirectory(connection), HttpxTransport()
        org = PublishedOrg(directory, hot_state)
        await org.warm_up()
        await org.connect("openai", openai_vendor.url)
        key = await org.make_key(team="ml", agent="ada")
        ports = Ports(
            directory,
            hot_state,
            outbox,
            vendors,
            Dead(),
            open_sealed,
            PEPPER,
            ValkeyJobs(connection),
            ValkeyAnswers(connection),
            Cel(),
        )
        async with serving(ports, options()) as gateway:
            await until(lambda: gateway.assembly.snapshots.generation is not None)
            yield Setting(gateway, org, openai_vendor, hot_state, outbox, key)
        await vendors.close()
        await connection.close()


def direct(setting: Setting, **settings: Any) -> OpenAI:
    """A client that calls the vendor itself."""
    return OpenAI(base_url=setting.vendor.url, api_key="sk-vendor", **settings)


def tool_stream() -> Answer:
    return stream_answer(openai_answers.events(openai_answers.chunks(openai_answers.tool_deltas())))


PLAIN: dict[str, tuple[dict[str, Any], Callable[[], Answer] | None]] = {
    "text": (REQUEST, None),
    "two choices": ({**REQUEST, "n": 2}, None),
    "tools": (
        {**REQUEST, "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]},
        lambda: json_answer(openai_answers.completion(text=None, tool_calls=[openai_answers.weather_call()])),
    ),
}
STREAMS: dict[str, tuple[dict[str, Any], Callable[[], Answer] | None]] = {
    "text": (REQUEST, None),
    "with usage": ({**REQUEST, "stream_options": {"include_usage": True}}, None),
    "tools": (REQUEST, tool_stream),
}


@pytest.mark.parametrize("name", PLAIN)
async def test_a_plain_answer_is_the_very_same_object(setting: Setting, name: str) -> None:
    request, answer = PLAIN[name]
    if answer is not None:
        setting.vendor.answer_with(answer(), answer(), answer())

    def ask(client: OpenAI) -> dict[str, Any]:
        with client:
            answer: dict[str, Any] = client.chat.completions.create(**request).model_dump()
            return answer

    straight = await asyncio.to_thread(ask, direct(setting))
    assert await asyncio.to_thread(ask, setting.client()) == straight
    async with setting.async_client() as client:
        assert (await client.chat.completions.create(**request)).model_dump() == straight
    straight_body, *through = [each.json() for each in setting.vendor.requests]
    assert through == [straight_body, straight_body]


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_is_the_very_same_objects(setting: Setting, name: str) -> None:
    request, answer = STREAMS[name]
    if answer is not None:
        setting.vendor.answer_with(answer(), answer(), answer())

    def ask(client: OpenAI) -> list[dict[str, Any]]:
        with client:
            return [chunk.model_dump() for chunk in client.chat.completions.create(**request, stream=True)]

    straight = await asyncio.to_thread(ask, direct(setting))
    assert len(straight) > 5
    assert await asyncio.to_thread(ask, setting.client()) == straight
    async with setting.async_client() as client:
        stream = await client.chat.completions.create(**request, stream=True)
        assert [chunk.model_dump() async for chunk in stream] == straight
    for each in recorded(setting.outbox):
        if isinstance(each, Settlement):
            assert each.outcome == "completed"


async def test_the_trailing_comment_does_not_disturb_the_client(setting: Setting) -> None:
    async with setting.async_client() as client:
        plain = await client.chat.completions.create(**REQUEST, stream=True)
        chunks = [chunk.model_dump() async for chunk in plain]
        headers = {"X-Spend-Trailer": "true"}
        trailed = await client.chat.completions.create(**REQUEST, stream=True, extra_headers=headers)
        assert [chunk.model_dump() async for chunk in trailed] == chunks


async def test_our_headers_are_there_for_who_asks(setting: Setting) -> None:
    await setting.org.set_budget("5.00", "team", "ml")
    await setting.live()
    async with setting.async_client() as client:
        answer = await client.chat.completions.with_raw_response.create(**REQUEST)
    settlement = next(each for each in recorded(setting.outbox) if isinstance(each, Settlement))
    assert answer.headers["x-spend-cost"] == format_usd(settlement.cost_nano)
    assert answer.headers["x-spend-transaction-id"] == settlement.transaction_id
    assert answer.headers["x-spend-budget-id"] == setting.org.snapshot.budgets[0].budget_id
    assert settlement.facts.identity.agent == "ada"
    assert not [name for name, _ in setting.vendor.requests[0].headers if name.startswith("x-spend")]


async def test_models_are_listed(setting: Setting) -> None:
    async with setting.async_client() as client:
        names = [model.id async for model in client.models.list()]
    assert {"gpt-4o-mini", "sandbox-small"} <= set(names)


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
async def test_an_exhausted_budget_is_the_clients_own_exception_with_our_fields_and_no_retry(
    setting: Setting, streaming: bool
) -> None:
    budget_id = await setting.org.set_budget("0.000001", "team", "ml")
    await setting.live()

    def ask() -> openai.APIStatusError:
        with setting.client() as client, pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**REQUEST, stream=streaming)
        return caught.value

    error = await asyncio.to_thread(ask)
    assert error.status_code == 402
    assert error.code == "budget_exhausted"
    assert isinstance(error.body, dict)
    assert error.body["budget_id"] == budget_id
    assert error.body["scope"] == "team:ml"
    assert error.body["remaining_usd"] == "0.000001000"
    assert error.body["resets_at"].endswith("Z")
    assert budget_id in error.message
    assert setting.vendor.requests == []
    denials = [each for each in recorded(setting.outbox) if isinstance(each, Denial)]
    assert [each.transaction_id for each in denials] == [error.body["transaction_id"]], "one request: nothing retried"


async def test_a_wrong_key_is_an_authentication_error(setting: Setting) -> None:
    async with setting.async_client() as client:
        client.api_key = "fk_live_" + "x" * 40
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(**REQUEST)
    assert caught.value.code == "invalid_key"


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"model": "gpt-nobody-priced"}, "unknown_model", "model"),
        ({"max_tokens": -1}, "invalid_request", "max_tokens"),
        ({"extra_body": {"plugins": []}}, "unpriced_feature", "plugins"),
    ],
)
async def test_what_cannot_be_priced_is_a_bad_request(
    setting: Setting, changes: dict[str, Any], code: str, param: str
) -> None:
    async with setting.async_client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**(REQUEST | changes))
    assert (caught.value.code, caught.value.param) == (code, param)


async def test_a_contradicting_identity_is_a_permission_error(setting: Setting) -> None:
    async with setting.async_client() as client:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await client.chat.completions.create(**REQUEST, extra_headers={"X-Spend-Team": "ops"})
    assert caught.value.code == "identity_mismatch"


async def test_a_route_that_is_not_priced_is_not_found(setting: Setting) -> None:
    async with setting.async_client() as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file="file-1")
    assert caught.value.code == "unknown_route"
    assert setting.vendor.requests == []


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, openai_answers.BAD_REQUEST, openai.BadRequestError),
        (401, openai_answers.INVALID_KEY, openai.AuthenticationError),
        (429, openai_answers.RATE_LIMITED, openai.RateLimitError),
    ],
)
async def test_a_vendors_refusal_is_the_same_exception(
    setting: Setting, status: int, body: dict[str, Any], kind: type[openai.APIStatusError]
) -> None:
    setting.vendor.always(json_answer(body, status))

    def ask(client: OpenAI) -> openai.APIStatusError:
        with client, pytest.raises(kind) as caught:
            client.chat.completions.create(**REQUEST)
        return caught.value

    straight = await asyncio.to_thread(ask, direct(setting, max_retries=0))
    through = await asyncio.to_thread(ask, setting.client(max_retries=0))
    assert (through.status_code, through.message, through.body) == (
        straight.status_code,
        straight.message,
        straight.body,
    )


async def test_a_stream_that_breaks_off_is_an_api_error(setting: Setting) -> None:
    events = openai_answers.events(openai_answers.chunks(openai_answers.text_deltas("Hello", " there")))
    setting.vendor.answer_with(stream_answer(events, hang_up_after=2))
    async with setting.async_client() as client:
        stream = await client.chat.completions.create(**REQUEST, stream=True)
        with pytest.raises(openai.APIError) as caught:
            _ = [chunk async for chunk in stream]
    assert caught.value.code == "vendor_unreachable"


# ---- concurrency ----------------------------------------------------------------------------------------------------


async def test_300_concurrent_calls_at_a_budget_that_fits_exactly_k(setting: Setting) -> None:
    """k pass, the rest are refused; spent + held is never above the limit at any moment it is sampled."""
    assert await asyncio.to_thread(crowd, setting, 1) == [200]
    held_nano = next(each.held_nano for each in recorded(setting.outbox) if isinstance(each, Settlement))
    fits = 40
    limit_nano = held_nano * fits + held_nano // 2
    await setting.org.set_budget(format_usd(limit_nano), "team", "ml")
    await setting.live()
    setting.vendor.always(json_answer(openai_answers.completion("gpt-4o-mini"), delay_s=1.0))
    calls = asyncio.create_task(asyncio.to_thread(crowd, setting, 300))
    samples = []
    while not calls.done():
        samples.append(sum(await setting.figures()))
        await asyncio.sleep(0.005)
    statuses = await calls
    assert (statuses.count(200), statuses.count(402)) == (fits, 300 - fits)
    assert max(samples) == held_nano * fits <= limit_nano
    assert len(setting.vendor.requests) == 1 + fits
    # Nothing folds here, so what is held stays held: each hold ends with its settlement, and there is one for each.
    settled = {each.transaction_id for each in recorded(setting.outbox) if isinstance(each, Settlement)}
    assert len(settled) == 1 + fits
    assert await setting.figures() == (0, held_nano * fits)


def crowd(setting: Setting, size: int) -> list[int]:
    """The statuses of `size` calls at once, from a thread and an event loop of their own, as callers are."""

    async def everyone() -> list[int]:
        async with setting.async_client(max_retries=0, timeout=60) as client:
            return await asyncio.gather(*(one(client) for _ in range(size)))

    return asyncio.run(everyone())


async def one(client: AsyncOpenAI) -> int:
    try:
        await client.chat.completions.create(**REQUEST)
    except openai.APIStatusError as error:
        return error.status_code if error.code == "budget_exhausted" else 0
    return 200
