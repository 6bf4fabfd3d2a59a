"""A gateway's outbox: events on disk, in order, from the moment they are true until the log has them.

One SQLite file of one process. A commit costs microseconds because it waits for no disk: what is committed survives the
death of the process at any instant, and `checkpoint`, off the event loop, lets it survive the machine's.
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, cast

from ulid import ULID

from services.adapters.headers import pack_headers, unpack_headers
from services.core.codec import to_message
from services.core.events import Denial, Event, Reservation, Stamped
from services.core.ports import OutboxEvent, OutboxFullError, OutboxRow, Outgoing, UnavailableError

APPLICATION_ID: Final = 0x46615478
FORMAT_VERSION: Final = 1

# A log is begun anew only when the writer adds nothing during a checkpoint. Where it never rests, one that is longer
# than this (64 MB) is begun anew by holding the writer up, for the milliseconds that the last few pages take.
MAX_WAL_PAGES: Final = 16_384

# Every start skips this many sequences: more than the commits that the machine's death can take with it. The log may
# have those events, and a sequence that is used for another event would make consumers drop that one as known.
SKIPPED_SEQUENCES: Final = 1_000_000

# SQLite uses a file's free pages again and never gives them back. A start gives back what an outage of the log left:
# when more than this many pages (16 MB) are free, and they are most of the file.
MAX_FREE_PAGES: Final = 4_096

# `forgotten` keeps sequences from going back when the table is empty; AUTOINCREMENT would, at a third more to write.
_TABLES: Final = (
    """
    CREATE TABLE outbox (
      sequence INTEGER PRIMARY KEY,
      topic TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, headers BLOB NOT NULL
    )
    """,
    "CREATE TABLE producer (id TEXT NOT NULL, forgotten INTEGER NOT NULL)",
)


class OutboxFileError(RuntimeError):
    """The file can't serve as this process's outbox; the text says why and what to do."""


class SqliteOutbox:
    """`ports.Outbox` in the file `path`, for at most `limit` events beside those that end calls already taken on.

    Raises `OutboxFileError` when the file is damaged, of another version, or in use by another process.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._limit = limit
        self._checkpointing = threading.Lock()
        with _explained(path), ExitStack() as opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            opened.callback(os.close, _lock(path))
            self._database = _open(path, opened)
            skipped = _prepare(self._database, path)
            # A connection of its own, so that a checkpoint in a thread never holds up the event loop's.
            self._checkpoints = _open(path, opened)
            row = self._database.execute("SELECT id, forgotten FROM producer").fetchone()
            self._producer, forgotten = str(row[0]), int(row[1])
            row = self._database.execute("SELECT count(*), max(sequence) FROM outbox").fetchone()
            self._size = int(row[0])
            self._sequence = max(forgotten, row[1] or 0) + skipped
            self._opened = opened.pop_all()

    @property
    def producer(self) -> str:
        """The identity of this outbox, made once with its file."""
        return self._producer

    def append(self, events: Sequence[OutboxEvent]) -> None:
        """Stamps the events and keeps them, all or none.

        Raises `OutboxFullError` when a reservation would go past the limit, or a denial past half of it, and
        `UnavailableError` when the disk refuses.
        """
        limit = self._limit_of(events)
        if limit is not None and self._size + len(events) > limit:
            raise OutboxFullError(f"{self._size} events wait for the log; at most {limit} may")
        if not events:
            return
        columns: list[object] = []
        for sequence, each in enumerate(events, self._sequence + 1):
            place = (self._producer, sequence) if each.producer is None else (each.producer, 1)
            message = to_message(Stamped(cast(Event, each.event), *place), each.headers)
            columns += (sequence, message.topic, message.key, message.value, pack_headers(message.headers))
        # One statement is one transaction.
        rows = ", ".join(["(?, ?, ?, ?, ?)"] * len(events))
        with _refusing_disk():
            self._database.execute(f"INSERT INTO outbox VALUES {rows}", columns)  # noqa: S608 - placeholders only
        self._sequence += len(events)
        self._size += len(events)

    def _limit_of(self, events: Sequence[OutboxEvent]) -> int | None:
        if any(isinstance(each.event, Denial) for each in events):
            # One agent that does not take no for an answer must not use up what other orgs' calls need.
            return (self._limit + 1) // 2
        return self._limit if any(isinstance(each.event, Reservation) for each in events) else None

    def oldest(self, limit: int) -> Sequence[OutboxRow]:
        """The first events not yet forgotten, in order."""
        with _refusing_disk():
            rows = self._database.execute("SELECT * FROM outbox ORDER BY sequence LIMIT ?", (limit,)).fetchall()
        return [
            OutboxRow(sequence, Outgoing(topic, key, value, unpack_headers(headers)))
            for sequence, topic, key, value, headers in rows
        ]

    def forget(self, up_to_sequence: int) -> None:
        """Drops events up to and including a sequence; the log has them."""
        with _refusing_disk(), _transaction(self._database):
            dropped = self._database.execute("DELETE FROM outbox WHERE sequence <= ?", (up_to_sequence,)).rowcount
            self._database.execute("UPDATE producer SET forgotten = max(forgotten, ?)", (up_to_sequence,))
        self._size -= dropped

    def size(self) -> int:
        """How many events wait."""
        return self._size

    def is_full(self) -> bool:
        """Whether the limit is reached: no further call may be taken on."""
        return self._size >= self._limit

    def checkpoint(self) -> None:
        """Moves the write-ahead log into the file and to the disk. Call it in a thread."""
        with self._checkpointing, _refusing_disk():
            _, pages, _ = self._checkpoints.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages > MAX_WAL_PAGES:
                self._checkpoints.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()

    def close(self) -> None:
        """Closes the file and lets another process have it."""
        with self._checkpointing:
            self._opened.close()


