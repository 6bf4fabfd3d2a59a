"""A gateway in this process, on ports of the test's choice, and an org for it to serve.

`PublishedOrg` does what control does, `ScriptedVendor` stands in for the vendors (`vendor_port.VendorTransport`),
and `serving` puts a gateway behind a real HTTP server on a free port.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from ulid import ULID

from services.adapters.cel import Cel
from services.adapters.memory import MemoryDirectory, MemoryHotState
from services.adapters.memory_answers import MemoryAnswers
from services.adapters.memory_jobs import MemoryJobs
from services.adapters.outbox import SqliteOutbox
from services.core.budgets import Budget, ScopeKind
from services.core.codec import decode
from services.core.events import Event, Settlement
from services.core.hotstate import OrgImage
from services.core.identity import KEY_PREFIX, KeyRecord, hash_key
from services.core.money import parse_usd
from services.core.ports import Directory, HotState, OutboxEvent, UnavailableError
from services.core.snapshot import Connection, Snapshot, encode_snapshot
from services.core.vendor_port import VendorRequest
from services.core.windows import CalendarWindow, Window
from services.gateway.assemble import Assembly, Options, Ports, assemble
from services.gateway.routes import Gateway
from services.gateway.server import make_server
from tests.support import openai_answers
from tests.support.asgi import Client, request, scope_of
from tests.support.catalogs import MODELS, small_catalog

PEPPER = b"a pepper for tests only, 32 bytes"
CHAT_PATH = "/v1/chat/completions"
PORT_NAMES = {"recorder", "vendors", "relay_transport", "observer", "tracing", "jobs", "answers", "internal_token"}
DAY = CalendarWindow("day", "UTC")
NOWHERE = "http://127.0.0.1:9"


class PublishedOrg:
    """An org as control publishes it; every change is a new version, published at once."""

    def __init__(
        self,
        directory: Directory,
        hot_state: HotState,
        name: str = "default",
        pepper: bytes = PEPPER,
        models: tuple[str, ...] = MODELS,
    ) -> None:
        self.name = name
        self._pepper = pepper
        self._directory = directory
        self._hot_state = hot_state
        version, self._catalog = small_catalog(models)
        self._snapshot = Snapshot(name, 0, version, 900_000, True, (), {})
        self._keys: dict[str, KeyRecord] = {}

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot last published."""
        return self._snapshot

    async def warm_up(self) -> None:
        """Publishes the catalog and the bare org, and gives it an epoch."""
        await self._directory.publish_catalog(self._snapshot.catalog_version, self._catalog)
        await self.publish()
        assert await self._hot_state.load(self.name, OrgImage({}, {}, {}, {}), f"epoch-{ULID()}")

    async def publish(self, revoked: Sequence[str] = (), **changes: Any) -> None:
        """Publishes the org with `changes` to its snapshot."""
        self._snapshot = replace(self._snapshot, version=self._snapshot.version + 1, **changes)
        body = encode_snapshot(self._snapshot)
        assert await self._directory.publish_org(self.name, self._snapshot.version, body, self._keys, revoked)

    async def make_key(self, **pins: str) -> str:
        """A live key with the given pins (``team="ml"``)."""
        key = KEY_PREFIX + (str(ULID()) + str(ULID()))[-40:]
        self._keys[hash_key(key, self._pepper)] = KeyRecord(f"key_{ULID()}", self.name, "agent", pins)
        await self.publish()
        return key

    async def revoke_key(self, key: str) -> None:
        """Revokes a key."""
        key_hash = hash_key(key, self._pepper)
        del self._keys[key_hash]
        await self.publish(revoked=[key_hash])

    async def set_budget(
        self, limit_usd: str, scope_kind: ScopeKind = "org", scope_value: str | None = None, window: Window = DAY
    ) -> str:
        """Adds a budget and answers its id."""
        budget = Budget(f"bud_{ULID()}", scope_kind, scope_value or self.name, window, parse_usd(limit_usd))
        await self.publish(budgets=(*self._snapshot.budgets, budget))
        return budget.budget_id

    async def connect(
        self,
        vendor: str,
        base_url: str,
        sealed_key: str | None = "sealed:sk-vendor",
        dialect: str = "openai",
        prices_as: str = "openai",
    ) -> None:
        """Sets a vendor connection, of OpenAI's dialect and prices if none are named.

        `sealed_key` is as `open_sealed` takes it.
        """
        connection = Connection(vendor, dialect, base_url, sealed_key, prices_as)
        await self.publish(connections={**self._snapshot.connections, vendor: connection})

    async def disconnect(self, vendor: str) -> None:
        """Removes a vendor connection."""
        kept = {name: each for name, each in self._snapshot.connections.items() if name != vendor}
        await self.publish(connections=kept)


