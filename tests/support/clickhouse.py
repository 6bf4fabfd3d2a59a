"""A real ClickHouse for tests: chDB, the engine inside this process.

A process can have one chDB path open at a time. So the whole session shares one, kept open by one connection, and every
test gets a database of its own in it. Services started as processes of their own bring their own path.
"""

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from clickhouse_connect.driver import create_client

from services.adapters.clickhouse import ClickHouse
from services.adapters.schemas import schemas_folder

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def clickhouse_path() -> Iterator[Path]:
    """The folder of the session's engine."""
    path = Path(tempfile.mkdtemp(prefix="farthing-clickhouse-"))
    keeper = create_client(interface="chdb", path=str(path))
    yield path
    keeper.close()
    shutil.rmtree(path)


@pytest.fixture
def clickhouse_dsn(clickhouse_path: Path) -> str:
    """The address of a database that does not exist yet."""
    return f"chdb://{clickhouse_path}?database=test_{next(_numbers)}"


@pytest.fixture
async def ledger_store(clickhouse_dsn: str) -> AsyncIterator[ClickHouse]:
    """A fresh ledger: every migration applied, no rows."""
    store = ClickHouse(clickhouse_dsn)
    await store.migrate(schemas_folder("clickhouse"))
    yield store
    await store.close()
