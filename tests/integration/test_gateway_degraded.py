"""A gateway whose real Valkey is paused, killed, wiped and started again: nobody waits for it, nobody storms it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from services.adapters.cel import Cel
from services.adapters.memory_answers import MemoryAnswers
from services.adapters.outbox import SqliteOutbox
from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_breaker import GuardedConnection
from services.adapters.valkey_connection import ValkeyConnection
from services.adapters.valkey_jobs import ValkeyJobs
from services.core.budgets import propose
from services.core.codec import decode
from services.core.fold import step_of
from services.core.hotstate import Applied
from services.core.ports import TopicPartition
from services.core.snapshot import RouteRule
from services.core.vendor_port import VendorRequest
from services.gateway.assemble import Assembly, Ports, assemble
from tests.support.asgi import Client, request
from tests.support.gateway import (
    CHAT_PATH,
    PEPPER,
    WHOLE_ANSWER,
    Dead,
    PublishedOrg,
    ScriptedAnswer,
    ScriptedVendor,
    chat,
    open_sealed,
    options,
    until,
)
from tests.support.patience import patiently
from tests.support.valkey import ValkeyServer

TIMEOUT_S = 0.5
# What a busy loop may add to a bound before that says anything about the code.
SLACK_S = 1.5
CALLS = 1000


class CountingConnection(ValkeyConnection):
    """Counts the connections that are tried."""

    tried = 0

    async def _open(self):  # type: ignore[no-untyped-def]
        self.tried += 1
        return await super()._open()


class ReadyVendor(ScriptedVendor):
    """Answers every request alike."""

    async def send(self, request: VendorRequest) -> ScriptedAnswer:
        self.requests.append(request)
        return ScriptedAnswer([WHOLE_ANSWER])


@dataclass
class Outage:
    """A gateway in this process over a Valkey of its own, and a control that looks on."""

    server: ValkeyServer
    counted: CountingConnection
    guarded: GuardedConnection
    hot_state: ValkeyHotState
    org: PublishedOrg
    outbox: SqliteOutbox
    vendor: ReadyVendor
    assembly: Assembly
    key: str
    circuits: list[bool] = field(default_factory=list)

    async def call(self) -> tuple[Client, float]:
        """A call to its end, and how many seconds that took."""
        began_s = time.monotonic()
        client = await request(self.assembly.app, CHAT_PATH, chat(), headers=[("authorization", f"Bearer {self.key}")])
        return client, time.monotonic() - began_s

    async def calls(self, count: int = CALLS) -> Sequence[tuple[Client, float]]:
        """As many calls at once."""
        return await asyncio.gather(*(self.call() for _ in range(count)))

    async def until_served(self) -> None:
        """Returns once calls are answered again."""
        async with asyncio.timeout(10):
            while (await self.call())[0].status != 200:  # noqa: ASYNC110 - what is waited for knows of no event
                await asyncio.sleep(0.05)

    async def let_pass(self) -> None:
        """Has every route fail open, and all that came before folded."""
        await self.org.publish(rules=(RouteRule(fail_open=True),))
        await until(lambda: self.assembly.snapshots.has_fail_open)
        await self.until_served()  # its key is known again
        await self.fold_all()
        self.vendor.requests.clear()

    async def fold_all(self) -> None:
        """What the aggregator does with what is recorded; all of it is one partition's here."""
        for row in self.outbox.oldest(10_000):
            step = step_of(decode(row.message.value), row.sequence)
            if step is not None:
                place = TopicPartition(row.message.topic, 0)
                applied = await self.hot_state.apply(self.org.name, place, [step], row.sequence + 1)
                assert isinstance(applied, Applied)
        self.outbox.forget(2**60)


@contextlib.asynccontextmanager
async def outage(tmp_path: Path) -> AsyncIterator[Outage]:
    with ValkeyServer(tmp_path / "valkey") as server:
        counted = CountingConnection(server.url, timeout_s=TIMEOUT_S)
        circuits: list[bool] = []
        guarded = GuardedConnection(counted, lambda _server, is_open: circuits.append(is_open))
        hot_state, directory = ValkeyHotState(guarded), ValkeyDirectory(guarded)
        org = PublishedOrg(directory, hot_state)
        await org.warm_up()
        await org.connect("openai", "https://vendor.test/v1")
        await org.set_budget("1000.00")
        key = await org.make_key()
        vendor = ReadyVendor()
        with contextlib.closing(SqliteOutbox(tmp_path / "outbox.sqlite", 100_000)) as outbox:
            ports = Ports(
                directory=directory,
                hot_state=hot_state,
                outbox=outbox,
                vendors=vendor,
                relay_transport=Dead(),
                open_sealed=open_sealed,
                pepper=PEPPER,
                jobs=ValkeyJobs(guarded),
                answers=MemoryAnswers(lambda: 0),
                expressions=Cel(),
            )
            assembly = assemble(ports, options())
            polling = asyncio.create_task(assembly.snapshots.run())
            made = Outage(server, counted, guarded, hot_state, org, outbox, vendor, assembly, key, circuits)
            await made.until_served()
            vendor.requests.clear()
            yield made
            polling.cancel()
            await asyncio.gather(polling, assembly.releases.finish(1), return_exceptions=True)
        await guarded.close()


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Outage]:
    async with outage(tmp_path) as made:
        yield made


