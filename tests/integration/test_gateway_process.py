"""The gateway as a process: it starts, serves, publishes, ends cleanly, and says in one line why it can't run."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.adapters.secrets import Secrets, load_or_create_master_key
from services.adapters.topics import load_topics
from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.adapters.valkey_log import ValkeyLog
from services.core.codec import decode
from services.core.events import Reservation, Settlement
from services.core.ports import Incoming, TopicPartition
from tests.support.cluster import REPOSITORY
from tests.support.gateway import PublishedOrg, chat, until
from tests.support.valkey import ValkeyServer, free_port
from tests.support.vendors import Answer, StandInVendor

BODY = chat(model="sandbox-small")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class GatewayProcess:
    """One gateway process with its settings."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.port = free_port()
        self.environment = environment | {"FARTHING_PORT": str(self.port)}
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "service", "gateway"],
                cwd=REPOSITORY,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def first_answer(self, seconds: float = 30.0) -> httpx.Response:
        """What it first says of its readiness."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(self.url + "/readyz", timeout=2)
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def wait_ready(self, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while (answer := self.first_answer()).status_code != 200:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.05)

    def end(self, number: signal.Signals, seconds: float = 15.0) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def last_words(self) -> dict[str, Any]:
        """The last line of its log."""
        line: dict[str, Any] = json.loads(self.log.read_text().strip().splitlines()[-1])
        return line


@pytest.fixture
def log_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path / "log", appendonly="always") as server:
        yield server


@pytest.fixture
def environment(
    tmp_path: Path, valkey_url: str, log_valkey: ValkeyServer, openai_vendor: StandInVendor
) -> dict[str, str]:
    # The sandbox is called without a credential.
    openai_vendor.responder.demands = False
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FARTHING_", "OTEL_"))}
    return kept | {
        "FARTHING_REDIS_URL": valkey_url,
        "FARTHING_LOG_URL": log_valkey.url,
        "FARTHING_SANDBOX_URL": openai_vendor.url.removesuffix("/v1"),
        "FARTHING_MASTER_KEY_FILE": str(tmp_path / "secrets" / "master.key"),
        "FARTHING_OUTBOX_PATH": str(tmp_path / "outbox.sqlite"),
        "FARTHING_STATE_DIR": str(tmp_path),
    }


@pytest.fixture
def gateway(environment: dict[str, str], tmp_path: Path) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(environment, tmp_path / "gateway.log")
    yield gateway
    if gateway.process is not None and gateway.process.poll() is None:
        gateway.end(signal.SIGKILL)


@pytest.fixture
async def key(tmp_path: Path, valkey_url: str) -> AsyncIterator[str]:
    """A key of a published, warm org."""
    secrets = Secrets(load_or_create_master_key(tmp_path / "secrets" / "master.key"))
    connection = ValkeyConnection(valkey_url)
    org = PublishedOrg(ValkeyDirectory(connection), ValkeyHotState(connection), pepper=secrets.pepper)
    await org.warm_up()
    await org.set_budget("1.00")
    yield await org.make_key(team="ml")
    await connection.close()


async def published(url: str, count: int) -> list[Incoming]:
    """The first `count` messages of the log, of all topics."""
    log = ValkeyLog(url)
    try:
        places = {
            TopicPartition(topic.name, partition): 0
            for topic in load_topics()
            if not topic.name.endswith(".dlq")
            for partition in range(topic.partitions)
        }
        messages: list[Incoming] = []
        deadline = time.monotonic() + 20
        reading = log.read(places)
        async for batch in reading:
            messages.extend(batch)
            if len(messages) >= count or time.monotonic() > deadline:
                break
        await reading.aclose()  # type: ignore[attr-defined]
        return messages
    finally:
        await log.close()


def call(gateway: GatewayProcess, key: str, **headers: str) -> httpx.Response:
    named = {"authorization": f"Bearer {key}", **headers}
    return httpx.post(gateway.url + "/v1/chat/completions", json=BODY, headers=named, timeout=20)


async def test_it_serves_publishes_and_ends_cleanly(
    gateway: GatewayProcess, key: str, log_valkey: ValkeyServer, openai_vendor: StandInVendor
) -> None:
    gateway.start()
    gateway.wait_ready()
    answer = call(gateway, key, traceparent=TRACEPARENT)
    assert answer.status_code == 200
    assert gateway.end(signal.SIGTERM) == 0
    messages = await published(log_valkey.url, 2)
    events = [decode(message.value).event for message in messages]
    assert {type(event) for event in events} == {Reservation, Settlement}
    assert {event.transaction_id for event in events} == {answer.headers["x-spend-transaction-id"]}
    for message in messages:
        headers = dict(message.headers)
        assert headers["ce_type"].decode() in (Reservation.TYPE, Settlement.TYPE)
        assert headers["traceparent"].decode() == TRACEPARENT
    text = gateway.log.read_text()
    assert key not in text
    assert "How much is a farthing?" not in text
    assert "Traceback" not in text


async def call_and_terminate(gateway: GatewayProcess, key: str, vendor: StandInVendor) -> int:
    """The status of a call whose vendor has it when the gateway is told to end, which it then does."""
    gateway.start()
    gateway.wait_ready()
    async with httpx.AsyncClient(timeout=20) as client:
        headers = {"authorization": f"Bearer {key}"}
        calling = asyncio.create_task(client.post(gateway.url + "/v1/chat/completions", json=BODY, headers=headers))
        await until(lambda: vendor.requests)
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGTERM)
        status = (await calling).status_code
    assert gateway.process.wait(15) == 0
    return status


async def test_a_call_in_flight_at_sigterm_gets_its_answer(
    gateway: GatewayProcess, key: str, log_valkey: ValkeyServer, openai_vendor: StandInVendor
) -> None:
    openai_vendor.answer_with(Answer((b'{"usage":{"prompt_tokens":1,"completion_tokens":1}}',), delay_s=1.0))
    assert await call_and_terminate(gateway, key, openai_vendor) == 200
    assert len(await published(log_valkey.url, 2)) == 2


async def test_a_call_whose_vendor_has_not_answered_when_it_ends_is_settled_at_its_bound(
    gateway: GatewayProcess, key: str, log_valkey: ValkeyServer, openai_vendor: StandInVendor
) -> None:
    openai_vendor.answer_with(Answer((b"{}",), delay_s=8.0))
    assert await call_and_terminate(gateway, key, openai_vendor) == 500
    events = [decode(message.value).event for message in await published(log_valkey.url, 2)]
    (settlement,) = (event for event in events if isinstance(event, Settlement))
    assert (settlement.outcome, settlement.usage_source, settlement.http_status) == ("partial", "estimated", 500)
    assert settlement.cost_nano == settlement.held_nano > 0


async def test_killed_it_publishes_what_it_had_recorded_when_it_is_back(
    gateway: GatewayProcess, key: str, log_valkey: ValkeyServer
) -> None:
    gateway.start()
    gateway.wait_ready()
    log_valkey.pause()
    assert [call(gateway, key).status_code for _ in range(3)] == [200] * 3, "the log is off a call's way"
    gateway.end(signal.SIGKILL)
    log_valkey.resume()
    gateway.start()
    gateway.wait_ready()
    messages = await published(log_valkey.url, 6)
    events = [decode(message.value) for message in messages]
    assert sorted({each.sequence for each in events}) == [1, 2, 3, 4, 5, 6]
    assert len({each.producer for each in events}) == 1
    assert gateway.end(signal.SIGINT) == 0


async def test_without_engines_it_runs_and_is_not_ready(
    gateway: GatewayProcess, key: str, environment: dict[str, str]
) -> None:
    gateway.environment |= {
        "FARTHING_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
        "FARTHING_LOG_URL": f"redis://127.0.0.1:{free_port()}/0",
    }
    gateway.start()
    answer = await asyncio.to_thread(gateway.first_answer)
    assert (answer.status_code, answer.json()["message"]) == (503, "the hot state can't be reached")
    refused = call(gateway, key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "state_rebuilding")
    assert refused.headers["retry-after"] == "1"
    assert gateway.end(signal.SIGTERM) == 0


async def test_a_hot_state_that_may_evict_ends_it_once_it_is_there(
    gateway: GatewayProcess, key: str, tmp_path: Path
) -> None:
    server = ValkeyServer(tmp_path / "hot", options={"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"})
    gateway.environment["FARTHING_REDIS_URL"] = server.url
    gateway.start()
    assert (await asyncio.to_thread(gateway.first_answer)).status_code == 503
    with server:
        assert gateway.process is not None
        assert await asyncio.to_thread(gateway.process.wait, 30) == 70
    words = gateway.last_words()
    assert words["event"] == "gateway_can_not_run"
    assert "maxmemory-policy allkeys-lru" in words["reason"]
    assert "exception" not in words


def test_without_a_master_key_it_says_so_and_ends(gateway: GatewayProcess) -> None:
    gateway.start()
    assert gateway.process is not None
    assert gateway.process.wait(30) == 70
    words = gateway.last_words()
    assert words["event"] == "gateway_can_not_run"
    assert "master key file" in words["reason"]


async def test_a_taken_port_and_a_taken_outbox_are_told(
    gateway: GatewayProcess, key: str, environment: dict[str, str], tmp_path: Path
) -> None:
    gateway.start()
    gateway.wait_ready()
    second = GatewayProcess(environment, tmp_path / "second.log")
    second.start()
    assert second.process is not None
    assert second.process.wait(30) == 70
    assert "in use by another process" in second.last_words()["reason"]
    other = environment | {"FARTHING_OUTBOX_PATH": str(tmp_path / "third.sqlite")}
    third = GatewayProcess(other, tmp_path / "third.log")
    third.environment["FARTHING_PORT"] = str(gateway.port)
    third.start()
    assert third.process is not None
    assert third.process.wait(30) == 70
    assert f"can't listen on 127.0.0.1:{gateway.port}" in third.last_words()["reason"]
