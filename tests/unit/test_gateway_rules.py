"""What an org says of its routes: the status of a budget's refusal, how long a vendor may take, and when to wait."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.core.snapshot import ANY, Connection, RouteRule
from services.core.windows import CalendarWindow
from tests.support.asgi import Client
from tests.support.gateway import ScriptedAnswer, World, assert_refused, world

OK = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}'
HOUR_END_MS = 1_760_000_400_000
# What a call of these tests holds at the most, and a bit.
ONE_CALL_USD = "0.0002"


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def rule(there: World, *rules: RouteRule) -> None:
    await there.org.publish(rules=rules)
    await there.sync()


def spend_what_is_held(there: World) -> None:
    """As once everything is folded, had each call cost all that it might."""
    for figures in there.hot_state.store.state("default").windows.values():
        figures.spent_nano, figures.held_nano = figures.spent_nano + figures.held_nano, 0


@pytest.mark.parametrize("status", [402, 403, 429])
async def test_the_status_of_a_budgets_refusal_is_the_orgs_to_say(there: World, status: int) -> None:
    await there.org.set_budget("0.000001")
    await rule(there, RouteRule("openai", "chat.completions", budget_status=status))
    client = await there.call()
    assert_refused(client, status, "budget_exhausted", "waiting brings nothing")
    assert client.header("x-should-retry") == "false"
    assert client.header("retry-after") is None, "the call will never fit, however long it waits"


@pytest.mark.parametrize(
    ("rules", "status"),
    [
        ((), 402),
        ((RouteRule(ANY, ANY, budget_status=403),), 403),
        ((RouteRule(ANY, ANY, budget_status=403), RouteRule(ANY, "chat.completions", budget_status=429)), 429),
        ((RouteRule(ANY, "chat.completions", budget_status=429), RouteRule("openai", ANY, budget_status=403)), 403),
        (
            (RouteRule("openai", "chat.completions", budget_status=429), RouteRule("openai", ANY, budget_status=403)),
            429,
        ),
        ((RouteRule("openai", "embeddings", budget_status=429),), 402),
        ((RouteRule("azure", ANY, budget_status=429),), 402),
        ((RouteRule("openai", "chat.completions", timeout_ms=5), RouteRule(ANY, ANY, budget_status=403)), 403),
    ],
)
async def test_the_most_particular_rule_counts(there: World, rules: tuple[RouteRule, ...], status: int) -> None:
    await there.org.set_budget("0.000001")
    await rule(there, *rules)
    assert (await there.call()).status == status


async def test_a_vendor_of_ones_own_has_its_own_rule(there: World) -> None:
    await there.org.connect("mirror", "https://mirror.test/v1")
    await there.org.set_budget("0.000001")
    await rule(there, RouteRule("mirror", ANY, budget_status=403))
    assert (await there.call(x_spend_vendor="mirror")).status == 403
    assert (await there.call()).status == 402


@pytest.mark.parametrize(
    ("rules", "timeout_s"),
    [
        ((), 120.0),
        ((RouteRule(ANY, ANY, timeout_ms=30_000),), 30.0),
        ((RouteRule(ANY, ANY, timeout_ms=30_000), RouteRule("openai", ANY, timeout_ms=1_500)), 1.5),
        ((RouteRule("openai", "embeddings", timeout_ms=1_500),), 120.0),
        ((RouteRule(ANY, ANY, timeout_ms=3_600_000),), 810.0),  # nine tenths of the hold
    ],
)
async def test_how_long_a_vendor_may_take(there: World, rules: tuple[RouteRule, ...], timeout_s: float) -> None:
    await rule(there, *rules)
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call()).status == 200
    assert there.vendor.requests[0].timeout_s == timeout_s


async def refused_before_the_hour_ends(there: World, ahead_ms: int) -> Client:
    await there.org.set_budget(ONE_CALL_USD, window=CalendarWindow("hour", "UTC"))
    there.clock.now_ms = HOUR_END_MS - ahead_ms
    await there.sync()
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call()).status == 200
    spend_what_is_held(there)
    client = await there.call()
    assert_refused(client, 402, "budget_exhausted", "it resets at 2025-10-")
    return client


@pytest.mark.parametrize(
    ("ahead_ms", "told"), [(60_000, "60"), (59_001, "60"), (10_500, "11"), (1, "1"), (60_001, None), (3_599_000, None)]
)
async def test_retry_after_is_told_for_a_short_wait_only(there: World, ahead_ms: int, told: str | None) -> None:
    """Several clients sleep for however long they are told (CLIENTS.md)."""
    client = await refused_before_the_hour_ends(there, ahead_ms)
    assert client.header("retry-after") == told
    assert client.header("x-should-retry") == "false"


async def test_the_longest_of_several_waits_is_told(there: World) -> None:
    await there.org.set_budget(ONE_CALL_USD, "team", "ml", CalendarWindow("day", "UTC"))
    client = await refused_before_the_hour_ends(there, 5_000)
    assert client.header("retry-after") is None, "the day has hours to go"


@pytest.mark.parametrize("status", [402, 403, 429])
async def test_a_budget_that_is_only_held_up_may_be_asked_again_at_once(there: World, status: int) -> None:
    await there.org.set_budget(ONE_CALL_USD)
    await rule(there, RouteRule(budget_status=status))
    there.answer(ScriptedAnswer([OK]))
    assert (await there.call()).status == 200
    client = await there.call()
    assert_refused(client, status, "budget_exhausted", "may come free shortly")
    assert (client.header("retry-after"), client.header("x-should-retry")) == ("1", None)


async def test_other_refusals_keep_their_status(there: World) -> None:
    await rule(there, RouteRule(budget_status=429))
    assert (await there.call({"model": "nobody-priced-it", "messages": []})).status == 400
    assert (await there.call(authorization="Bearer x")).status == 401


async def test_a_rule_is_for_the_vendor_that_is_called_not_for_its_dialect(there: World) -> None:
    own = Connection("claude-eu", "anthropic", "https://claude.test", "sealed:x", "openai")
    await there.org.publish(connections={**there.org.snapshot.connections, "claude-eu": own})
    await there.org.set_budget("0.000001")
    await rule(
        there, RouteRule("anthropic", ANY, budget_status=403), RouteRule("claude-eu", "messages", budget_status=429)
    )
    client = await there.call(path="/claude-eu/v1/messages")
    assert client.status == 429
    assert client.json()["error"]["code"] == "budget_exhausted"
