"""A gateway on a real Valkey in front of stand-ins of OpenAI and Anthropic, for work that goes on after its answer."""

import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from services.adapters.cel import Cel
from services.adapters.http_transport import HttpxTransport
from services.adapters.outbox import SqliteOutbox
from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_answers import ValkeyAnswers
from services.adapters.valkey_connection import ValkeyConnection
from services.adapters.valkey_jobs import ValkeyJobs
from services.core.budgets import propose
from services.core.events import Event, Settlement
from services.core.snapshot import Connection, Overrides
from services.gateway.assemble import Ports
from tests.support.gateway import PEPPER, Dead, PublishedOrg, Serving, open_sealed, options, recorded, serving, until
from tests.support.vendors import StandInVendor

CHAT = "/v1/chat/completions"
CLAUDE = "claude-sonnet-4-5"
# Nano-dollars a token, half of what OpenAI asks for without a batch: $0.15 and $0.60 a million (OpenAI, "Pricing").
BATCH_INPUT_NANO, BATCH_OUTPUT_NANO = 75, 300


@dataclass
class JobWorld:
    """The gateways (all of one org, with one Valkey and one outbox), the vendors, and a key."""

    gateways: list[Serving]
    org: PublishedOrg
    openai: StandInVendor
    anthropic: StandInVendor
    hot_state: ValkeyHotState
    connection: ValkeyConnection
    outbox: SqliteOutbox
    key: str

    def client(self, gateway: int = 0, **settings: Any) -> OpenAI:
        """OpenAI's client, which calls through a gateway."""
        return OpenAI(base_url=self.gateways[gateway].url + "/v1", api_key=self.key, max_retries=0, **settings)

    def events(self) -> list[Event]:
        """Everything recorded so far."""
        return recorded(self.outbox)

    def settlements(self) -> list[Settlement]:
        """Every settlement so far."""
        return [each for each in self.events() if isinstance(each, Settlement)]

    async def figures(self) -> tuple[int, int]:
        """What the org's first budget has spent and holds."""
        proposals = propose(self.org.snapshot.budgets[:1], await self.hot_state.now_ms())
        standings = await self.hot_state.peek(self.org.name, proposals)
        assert standings is not None
        return standings[0].spent_nano, standings[0].held_nano

    async def kept(self) -> int:
        """How many jobs are kept."""
        return int(await self.connection.execute("HLEN", f"jobs:{{{self.org.name}}}"))

    async def make_due(self) -> None:
        """Has every job be asked for now."""
        place = f"jobs:{{{self.org.name}}}"
        for name in await self.connection.execute("HKEYS", place):
            await self.connection.execute("ZADD", f"{place}:due", 0, name)
            await self.connection.execute("HDEL", f"{place}:claims", name)

    async def look(self, gateway: int = 0) -> None:
        """Has a gateway look for jobs that are due, all of which are."""
        await self.make_due()
        await self.gateways[gateway].assembly.poller.look()


@contextlib.asynccontextmanager
async def job_world(
    tmp_path: Path, valkey_url: str, openai: StandInVendor, anthropic: StandInVendor, gateways: int = 1
) -> AsyncIterator[JobWorld]:
    """A world of one org with a key pinned to team ``ml`` and connections to both vendors."""
    connection, transport = ValkeyConnection(valkey_url), HttpxTransport()
    hot_state, directory = ValkeyHotState(connection), ValkeyDirectory(connection)
    org = PublishedOrg(directory, hot_state)
    await org.warm_up()
    connections = {
        "openai": Connection("openai", "openai", openai.url, "sealed:sk-vendor", "openai"),
        "anthropic": Connection("anthropic", "anthropic", anthropic.url, "sealed:sk-ant-vendor", "anthropic"),
    }
    await org.publish(connections=connections, overrides=Overrides("claude", (shipped("anthropic", CLAUDE),)))
    key = await org.make_key(team="ml")
    with closing(SqliteOutbox(tmp_path / "outbox.sqlite", 10_000)) as outbox:
        ports = Ports(
            directory,
            hot_state,
            outbox,
            transport,
            Dead(),
            open_sealed,
            PEPPER,
            ValkeyJobs(connection),
            ValkeyAnswers(connection),
            Cel(),
        )
        async with contextlib.AsyncExitStack() as stack:
            served = [await stack.enter_async_context(serving(ports, options())) for _ in range(gateways)]
            for each in served:
                snapshots = each.assembly.snapshots
                await until(lambda snapshots=snapshots: snapshots.generation is not None)
            yield JobWorld(served, org, openai, anthropic, hot_state, connection, outbox, key)
    await transport.close()
    await connection.close()


def shipped(vendor: str, model: str) -> dict[str, Any]:
    """The shipped prices of a model."""
    path = Path(__file__).resolve().parents[2] / "services" / "control" / "prices" / "catalog.json"
    (found,) = (
        each for each in json.loads(path.read_bytes())["models"] if (each["vendor"], each["model"]) == (vendor, model)
    )
    return dict(found)


def line(number: int, url: str = CHAT, **body: Any) -> dict[str, Any]:
    """A line of an input file."""
    asked = {"model": "gpt-4o-mini", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}], **body}
    return {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": asked}


def jsonl(*lines: object) -> bytes:
    """A file of lines."""
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)