def open_sealed(_org: str, _vendor: str, sealed: str) -> str:
    """Opens what these tests seal: ``sealed:<plain text>``; raises `ValueError` otherwise."""
    head, _, plaintext = sealed.partition(":")
    if head != "sealed":
        raise ValueError("the stored key can't be opened; set the connection again")
    return plaintext


def recorded(outbox: SqliteOutbox) -> list[Event]:
    """Every event in an outbox, in order, as a consumer would decode it."""
    return [decode(row.message.value).event for row in outbox.oldest(100_000)]


class RefusingOutbox:
    """`record.Recorder` whose `refuses` says which events its disk does not take."""

    def __init__(self, outbox: SqliteOutbox, refuses: Callable[[object], Exception | None]) -> None:
        self._outbox = outbox
        self._refuses = refuses
        self.is_full = outbox.is_full

    def append(self, events: Sequence[OutboxEvent]) -> None:
        """Keeps the events, or raises what `refuses` answers."""
        for each in events:
            if (error := self._refuses(each.event)) is not None:
                raise error
        self._outbox.append(events)


@dataclass
class ScriptedAnswer:
    """`vendor_port.VendorResponse` that plays `pieces`: bytes are sent, exceptions raised, events waited for."""

    pieces: Sequence[bytes | Exception | asyncio.Event]
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ((b"Content-Type", b"application/json"),)
    closed: bool = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for piece in self.pieces:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif isinstance(piece, Exception):
                raise piece
            else:
                yield piece

    async def close(self) -> None:
        self.closed = True


@dataclass
class ScriptedVendor:
    """`vendor_port.VendorTransport` that plays `script` in order; an exception is raised instead of an answer."""

    script: deque[ScriptedAnswer | Exception] = field(default_factory=deque)
    requests: list[VendorRequest] = field(default_factory=list)
    head_at: asyncio.Event | None = None

    async def send(self, request: VendorRequest) -> ScriptedAnswer:
        self.requests.append(request)
        if self.head_at is not None:
            await self.head_at.wait()
        answer = self.script.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        pass


class Dead(httpx.AsyncBaseTransport):
    """A relay transport to services that are away."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nothing listens there")


def options(**changes: Any) -> Options:
    """Options with a sandbox and quick polling."""
    defaults: Mapping[str, Any] = {
        "control_url": NOWHERE,
        "ledger_url": NOWHERE,
        "sandbox_url": NOWHERE,
        "poll_interval_s": 0.02,
    }
    return Options(**{**defaults, **changes})


@dataclass(frozen=True, slots=True)
class Serving:
    """A gateway behind a real HTTP server."""

    url: str
    assembly: Assembly


@contextlib.asynccontextmanager
async def serving(
    ports: Ports, options: Options, around: Callable[[Gateway], Any] | None = None
) -> AsyncIterator[Serving]:
    """A gateway on a free port of loopback, for as long as the block lasts; `around` it, what the server calls."""
    assembly = assemble(ports, options)
    app = assembly.app if around is None else around(assembly.app)
    server = make_server(app, "127.0.0.1", 0, finish_s=2)
    poller = asyncio.create_task(assembly.snapshots.run())
    renewing = asyncio.create_task(assembly.holds.run())
    running = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Serving(f"http://127.0.0.1:{port}", assembly)
    finally:
        server.should_exit = True
        await running
        poller.cancel()
        renewing.cancel()
        await asyncio.gather(poller, renewing, return_exceptions=True)


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Returns as soon as `condition` holds; raises `TimeoutError` when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for knows of no event
            await asyncio.sleep(0.002)


AWAY = UnavailableError("it is away")


class SettableClock:
    """Unix milliseconds that a test moves by hand; the same instant for every twin."""

    def __init__(self, now_ms: int = 1_760_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


@dataclass
class World:
    """A gateway on twins in memory, a real outbox and a scripted vendor, driven without a server."""

    org: PublishedOrg
    clock: SettableClock
    hot_state: MemoryHotState
    directory: MemoryDirectory
    outbox: SqliteOutbox
    vendor: ScriptedVendor
    ports: Ports
    assembly: Assembly
    key: str

    async def call(self, body: object = None, *, path: str = CHAT_PATH, **headers: str) -> Client:
        """A chat call to its end; keyword arguments are headers, dashes written as underscores."""
        return await request(self.assembly.app, path, chat() if body is None else body, headers=self.headers(**headers))

    def start(self, client: Client, **headers: str) -> asyncio.Task[None]:
        """A chat call of `client`, on its way."""
        scope = scope_of(CHAT_PATH, self.headers(**headers))
        return asyncio.ensure_future(self.assembly.app(scope, client.receive, client.send))

    def headers(self, **headers: str) -> list[tuple[str, str]]:
        """Headers with this world's key, unless they bring one."""
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return named if "authorization" in headers else [("authorization", f"Bearer {self.key}"), *named]

    def answer(self, *answers: ScriptedAnswer | Exception) -> None:
        """The vendor's next answers."""
        self.vendor.script.extend(answers)

    def events(self) -> list[Event]:
        """Everything recorded so far."""
        return recorded(self.outbox)

    def settlement(self) -> Settlement:
        """The one settlement there is."""
        (settlement,) = (each for each in self.events() if isinstance(each, Settlement))
        return settlement

    def held_nano(self) -> int:
        """Everything that the org holds."""
        state = self.hot_state.store.state(self.org.name)
        return sum(each.held_nano for each in state.windows.values()) + sum(
            each.held_nano for each in state.rings.values()
        )

    async def sync(self) -> None:
        """Lets the gateway see what was published."""
        await self.assembly.snapshots.poll()


