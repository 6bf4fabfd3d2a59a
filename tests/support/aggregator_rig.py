"""Real aggregator processes on real engines, beside a ledger that says what the test wants it to say."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import redis

from services.adapters.secrets import Secrets, load_or_create_master_key
from services.adapters.topics import load_topics
from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.core.budgets import Budget
from services.core.hotstate import OrgImage
from services.core.ports import EventLog, Incoming, LedgerImage, Outgoing, TopicPartition
from services.core.snapshot import Snapshot, encode_snapshot
from tests.support.cluster import REPOSITORY
from tests.support.history import TOPICS, Caller, ledger_image
from tests.support.ledger_stand_in import LedgerStandIn
from tests.support.patience import patiently
from tests.support.valkey import free_port

RUN = "from services.adapters.config import Settings; from services.aggregator.app import run; run(Settings())"


class AggregatorProcess:
    """One aggregator process and its log file."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.metrics_port = free_port()
        self.log_file = directory / f"aggregator-{self.metrics_port}.log"
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("FARTHING_", "OTEL_"))}
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", RUN],
                cwd=REPOSITORY,
                env=variables | dict(environment) | {"FARTHING_METRICS_PORT": str(self.metrics_port)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    async def exit_code(self, seconds: float = 20.0) -> int:
        """Waits for its end."""
        return await asyncio.to_thread(self._process.wait, seconds)

    async def kill(self) -> None:
        """SIGKILL: none of its code runs any more."""
        self.send(signal.SIGKILL)
        await self.exit_code()

    async def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self.send(signal.SIGTERM)
        return await self.exit_code()

    def end(self) -> None:
        """Ends it however it stands."""
        if self.is_running():
            self._process.kill()
        self._process.wait()

    def is_running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def lines(self) -> list[dict[str, Any]]:
        """Its log, every line of which must be a JSON object."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def events(self) -> list[str]:
        """What its own log lines are about."""
        return [line["event"] for line in self.lines()]

    def metric(self, name: str) -> float:
        """The value of a metric, labels included in its name."""
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False).text
        return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + " "))


class Station:
    """What outlives a test: the engines' addresses, the ledger stand-in, and the aggregator that runs."""

    def __init__(
        self, directory: Path, redis_url: str, log_settings: Mapping[str, str], connect_log: Callable[[], EventLog]
    ) -> None:
        key_file = directory / "master.key"
        self.redis_url = redis_url
        self.connect_log = connect_log
        self.ledger = LedgerStandIn(Secrets(load_or_create_master_key(key_file)).internal_token)
        self.processes: list[AggregatorProcess] = []
        self._directory = directory
        self._settings = {
            **log_settings,
            "FARTHING_REDIS_URL": redis_url,
            "FARTHING_MASTER_KEY_FILE": str(key_file),
            "FARTHING_STATE_DIR": str(directory),
            "FARTHING_REAP_INTERVAL_S": "0.1",
        }

    def spawn(self) -> AggregatorProcess:
        """Starts an aggregator."""
        environment = self._settings | {"FARTHING_LEDGER_URL": self.ledger.url}
        self.processes.append(AggregatorProcess(self._directory, environment))
        return self.processes[-1]

    def running(self) -> AggregatorProcess:
        """The aggregator that was started last, or a new one when that has ended."""
        if self.processes and self.processes[-1].is_running():
            return self.processes[-1]
        return self.spawn()

    def __enter__(self) -> Self:
        self.ledger.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.end()
        self.ledger.__exit__(kind, error, trace)


class Rig:
    """One test's view of a station, on a hot state that has just been wiped.

    Everything on the log before is the ledger's already, and none of it is of this test's org.
    """

    def __init__(self, station: Station) -> None:
        self.station = station
        self.ledger = station.ledger
        self.log = station.connect_log()
        connection = ValkeyConnection(station.redis_url)
        self.hot, self.directory = ValkeyHotState(connection), ValkeyDirectory(connection)
        self.places: list[TopicPartition] = []
        self.begin: Mapping[TopicPartition, int] = {}

    async def open(self, org: str = "default") -> None:
        """Makes topics and org."""
        await self.log.create_topics(load_topics())
        self.places = [
            TopicPartition(topic, each) for topic in TOPICS for each in range(await self.log.partitions(topic))
        ]
        self.begin = await self.log.end_offsets(self.places)
        self.ledger.status = 200
        self.ledger.images.clear()
        self.ledger.messages = []
        self.ledger.known = LedgerImage(dict(self.begin), OrgImage({}, {}, {}, {}))
        self.command("FLUSHALL")
        await self.publish_org(org)

    async def close(self) -> None:
        """Closes what this test had open."""
        await self.hot.close()
        await self.log.close()

    async def publish_org(self, org: str = "default", version: int = 1, *budgets: Budget) -> None:
        """What control does for an org, at first and again after a wipe."""
        snapshot = Snapshot(org, version, "v1", 900_000, True, budgets, {})
        await self.directory.publish_org(org, version, encode_snapshot(snapshot), {}, ())

    async def caller(self, org: str = "default", producer: str = "gw_1") -> Caller:
        """A gateway's events, admitted now."""
        return Caller(await self.hot.now_ms(), org, producer)

    async def publish(self, *messages: Outgoing) -> None:
        """Puts messages on the log."""
        await self.log.publish(messages)

    async def messages(
        self, topics: Sequence[str] = TOPICS, begin: Mapping[TopicPartition, int] | None = None
    ) -> list[Incoming]:
        """What is on the log since the rig was opened, or since `begin` (0 where it says nothing)."""
        places = [TopicPartition(topic, each) for topic in topics for each in range(await self.log.partitions(topic))]
        starts = dict.fromkeys(places, 0) | dict(self.begin if begin is None else begin)
        ends = await self.log.end_offsets(places)
        behind = {place: starts[place] for place in places if starts[place] < ends[place]}
        found: list[Incoming] = []
        if not behind:
            return found
        async for batch in self.log.read(dict(behind)):
            found += batch
            for message in batch:
                if message.offset + 1 >= ends[message.place]:
                    behind.pop(message.place, None)
            if not behind:
                return found
        raise AssertionError("the log's reader ended")

    async def until_warm(self, org: str = "default", seconds: float = 20.0) -> float:
        """Waits until an org has its epoch; how long that took."""
        return await self.until(lambda: self._is_warm(org), lambda: f"{org} is warm", seconds)

    async def until_running(self, process: AggregatorProcess, seconds: float = 20.0) -> None:
        """Waits until a process has begun to fold."""

        async def is_folding() -> bool:
            return "folding" in process.events()

        await self.until(is_folding, lambda: "the fold has begun", seconds)

    async def until_folded(self, seconds: float = 30.0) -> float:
        """Waits until every fence is at its partition's end; how long that took."""
        ends = await patiently(lambda: self.log.end_offsets(self.places))
        fences: Mapping[TopicPartition, int | None] = {}

        async def is_folded() -> bool:
            nonlocal fences
            fences = await self.hot.fold_fences(self.places)
            return fences == ends

        return await self.until(is_folded, lambda: f"folded to {ends}, not {fences}", seconds)

    async def ledger_takes(self, org: str, taken: Mapping[TopicPartition, int]) -> None:
        """From now on the ledger knows what lies below `taken`."""
        self.ledger.known = LedgerImage(dict(taken), OrgImage({}, {}, {}, {}))
        self.ledger.messages = await self.messages()
        self.ledger.images[org] = ledger_image(org, self.ledger.messages, taken)

    async def assert_exact(self, org: str = "default") -> None:
        """The hot state is what the log since the rig's opening means, to the nano-dollar and the hold."""
        ends = await self.log.end_offsets(self.places)
        meant = ledger_image(org, await self.messages(), ends).image
        held: dict[tuple[str, str], int] = {}
        for hold in meant.holds.values():
            for charge in hold.charges if hold.phase == "held" else ():
                slot = charge.budget_id, charge.window
                held[slot] = held.get(slot, 0) + hold.amount_nano
        found = self.figures(org)
        assert found["spent"] == {slot: nano for slot, nano in meant.spent_nano.items() if nano}
        assert found["held"] == _by_window(held)
        assert found["phases"] == {name: (hold.phase, hold.booked_nano) for name, hold in meant.holds.items()}
        assert found["due"] == sum(hold.phase == "held" for hold in meant.holds.values())

    def figures(self, org: str = "default") -> dict[str, Any]:
        """What an org's hot state decides by, read key by key: of one moment only while nothing is folded."""
        spent: dict[tuple[str, str], int] = {}
        held: dict[tuple[str, str], int] = {}
        phases: dict[str, tuple[str, int]] = {}
        with redis.Redis.from_url(self.station.redis_url, decode_responses=True) as client:
            for key in client.scan_iter(f"{{{org}}}:*", count=1000):
                kind, _, rest = key.partition("}:")[2].partition(":")
                if kind == "h":
                    hold = client.hgetall(key)
                    phases[rest] = (hold["phase"], int(hold.get("booked", 0)))
                elif kind in ("b", "r"):
                    budget_id, _, window = rest.partition(":")
                    window = window if kind == "b" else f"r:{window}"
                    for name, value in client.hgetall(key).items():
                        if name == "held" and int(value):
                            held[budget_id, window] = int(value)
                        elif name == "spent" and int(value):
                            spent[budget_id, window] = int(value)
                        elif name.isdecimal() and int(value):
                            spent[budget_id, f"{window}:{name}"] = int(value)
            due = client.zcard(f"{{{org}}}:hx")
        return {"spent": spent, "held": held, "phases": phases, "due": due}

    def command(self, *words: str | int) -> Any:
        """A raw command to the hot state."""
        with redis.Redis.from_url(self.station.redis_url, decode_responses=True) as client:
            return client.execute_command(*words)

    async def _is_warm(self, org: str) -> bool:
        return (await self.hot.epochs([org]))[org] is not None

    async def until(
        self, is_so: Callable[[], Awaitable[bool]], what: Callable[[], str], seconds: float = 20.0
    ) -> float:
        """Waits until something is so; how long that took. Fails when the last aggregator ends meanwhile."""
        began_s = time.monotonic()
        while not await is_so():
            last = self.station.processes[-1]
            if not last.is_running() or time.monotonic() - began_s > seconds:
                log = last.log_file.read_text()[-3000:]
                raise AssertionError(f"not so after {seconds} s: {what()}\n{log}")
            await asyncio.sleep(0.01)
        return time.monotonic() - began_s


def _by_window(held: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """Holds of a rolling window are one figure of its ring, whatever their bucket."""
    sums: dict[tuple[str, str], int] = {}
    for (budget_id, window), nano in held.items():
        slot = budget_id, window if window.startswith("c:") else window.rpartition(":")[0]
        sums[slot] = sums.get(slot, 0) + nano
    return sums
