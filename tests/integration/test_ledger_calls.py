"""What the ledger says of ended calls, by its own SQL, against a model that looks at the messages one by one."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import httpx
import pytest
from ulid import ULID

from services.adapters.clickhouse import ClickHouse
from services.adapters.ledger_http import HttpLedgerView, _call_sum
from services.adapters.memory import MemoryDirectory, MemoryHotState, MemoryStore
from services.core.backfill import CallQuery, CallSum, ImpliedBudgets, admitted_at_ms, query_fields
from services.core.budgets import EACH, Budget, Charge
from services.core.codec import to_message
from services.core.events import CallFacts, Expiry, Match, Settlement, Stamped
from services.core.hotstate import EXPIRY_PRODUCER
from services.core.identity import Identity
from services.core.ports import Outgoing
from services.core.windows import CalendarWindow, RollingWindow
from services.ledger.auth import Gate
from services.ledger.backfill import call_sums, calls_fields, query_of
from services.ledger.reconcile import Reconciler
from services.ledger.routes import Context, build_api
from tests.support import call_sums as model
from tests.support.ledger import Rig, new_log, now_ms
from tests.support.memory_log import MemoryLog

HOUR_MS = 3_600_000
TOKEN = "internal"
_orgs = itertools.count(1)
_ULID = "01HZXK3V5M0000000000000000"
MADE_MS = ULID.from_str(_ULID).milliseconds


def history(org: str, seed: int, now: int) -> list[Outgoing]:
    """Calls of two users, under four configurations, that settle or expire or both; some told twice."""
    chance = random.Random(seed)
    messages: list[Outgoing] = []
    sequences: Counter[str] = Counter()
    for number in range(60):
        who = Identity(org, "key_1", user=chance.choice([None, "ada", "bob"]), tags=chance.choice([(), ("a", "b")]))
        named: list[tuple[str, Match]] = [("m", "exact"), ("m-2026-01-01", "normalised"), ("x", "fallback")]
        model, match = chance.choice(named)
        facts = CallFacts(who, "openai", "/v1/x", model, "m", match, "c", chance.randint(1, 4))
        admitted = now - chance.randrange(30) * HOUR_MS // 7
        charges = (Charge("bud_1@ada", "user:ada", "l"), Charge("bud_9", "org:o", "l"))[: chance.randrange(3)]
        head = (f"txn_{org}_{number}", admitted + 1_500, facts)
        if chance.random() < 0.4:
            expiry = Expiry(*head, 700, chance.choice([0, 700]), charges, admitted_at_ms=admitted)
            messages.append(to_message(Stamped(expiry, EXPIRY_PRODUCER + head[0], 1)))
        if chance.random() < 0.8:
            producer = f"gw_{org}_{chance.randint(1, 2)}"
            sequences[producer] += 1
            settlement = Settlement(
                *(*head, "completed", "reported", {}, (), chance.randrange(10**12), 700, charges, 200, 0),
                admitted_at_ms=chance.choice([admitted, admitted, 0]),
            )
            messages += [to_message(Stamped(settlement, producer, sequences[producer]))] * chance.randint(1, 2)
    return messages


def added(sums: Sequence[CallSum]) -> Counter[object]:
    """The sums by what they are sums of."""
    found: Counter[object] = Counter()
    for each in sums:
        model_of = (each.facts.model_requested, each.facts.model_priced, each.facts.match)
        facts = (each.facts.identity, each.facts.route, each.facts.auth_mode, each.facts.config_version, *model_of)
        found[facts, each.admitted_at_ms, tuple(sorted(each.charged))] += each.amount_nano
    return found


@pytest.mark.parametrize("seed", range(4))
async def test_the_statement_says_what_the_messages_say(ledger_store: ClickHouse, seed: int) -> None:
    now, org, log = now_ms(), f"calls{next(_orgs)}", new_log(2)
    await log.publish(history(org, seed, now))
    await record(ledger_store, log)
    messages = [message for place in log.places(Settlement.TOPIC) for message in log.messages(place)]
    [partition] = {message.partition for message in messages}
    for version, since_ms, grain_ms, below in (
        (5, 0, 900_000, len(messages)),
        (3, 0, 1, len(messages) // 2),
        (3, now - 2 * HOUR_MS, 60_000, len(messages) - 5),
    ):
        query = CallQuery(version, since_ms, grain_ms, ("bud_1", "bud_2"), {partition: below, 1 - partition: 0})
        assert query_of(query_fields(query)) == query
        found = await call_sums(ledger_store, org, query)
        assert added(found) == added(model.call_sums(org, messages, query))
        assert [_call_sum(org, each) for each in calls_fields(found)["calls"]] == found


async def record(store: ClickHouse, log: MemoryLog) -> None:
    """Has the ledger's own sink take what is on the log."""
    sink = Rig(store, log).sink()
    await sink._find_start()
    for place, start in dict(sink._next).items():
        await sink._take([each for each in log.messages(place) if each.offset >= start])


