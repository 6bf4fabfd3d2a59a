"""The aggregator's process: what is wired to what, and how it ends."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import structlog
from opentelemetry.trace import Span, SpanKind
from ulid import ULID

from services.adapters import telemetry
from services.adapters.cel import Cel
from services.adapters.config import Settings
from services.adapters.kafka import KafkaLog
from services.adapters.ledger_http import HttpLedgerView
from services.adapters.secrets import Secrets, load_master_key
from services.adapters.topics import load_topics
from services.adapters.valkey import UnsafeHotStateError, ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connect import connect
from services.adapters.valkey_log import ValkeyLog
from services.adapters.valkey_upkeep import ValkeyUpkeep
from services.aggregator.backfill import Backfiller
from services.aggregator.caretaker import Caretaker
from services.aggregator.configs import Configs
from services.aggregator.fences import Fences
from services.aggregator.folder import Folder
from services.aggregator.observe import FoldResult
from services.aggregator.patience import Patience, end_process, or_end_process
from services.aggregator.quiet import OneLineAMinute
from services.aggregator.reading import FOLDED_TOPICS, folded_places
from services.aggregator.reaper import Reaper
from services.aggregator.rebuild import Rebuilder
from services.aggregator.stream import fold_stream, trim_bounds
from services.aggregator.thresholds import Thresholds
from services.core.ports import HotState, Incoming, LedgerView, TopicPartition

_log = structlog.get_logger("farthing.aggregator")

TRACE_HEADERS: Final = ("traceparent", "tracestate")
TRIM_INTERVAL_S: Final = 60.0
LOOK_AGAIN_S: Final = 1.0
UPKEEP_INTERVAL_S: Final = 60.0
# What is not done by then is left to the next process, which does it again: any end is a safe end.
STOP_S: Final = 8.0


def run(settings: Settings) -> None:
    """Folds until SIGTERM or SIGINT (exit code 0), or until something comes that can't be waited out (exit code 70)."""
    telemetry.setup("aggregator", settings)
    if settings.log_level != "debug":
        for handler in logging.getLogger().handlers:
            handler.addFilter(OneLineAMinute())
    asyncio.run(or_end_process(_serve(settings)))
    telemetry.shutdown()


