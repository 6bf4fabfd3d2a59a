"""The official clients through a gateway on a real Valkey, each in one process, beside what they get from the vendor.

`run_of` runs a client once and keeps all that came of it, for every test that asks about it: what each scenario gave
the client, what reached the gateway and the vendor, and what was recorded. Scenarios are told apart by a label: the
client sends it in a header, and the key it uses is pinned to an agent of that name.
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import structlog

from services.adapters.cel import Cel
from services.adapters.http_transport import HttpxTransport
from services.adapters.outbox import SqliteOutbox
from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_answers import ValkeyAnswers
from services.adapters.valkey_connection import ValkeyConnection
from services.adapters.valkey_jobs import ValkeyJobs
from services.core.events import Denial, Event, Reservation, Settlement
from services.core.snapshot import Overrides, RouteRule
from services.gateway.admit import AdmittedCall, Admitter, Asked
from services.gateway.assemble import Ports
from services.gateway.body import Message, Receive, Send
from services.gateway.refusal import RefusedError
from services.gateway.routes import Gateway
from services.gateway.snapshots import OrgView
from services.gateway.timing import Timing
from tests.support.client_scenarios import (
    ACME,
    DIRECT,
    LABEL,
    OWN_KEY,
    REFUSED_BY_RULE,
    VENDOR_KEY,
    WRONG_KEY,
    Scenario,
    scenarios_of,
)
from tests.support.clients import CLIENTS, ask, drive
from tests.support.gateway import PEPPER, Dead, PublishedOrg, Serving, open_sealed, options, recorded, serving, until
from tests.support.valkey import ValkeyServer
from tests.support.vendors import Answer, Received, StandInVendor, VendorName

# The catalog's own names of what the scenarios ask for.
MODELS: Final = (
    *("gpt-4o-mini", "gpt-3.5-turbo-instruct", "text-embedding-3-small", "gpt-image-1", "tts-1"),
    *("gpt-4o-mini-transcribe", "whisper-1", "claude-sonnet-4-5", "gemini-2.5-flash", "gemini-embedding-001"),
    *("mistral-small-latest", "mistral-embed", "mistral-ocr-latest", "codestral-latest"),
    *("command-a", "embed-v4.0", "embed-english-v3.0", "rerank-v3.5"),
)
# A model that the catalog does not have, at the org's own price.
OWN_PRICES: Final = Overrides(
    "ov_clients",
    (
        {
            "vendor": "cohere",
            "model": "command-a-vision-07-2025",
            "prices": [{"usd": {"input": "2.500000000", "output": "10.000000000"}}],
            "max_output_tokens": 8_000,
            "context_window": 128_000,
        },
    ),
)


@dataclass
class ClientWorld:
    """A gateway, the stand-in behind it, and an org that reaches it under the vendor's own name and as ``acme``.

    `stricter` are orgs whose budgets refuse with another status, by that status. `arrivals` counts the requests that
    reached the gateway by label.
    """

    vendor: StandInVendor
    org: PublishedOrg
    stricter: Mapping[int, PublishedOrg]
    outbox: SqliteOutbox
    gateway: Serving
    arrivals: Counter[str | None] = field(default_factory=Counter)
    keys: dict[str, str] = field(default_factory=dict)

    async def key(self, scenario: Scenario) -> str:
        """The key that a scenario is asked with."""
        if scenario.name in self.keys:
            return self.keys[scenario.name]
        org = self.stricter.get(scenario.budget_status or 0, self.org)
        self.keys[scenario.name] = await org.make_key(team=scenario.team, agent=scenario.name)
        return self.keys[scenario.name]

    async def ask(self, client: str, scenario: Scenario) -> dict[str, Any]:
        """The scenario as its driver takes it."""
        fields = dict(scenario.fields)
        headers = {LABEL: scenario.name, **fields.pop("headers", {})}
        if scenario.name.startswith(DIRECT):
            return ask(client, scenario.kind, self.vendor.root, VENDOR_KEY, headers=headers, **fields)
        key = await self.key(scenario)
        if scenario.own_key == "beside":
            key, headers["X-Spend-Key"] = OWN_KEY, key
        elif scenario.own_key == "apart":
            headers["X-Vendor-Key"] = OWN_KEY
        elif scenario.is_stranger:
            key = WRONG_KEY
        return ask(client, scenario.kind, self.gateway.url, key, scenario.prefix, headers=headers, **fields)

    async def live(self) -> None:
        """Returns when the gateway has what was published last."""
        view = self.gateway.assembly.snapshots.view
        async with asyncio.timeout(10):
            for org in (self.org, *self.stricter.values()):
                while (await view(org.name)).snapshot.version != org.snapshot.version:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)


@asynccontextmanager
async def client_world(name: VendorName, place: Path) -> AsyncIterator[ClientWorld]:
    """A world whose vendor is a stand-in of that name; its files are in `place`."""
    vendor = StandInVendor(name)
    vendor.start()
    arrivals: Counter[str | None] = Counter()
    try:
        with ValkeyServer(place / "valkey") as server, closing(SqliteOutbox(place / "outbox", 10_000)) as outbox:
            connection = ValkeyConnection(server.url)
            transport = HttpxTransport()
            ports = Ports(
                directory=ValkeyDirectory(connection),
                hot_state=ValkeyHotState(connection),
                jobs=ValkeyJobs(connection),
                answers=ValkeyAnswers(connection),
                expressions=Cel(),
                outbox=outbox,
                vendors=transport,
                relay_transport=Dead(),
                open_sealed=open_sealed,
                pepper=PEPPER,
            )
            org, *others = [
                await _published(ports, each, vendor) for each in ("default", *map(_strict, REFUSED_BY_RULE))
            ]
            async with serving(ports, options(), lambda app: _counting(app, arrivals)) as gateway:
                await until(lambda: gateway.assembly.snapshots.generation is not None)
                stricter = dict(zip(REFUSED_BY_RULE, others, strict=True))
                yield ClientWorld(vendor, org, stricter, outbox, gateway, arrivals)
            await transport.close()
            await connection.close()
    finally:
        vendor.stop()


def _strict(status: int) -> str:
    return f"strict-{status}"


async def _published(ports: Ports, name: str, vendor: StandInVendor) -> PublishedOrg:
    org = PublishedOrg(ports.directory, ports.hot_state, name, models=MODELS)
    await org.warm_up()
    for each in (vendor.name, ACME):
        await org.connect(each, vendor.url, f"sealed:{VENDOR_KEY}", vendor.name, vendor.name)
    status = next((status for status in REFUSED_BY_RULE if _strict(status) == name), None)
    await org.publish(overrides=OWN_PRICES, rules=() if status is None else (RouteRule(budget_status=status),))
    await org.set_budget("0.000000001", "team", "broke")
    return org


def _counting(app: Gateway, arrivals: Counter[str | None]) -> Any:
    async def counted(scope: Message, receive: Receive, send: Send) -> None:
        label = dict(scope["headers"]).get(LABEL.encode())
        arrivals[None if label is None else label.decode()] += 1
        await app(scope, receive, send)

    return counted


@contextmanager
def refusing(admitter: Admitter, errors: Mapping[str, RefusedError], times: int | None = None) -> Iterator[None]:
    """An admitter that refuses calls of some agents, as engines do that the gateway does not have yet.

    With `times` it refuses so many calls, and none after them.
    """
    admit = admitter.admit
    refused = 0

    async def admit_or_refuse(asked: Asked, view: OrgView, timing: Timing) -> AdmittedCall:
        nonlocal refused
        error = errors.get(asked.identity.agent or "")
        if error is not None and refused != times:
            refused += 1
            raise error
        return await admit(asked, view, timing)

    with patch.object(admitter, "admit", admit_or_refuse):
        yield


@dataclass(frozen=True)
class Run:
    """All that came of one client's scenarios, much of it by label. `written` are the bytes of the outbox's files."""

    name: str
    vendor: VendorName
    scenarios: Mapping[str, Scenario]
    outcomes: Mapping[str, dict[str, Any]]
    arrivals: Mapping[str | None, int]
    received: tuple[Received, ...]
    events: tuple[Event, ...]
    logs: str
    written: bytes
    keys: Mapping[str, str]
    budget_ids: Mapping[str, str]

    def requests(self, label: str) -> list[Received]:
        """What the vendor got of a scenario."""
        return [request for request in self.received if request.header(LABEL) == label]

    def recorded(self, label: str) -> list[Event]:
        """What was recorded of a scenario."""
        return [event for event in self.events if event.facts.identity.agent == label]

    def call(self, label: str) -> tuple[Reservation, Settlement]:
        """The one reservation and the one settlement of a scenario's one call."""
        reservation, settlement = self.recorded(label)
        assert isinstance(reservation, Reservation), reservation
        assert isinstance(settlement, Settlement), settlement
        assert reservation.transaction_id == settlement.transaction_id
        return reservation, settlement

    def denials(self, label: str) -> list[Denial]:
        """The refusals recorded of a scenario."""
        return [event for event in self.recorded(label) if isinstance(event, Denial)]


