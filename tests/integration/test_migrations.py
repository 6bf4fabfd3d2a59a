"""Migrations on a real PostgreSQL, and the rules the database itself holds."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from services.adapters.postgres import Migration, MigrationError, Postgres, migrate, read_migrations
from services.adapters.schemas import schemas_folder
from services.control.budgets.queries import insert, list_budgets
from services.core.budgets import Budget
from services.core.ports import UnavailableError
from services.core.windows import CalendarWindow, RollingWindow
from tests.support.postgres import PostgresServer
from tests.support.valkey import free_port

SHIPPED = read_migrations(schemas_folder("postgres"))
FIRST = Migration(1, "0001_first.sql", "CREATE TABLE first (number integer)")
SECOND = Migration(2, "0002_second.sql", "CREATE TABLE second (number integer); INSERT INTO second VALUES (1)")


@pytest.fixture
async def connection(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_dsn)
    yield connection
    await connection.close()


async def run(postgres: Postgres, sql: str, *arguments: object) -> None:
    async with postgres.transaction() as connection:
        await connection.execute(sql, *arguments)


async def tables(connection: asyncpg.Connection) -> set[str]:
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {row["tablename"] for row in rows}


async def test_shipped_migrations_apply_once(postgres_dsn: str, connection: asyncpg.Connection) -> None:
    assert await migrate(postgres_dsn, SHIPPED) == tuple(each.name for each in SHIPPED)
    assert {"orgs", "keys", "budgets", "audit", "schema_migrations"} <= await tables(connection)
    assert await migrate(postgres_dsn, SHIPPED) == ()


async def test_only_what_is_missing_is_applied(postgres_dsn: str, connection: asyncpg.Connection) -> None:
    assert await migrate(postgres_dsn, [FIRST]) == ("0001_first.sql",)
    assert await migrate(postgres_dsn, [FIRST, SECOND]) == ("0002_second.sql",)
    assert await tables(connection) == {"first", "second", "schema_migrations"}


async def test_processes_that_start_together_apply_each_migration_once(
    postgres_dsn: str, connection: asyncpg.Connection
) -> None:
    answers = await asyncio.gather(*(migrate(postgres_dsn, [FIRST, SECOND]) for _ in range(6)))
    assert sorted(answers) == [()] * 5 + [("0001_first.sql", "0002_second.sql")]
    assert await connection.fetchval("SELECT count(*) FROM second") == 1


async def test_a_changed_migration_is_refused(postgres_dsn: str, connection: asyncpg.Connection) -> None:
    await migrate(postgres_dsn, [FIRST])
    changed = replace(FIRST, sql=FIRST.sql + " -- better")
    with pytest.raises(MigrationError, match=r"0001_first\.sql has been changed .* restore the file"):
        await migrate(postgres_dsn, [changed, SECOND])
    assert "second" not in await tables(connection)


async def test_a_database_of_a_newer_version_is_refused(postgres_dsn: str) -> None:
    await migrate(postgres_dsn, [FIRST, SECOND])
    with pytest.raises(MigrationError, match=r"0002_second\.sql.*newer Farthing"):
        await migrate(postgres_dsn, [FIRST])


async def test_a_migration_that_fails_leaves_nothing_of_itself(
    postgres_dsn: str, connection: asyncpg.Connection
) -> None:
    broken = replace(SECOND, sql=SECOND.sql + "; CREATE TABLE first (number integer)")
    with pytest.raises(MigrationError, match=r"0002_second\.sql does not run"):
        await migrate(postgres_dsn, [FIRST, broken])
    assert await tables(connection) == {"first", "schema_migrations"}
    assert await migrate(postgres_dsn, [FIRST, SECOND]) == ("0002_second.sql",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0001_a.sql", "0003_b.sql"], r"0003_b\.sql should have number 0002"),
        (["0002_a.sql"], r"0002_a\.sql should have number 0001"),
        (["0001_a.sql", "0001_b.sql"], r"0001_b\.sql should have number 0002"),
        (["1_a.sql"], "must be named NNNN"),
        (["0001-a.sql"], "must be named NNNN"),
    ],
)
def test_file_names_are_numbered_without_gaps(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(MigrationError, match=message):
        read_migrations(tmp_path)


async def test_a_database_that_is_away_is_unavailable() -> None:
    dsn = f"postgresql://postgres@127.0.0.1:{free_port()}/postgres"
    with pytest.raises(UnavailableError, match="PostgreSQL is away"):
        await migrate(dsn, SHIPPED)
    with pytest.raises(UnavailableError, match="PostgreSQL is away"):
        async with Postgres(dsn).transaction():
            pass


async def test_a_database_that_does_not_exist_is_unavailable(postgres_dsn: str) -> None:
    with pytest.raises(UnavailableError, match="does not exist"):
        await migrate(postgres_dsn + "_nowhere", SHIPPED)


@pytest.mark.parametrize("statement", ["UPDATE {} SET {} = {}", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
@pytest.mark.parametrize(
    ("table", "column"), [("audit", "actor"), ("price_catalogs", "version"), ("price_overrides", "model")]
)
async def test_facts_are_never_changed(
    postgres_dsn: str, connection: asyncpg.Connection, statement: str, table: str, column: str
) -> None:
    await migrate(postgres_dsn, SHIPPED)
    await connection.execute("INSERT INTO price_catalogs (version, body) VALUES ('v1', 'prices')")
    await connection.execute("INSERT INTO orgs (name, catalog_version, hold_ms) VALUES ('acme', 'v1', 1)")
    await connection.execute(
        "INSERT INTO audit (org, config_version, actor, action, target) VALUES ('acme', 1, 'me', 'do', 'it')"
    )
    await connection.execute(
        "INSERT INTO price_overrides (org, vendor, model, from_date, created_by)"
        " VALUES ('acme', 'openai', 'gpt-4o', '2026-01-01', 'me')"
    )
    with pytest.raises(asyncpg.RaiseError, match=f"rows of {table} are never changed"):
        await connection.execute(statement.format(table, column, column))


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM catalog_proposals",
        "TRUNCATE catalog_proposals",
        "UPDATE catalog_proposals SET proposed_by = 'you'",
        "UPDATE catalog_proposals SET state = 'accepted', decided_by = 'you', decided_at = now(), version = 'v2'",
    ],
)
async def test_a_proposal_is_only_ever_decided(
    postgres_dsn: str, connection: asyncpg.Connection, statement: str
) -> None:
    await migrate(postgres_dsn, SHIPPED)
    await connection.execute("INSERT INTO price_catalogs (version, body) VALUES ('v1', 'one'), ('v2', 'two')")
    await connection.execute("INSERT INTO orgs (name, catalog_version, hold_ms) VALUES ('acme', 'v1', 1)")
    await connection.execute(
        "INSERT INTO catalog_proposals (org, version, state, proposed_by) VALUES ('acme', 'v1', 'pending', 'me')"
    )
    with pytest.raises(asyncpg.RaiseError, match="rows of catalog_proposals are"):
        await connection.execute(statement)
    decide = "UPDATE catalog_proposals SET state = 'accepted', decided_by = 'me', decided_at = now()"
    await connection.execute(decide)
    with pytest.raises(asyncpg.RaiseError, match="decided once"):
        await connection.execute(decide)


async def test_an_org_made_before_there_were_proposals_has_the_catalog_it_uses_as_its_first(
    postgres_dsn: str, connection: asyncpg.Connection
) -> None:
    await migrate(postgres_dsn, SHIPPED[:1])
    await connection.execute("INSERT INTO price_catalogs (version, body) VALUES ('v1', 'prices')")
    await connection.execute("INSERT INTO orgs (name, catalog_version, hold_ms) VALUES ('acme', 'v1', 1)")
    await migrate(postgres_dsn, SHIPPED)
    row = await connection.fetchrow("SELECT org, version, base_version, state, decided_by FROM catalog_proposals")
    assert row is not None
    assert tuple(row) == ("acme", "v1", None, "accepted", "control")
    row = await connection.fetchrow("SELECT unknown_models, priced_as_model, allow_unpriced_routes FROM orgs")
    assert row is not None
    assert tuple(row) == ("reject", None, False)


async def test_a_pool_survives_the_death_and_the_return_of_its_server(tmp_path: Path) -> None:
    with PostgresServer(tmp_path / "postgres") as server:
        postgres = Postgres(server.dsn)
        async with postgres.transaction() as connection:
            await connection.execute("CREATE TABLE things (name text)")

        async def insert_and_die() -> None:
            async with postgres.transaction() as connection:
                await connection.execute("INSERT INTO things VALUES ('lost')")
                server.kill()
                await connection.execute("SELECT 1")

        with pytest.raises(UnavailableError):
            await insert_and_die()
        with pytest.raises(UnavailableError):
            await run(postgres, "SELECT 1")
        server.start()
        async with postgres.transaction() as connection:
            await connection.execute("INSERT INTO things VALUES ('kept')")
            assert [row["name"] for row in await connection.fetch("SELECT name FROM things")] == ["kept"]
        await postgres.close()


async def test_an_error_of_ours_is_not_called_unavailable(postgres_dsn: str) -> None:
    postgres = Postgres(postgres_dsn)
    with pytest.raises(asyncpg.UndefinedTableError):
        await run(postgres, "SELECT * FROM nowhere")
    with pytest.raises(asyncpg.InterfaceError, match="expects 1 argument"):
        await run(postgres, "SELECT $1::text", "one", "two")
    await postgres.close()


async def test_a_transaction_that_raises_leaves_nothing_and_a_snapshot_writes_nothing(postgres_dsn: str) -> None:
    postgres = Postgres(postgres_dsn)

    async def create_and_fail() -> None:
        async with postgres.transaction() as connection:
            await connection.execute("CREATE TABLE things (name text)")
            raise KeyError

    with pytest.raises(KeyError):
        await create_and_fail()
    async with postgres.snapshot() as connection:
        assert await tables(connection) == set()
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await connection.execute("CREATE TABLE things (name text)")
    await postgres.close()


async def test_a_budget_made_before_there_were_hierarchies_is_what_it_was(
    postgres_dsn: str, connection: asyncpg.Connection
) -> None:
    await migrate(postgres_dsn, SHIPPED[:2])
    await connection.execute("INSERT INTO price_catalogs (version, body) VALUES ('v1', 'prices')")
    await connection.execute("INSERT INTO orgs (name, catalog_version, hold_ms) VALUES ('acme', 'v1', 1)")
    for number, (window, zone) in enumerate([("day", "UTC"), ("month", "Asia/Tokyo"), ("90m", "")]):
        await connection.execute(
            "INSERT INTO budgets (budget_id, org, scope_kind, scope_value, time_window, zone, limit_nano)"
            " VALUES ($1, 'acme', 'team', 'ml', $2, $3, 7)",
            f"bud_{number}",
            window,
            zone,
        )
    await migrate(postgres_dsn, SHIPPED)
    windows = (CalendarWindow("day", "UTC"), CalendarWindow("month", "Asia/Tokyo"), RollingWindow(5_400_000))
    expected = [Budget(f"bud_{number}", "team", "ml", window, 7) for number, window in enumerate(windows)]
    assert await list_budgets(connection, "acme") == expected
    # One that was there is still the one of its window.
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert(connection, "acme", Budget("bud_9", "team", "ml", windows[1], 7))
