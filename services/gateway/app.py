"""The gateway's composition root: builds the adapters, serves until told to end, and lets calls in flight finish."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Final

import httpx
import structlog
import uvloop
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.adapters import telemetry
from services.adapters.cel import Cel
from services.adapters.config import Settings
from services.adapters.http_transport import HttpxTransport
from services.adapters.outbox import SqliteOutbox
from services.adapters.publisher import Publisher
from services.adapters.secrets import Secrets, load_master_key
from services.adapters.topics import load_topics
from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_answers import ValkeyAnswers
from services.adapters.valkey_breaker import GuardedConnection
from services.adapters.valkey_connect import connect
from services.adapters.valkey_jobs import ValkeyJobs
from services.core.ports import EventLog, OutboxEvent, UnavailableError
from services.gateway.assemble import Assembly, Options, Ports, assemble
from services.gateway.observe import AttributeValue, CallSpan, PassOn
from services.gateway.server import Server, make_server

log = structlog.get_logger()

_FATAL_EXIT: Final = 70
_BACKLOG: Final = 2048
# How long calls in flight, then jobs' settlements and holds to be taken back, then the outbox may take at the end; a
# supervisor waits ten seconds before it kills.
_FINISH_S: Final = 5
_JOBS_S: Final = 2.0
_DRAIN_S: Final = 2.0
_GAUGE_INTERVAL_S: Final = 1.0
_TOPICS_RETRY_S: Final = 1.0
_HOT_STATE_RETRY_S: Final = 0.2


def run(settings: Settings) -> None:
    """Runs the gateway until SIGTERM or SIGINT. What can't mend itself ends it: one line of log, exit code 70."""
    telemetry.setup("gateway", settings)
    # A connection is cut on purpose where half an answer must not pass for a whole one; we log that ourselves.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "without completing response" not in str(record.msg))
    try:
        secrets = Secrets(load_master_key(settings.master_key_file))
        outbox = SqliteOutbox(settings.outbox_path, settings.outbox_limit)
        with contextlib.closing(outbox), _listen(settings.host, settings.port) as listener:
            uvloop.run(_serve(settings, secrets, outbox, listener))
    except Exception as error:  # whatever it is, the supervisor needs one line of log and the exit code
        # Our own errors are sentences to an operator; any other is a defect, and brings its traceback.
        told = isinstance(error, OSError) or type(error).__module__.startswith("services.")
        log.critical("gateway_can_not_run", reason=str(error) or repr(error), exc_info=not told)
        sys.exit(_FATAL_EXIT)
    finally:
        telemetry.shutdown()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio switches Nagle's delay off only for sockets that say they are TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"can't listen on {host}:{port}: {error.strerror}") from error
    listener.listen(_BACKLOG)
    return listener


async def _serve(settings: Settings, secrets: Secrets, outbox: SqliteOutbox, listener: socket.socket) -> None:
    event_log = _event_log(settings)
    publisher = Publisher(
        outbox, event_log, on_published=telemetry.PUBLISHED.inc, on_failure=_failing("publishing_failed")
    )
    connection = GuardedConnection(connect(settings.redis_url), _circuit_changed)
    hot_state = ValkeyHotState(connection)
    vendors = HttpxTransport()
    relay_transport = httpx.AsyncHTTPTransport()
    ports = Ports(
        directory=ValkeyDirectory(connection),
        hot_state=hot_state,
        outbox=_WakingOutbox(outbox, publisher.wake),
        jobs=ValkeyJobs(connection),
        answers=ValkeyAnswers(connection),
        expressions=Cel(),
        vendors=vendors,
        relay_transport=relay_transport,
        open_sealed=secrets.open,
        pepper=secrets.pepper,
        internal_token=secrets.internal_token,
        observer=_Metrics(),
        tracing=_OpenTelemetry() if settings.otlp_endpoint else PassOn(),
    )
    assembly = assemble(ports, _options(settings))
    server = make_server(assembly.app, settings.host, settings.port, finish_s=_FINISH_S)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, server)
    try:
        polling = _poll(hot_state, assembly)
        await _run_until_stopped(server, listener, assembly, polling, publisher, event_log, outbox)
    finally:
        await vendors.close()
        await relay_transport.aclose()
        await connection.close()
        await event_log.close()


async def _run_until_stopped(
    server: Server,
    listener: socket.socket,
    assembly: Assembly,
    polling: Coroutine[None, None, None],
    publisher: Publisher,
    event_log: EventLog,
    outbox: SqliteOutbox,
) -> None:
    """Serves, polls and publishes; raises what ended any of them but the server's own orderly end."""
    looking = asyncio.create_task(assembly.poller.run())
    beside = {
        asyncio.create_task(polling),
        looking,
        asyncio.create_task(assembly.holds.run()),
        asyncio.create_task(_publish(event_log, publisher)),
        asyncio.create_task(_keep_gauges(outbox, assembly)),
    }
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        ended, _ = await asyncio.wait({serving, *beside}, return_when=asyncio.FIRST_COMPLETED)
        _stop(server)
        await serving
        for task in ended:
            task.result()
        # No more jobs are begun; what is settled now must be in the outbox before the outbox is emptied.
        looking.cancel()
        await asyncio.wait({looking}, timeout=_JOBS_S)
        await asyncio.gather(assembly.finish_jobs(_JOBS_S), assembly.releases.finish(_JOBS_S))
        await assembly.settlements.finish()
        if not await publisher.drain(_DRAIN_S):
            log.warning(
                "outbox_not_empty", events=outbox.size(), reason="the log did not take them in time; they are kept"
            )
    finally:
        await assembly.settlements.finish()  # also where something else has ended it
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