@cache
def run_of(name: str) -> Run:
    """A client's run. It has a thread of its own, because a test may have an event loop going already."""
    with tempfile.TemporaryDirectory(prefix="farthing-clients-") as place, ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _run(name, Path(place))).result()


async def _run(name: str, place: Path) -> Run:
    scenarios = {each.name: each for each in scenarios_of(name)}
    vendor = CLIENTS[name].vendor
    with structlog.testing.capture_logs() as logs:
        async with client_world(vendor, place) as world:
            world.vendor.otherwise = _Playing(world.vendor, scenarios).answer
            asks = [await world.ask(name, each) for each in scenarios.values()]
            await world.live()
            errors = {label: each.refusal() for label, each in scenarios.items() if each.refusal is not None}
            with refusing(world.gateway.assembly.admitter, errors):
                outcomes = await asyncio.to_thread(drive, name, asks, 150)
            await until(lambda: _has_settled(world.outbox))
            events = tuple(recorded(world.outbox))
            written = bytes_of(place)
    return Run(
        name=name,
        vendor=vendor,
        scenarios=scenarios,
        outcomes={label: _told(told) for label, told in zip(scenarios, outcomes, strict=True)},
        arrivals=world.arrivals,
        received=tuple(world.vendor.requests),
        events=events,
        logs=repr(logs),
        written=written,
        keys=world.keys,
        budget_ids={each.name: each.snapshot.budgets[0].budget_id for each in (world.org, *world.stricter.values())},
    )


def bytes_of(place: Path) -> bytes:
    """What the outbox of a world has on disk."""
    return b"".join(path.read_bytes() for path in sorted(place.glob("outbox*")))


def _told(outcome: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in outcome.items() if name != "elapsed_s"}


def _has_settled(outbox: SqliteOutbox) -> bool:
    """Whether each call has ended: the client may have its answer's last byte before the settlement is on disk."""
    counts = Counter(type(each) for each in recorded(outbox))
    return counts[Reservation] == counts[Settlement]


@dataclass
class _Playing:
    """The vendor's own answers, but refused or cut off where a scenario says so."""

    vendor: StandInVendor
    scenarios: Mapping[str, Scenario]

    def answer(self, request: Received) -> Answer:
        """The vendor's answer."""
        label = request.header(LABEL)
        scenario = None if label is None else self.scenarios[label]
        if scenario is not None and scenario.declined_as is not None:
            return self.vendor.responder.failure(scenario.declined_as)
        answer = self.vendor.responder(request)
        return answer if scenario is None else replace(answer, hang_up_after=scenario.cut_after)