async def _serve(settings: Settings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopping.set()
        loop.call_later(STOP_S, _leave)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    token = Secrets(load_master_key(settings.master_key_file)).internal_token
    log = KafkaLog(settings.kafka) if settings.kafka else ValkeyLog(settings.log_url)
    connection = connect(settings.redis_url)
    hot, directory = ValkeyHotState(connection), ValkeyDirectory(connection)
    ledger = HttpLedgerView(settings.ledger_url, token)
    patience, observer = Patience(stopping), Telemetry()
    # Faust would idle silently on a missing topic.
    await patience.until_answered("log", lambda: log.create_topics(load_topics()))
    places = await patience.until_answered("log", lambda: folded_places(log))
    fences = Fences(log, hot, ledger, directory, observer, patience)
    configs = Configs(hot, directory, Cel())
    thresholds = Thresholds(log, hot, configs)
    rebuilder = Rebuilder(log, hot, ledger, directory, fences, observer, _new_id, configs, thresholds)
    folder = Folder(log, hot, fences, rebuilder, observer, patience, configs, thresholds)
    backfiller = Backfiller(hot, ledger, configs, folder, rebuilder, thresholds, places, observer, patience, _new_id)
    reaper = Reaper(log, hot, directory, observer, configs.snapshots)
    caretaker = Caretaker(ValkeyUpkeep(connection), hot, configs, patience, _new_id)
    try:
        await patience.until_answered("hot state", hot.check_safe)
    except UnsafeHotStateError as error:
        end_process("aggregator_can_not_run", reason=str(error))
    await fences.prepare(places)
    side_work = [
        patience.every(settings.poll_interval_s, "rebuild", rebuilder.rebuild_cold),
        patience.every(settings.reap_interval_s, "expiry", lambda: _reap(fences, reaper)),
        patience.every(settings.poll_interval_s, "backfill", backfiller.backfill),
        patience.every(LOOK_AGAIN_S, "thresholds", thresholds.look_again),
        patience.every(UPKEEP_INTERVAL_S, "upkeep", caretaker.go_round),
    ]
    if isinstance(log, ValkeyLog):
        side_work.append(patience.every(TRIM_INTERVAL_S, "retention", lambda: _trim(log, hot, ledger)))
    if settings.kafka:
        # Faust's reader can't be turned back: the process ends, and the next one starts from the fences.
        side_work.append(patience.every(settings.poll_interval_s, "fences", fences.check))
        from services.aggregator.faust_app import fold_with_faust  # takes a second, which an embedded start can save

        fold = fold_with_faust(settings.kafka, FOLDED_TOPICS, fences, folder, stopping)
    else:
        fold = fold_stream(log, places, fences, folder, patience, stopping)
    _log.info("folding", partitions=len(places), log="kafka" if settings.kafka else "valkey")
    await _until_stopped(fold, side_work, stopping)
    for resource in (ledger, hot, log):
        await resource.close()


def _new_id() -> str:
    return str(ULID())


async def _reap(fences: Fences, reaper: Reaper) -> None:
    # A process that ends at a gap, and again at each restart, would publish the same expiries each time.
    if fences.has_begun:
        await reaper.reap()


async def _trim(log: ValkeyLog, hot: HotState, ledger: LedgerView) -> None:
    await log.trim_expired(await trim_bounds(log, hot, ledger))


async def _until_stopped(fold: Awaitable[None], side_work: Sequence[Awaitable[None]], stopping: asyncio.Event) -> None:
    """Runs it all until `stopping`, then lets the fold finish its batch. Side work may be cut off anywhere."""
    folding = asyncio.ensure_future(or_end_process(fold))
    sides = [asyncio.ensure_future(or_end_process(work)) for work in side_work]
    await stopping.wait()
    _log.info("stopping")
    for side in sides:
        side.cancel()
    await asyncio.wait([folding, *sides])


def _leave() -> None:
    _log.warning("stopped_in_mid_work", waited_s=STOP_S)
    os._exit(0)


class Telemetry:
    """The aggregator's metrics and spans (`observe.Observer`)."""

    @contextmanager
    def folding(self, messages: Sequence[Incoming]) -> Iterator[None]:
        """One consumer span a traced message, under the trace its headers carry."""
        began_ns = time.time_ns()
        spans = [span for message in messages if (span := _fold_span(message, began_ns)) is not None]
        try:
            yield
        finally:
            for span in spans:
                span.end()

    def folded(self, result: FoldResult, count: int) -> None:
        """Counts events by result."""
        telemetry.FOLDED.labels(result).inc(count)

    def dead_letters(self, topic: str, count: int) -> None:
        """Counts what could not be read."""
        telemetry.DEAD_LETTERS.labels(topic).inc(count)

    def fence(self, place: TopicPartition, next_offset: int) -> None:
        """Shows where the fold stands."""
        telemetry.FOLD_FENCE.labels(place.topic, str(place.partition)).set(next_offset)

    def alarm(self, name: str, raised: bool) -> None:
        """Shows an alarm."""
        telemetry.FOLD_ALARM.labels(name).set(int(raised))

    def rebuilt(self, count: int) -> None:
        """Counts rebuilt orgs."""
        telemetry.REBUILDS.inc(count)

    def expired(self, count: int) -> None:
        """Counts expiries."""
        telemetry.EXPIRED_HOLDS.inc(count)


def _fold_span(message: Incoming, began_ns: int) -> Span | None:
    headers = {name: value.decode("latin-1") for name, value in message.headers if name in TRACE_HEADERS}
    if not headers:
        return None
    attributes = {
        "messaging.operation.name": "fold",
        "messaging.operation.type": "process",
        "messaging.destination.name": message.topic,
        "messaging.destination.partition.id": str(message.partition),
        "messaging.kafka.offset": message.offset,
    }
    return telemetry.begin_span("fold", headers, SpanKind.CONSUMER, attributes, began_ns)