def refused(answers: Sequence[tuple[Client, float]]) -> bool:
    return all(
        client.status == 503
        and client.json()["error"]["code"] == "state_rebuilding"
        and client.header("retry-after") == "1"
        for client, _ in answers
    )


async def test_a_thousand_calls_on_a_paused_server_are_refused_in_time_and_then_at_once(there: Outage) -> None:
    tried = there.counted.tried
    there.server.pause()
    try:
        first = await there.calls()
        assert refused(first)
        assert max(seconds for _, seconds in first) < TIMEOUT_S + SLACK_S
        assert there.circuits == [True]
        began_s = time.monotonic()
        second = await there.calls()
        assert refused(second)
        # What a thousand refusals take of this process, whoever waits; one probe may be among them.
        fast = sorted(seconds for _, seconds in second)[:-2]
        assert fast[len(fast) // 2] < TIMEOUT_S
        assert time.monotonic() - began_s < TIMEOUT_S + SLACK_S
        one_by_one = [await there.call() for _ in range(50)]
        assert refused(one_by_one)
        assert sorted(seconds for _, seconds in one_by_one)[-3] < 0.05, "it is not asked, so nobody waits"
        await asyncio.sleep(1)
        assert there.counted.tried - tried <= 8, "connections that were tried while a thousand calls wanted one"
        assert there.vendor.requests == []
    finally:
        there.server.resume()
    await there.until_served()
    assert there.circuits[-1] is False


async def test_what_a_paused_server_was_sent_is_held_by_nobody_once_it_goes_on(there: Outage) -> None:
    await there.assembly.snapshots.poll()
    await there.until_served()  # its key is known, so that calls come as far as the hold
    await there.fold_all()
    before_nano = await spent_and_held(there)
    releases = there.assembly.releases
    there.server.pause()
    try:
        assert refused(await there.calls(10))
        assert releases.pending == 10, "each reserve was sent, and may be done yet"
        # Until the pauses between the tries are as long as they get.
        await until(lambda: min(each.pause_s for each in releases._pending.values()) == 4.0, 30)
    finally:
        there.server.resume()
    await until(lambda: releases.pending == 0, 15)
    assert await spent_and_held(there) == before_nano


async def test_a_server_that_is_gone_is_not_stormed_and_found_when_it_comes_back(there: Outage) -> None:
    there.server.kill()
    tried = there.counted.tried
    for _ in range(5):
        assert refused(await there.calls(200))
    assert there.counted.tried - tried <= 12, "connections that were tried while a thousand calls wanted one"
    there.server.start()  # it comes back empty
    async with asyncio.timeout(5):
        while there.assembly.snapshots.generation is not None:  # noqa: ASYNC110 - what is waited for knows of no event
            await asyncio.sleep(0.02)
    answers = await there.calls(20)
    assert refused(answers), "what is empty is cold, not unspent"
    await there.org.warm_up()
    await there.until_served()


async def test_what_passes_in_an_outage_is_all_on_record_and_in_the_figures_afterwards(there: Outage) -> None:
    await there.let_pass()
    before_nano = await spent_and_held(there)
    there.server.pause()
    try:
        answers = await there.calls(200)
        answers += await there.calls(200)
    finally:
        there.server.resume()
    assert {client.status for client, _ in answers} == {200}
    assert {client.header("x-spend-fail-open") for client, _ in answers} == {"true"}
    assert len(there.vendor.requests) == 400
    events = [decode(row.message.value).event for row in there.outbox.oldest(10_000)]
    flagged = [each for each in events if "fail_open" in each.facts.flags]
    assert len(flagged) == len(events) == 800
    async with asyncio.timeout(10):
        while (await there.call())[0].header("x-spend-fail-open") == "true":  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.05)
    cost_nano = sum(getattr(decode(row.message.value).event, "cost_nano", 0) for row in there.outbox.oldest(10_000))
    await there.fold_all()
    assert await spent_and_held(there) == (before_nano[0] + cost_nano, 0), "nothing is held for ever, nothing is lost"


async def test_a_wiped_state_lets_the_same_calls_pass_and_is_rebuilt_with_them_in_it(there: Outage) -> None:
    await there.let_pass()
    there.server.flush()
    await until(lambda: there.assembly.snapshots.generation is None)
    answers = await there.calls(20)
    assert {(client.status, client.header("x-spend-fail-open")) for client, _ in answers} == {(200, "true")}
    cost_nano = sum(getattr(decode(row.message.value).event, "cost_nano", 0) for row in there.outbox.oldest(1000))
    await there.org.warm_up()
    await there.fold_all()
    assert await spent_and_held(there) == (cost_nano, 0)


async def spent_and_held(there: Outage) -> tuple[int, int]:
    budget = there.org.snapshot.budgets[0]
    view = await there.assembly.snapshots.view(there.org.name)
    found = view.budgets.find(budget.budget_id)
    assert found is not None
    proposals = propose([replace(found)], await there.hot_state.now_ms())
    standings = await patiently(lambda: there.hot_state.peek(there.org.name, proposals))
    assert standings is not None
    return standings[0].spent_nano, standings[0].held_nano
