"""Fallback, for real: vendors over HTTP, the hold in Valkey, and the path as a real server hands it on."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from services.adapters.cel import Cel
from services.adapters.http_transport import HttpxTransport
from services.adapters.outbox import SqliteOutbox
from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_answers import ValkeyAnswers
from services.adapters.valkey_connection import ValkeyConnection
from services.adapters.valkey_jobs import ValkeyJobs
from services.core.events import HoldResized, Reservation, Settlement
from services.core.snapshot import Connection, Overrides, RouteRule, Target
from services.gateway.assemble import Ports
from tests.support.gateway import (
    NOWHERE,
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
from tests.support.hot_state import read_state
from tests.support.vendors import StandInVendor, openai

RATES = {"input": "100.000000000", "output": "100.000000000"}
DEAR = {"vendor": "dear", "model": "big", "prices": [{"usd": RATES}], "max_output_tokens": 100}


@dataclass
class Rig:
    """A gateway on a real server and a real hot state; `first` is out of order, `second` is its fallback."""

    gateway: Serving
    client: httpx.AsyncClient
    connection: ValkeyConnection
    outbox: SqliteOutbox
    org: PublishedOrg
    first: StandInVendor
    second: StandInVendor

    async def held_nano(self) -> int:
        """What the org holds, read from its keys."""
        state = await read_state(self.connection, "default")
        return sum(each.held_nano for each in state.windows.values())


@pytest.fixture
async def rig(tmp_path: Path, valkey_url: str) -> AsyncIterator[Rig]:
    connection, transport = ValkeyConnection(valkey_url), HttpxTransport()
    hot_state, directory = ValkeyHotState(connection), ValkeyDirectory(connection)
    first, second = StandInVendor("openai"), StandInVendor("openai", accepts="sk-dear")
    async with contextlib.AsyncExitStack() as stack:
        for vendor in (first, second):
            vendor.start()
            stack.callback(vendor.stop)
        stack.push_async_callback(connection.close)
        stack.push_async_callback(transport.close)
        outbox = stack.enter_context(contextlib.closing(SqliteOutbox(tmp_path / "outbox.sqlite", 1000)))
        org = PublishedOrg(directory, hot_state)
        await org.warm_up()
        await org.connect("openai", first.url, "sealed:sk-first")
        await org.publish(
            connections={
                **org.snapshot.connections,
                "gone": Connection("gone", "openai", NOWHERE, None, "dear"),
                "dear": Connection("dear", "openai", second.url, "sealed:sk-dear", "dear"),
            },
            overrides=Overrides("own", (DEAR,)),
            rules=(RouteRule("openai", fallbacks=(Target("gone", "big"), Target("dear", "big"))),),
        )
        await org.set_budget("100.00")
        key = await org.make_key(team="ml")
        ports = Ports(
            directory=directory,
            hot_state=hot_state,
            jobs=ValkeyJobs(connection),
            answers=ValkeyAnswers(connection),
            expressions=Cel(),
            outbox=outbox,
            vendors=transport,
            relay_transport=Dead(),
            open_sealed=open_sealed,
            pepper=PEPPER,
        )
        gateway = await stack.enter_async_context(serving(ports, options()))
        await until(lambda: gateway.assembly.snapshots.generation is not None)
        client = httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, timeout=30)
        await stack.enter_async_context(client)
        yield Rig(gateway, client, connection, outbox, org, first, second)


async def test_a_call_goes_past_a_broken_and_a_missing_vendor_with_one_hold(rig: Rig) -> None:
    rig.first.answer_with(*[openai.failure(500)] * 3)
    answer = await rig.client.post("/v1/chat/completions", json=chat())
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "big"
    assert len(rig.first.requests) == 3
    assert rig.second.credentials == ["sk-dear"]
    first, to_gone, to_dear, settlement = recorded(rig.outbox)
    assert isinstance(first, Reservation)
    assert isinstance(to_gone, HoldResized)
    assert isinstance(to_dear, HoldResized)
    assert isinstance(settlement, Settlement)
    assert first.held_nano < to_gone.held_nano == to_dear.held_nano == settlement.held_nano
    assert await rig.held_nano() == settlement.held_nano, "one hold, until its settlement is folded"
    assert [each.outcome for each in settlement.attempts] == ["failed"] * 3 + ["unreachable"] * 3 + ["answered"]
    assert 0 < settlement.cost_nano <= settlement.held_nano
    assert answer.headers["x-spend-retry-count"] == "6"


async def test_a_budget_without_room_for_the_fallback_leaves_the_first_failure(rig: Rig) -> None:
    await rig.org.publish(budgets=())
    await rig.org.set_budget("0.001")
    await rig.gateway.assembly.snapshots.poll()
    rig.first.answer_with(*[openai.failure(503)] * 3)
    answer = await rig.client.post("/v1/chat/completions", json=chat())
    assert answer.status_code == 503
    assert rig.second.requests == []
    reservation, settlement = recorded(rig.outbox)
    assert isinstance(reservation, Reservation)
    assert isinstance(settlement, Settlement)
    assert (settlement.outcome, settlement.cost_nano) == ("vendor_error", 0)
    assert await rig.held_nano() == reservation.held_nano


async def test_a_models_name_reaches_its_vendor_as_it_was_spelled(rig: Rig) -> None:
    """A real server decodes the path once; what is encoded in a segment must come out as it went in."""
    await rig.client.get("/v1/models/ft%3Agpt-4o%3Aacme%2Fteam%3A%3A50")
    (request,) = rig.first.requests
    assert request.path.split("/v1/models/")[1].replace("%3A", ":") == "ft:gpt-4o:acme%2Fteam::50"