@contextlib.asynccontextmanager
async def world(
    tmp_path: Path, *, hot_state_type: type[MemoryHotState] = MemoryHotState, outbox_limit: int = 1000, **changes: Any
) -> AsyncIterator[World]:
    """A world with one org, one key pinned to team ``ml``, and a connection to the scripted vendor as ``openai``.

    `changes` are options, or ports by name (``recorder``, ``vendors``, ``observer``, ``tracing``, ``relay_transport``).
    """
    clock = SettableClock()
    hot_state = hot_state_type(clock)
    directory = MemoryDirectory(clock, hot_state.store)
    outbox = SqliteOutbox(tmp_path / "outbox.sqlite", outbox_limit)
    vendor = ScriptedVendor()
    org = PublishedOrg(directory, hot_state)
    await org.warm_up()
    await org.connect("openai", "https://vendor.test/v1")
    key = await org.make_key(team="ml")
    own = {name: changes.pop(name) for name in PORT_NAMES & changes.keys()}
    ports = Ports(
        directory=directory,
        hot_state=hot_state,
        jobs=own.get("jobs") or MemoryJobs(clock),
        answers=own.get("answers") or MemoryAnswers(clock),
        expressions=Cel(),
        outbox=own.get("recorder", outbox),
        vendors=own.get("vendors", vendor),
        relay_transport=own.get("relay_transport", Dead()),
        open_sealed=open_sealed,
        pepper=PEPPER,
        **{name: own[name] for name in ("observer", "tracing", "internal_token") if name in own},
    )
    made = World(org, clock, hot_state, directory, outbox, vendor, ports, assemble(ports, options(**changes)), key)
    with contextlib.closing(outbox):
        await made.sync()
        yield made


def chat(**fields: Any) -> dict[str, Any]:
    """A good chat request."""
    return {
        "model": "gpt-4o-mini",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "How much is a farthing?"}],
        **fields,
    }


EVENT_STREAM = ((b"Content-Type", b"text/event-stream; charset=utf-8"),)
WHOLE_ANSWER = openai_answers.dump(openai_answers.completion("gpt-4o-mini", text="Zürich: ein Farthing"))


def stream_events(include_usage: bool = True) -> list[bytes]:
    """The events of a streamed answer, by default with the closing usage chunk."""
    deltas = openai_answers.text_deltas("Hello", " there")
    used = openai_answers.usage(13, 2) if include_usage else None
    return openai_answers.events(openai_answers.chunks(deltas, "gpt-4o-mini", used))


def asking(**fields: Any) -> dict[str, Any]:
    """A streaming request that asks for usage itself, so that nothing is changed or hidden."""
    return chat(stream=True, stream_options={"include_usage": True}, **fields)


def assert_refused(client: Client, status: int, code: str, *names: str) -> None:
    """Asserts a refusal in OpenAI's envelope whose message has each of `names`."""
    error = client.json()["error"]
    assert (client.status, error["code"]) == (status, code), error
    assert client.header("content-type") == "application/json"
    for name in names:
        assert name in error["message"], error
    assert client.ended
