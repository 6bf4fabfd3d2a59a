"""The ledger's process: what is wired to what, and how it ends."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, TypeVar

import structlog
import uvloop
from opentelemetry.trace import SpanKind

from services.adapters import http_server, telemetry
from services.adapters.cel import Cel
from services.adapters.clickhouse import ClickHouse
from services.adapters.config import Settings
from services.adapters.kafka import KafkaLog
from services.adapters.schemas import schemas_folder
from services.adapters.secrets import Secrets, load_master_key
from services.adapters.topics import load_topics
from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connect import connect
from services.adapters.valkey_log import ValkeyLog
from services.core.ports import EventLog, Incoming, Query, TopicPartition, UnavailableError
from services.ledger.auth import Gate
from services.ledger.reconcile import SOURCES, Reconciler
from services.ledger.routes import Context, build_api
from services.ledger.sink import Sink

_T = TypeVar("_T")
_log = structlog.get_logger("farthing.ledger")

EXIT_FATAL: Final = 70
_RETRY_S: Final = 0.5
_CANCEL_AGAIN_S: Final = 0.1
_TRACE_HEADERS: Final = ("traceparent", "tracestate")


def run(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT. What can't be waited out ends the process: one line of log, exit code 70."""
    telemetry.setup("ledger", settings)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings))
    except Exception as error:  # whatever it is, going on without the sink would look like a ledger that is up to date
        _log.critical("ledger_failed", reason=f"{type(error).__name__}: {error}", exc_info=error)
        telemetry.shutdown()
        # A thread may still wait for ClickHouse; every row is stored or will be asked for again.
        os._exit(EXIT_FATAL)
    telemetry.shutdown()


async def _serve(settings: Settings) -> None:
    secrets = Secrets(load_master_key(settings.master_key_file))
    log = KafkaLog(settings.kafka) if settings.kafka else ValkeyLog(settings.log_url)
    connection = connect(settings.redis_url)
    hot, directory = ValkeyHotState(connection), ValkeyDirectory(connection)
    store = ClickHouse(settings.clickhouse_dsn.get_secret_value())
    sink = Sink(log, store, hot, SOURCES, Telemetry(is_tracing=settings.otlp_endpoint is not None))

    async def readiness() -> str | None:
        if not sink.started.is_set():
            return "the sink waits for the log or for ClickHouse"
        try:
            await store.query(Query("SELECT 1"))
        except UnavailableError as error:
            return str(error)
        return None

    gate = Gate(directory, secrets.pepper, secrets.internal_token, f"{settings.header_prefix}key")
    api = build_api(Context(store, gate, Reconciler(log, store, hot, directory, Cel()), readiness))
    sinking = asyncio.create_task(_sink(log, store, sink))
    serving = asyncio.create_task(http_server.serve(api, settings.host, settings.port))
    try:
        await asyncio.wait((sinking, serving), return_when=asyncio.FIRST_COMPLETED)
        for task in (sinking, serving):
            if task.done():
                task.result()
    finally:
        await _end(sinking, serving)
    for resource in (store, hot, log):
        await resource.close()


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancels tasks until they are done: before Python 3.12 an `asyncio.wait_for` in a client may swallow one."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)


async def _sink(log: EventLog, store: ClickHouse, sink: Sink) -> None:
    """Makes what is missing of topics and tables, then moves events for ever."""
    await _until_answered("log", lambda: log.create_topics(load_topics()))
    applied = await _until_answered("ClickHouse", lambda: store.migrate(schemas_folder("clickhouse")))
    _log.info("recording", migrations=applied)
    await sink.run()


async def _until_answered(what: str, operation: Callable[[], Awaitable[_T]]) -> _T:
    while True:
        try:
            return await operation()
        except UnavailableError as error:
            _log.warning("waiting", waiting_for=what, reason=str(error))
        await asyncio.sleep(_RETRY_S)


class Telemetry:
    """The ledger's metrics and spans (`observe.Observer`)."""

    def __init__(self, *, is_tracing: bool) -> None:
        self._is_tracing = is_tracing

    @contextmanager
    def recording(self, messages: Sequence[Incoming]) -> Iterator[None]:
        """One consumer span a traced message, under the trace its headers carry."""
        with ExitStack() as spans:
            for message in messages if self._is_tracing else ():
                headers = {name: value.decode("latin-1") for name, value in message.headers if name in _TRACE_HEADERS}
                if headers:
                    attributes = {
                        "messaging.operation.name": "record",
                        "messaging.operation.type": "process",
                        "messaging.destination.name": message.topic,
                        "messaging.destination.partition.id": str(message.partition),
                        "messaging.kafka.offset": message.offset,
                    }
                    spans.enter_context(telemetry.continued_span("record", headers, SpanKind.CONSUMER, attributes))
            yield

    def rows(self, event_type: str, count: int) -> None:
        """Counts rows by event type."""
        telemetry.LEDGER_ROWS.labels(event_type).inc(count)

    def duplicates(self, count: int) -> None:
        """Counts what was there already."""
        telemetry.LEDGER_DUPLICATES.inc(count)

    def dead_letters(self, topic: str, count: int) -> None:
        """Counts what could not be read."""
        telemetry.DEAD_LETTERS.labels(topic).inc(count)

    def fence(self, place: TopicPartition, next_offset: int) -> None:
        """Shows where the ledger stands."""
        telemetry.LEDGER_FENCE.labels(place.topic, str(place.partition)).set(next_offset)
