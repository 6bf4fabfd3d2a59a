"""The ledger as a process of its own, on each real log: killed in the middle, stopped, and stopped by a gap."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from aiokafka import TopicPartition as KafkaPlace
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from services.adapters.kafka import KafkaLog
from services.adapters.secrets import Secrets, load_or_create_master_key
from services.adapters.topics import load_topics
from services.adapters.valkey import ValkeyDirectory
from services.adapters.valkey_connection import ValkeyConnection
from services.adapters.valkey_log import ValkeyLog
from services.core.events import Event, Settlement
from services.core.identity import KeyRecord, hash_key
from services.core.ports import EventLog, Outgoing, TopicPartition
from services.ledger.routes import PATIENCE_S
from tests.support.cluster import REPOSITORY
from tests.support.examples import EXPIRY, RESERVATION, SETTLEMENT
from tests.support.kafka import KafkaBroker
from tests.support.ledger import SOURCES, Publisher
from tests.support.valkey import ValkeyServer, free_port

ADMIN = "fk_live_" + "a" * 40
# In a process of its own: this one has another path open already.
READ_OFFSETS = """
import sys, json, clickhouse_connect
client = clickhouse_connect.get_client(interface="chdb", path=sys.argv[1], database="farthing")
read = "SELECT topic, partition, `offset` FROM "
print(json.dumps({name: client.query(read + name).result_rows for name in ("events", "skipped")}))
"""


class LedgerProcess:
    """``farthing service ledger`` on engines that are handed in."""

    def __init__(self, directory: Path, redis_url: str, log_variables: dict[str, str]) -> None:
        self.directory = directory
        self.port = free_port()
        self.secrets = Secrets(load_or_create_master_key(directory / "master.key"))
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10, trust_env=False)
        self.process: subprocess.Popen[bytes] | None = None
        self._environment = {name: text for name, text in os.environ.items() if not name.startswith("FARTHING_")} | {
            "FARTHING_PORT": str(self.port),
            "FARTHING_REDIS_URL": redis_url,
            "FARTHING_CLICKHOUSE_DSN": f"chdb://{directory / 'clickhouse'}",
            "FARTHING_MASTER_KEY_FILE": str(directory / "master.key"),
            **log_variables,
        }

    def start(self) -> None:
        """Starts it without waiting."""
        with (self.directory / "ledger.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "service", "ledger"],
                cwd=REPOSITORY,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self, seconds: float = 40.0) -> None:
        """Waits until it serves."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log_text()
            try:
                if self.client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"the ledger was not ready:\n{self.log_text()}")

    def kill(self) -> None:
        """``kill -9``."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(20)

    def log_text(self) -> str:
        """What it has logged."""
        return (self.directory / "ledger.log").read_text()

    def next_offsets(self) -> dict[TopicPartition, int]:
        """How far it has come."""
        headers = {"authorization": f"Bearer {self.secrets.internal_token}"}
        rows = self.client.get("/internal/v1/next-offsets", headers=headers).json()["next_offsets"]
        return {TopicPartition(row["topic"], row["partition"]): row["offset"] for row in rows}

    def get(self, path: str, **parameters: str) -> Any:
        """An answer to an admin."""
        answer = self.client.get(path, params=parameters, headers={"authorization": f"Bearer {ADMIN}"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stored_offsets(self) -> dict[str, list[tuple[Any, ...]]]:
        """(topic, partition, offset) of every row by table, read once the process has ended."""
        command = [sys.executable, "-c", READ_OFFSETS, str(self.directory / "clickhouse")]
        tables = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return {name: [tuple(row) for row in rows] for name, rows in tables.items()}


@pytest.fixture(scope="module", params=["valkey", "kafka"])
def log_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine of this module's own, and how processes and tests reach its log."""
    folder = tmp_path_factory.mktemp("log") / "engine"
    server = ValkeyServer(folder, appendonly="always") if request.param == "valkey" else KafkaBroker(folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def log(log_engine: ValkeyServer | KafkaBroker) -> AsyncIterator[EventLog]:
    log = ValkeyLog(log_engine.url) if isinstance(log_engine, ValkeyServer) else KafkaLog(log_engine.bootstrap)
    await log.create_topics(load_topics())
    yield log
    await log.close()


@pytest.fixture
async def ledger(
    log_engine: ValkeyServer | KafkaBroker, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LedgerProcess]:
    if isinstance(log_engine, ValkeyServer):
        variables = {"FARTHING_LOG_URL": log_engine.url}
    else:
        variables = {"FARTHING_KAFKA": log_engine.bootstrap}
    ledger = LedgerProcess(tmp_path_factory.mktemp("ledger"), valkey_url, variables)
    connection = ValkeyConnection(valkey_url)
    keys = {hash_key(ADMIN, ledger.secrets.pepper): KeyRecord("key_1", "default", "org_admin", {})}
    await ValkeyDirectory(connection).publish_org("default", 1, b"{}", keys, [])
    yield ledger
    await connection.close()
    if ledger.process is not None and ledger.process.poll() is None:
        ledger.kill()
    ledger.client.close()


async def ends_of(log: EventLog) -> dict[TopicPartition, int]:
    places = [TopicPartition(topic, at) for topic in SOURCES for at in range(await log.partitions(topic))]
    return {place: end for place, end in (await log.end_offsets(places)).items() if end}


async def until(what: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def one_call(number: int, org: str = "default") -> tuple[Event, ...]:
    """A call's events; every tenth expires."""
    name = f"txn_{number:06d}"
    facts = replace(SETTLEMENT.facts, identity=replace(SETTLEMENT.facts.identity, org=org))
    ending = EXPIRY if number % 10 == 0 else SETTLEMENT
    return (
        replace(RESERVATION, transaction_id=name, facts=facts),
        replace(ending, transaction_id=name, facts=facts),
    )


async def test_killed_again_and_again_while_inserting(ledger: LedgerProcess, log: EventLog) -> None:
    """Under load, with repeats and unreadable messages in it: every offset is accounted for exactly once."""
    publisher = Publisher(log)
    ledger.start()
    ledger.wait_ready()
    calls = 0

    async def load() -> None:
        nonlocal calls
        for turn in range(30):
            events = [event for number in range(calls, calls + 10) for event in one_call(number)]
            messages = await publisher.publish(*events)
            calls += 10
            await log.publish([*messages[:3], Outgoing(Settlement.TOPIC, b"default", b"{unreadable")])
            await asyncio.sleep(0.05 if turn % 10 else 0.3)

    loading = asyncio.create_task(load())
    for pause_s in (0.8, 0.5):
        await asyncio.sleep(pause_s)
        await asyncio.to_thread(ledger.kill)
        ledger.start()
    await loading
    await asyncio.to_thread(ledger.wait_ready)
    ends = await ends_of(log)
    await until(lambda: ledger.next_offsets() == ends)
    spend = ledger.get("/v1/spend", by="org", since="2020-01-01T00:00:00Z")
    assert (spend["total"]["settled"], spend["total"]["expired"]) == (calls * 9 // 10, calls // 10)
    assert ledger.stop() == 0
    stored = ledger.stored_offsets()
    every = [*stored["events"], *stored["skipped"]]
    assert len(every) == len(set(every)) == sum(ends.values())
    assert len(stored["events"]) == 2 * calls
    letters = TopicPartition(f"{Settlement.TOPIC}.dlq", 0)
    partitions = [replace(letters, partition=at) for at in range(await log.partitions(letters.topic))]
    assert sum((await log.end_offsets(partitions)).values()) >= 30


async def test_a_call_is_found_at_once_and_a_stopped_ledger_goes_on(ledger: LedgerProcess, log: EventLog) -> None:
    ledger.start()
    ledger.wait_ready()
    publisher = Publisher(log, "gw_second")
    ends = await ends_of(log)
    await until(lambda: ledger.next_offsets() == ends)
    for number in (900_001, 900_002):
        await publisher.publish(*one_call(number))
        found = f"/v1/transactions/txn_{number:06d}"
        began_s = time.monotonic()
        state = (await asyncio.to_thread(ledger.get, found))["state"]
        # Its beginning and its end are in two topics, so that it may be held for a moment: the answer waits that long.
        assert state == "settled" or (state == "held" and time.monotonic() - began_s >= PATIENCE_S)
        await until(lambda found=found: ledger.get(found)["state"] == "settled")
        assert ledger.stop() == 0
        if number == 900_001:
            ledger.start()
            await asyncio.to_thread(ledger.wait_ready)
    assert "fk_live_" not in ledger.log_text()


async def test_a_planted_gap_ends_it_with_an_alarm(
    ledger: LedgerProcess, log: EventLog, log_engine: ValkeyServer | KafkaBroker, valkey_url: str
) -> None:
    if isinstance(log_engine, KafkaBroker):
        # Kafka's own offsets can't be made to skip; what can happen is that retention passes what was not yet read.
        ledger.start()
        ledger.wait_ready()
        await Publisher(log, "gw_third").publish(one_call(1)[-1])
        await until(lambda: ledger.next_offsets() != {})
        assert ledger.stop() == 0
        await Publisher(log, "gw_fourth").publish(*(event for number in range(5) for event in one_call(number)))
        ends = {place: end for place, end in (await ends_of(log)).items() if place.topic == Settlement.TOPIC}
        admin = AIOKafkaAdminClient(bootstrap_servers=log_engine.bootstrap)
        await admin.start()
        await admin.delete_records(
            {KafkaPlace(each.topic, each.partition): RecordsToDelete(before_offset=end) for each, end in ends.items()}
        )
        await admin.close()
        reason = "but the log holds"
    else:
        await Publisher(log, "gw_third").publish(*(event for number in range(5) for event in one_call(number)))
        with redis.Redis.from_url(log_engine.url) as client:
            for number in range(await log.partitions(Settlement.TOPIC)):
                stream = f"log:{Settlement.TOPIC}:{number}"
                for entry, _ in client.xrevrange(stream, count=2)[1:]:
                    client.xdel(stream, entry)
        reason = "has been trimmed"
    ledger.start()
    assert ledger.process is not None
    assert await asyncio.to_thread(ledger.process.wait, 30) == 70, ledger.log_text()
    assert "OffsetGapError" in ledger.log_text()
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        alarms = client.hgetall("alarms")
    (name,) = alarms
    assert name.startswith(f"ledger_gap:{Settlement.TOPIC}:")
    assert reason in alarms[name]
