"""kill -9 of every process at awkward moments, on a real Kafka: nothing is lost and nothing is counted twice.

Each test drives real calls through real processes, kills, restarts, waits for quiet, and lets the independent model of
`tests.support.checker` read the log: hot state and ledger must say the same, to the nano-dollar and to the row.
"""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import redis

from services.adapters.kafka import KafkaLog
from tests.support.agreement import assert_agreement, judge_log, outbox_rows, read_all, settle_down
from tests.support.checker import Verdict
from tests.support.cluster import Cluster
from tests.support.kafka import KafkaBroker
from tests.support.load import Call, drive, one_call, sandbox_body
from tests.support.postgres import PostgresServer
from tests.support.schemas import validate_event
from tests.support.valkey import ValkeyServer

TEAMS = {"ml": ("ada", "bob"), "ops": ("eve",)}
HOLD_SECONDS = 6


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def broker(directory: Path) -> Iterator[KafkaBroker]:
    with KafkaBroker(directory / "kafka") as broker:
        yield broker


@pytest.fixture(scope="module")
def cluster(directory: Path, broker: KafkaBroker) -> Iterator[Cluster]:
    with ValkeyServer(directory / "valkey") as valkey, PostgresServer(directory / "postgres") as postgres:
        cluster = Cluster(
            directory,
            redis_url=valkey.url,
            postgres_dsn=postgres.dsn,
            kafka=broker.bootstrap,
            hold_seconds=HOLD_SECONDS,
            extra={"FARTHING_VENDOR_TIMEOUT_S": "4"},
        )
        try:
            cluster.start("control")
            cluster.take_first_keys()
            cluster.start("ledger", "sandbox", "aggregator", "gateway", "gateway-2")
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="module")
def keys(cluster: Cluster) -> dict[str, str]:
    """One key an agent, and a generous budget on the org, each team and each agent."""
    made = {agent: cluster.make_agent(team, agent) for team, agents in TEAMS.items() for agent in agents}
    cluster.set_budget("500.00", "month")
    for team, agents in TEAMS.items():
        cluster.set_budget("100.00", team=team)
        for agent in agents:
            cluster.set_budget("50.00", "1h", agent=agent)
    return made


@pytest.fixture
async def log(broker: KafkaBroker) -> AsyncIterator[KafkaLog]:
    log = KafkaLog(broker.bootstrap)
    yield log
    await log.close()


async def load(cluster: Cluster, keys: dict[str, str], seconds: float, **options: object) -> list[Call]:
    gateways = [cluster.url(name) for name in cluster.processes if name.startswith("gateway")]
    return await drive(gateways, list(keys.values()), seconds=seconds, **options)  # type: ignore[arg-type]


async def agree(cluster: Cluster, log: KafkaLog, seen: list[Call]) -> Verdict:
    """Waits for quiet and asserts that everything agrees and that no answered call is missing."""
    for name in ("ledger", "aggregator"):
        await asyncio.to_thread(cluster.wait_ready, name)
    await settle_down(cluster, log, [name for name in cluster.processes if name.startswith("gateway")])
    verdict = await judge_log(log)
    assert_agreement(verdict, cluster)
    answered = {call.transaction_id for call in seen if call.status == 200}
    assert answered <= {name for name, each in verdict.transactions.items() if each.settlement is not None}
    by_team, by_agent = verdict.spent_by("team"), verdict.spent_by("agent")
    assert sum(by_team.values()) == sum(by_agent.values()) == sum(verdict.spent_by("org").values())
    return verdict


async def test_gateway_killed_between_reserve_and_settle(cluster: Cluster, keys: dict[str, str], log: KafkaLog) -> None:
    """Calls in flight die with their gateway; their holds are ended by an expiry each, booked at the estimate."""
    async with httpx.AsyncClient() as client:
        calls = [
            asyncio.create_task(one_call(client, cluster.url(), keys["ada"], sandbox_body(delay_ms=3000)))
            for _ in range(5)
        ]
        await asyncio.sleep(1.0)
        cluster.kill("gateway")
        seen = await asyncio.gather(*calls)
    assert [call.status for call in seen] == [0] * 5
    cluster.start("gateway")
    verdict = await agree(cluster, log, seen)
    expired = [each for each in verdict.transactions.values() if each.expiry is not None]
    assert len(expired) == 5
    assert all(each.reservation is not None and each.settlement is None for each in expired)
    assert all(each.expiry["booked_usd"] == each.expiry["held_usd"] for each in expired if each.expiry)


async def test_aggregator_killed_in_mid_batch(cluster: Cluster, keys: dict[str, str], log: KafkaLog) -> None:
    driving = asyncio.create_task(load(cluster, keys, 6.0))
    for pause_s in (1.3, 0.7, 0.2):
        await asyncio.sleep(pause_s)
        await asyncio.to_thread(cluster.kill, "aggregator")
        cluster.spawn("aggregator")
    seen = await driving
    assert sum(call.status == 200 for call in seen) > 50
    await agree(cluster, log, seen)


