"""PostgreSQL: a pool whose failures are `UnavailableError`, and the migrations of ``schemas/postgres``."""

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import asyncpg

from services.core.ports import UnavailableError

_CONNECT_TIMEOUT_S: Final = 5.0
_COMMAND_TIMEOUT_S: Final = 10.0
# Any constant will do, as long as every process that migrates takes the same one.
_MIGRATION_LOCK: Final = 0x6661727468696E67
_FILE_NAME: Final = re.compile(r"(?P<number>\d{4})_[a-z0-9_]+\.sql")

# The server or the way to it is gone, is starting or is stopping. Anything else an engine says is an error of ours.
_AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


class MigrationError(RuntimeError):
    """This code and this database do not fit together; the text says why and how to fix it."""


class Postgres:
    """A pool of connections, made as they are needed, so that a database that is away can be waited for."""

    def __init__(self, dsn: str, *, max_connections: int = 10) -> None:
        self._dsn = dsn
        self._max_connections = max_connections
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """A read-committed transaction: committed when the block ends, rolled back when it raises.

        Raises `UnavailableError` when the database is away; if that happens at the commit, its effect is unknown.
        """
        async with self._connection() as connection, connection.transaction():
            yield connection

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[asyncpg.Connection]:
        """A read-only transaction whose reads all see one instant. Raises `UnavailableError`."""
        async with self._connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            yield connection

    async def close(self) -> None:
        """Ends all connections, those in use too."""
        if self._pool is not None:
            self._pool.terminate()

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        pool = await self._open_pool()
        with _unavailable_when_away():
            proxy = await pool.acquire(timeout=_CONNECT_TIMEOUT_S)
        connection = cast("asyncpg.Connection", proxy)  # it has all of a connection's methods
        try:
            with _unavailable_when_away():
                yield connection
        except asyncpg.InterfaceError as error:
            # asyncpg's word for both a wrong call and a connection that has gone; only the latter passes by itself.
            if _has_gone(connection):
                raise UnavailableError("PostgreSQL closed the connection") from error
            raise
        finally:
            await pool.release(proxy)

    async def _open_pool(self) -> asyncpg.Pool:
        async with self._opening:
            if self._pool is None:
                with _unavailable_when_away():
                    self._pool = await asyncpg.create_pool(
                        self._dsn,
                        min_size=0,
                        max_size=self._max_connections,
                        timeout=_CONNECT_TIMEOUT_S,
                        command_timeout=_COMMAND_TIMEOUT_S,
                        server_settings={"application_name": "farthing-control"},
                    )
            return self._pool


def _has_gone(connection: asyncpg.Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # the pool has let go of it already
        return True


@contextlib.contextmanager
def _unavailable_when_away() -> Iterator[None]:
    try:
        yield
    except _AWAY as error:
        raise UnavailableError(f"PostgreSQL is away: {str(error) or type(error).__name__}") from error


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered SQL file. A file that has been applied anywhere is never changed; its checksum holds it to that."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the SQL, in hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(folder: Path) -> tuple[Migration, ...]:
    """The migrations of a folder in order: ``0001_name.sql``, ``0002_…``, without a gap. Raises `MigrationError`."""
    migrations = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationError(f"migration {path.name} must be named NNNN_lower_case_words.sql")
        migrations.append(Migration(int(match["number"]), path.name, path.read_text("utf-8")))
    for expected, migration in enumerate(migrations, start=1):
        if migration.number != expected:
            raise MigrationError(
                f"migration {migration.name} should have number {expected:04d}; numbers have no gaps or repeats"
            )
    return tuple(migrations)


async def migrate(dsn: str, migrations: Sequence[Migration]) -> tuple[str, ...]:
    """Applies what the database lacks, each file in one transaction, one process at a time; the names applied.

    Raises `MigrationError` when an applied migration has been changed or the database is newer than this code, and
    `UnavailableError` when the database is away.
    """
    with _unavailable_when_away():
        connection = await asyncpg.connect(dsn, timeout=_CONNECT_TIMEOUT_S)
        try:
            # Held by the connection: it goes with the process that dies holding it.
            await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
            return await _apply_missing(connection, migrations)
        finally:
            await connection.close()


async def _apply_missing(connection: asyncpg.Connection, migrations: Sequence[Migration]) -> tuple[str, ...]:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations ("
        " number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT now())"
    )
    rows = await connection.fetch("SELECT number, name, checksum FROM schema_migrations ORDER BY number")
    known = {migration.number: migration for migration in migrations}
    for row in rows:
        migration = known.get(row["number"])
        if migration is None:
            raise MigrationError(
                f"the database has migration {row['name']}, which this version does not know: "
                "it was made by a newer Farthing; start that version, or restore the database from before the upgrade"
            )
        if migration.checksum != row["checksum"]:
            raise MigrationError(
                f"migration {migration.name} has been changed since this database applied it; "
                "restore the file and put the change into a new migration"
            )
    missing = migrations[len(rows) :]
    for migration in missing:
        await _apply(connection, migration)
    return tuple(migration.name for migration in missing)


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)",
                migration.number,
                migration.name,
                migration.checksum,
            )
    except (asyncpg.SyntaxOrAccessError, asyncpg.IntegrityConstraintViolationError) as error:
        raise MigrationError(f"migration {migration.name} does not run on this database: {error}") from error
