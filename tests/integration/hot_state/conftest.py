"""Every test that takes `rig` runs over both hot states, the one in Valkey and its twin in memory."""

from collections.abc import AsyncIterator

import pytest

from services.adapters.memory import MemoryDirectory, MemoryHotState, MemoryStore
from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from tests.support.hot_rig import EMPTY, NOW_MS, ORG, Rig
from tests.support.hot_state import with_turned_clock


@pytest.fixture(params=["memory", "valkey"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """A live, empty org on either implementation."""
    built: Rig
    if request.param == "memory":
        store = MemoryStore()
        built = Rig(MemoryHotState(lambda: built.now_ms, store), MemoryDirectory(lambda: built.now_ms, store), None)
    else:
        connection = ValkeyConnection(request.getfixturevalue("valkey_url"))
        built = Rig(with_turned_clock(ValkeyHotState(connection)), ValkeyDirectory(connection), connection)
    await built.turn_to(NOW_MS)
    assert await built.hot.load(ORG, EMPTY, "epoch-1")
    yield built
    await built.hot.close()


@pytest.fixture
async def connection(valkey_url: str) -> AsyncIterator[ValkeyConnection]:
    """A connection to the session's wiped Valkey."""
    connection = ValkeyConnection(valkey_url)
    yield connection
    await connection.close()
