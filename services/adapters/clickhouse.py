"""ClickHouse: a server over HTTP, or the engine inside this process (chDB). One implementation of `LedgerStore`.

Every call runs on one thread of its own: chDB computes in the calling thread, a client must not be used twice at once,
and what runs in one job sees one state of the tables.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import clickhouse_connect
import orjson
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, OperationalError

from services.core.ports import Query, UnavailableError

_T = TypeVar("_T")

# The driver logs a traceback for every call that fails; what matters of it is in our own error.
logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)

DEFAULT_DATABASE: Final = "farthing"
_CONNECT_TIMEOUT_S: Final = 5
_ANSWER_TIMEOUT_S: Final = 60
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MIGRATION_NAME: Final = re.compile(r"\d{4}_[a-z0-9_]+\.sql")

# What a server says when it is short of something, stopping or starting: all of it passes.
_PASSING_CODES: Final = frozenset(
    {
        3,  # UNEXPECTED_END_OF_FILE
        32,  # ATTEMPT_TO_READ_AFTER_EOF
        60,  # UNKNOWN_TABLE (asked before the migrations are through)
        159,  # TIMEOUT_EXCEEDED
        164,  # READONLY (a server that has gone read-only, such as one without its keeper)
        202,  # TOO_MANY_SIMULTANEOUS_QUERIES
        203,  # NO_FREE_CONNECTION
        209,  # SOCKET_TIMEOUT
        210,  # NETWORK_ERROR
        236,  # ABORTED
        241,  # MEMORY_LIMIT_EXCEEDED
        242,  # TABLE_IS_READ_ONLY
        243,  # NOT_ENOUGH_SPACE
        252,  # TOO_MANY_PARTS
        319,  # UNKNOWN_STATUS_OF_INSERT
        373,  # SESSION_IS_LOCKED
        394,  # QUERY_WAS_CANCELLED
        439,  # CANNOT_SCHEDULE_TASK
        516,  # AUTHENTICATION_FAILED (credentials being rotated)
        999,  # KEEPER_EXCEPTION
    }
)
_INSERT_SETTINGS: Final = {
    # Rows of one insert must reach the table as one block: that is what makes an insert atomic.
    "input_format_parallel_parsing": 0,
    # A column the table does not have would otherwise be dropped without a word.
    "input_format_skip_unknown_fields": 0,
    "date_time_input_format": "best_effort",
}


class DsnError(ValueError):
    """The address is not one of ClickHouse's."""


@dataclass(frozen=True, slots=True)
class _Target:
    database: str
    options: Mapping[str, Any] = field(repr=False)
    path: Path | None


class ClickHouse:
    """One database of ClickHouse, connected when first needed, so that a server that is away can be waited for."""

    def __init__(self, dsn: str) -> None:
        """`dsn`: ``chdb:///path[?database=d]`` or ``http(s)://user:password@host:port[/database]``, or `DsnError`."""
        self._target = _parse_dsn(dsn)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clickhouse")
        self._client: Any = None

    async def migrate(self, folder: Path) -> tuple[str, ...]:
        """Applies the numbered files of `folder` that the database lacks; their names. Safe to cut off and repeat."""
        return await self._run(lambda: self._migrate(folder))

    async def query(self, *queries: Query) -> Sequence[Sequence[Mapping[str, Any]]]:
        """`LedgerStore.query`."""
        return await self._run(lambda: [self._rows(each.statement, each.parameters) for each in queries])

    async def insert(self, table: str, rows: Sequence[Mapping[str, object]], token: str) -> None:
        """`LedgerStore.insert`."""
        await self._run(lambda: self._insert(table, rows, token))

    async def close(self) -> None:
        """Lets go of the engine or the connections, after what is under way. Nothing may be called afterwards."""
        if self._client is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._client.close)
        self._thread.shutdown()

    async def _run(self, job: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, job)

    def _guarded(self, job: Callable[[], _T]) -> _T:
        with _unavailable_when_away():
            if self._client is None:
                self._client = self._open()
            return job()

    def _open(self) -> Any:
        if self._target.path is not None:
            self._target.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            client = clickhouse_connect.get_client(**self._target.options)
        except ClickHouseError as error:
            raise UnavailableError(f"ClickHouse can't be opened: {error}") from error
        name = self._target.database
        found = client.query("SELECT 1 FROM system.databases WHERE name = {name:String}", parameters={"name": name})
        if not found.result_rows:
            client.command(f"CREATE DATABASE IF NOT EXISTS {name}")
        client.database = name
        return client

    def _rows(self, statement: str, parameters: Mapping[str, object]) -> Sequence[Mapping[str, Any]]:
        return list(self._client.query(statement, parameters=dict(parameters)).named_results())

    def _insert(self, table: str, rows: Sequence[Mapping[str, object]], token: str) -> None:
        block = b"\n".join(orjson.dumps(row) for row in rows)
        settings = {**_INSERT_SETTINGS, "insert_deduplication_token": token}
        self._client.raw_insert(table, insert_block=block, settings=settings, fmt="JSONEachRow")

    def _migrate(self, folder: Path) -> tuple[str, ...]:
        self._client.command(
            "CREATE TABLE IF NOT EXISTS migrations (name String, applied_at DateTime64(3, 'UTC') DEFAULT now64(3))"
            " ENGINE = MergeTree ORDER BY name"
        )
        known = {row["name"] for row in self._rows("SELECT name FROM migrations", {})}
        missing = [path for path in sorted(folder.glob("*.sql")) if path.name not in known]
        for path in missing:
            if _MIGRATION_NAME.fullmatch(path.name) is None:
                raise ValueError(f"migration {path.name} must be named NNNN_lower_case_words.sql")
            for statement in path.read_text("utf-8").split(";\n"):
                if statement.strip():
                    self._client.command(statement)
            self._insert("migrations", [{"name": path.name}], path.name)
        return tuple(path.name for path in missing)


@contextlib.contextmanager
def _unavailable_when_away() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise UnavailableError(f"ClickHouse is away: {error}") from error
    except DatabaseError as error:
        # A proxy's or a starting server's refusal comes without a code; subclasses are the client's own complaints.
        if error.code in _PASSING_CODES or (error.code is None and type(error) is DatabaseError):
            raise UnavailableError(f"ClickHouse can't at present: {error}") from error
        raise


def _parse_dsn(dsn: str) -> _Target:
    if dsn.startswith("chdb:///"):
        # A path is taken as it is: whatever a folder may be called.
        text, _, database = dsn.removeprefix("chdb://").partition("?database=")
        return _Target(_check_name(database or DEFAULT_DATABASE), {"interface": "chdb", "path": text}, Path(text))
    parts = urlsplit(dsn)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DsnError("a ClickHouse address is chdb:///absolute/path or http(s)://user:password@host:port/database")
    options = {
        "interface": parts.scheme,
        "host": parts.hostname,
        "port": parts.port,
        "username": unquote(parts.username or "default"),
        "password": unquote(parts.password or ""),
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "send_receive_timeout": _ANSWER_TIMEOUT_S,
        # A session outlives a lost answer and would then lock the next call out.
        "autogenerate_session_id": False,
        "show_clickhouse_errors": "scrub",
    }
    return _Target(_check_name(unquote(parts.path.strip("/")) or DEFAULT_DATABASE), options, None)


def _check_name(database: str) -> str:
    if _NAME.fullmatch(database) is None:
        raise DsnError(f"{database[:40]!r} can't be a database; use letters, digits and _, starting with a letter")
    return database
