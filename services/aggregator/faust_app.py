"""The fold over Apache Kafka: a Faust worker that starts from our fences and never lets an exception reach Faust.

Faust 0.15.3 acknowledges a batch whose agent raised or was cancelled, and starts from the group's offsets, whatever was
folded. So the agent's work is shielded and ends the process rather than raise, reading starts from our own fences at
every assignment, and every message is held against its fence.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

import faust
from aiokafka.errors import IllegalStateError, NoOffsetForPartitionError
from faust.transport.drivers import aiokafka as driver
from yarl import URL

from services.aggregator.fences import Fences
from services.aggregator.folder import Folder
from services.aggregator.patience import StoppedError, end_process, or_end_process
from services.aggregator.stream import by_partition
from services.core.ports import Incoming, TopicPartition

GROUP: Final = "farthing-aggregator"
BATCH_MESSAGES: Final = 1000
BATCH_WAIT_S: Final = 0.01
SESSION_TIMEOUT_S: Final = 6.0
REQUEST_TIMEOUT_S: Final = 30.0
# Past the request timeout Faust gives up on a seek, and idles for ever.
SEEK_TIMEOUT_S: Final = 20.0


class FoldApp(faust.App):  # type: ignore[misc]  # Faust is untyped
    """The worker. It has no tables, so it keeps nothing on disk."""

    fences: Fences

    def _create_directories(self) -> None:
        """Faust would make a folder for tables in the working directory."""


class FenceConsumer(driver.Consumer):  # type: ignore[misc]  # Faust is untyped
    """Starts every assignment from the fences. What it returns also sets right what Faust commits."""

    async def seek_to_committed(self) -> dict[Any, int]:
        """Faust's hook after each assignment, with the flow paused."""
        assigned = {TopicPartition(each.topic, each.partition): each for each in self.assignment()}
        if not assigned:
            return {}
        try:
            async with asyncio.timeout(SEEK_TIMEOUT_S):
                starts = await self.app.fences.start(tuple(assigned))
                positions = {assigned[place]: offset for place, offset in starts.items()}
                await self.seek_wait(positions)  # not seek(): that one calls aiokafka from the wrong thread
        except (IllegalStateError, StoppedError):
            raise  # reassigned meanwhile, and Faust calls again; or about to stop
        except Exception as error:  # anything else would leave this worker idle, or started from somewhere else
            end_process("seek_failed", reason=f"{type(error).__name__}: {error}", exc_info=error)
        return positions

    async def _getmany(self, *arguments: Any, **options: Any) -> Any:
        """Faust's fetch. One under way in a rebalance may meet a partition whose offset the group never committed: it
        waits for its seek as all the others do, which is no reason to crash."""
        try:
            return await super()._getmany(*arguments, **options)
        except NoOffsetForPartitionError:
            return {}


class FenceTransport(driver.Transport):  # type: ignore[misc]  # Faust is untyped
    """aiokafka, with our consumer."""

    Consumer = FenceConsumer


async def fold_with_faust(
    servers: str, topics: Sequence[str], fences: Fences, folder: Folder, stopping: asyncio.Event
) -> None:
    """Folds `topics` until `stopping`, finishing the batch in hand. Ends the process on whatever it can't wait out."""
    app = build_app(servers, topics, fences, folder)

    async def work() -> None:
        await app.start()
        await app.wait_until_stopped()

    worker, told = asyncio.ensure_future(work()), asyncio.ensure_future(stopping.wait())
    await asyncio.wait((worker, told), return_when=asyncio.FIRST_COMPLETED)
    if not told.done():
        reason = app.crash_reason or worker.exception()
        end_process("faust_stopped", reason=f"{type(reason).__name__}: {reason}")
    await app.stop()
    worker.cancel()


def build_app(servers: str, topics: Sequence[str], fences: Fences, folder: Folder) -> FoldApp:
    """The Faust app, its transport and its one agent. `servers` is ``host:port[,host:port]``."""
    brokers = [URL(f"kafka://{server.strip()}") for server in servers.split(",")]
    app = FoldApp(
        GROUP,
        broker=brokers,
        topic_disable_leader=True,
        topic_allow_declare=False,
        consumer_auto_offset_reset="none",
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=1.0,
        broker_request_timeout=REQUEST_TIMEOUT_S,
        web_enabled=False,
        stream_wait_empty=False,
    )
    app.fences = fences
    app.transport = FenceTransport(brokers, app)  # before any topic or agent
    # Raw bytes: Faust acknowledges what it can't decode.
    raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}

    @app.agent(app.topic(*topics, **raw))  # type: ignore[untyped-decorator]
    async def fold(stream: Any) -> None:
        async for batch in stream.take_events(BATCH_MESSAGES, within=BATCH_WAIT_S):
            work = asyncio.ensure_future(or_end_process(_apply(folder, batch)))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:  # told to stop: the batch in hand first, or Faust acknowledges it unapplied
                await work
                raise

    return app


async def _apply(folder: Folder, batch: Iterable[Any]) -> None:
    for place, messages in by_partition([_incoming(event.message) for event in batch]).items():
        await folder.apply(place, messages)


def _incoming(message: Any) -> Incoming:
    return Incoming(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        key=message.key or b"",
        value=message.value or b"",
        headers=tuple((name, content or b"") for name, content in message.headers or ()),
        timestamp_ms=round(message.timestamp * 1000),
    )
