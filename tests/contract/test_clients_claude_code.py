"""Claude Code, unmodified, through the gateway: its conversations, what they cost, and how it is refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import structlog

from services.core.events import Denial, Reservation, Settlement
from services.gateway.refusal import RefusedError
from tests.support.client_scenarios import ACME, BLOCKED, LABEL, OWN_KEY, RATE_LIMITED, VENDOR_KEY, WRONG_KEY, blocked
from tests.support.client_world import ClientWorld, bytes_of, client_world, refusing
from tests.support.clients import run_claude_code
from tests.support.gateway import recorded, until
from tests.support.vendors import Answer, Received, anthropic, json_answer, stream_answer

MODEL: Final = "claude-sonnet-4-5"
QUESTION: Final = "What is six times seven?"
# Its turns: the question, from which a command comes, with a prompt in the cache for an hour; then its result.
ASKED: Final = anthropic.usage(900, 40, cache_1h=4_000)
TOLD: Final = anthropic.usage(120, 15, cache_read=4_000)
# Dollars a million tokens (Anthropic, "Pricing", claude-sonnet-4-5): 3 in, 15 out, 0.30 from the cache, 6 into it.
ASKED_NANO: Final = 900 * 3_000 + 40 * 15_000 + 4_000 * 6_000
TOLD_NANO: Final = 120 * 3_000 + 15 * 15_000 + 4_000 * 300


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ClientWorld]:
    async with client_world("anthropic", tmp_path) as made:
        made.vendor.otherwise = converse
        yield made


async def run(
    world: ClientWorld, key: str, *, prefix: str = "", headers: str = "", prompt: str = QUESTION, **options: Any
) -> dict[str, Any]:
    """One run; `headers` are further ones, one a line."""
    await world.live()
    more = {"ANTHROPIC_CUSTOM_HEADERS": f"{LABEL}: claude\n{headers}".strip()}
    address = world.gateway.url + prefix
    options = {"model": MODEL, "variables": more, "timeout_s": 60, **options}
    return await asyncio.to_thread(run_claude_code, address, key, prompt, **options)


def converse(request: Received) -> Answer:
    """Asks for a command first, and repeats what it printed afterwards."""
    results = [
        block["content"]
        for message in request.json()["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
        if block["type"] == "tool_result"
    ]
    if results:
        return spoken(request, anthropic.text_block(f"It printed {results[-1]}."), TOLD)
    command = {"command": "echo $((6 * 7))", "description": "Multiplies"}
    return spoken(request, anthropic.tool_block("Bash", command), ASKED)


def spoken(request: Received, block: dict[str, Any], used: dict[str, Any]) -> Answer:
    """A message of one block, streamed if that was asked for."""
    fields = request.json()
    whole = anthropic.message(fields["model"], [block], used)
    return stream_answer(anthropic.stream(whole)) if fields.get("stream") else json_answer(whole)


async def settlements(world: ClientWorld) -> list[Settlement]:
    """The settlements, once each call has its own."""

    def of(kind: type[Any]) -> list[Any]:
        return [each for each in recorded(world.outbox) if isinstance(each, kind)]

    await until(lambda: len(of(Reservation)) == len(of(Settlement)))
    return of(Settlement)


# ---- conversations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credential", "prefix"), [("api_key", ""), ("auth_token", "/anthropic"), ("api_key", f"/{ACME}")]
)
async def test_a_conversation_with_a_tool(world: ClientWorld, credential: Any, prefix: str) -> None:
    """Two calls, each settled to the nano-dollar, cache writes for an hour at their own rate."""
    key = await world.org.make_key(team="ml", agent="claude")
    told = await run(world, key, credential=credential, prefix=prefix)
    assert told["ok"], told
    assert "It printed 42" in told["text"]
    first, second = await settlements(world)
    assert (first.cost_nano, second.cost_nano) == (ASKED_NANO, TOLD_NANO)
    for each in (first, second):
        assert (each.outcome, each.usage_source, each.facts.route) == ("completed", "reported", "messages")
        assert each.facts.vendor == (prefix.strip("/") or "anthropic")
        assert (each.facts.identity.team, each.facts.identity.agent) == ("ml", "claude")
        assert each.cost_nano <= each.held_nano
    assert len(recorded(world.outbox)) == 4
    for request in world.vendor.requests:
        assert request.target == "/v1/messages?beta=true"
        assert (request.header("x-api-key"), request.header("authorization")) == (VENDOR_KEY, None)
        assert key not in repr(request)


async def test_its_own_vendor_key_goes_through_and_is_kept_nowhere(world: ClientWorld, tmp_path: Path) -> None:
    key = await world.org.make_key(team="ml", agent="claude")
    with structlog.testing.capture_logs() as logs:
        told = await run(world, OWN_KEY, headers=f"X-Spend-Key: {key}")
    assert told["ok"], told
    assert {each.facts.auth_mode for each in await settlements(world)} == {"byok"}
    assert {request.header("x-api-key") for request in world.vendor.requests} == {OWN_KEY}
    assert not [name for request in world.vendor.requests for name, _ in request.headers if name.startswith("x-spend")]
    kept = repr(logs) + repr(recorded(world.outbox)) + bytes_of(tmp_path).decode("latin-1")
    assert OWN_KEY not in kept


async def test_the_tokens_of_its_context_are_counted_for_nothing(world: ClientWorld) -> None:
    """``/context`` counts tokens many times at once: free, so never held."""
    world.vendor.otherwise = world.vendor.responder
    told = await run(world, await world.org.make_key(team="ml"), prompt="/context", bare=False)
    assert told["ok"], told
    counted = [request for request in world.vendor.requests if request.path == "/v1/messages/count_tokens"]
    assert len(counted) > 1
    assert {request.header("x-api-key") for request in counted} == {VENDOR_KEY}
    billable = [request for request in world.vendor.requests if request.path == "/v1/messages"]
    assert len(await settlements(world)) == len(billable)


async def test_a_stream_that_breaks_off_is_asked_for_again_as_a_call_of_its_own(world: ClientWorld) -> None:
    """It asks again without streaming; both calls are held, and both are settled."""

    def break_off_streams(request: Received) -> Answer:
        answer = spoken(request, anthropic.text_block("Six times seven is 42."), TOLD)
        if not request.json().get("stream"):
            return answer
        return stream_answer(list(answer.pieces), hang_up_after=4)

    world.vendor.otherwise = break_off_streams
    told = await run(world, await world.org.make_key(team="ml"))
    assert told["ok"], told
    assert told["text"] == "Six times seven is 42."
    broken, whole = await settlements(world)
    assert [bool(request.json().get("stream")) for request in world.vendor.requests] == [True, False]
    assert (broken.outcome, whole.outcome) == ("partial", "completed")
    assert whole.cost_nano == TOLD_NANO
    # Its input was reported when the stream began, and is charged: the cached part included.
    assert broken.usage["input_tokens"] == 4_120
    assert broken.cost_nano >= 120 * 3_000 + 4_000 * 300


# ---- refusals -------------------------------------------------------------------------------------------------------


async def test_an_exhausted_budget_is_shown_after_one_request(world: ClientWorld) -> None:
    told = await run(world, await world.org.make_key(team="broke"))
    assert_refused(world, told, f"budget {world.org.snapshot.budgets[0].budget_id} of team:broke has $0.000000001 left")
    (denial,) = recorded(world.outbox)
    assert isinstance(denial, Denial)
    assert denial.code == "budget_exhausted"


@pytest.mark.parametrize("status", [403, 429])
async def test_so_it_is_with_the_status_of_a_rule(world: ClientWorld, status: int) -> None:
    org = world.stricter[status]
    told = await run(world, await org.make_key(team="broke"))
    assert_refused(world, told, f"budget {org.snapshot.budgets[0].budget_id} of team:broke has $0.000000001 left")


async def test_a_wrong_key_is_not_tried_again(world: ClientWorld) -> None:
    assert_refused(world, await run(world, WRONG_KEY), "this API key is unknown or revoked")


async def test_a_policy_is_shown_after_one_request(world: ClientWorld) -> None:
    with refusing(world.gateway.assembly.admitter, {"claude": blocked()}):
        told = await run(world, await world.org.make_key(agent="claude"))
    assert_refused(world, told, BLOCKED)


async def test_a_rate_limit_that_is_long_is_not_waited_for(world: ClientWorld) -> None:
    headers = ((b"retry-after", b"90"),)
    error = RefusedError(429, "rate_limited", RATE_LIMITED, headers=headers)
    with refusing(world.gateway.assembly.admitter, {"claude": error}):
        told = await run(world, await world.org.make_key(agent="claude"))
    assert_refused(world, told, RATE_LIMITED)


async def test_a_rate_limit_that_is_short_is_waited_for(world: ClientWorld) -> None:
    """It comes again when told to, and then gets its answer."""
    error = RefusedError(429, "rate_limited", RATE_LIMITED, headers=((b"retry-after", b"1"),))
    with refusing(world.gateway.assembly.admitter, {"claude": error}, times=1):
        told = await run(world, await world.org.make_key(agent="claude"))
    assert told["ok"], told
    assert "It printed 42" in told["text"]
    assert world.arrivals["claude"] == 3
    assert len(await settlements(world)) == 2


async def test_an_unknown_model_is_shown_by_name(world: ClientWorld) -> None:
    told = await run(world, await world.org.make_key(team="ml"), model="claude-3-haiku-20240307")
    assert_refused(world, told, "model 'claude-3-haiku-20240307' of vendor 'anthropic' has no price")


def assert_refused(world: ClientWorld, told: dict[str, Any], reason: str) -> None:
    """Asserts that it showed why, after one request, which the vendor did not see."""
    assert not told["ok"]
    assert reason in told["text"], json.dumps(told)
    assert world.arrivals["claude"] == 1
    assert world.vendor.requests == []