def _lock(path: Path) -> int:
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OutboxFileError(
            f"the outbox {path} is in use by another process; set FARTHING_OUTBOX_PATH so that each gateway has its own"
        ) from error
    return descriptor


def _open(path: Path, opened: ExitStack) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    opened.callback(database.close)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "wal_autocheckpoint=0"):
        database.execute(f"PRAGMA {pragma}")
    return database


def _prepare(database: sqlite3.Connection, path: Path) -> int:
    """Makes the tables of a new file or checks an old one; answers how many sequences to skip."""
    application_id = database.execute("PRAGMA application_id").fetchone()[0]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    is_new = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if is_new and application_id == 0:
        with _transaction(database):
            for statement in _TABLES:
                database.execute(statement)
            database.execute("INSERT INTO producer VALUES (?, 0)", (f"gw_{ULID()}",))
            database.execute(f"PRAGMA application_id={APPLICATION_ID}")
            database.execute(f"PRAGMA user_version={FORMAT_VERSION}")
        return 0
    if application_id != APPLICATION_ID:
        raise OutboxFileError(f"{path} is not an outbox of Farthing; set FARTHING_OUTBOX_PATH to another file")
    if version != FORMAT_VERSION:
        raise OutboxFileError(
            f"the outbox {path} has format {version}, and this release knows {FORMAT_VERSION}; let the release that"
            " wrote it publish what is in it, then move it away"
        )
    verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(" ".join(verdict.split()))
    _give_back(database)
    return SKIPPED_SEQUENCES


def _give_back(database: sqlite3.Connection) -> None:
    """Makes the file as small as what is in it, if that is much smaller."""
    free = database.execute("PRAGMA freelist_count").fetchone()[0]
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    if free <= MAX_FREE_PAGES or free <= pages // 2:
        return
    with suppress(sqlite3.OperationalError):  # a disk that has no room for the copy must not keep the gateway down
        database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Whatever is wrong with the file at the start, in one sentence with what to do."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise OutboxFileError(f"the outbox {path} can't be opened: {error}; check its directory") from error
    except sqlite3.DatabaseError as error:
        raise OutboxFileError(
            f"the outbox {path} is damaged: {error}; move it away to start with a new one, and keep it: the events in"
            " it are not in the log"
        ) from error


@contextmanager
def _refusing_disk() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise UnavailableError(f"the outbox's disk refuses: {error}") from error