async def test_ledger_killed_while_inserting(cluster: Cluster, keys: dict[str, str], log: KafkaLog) -> None:
    driving = asyncio.create_task(load(cluster, keys, 6.0))
    for pause_s in (1.1, 1.7, 1.3):
        await asyncio.sleep(pause_s)
        await asyncio.to_thread(cluster.kill, "ledger")
        cluster.spawn("ledger")
    seen = await driving
    assert all(call.status == 200 for call in seen), "the hot path must not notice the ledger"
    await agree(cluster, log, seen)


async def test_broker_killed_under_load(
    cluster: Cluster, keys: dict[str, str], log: KafkaLog, broker: KafkaBroker
) -> None:
    driving = asyncio.create_task(load(cluster, keys, 8.0))
    await asyncio.sleep(2.0)
    await asyncio.to_thread(broker.kill)
    await asyncio.sleep(1.0)
    await asyncio.to_thread(broker.start)
    seen = await driving
    assert all(call.status == 200 for call in seen), "the outbox holds while the log is away"
    await agree(cluster, log, seen)


async def test_gateway_killed_between_acknowledgement_and_forgetting(
    cluster: Cluster, keys: dict[str, str], log: KafkaLog, broker: KafkaBroker, tmp_path: Path
) -> None:
    """Its outbox as it was before the broker had the events comes back: they are published again, at new offsets.

    Taking the file back is the same as dying before the deletion: the broker has the events, the outbox has them too.
    """
    outbox = cluster.directory / "gateway.outbox.sqlite"
    await asyncio.to_thread(broker.pause)
    async with httpx.AsyncClient() as client:
        seen = [await one_call(client, cluster.url(), keys["bob"], sandbox_body()) for _ in range(4)]
    assert [call.status for call in seen] == [200] * 4
    assert outbox_rows(outbox) == 8
    with (
        closing(sqlite3.connect(f"file:{outbox}?mode=ro", uri=True)) as live,
        closing(sqlite3.connect(tmp_path / "copy.sqlite")) as copy,
    ):
        live.backup(copy)
    await asyncio.to_thread(broker.resume)
    before = await agree(cluster, log, seen)
    cluster.kill("gateway")
    for leftover in cluster.directory.glob("gateway.outbox.sqlite*"):
        leftover.unlink()
    shutil.copy(tmp_path / "copy.sqlite", outbox)
    cluster.start("gateway")
    after = await agree(cluster, log, seen)
    assert after.duplicates == before.duplicates + 8
    assert after.spent() == before.spent()
    assert after.transactions.keys() == before.transactions.keys()


async def test_replay_of_the_whole_log_changes_nothing(cluster: Cluster, keys: dict[str, str], log: KafkaLog) -> None:
    """Fold and ledger start from offset 0 of every partition again.

    The fold's offset fences are taken away, the orgs' own as well: what is left to tell a repetition are the producers'
    sequences and the holds. The ledger's rows are its fence, so it gets an empty database and must come to the same.
    """
    before = await agree(cluster, log, await load(cluster, keys, 1.0))
    cluster.terminate("aggregator")
    with redis.Redis.from_url(cluster.redis_url) as client:
        for fence in client.scan_iter("fold:*"):
            client.set(fence, 0)
        for fence in client.scan_iter("{default}:f:*"):
            client.delete(fence)
    cluster.terminate("ledger")
    shutil.rmtree(cluster.directory / "clickhouse")
    cluster.start("ledger", "aggregator")
    after = await agree(cluster, log, [])
    assert after.spent() == before.spent()


async def test_hot_state_wiped_under_load(cluster: Cluster, keys: dict[str, str], log: KafkaLog) -> None:
    """Calls are refused with 503 and Retry-After until ledger and log have rebuilt the state, to the same figures."""
    driving = asyncio.create_task(load(cluster, keys, 8.0))
    await asyncio.sleep(2.5)
    with redis.Redis.from_url(cluster.redis_url) as client:
        client.flushall()
    seen = await driving
    refused = [call for call in seen if call.status != 200]
    assert refused, "the wipe went unnoticed"
    assert {(call.status, call.code) for call in refused} == {(503, "state_rebuilding")}
    assert all(call.retry_after == "1" for call in refused)
    assert seen[-1].status == 200, "calls pass again once the state is rebuilt"
    await agree(cluster, log, seen)


async def test_every_event_on_the_log_matches_its_schema(cluster: Cluster, keys: dict[str, str], log: KafkaLog) -> None:
    """Whatever the tests above made the services emit."""
    messages = await read_all(log)
    assert len(messages) > 100
    for message in messages:
        validate_event(message.value)