async def test_an_ending_that_does_not_say_it_was_admitted_when_its_id_was_made(ledger_store: ClickHouse) -> None:
    org, log = f"calls{next(_orgs)}", new_log(2)
    facts = CallFacts(Identity(org, "key_1"), "openai", "/v1/x", "m", "m", "exact", "c", 1)
    event = Settlement(f"txn_{_ULID}", now_ms(), facts, "completed", "reported", {}, (), 7, 7, (), 200, 0)
    await log.publish([to_message(Stamped(event, f"gw_{org}", 1))])
    await record(ledger_store, log)
    [found] = await call_sums(ledger_store, org, CallQuery(2, 0, 1, (), {0: 1, 1: 1}))
    assert (found.admitted_at_ms, found.amount_nano) == (admitted_at_ms(event), 7)
    assert admitted_at_ms(event) == MADE_MS


async def test_windows_are_summed_from_it_as_from_each_call(ledger_store: ClickHouse) -> None:
    """Grains are small enough: no sum lies in two windows."""
    now, org, log = now_ms(), f"calls{next(_orgs)}", new_log(2)
    await log.publish(history(org, 9, now))
    await record(ledger_store, log)
    messages = [message for place in log.places(Settlement.TOPIC) for message in log.messages(place)]
    below = {0: len(messages), 1: len(messages)}
    implied = ImpliedBudgets(
        (
            Budget("bud_1", "user", EACH, CalendarWindow("day", "Asia/Kathmandu"), 1, since_version=3),
            Budget("bud_2", "org", org, RollingWindow(5 * HOUR_MS), 1, since_version=4),
        )
    )
    queries = implied.queries(now, below)
    assert len(queries) == 2
    for query in queries:
        found = implied.spent_nano(query, await call_sums(ledger_store, org, query), now)
        exact = CallQuery(query.before_version, query.since_ms, 1, query.budget_ids, below)
        assert found == implied.spent_nano(query, model.call_sums(org, messages, exact), now)
        assert found


async def test_the_internal_api_answers_the_aggregator(ledger_store: ClickHouse) -> None:
    now, org, log = now_ms(), f"calls{next(_orgs)}", new_log(2)
    await log.publish(history(org, 3, now))
    await record(ledger_store, log)
    store = MemoryStore()
    hot, directory = MemoryHotState(now_ms, store), MemoryDirectory(now_ms, store)

    async def ready() -> None:
        return None

    gate = Gate(directory, b"pepper", TOKEN, "x-spend-key")
    api = build_api(Context(ledger_store, gate, Reconciler(log, ledger_store, hot, directory), ready))
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    query = CallQuery(5, 0, 900_000, ("bud_1",), {0: 1_000, 1: 1_000})
    view = HttpLedgerView("http://ledger", TOKEN)
    await view._client.aclose()
    view._client = httpx.AsyncClient(
        transport=transport, base_url="http://ledger", headers={"authorization": f"Bearer {TOKEN}"}
    )
    found = await view.call_sums(org, query)
    assert found
    assert added(found) == added(await call_sums(ledger_store, org, query))
    path = f"/internal/v1/orgs/{org}/calls"
    for body in (b"", b"{}", b'{"before_version":1,"since_ms":0,"grain_ms":0,"budget_ids":[],"below":{}}'):
        assert (await view._client.post(path, content=body)).status_code == 400
    refused = await view._client.post(path, json=query_fields(query), headers={"authorization": "Bearer other"})
    assert refused.status_code == 401
    await view.close()
