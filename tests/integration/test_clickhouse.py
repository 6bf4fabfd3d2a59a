"""The ClickHouse adapter on a real engine."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from services.adapters.clickhouse import ClickHouse, DsnError
from services.adapters.schemas import schemas_folder
from services.core.ports import Query, UnavailableError
from tests.support.clickhouse_server import running_server
from tests.support.valkey import free_port


def row(offset: int, topic: str = "t") -> dict[str, object]:
    return {"topic": topic, "partition": 0, "offset": offset, "reason": "duplicate", "detail": f"gw_1/{offset}"}


async def offsets(store: ClickHouse) -> list[int]:
    (rows,) = await store.query(Query("SELECT `offset` FROM skipped ORDER BY `offset`"))
    return [each["offset"] for each in rows]


async def test_migrations_are_applied_once_and_survive_reopening(clickhouse_dsn: str) -> None:
    for applied in (("0001_ledger.sql",), ()):
        store = ClickHouse(clickhouse_dsn)
        assert await store.migrate(schemas_folder("clickhouse")) == applied
        await store.close()


async def test_a_misnamed_migration_is_refused(clickhouse_dsn: str, tmp_path: Path) -> None:
    (tmp_path / "1_x.sql").write_text("SELECT 1;\n")
    store = ClickHouse(clickhouse_dsn)
    with pytest.raises(ValueError, match=r"1_x\.sql must be named"):
        await store.migrate(tmp_path)
    await store.close()


async def test_rows_of_a_token_are_added_once(ledger_store: ClickHouse) -> None:
    await ledger_store.insert("skipped", [row(1), row(2)], "t/0/1-2")
    await ledger_store.insert("skipped", [row(1), row(2)], "t/0/1-2")
    assert await offsets(ledger_store) == [1, 2]
    await ledger_store.insert("skipped", [row(3)], "t/0/3-3")
    assert await offsets(ledger_store) == [1, 2, 3]


async def test_an_insert_is_one_part_of_the_table(ledger_store: ClickHouse) -> None:
    """A part appears whole or not at all, whatever kills the process."""
    rows = [row(offset) | {"detail": "x" * 5000} for offset in range(3000)]
    await ledger_store.insert("skipped", rows, "t/0/0-2999")
    parts = Query("SELECT rows FROM system.parts WHERE database = currentDatabase() AND table = 'skipped' AND active")
    ((part,),) = await ledger_store.query(parts)
    assert part["rows"] == 3000


async def test_a_column_the_table_does_not_have_is_an_error(ledger_store: ClickHouse) -> None:
    with pytest.raises(DatabaseError, match="colour"):
        await ledger_store.insert("skipped", [row(1) | {"colour": "red"}], "t/0/1-1")
    assert await offsets(ledger_store) == []


async def test_tables_that_are_not_there_yet_can_be_waited_for(clickhouse_dsn: str) -> None:
    store = ClickHouse(clickhouse_dsn)
    with pytest.raises(UnavailableError, match="skipped"):
        await offsets(store)
    await store.migrate(schemas_folder("clickhouse"))
    assert await offsets(store) == []
    await store.close()


async def test_values_go_in_as_parameters_only(ledger_store: ClickHouse) -> None:
    hostile = "'; DROP TABLE skipped; -- \\ \n \u20ac {x}"
    ((answer,),) = await ledger_store.query(Query("SELECT {text:String} AS text", {"text": hostile}))
    assert answer["text"] == hostile


async def test_a_server_that_is_away_is_unavailable() -> None:
    store = ClickHouse("http://user:secret@127.0.0.1:9/farthing")
    with pytest.raises(UnavailableError) as raised:
        await store.query(Query("SELECT 1"))
    assert "secret" not in str(raised.value)
    await store.close()


@pytest.mark.parametrize("dsn", ["clickhouse://x", "chdb://relative/path", "http://", "http://h/bad-name", "", "chdb:"])
def test_an_address_of_another_kind_is_refused(dsn: str) -> None:
    with pytest.raises(DsnError):
        ClickHouse(dsn)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """The port of a ClickHouse behind HTTP."""
    port = free_port()
    with running_server(tmp_path / "server", port):
        yield port


async def test_a_server_over_http_is_the_same_store(server: int) -> None:
    store = ClickHouse(f"http://default:@127.0.0.1:{server}/ledger")
    await store.migrate(schemas_folder("clickhouse"))
    for _ in range(2):
        await store.insert("skipped", [row(1), row(2)], "t/0/1-2")
    assert await offsets(store) == [1, 2]
    with pytest.raises(DatabaseError, match="colour"):
        await store.insert("skipped", [row(3) | {"colour": "red"}], "t/0/3-3")
    await store.close()


async def test_an_insert_whose_answer_is_lost_is_added_once(server: int) -> None:
    """The client itself sends an insert again when the server hangs up on it."""
    store = ClickHouse(f"http://default:@127.0.0.1:{server}/ledger")
    await store.migrate(schemas_folder("clickhouse"))
    async with httpx.AsyncClient() as client:
        await client.post(f"http://127.0.0.1:{server}/lose-answers?count=2")
    with pytest.raises(UnavailableError):
        await store.insert("skipped", [row(1)], "t/0/1-1")
    await store.insert("skipped", [row(1)], "t/0/1-1")
    assert await offsets(store) == [1]
    await store.close()


async def test_a_server_that_was_killed_and_came_back(tmp_path: Path) -> None:
    port = free_port()
    store = ClickHouse(f"http://default:@127.0.0.1:{port}/ledger")
    with running_server(tmp_path / "server", port):
        await store.migrate(schemas_folder("clickhouse"))
        await store.insert("skipped", [row(1)], "t/0/1-1")
    with pytest.raises(UnavailableError):
        await store.insert("skipped", [row(2)], "t/0/2-2")
    with running_server(tmp_path / "server", port):
        assert await offsets(store) == [1]
        await store.insert("skipped", [row(2)], "t/0/2-2")
        assert await offsets(store) == [1, 2]
    await store.close()