async def _poll(hot_state: ValkeyHotState, assembly: Assembly) -> None:
    """Checks the hot state once it is there (raises `UnsafeHotStateError`), then polls it for ever."""
    reachable = True
    while True:
        try:
            await hot_state.check_safe()
            if not reachable:
                log.info("hot_state_back")
            break
        except UnavailableError as error:
            if reachable:
                log.warning("hot_state_lost", reason=str(error))
            reachable = False
            await asyncio.sleep(_HOT_STATE_RETRY_S)
    await assembly.snapshots.run()


async def _publish(event_log: EventLog, publisher: Publisher) -> None:
    """Makes the topics once the log is there, then publishes for ever; calls do not wait for either."""
    failed = _failing("topics_not_made")
    while True:
        try:
            await event_log.create_topics(load_topics())
            break
        except UnavailableError as error:
            failed(str(error))
            await asyncio.sleep(_TOPICS_RETRY_S)
    await publisher.run()


async def _keep_gauges(outbox: SqliteOutbox, assembly: Assembly) -> None:
    while True:
        telemetry.OUTBOX_SIZE.set(outbox.size())
        telemetry.PENDING_RELEASES.set(assembly.releases.pending)
        telemetry.PENDING_SETTLEMENTS.set(assembly.settlements.pending)
        age_s = assembly.snapshots.age_s()
        if age_s is not None:
            telemetry.SNAPSHOT_AGE.set(age_s)
        config_age_s = assembly.snapshots.config_age_s()
        if config_age_s is not None:
            telemetry.CONFIG_AGE.set(config_age_s)
        control_age_s = assembly.snapshots.control_age_s()
        if control_age_s is not None:
            telemetry.CONTROL_AGE.set(control_age_s)
        await asyncio.sleep(_GAUGE_INTERVAL_S)


def _event_log(settings: Settings) -> EventLog:
    # Only the client of the log in use is loaded: the other would slow the start for nothing.
    if settings.kafka is not None:
        from services.adapters.kafka import KafkaLog

        return KafkaLog(settings.kafka)
    from services.adapters.valkey_log import ValkeyLog

    return ValkeyLog(settings.log_url)


def _options(settings: Settings) -> Options:
    return Options(
        control_url=settings.control_url,
        ledger_url=settings.ledger_url,
        sandbox_url=settings.sandbox_url,
        default_vendor=settings.default_vendor,
        header_prefix=settings.header_prefix,
        max_body_bytes=settings.max_body_bytes,
        max_response_bytes=settings.max_response_bytes,
        vendor_timeout_s=settings.vendor_timeout_s,
        poll_interval_s=settings.poll_interval_s,
    )


def _circuit_changed(server: str, is_open: bool) -> None:
    telemetry.CIRCUIT_OPEN.labels(server).set(int(is_open))
    if is_open:
        telemetry.CIRCUIT_TRIPS.labels(server).inc()
    log.warning("hot_state_left_alone" if is_open else "hot_state_asked_again", server=server)


def _stop(server: Server) -> None:
    server.should_exit = True


def _failing(event: str) -> Callable[[str], None]:
    def failed(reason: str) -> None:
        telemetry.PUBLISH_FAILURES.inc()
        log.warning(event, reason=reason)

    return failed


class _WakingOutbox:
    """`record.Recorder`: the outbox, whose publisher learns of every append."""

    def __init__(self, outbox: SqliteOutbox, wake: Callable[[], None]) -> None:
        self._outbox = outbox
        self._wake = wake
        self.is_full = outbox.is_full

    def append(self, events: Sequence[OutboxEvent]) -> None:
        """Keeps the events and wakes the publisher."""
        self._outbox.append(events)
        self._wake()


class _Metrics:
    """`observe.Observer` in Prometheus."""

    def denied(self, code: str) -> None:
        """Counts a refusal."""
        telemetry.DENIALS.labels(code).inc()

    def forwarded(self, overhead_s: float) -> None:
        """Measures what Farthing added before the vendor."""
        telemetry.OVERHEAD.observe(overhead_s)

    def answered(self, vendor: str, wait_s: float) -> None:
        """Measures a vendor's time to its head."""
        telemetry.VENDOR_LATENCY.labels(vendor).observe(wait_s)

    def settled(self, vendor: str, outcome: str, cost_nano: int) -> None:
        """Counts a settled call and its cost."""
        telemetry.REQUESTS.labels(vendor, outcome).inc()
        telemetry.COST.labels(vendor).inc(cost_nano)

    def underestimated(self, vendor: str, estimate_mode: str) -> None:
        """Counts a call that has cost more than was held for it."""
        telemetry.UNDERESTIMATES.labels(vendor, estimate_mode).inc()


class _OpenTelemetry:
    """`observe.Tracing` with the GenAI semantic conventions."""

    def begin(self, model: str, vendor: str, caller: Mapping[str, str], started_ns: int) -> CallSpan:
        """A server span under the caller's trace."""
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": vendor,
            "gen_ai.request.model": model,
        }
        return _CallSpan(telemetry.begin_span(f"chat {model}", caller, SpanKind.SERVER, attributes, started_ns))


class _CallSpan:
    """`observe.CallSpan` of an OpenTelemetry span."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.headers: Mapping[str, str] = telemetry.trace_headers(span)

    def end(self, attributes: Mapping[str, AttributeValue], error: str | None = None) -> None:
        """Ends the span."""
        self._span.set_attributes(dict(attributes))
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
