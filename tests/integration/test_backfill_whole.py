"""The whole of Farthing as processes: budgets made and re-windowed under load start from what is spent already."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from services.adapters.valkey import ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from tests.support.checker import nano
from tests.support.cluster import Cluster
from tests.support.load import drive
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("whole")
    with (
        ValkeyServer(directory / "hot") as hot,
        ValkeyServer(directory / "log", appendonly="always") as log,
        PostgresServer(directory / "postgres") as postgres,
    ):
        cluster = Cluster(directory, redis_url=hot.url, postgres_dsn=postgres.dsn, log_url=log.url)
        try:
            cluster.start("control")
            cluster.take_first_keys()
            cluster.start("ledger", "sandbox", "aggregator", "gateway")
            yield cluster
        finally:
            cluster.stop()


def ask(cluster: Cluster, method: str, path: str, body: Any = None) -> Any:
    answer = httpx.request(
        method,
        cluster.url() + path,
        json=body,
        headers={"authorization": f"Bearer {cluster.admin_key}"},
        timeout=30,
        trust_env=False,
    )
    assert answer.is_success, answer.text
    return answer.json()


async def test_a_budget_that_is_made_or_re_windowed_under_load_starts_from_what_is_spent(cluster: Cluster) -> None:
    before = await drive([cluster.url()], [cluster.agent_key], callers=2, seconds=1.5)
    calling = asyncio.create_task(drive([cluster.url()], [cluster.agent_key], callers=2, seconds=5.0))
    await asyncio.sleep(0.5)
    scope = {"kind": "cel", "value": "everything", "expression": 'vendor != "none"'}
    asked = {"scope": scope, "limit_usd": "1000.00"}
    made = await asyncio.to_thread(ask, cluster, "PUT", "/api/v1/budgets", {**asked, "window": "lifetime"})
    budget_id = made["budget_id"]
    hot = ValkeyHotState(ValkeyConnection(cluster.redis_url))
    first = await until_filled(hot, budget_id, 0)
    await asyncio.sleep(1.0)
    await asyncio.to_thread(ask, cluster, "PATCH", f"/api/v1/budgets/{budget_id}", {"window": "30d"})
    await until_filled(hot, budget_id, first)
    calls = [*before, *await calling]
    assert {call.status for call in calls} == {200}
    spent_nano = sum(nano(call.cost_usd or "0") for call in calls)

    async def books() -> Any:
        while True:
            found = await asyncio.to_thread(ask, cluster, "GET", "/v1/reconciliation")
            if not found["lagging"]:
                return found
            await asyncio.sleep(0.2)

    found = await asyncio.wait_for(books(), 20)
    [row] = [each for each in found["budgets"] if each["budget_id"] == budget_id]
    assert nano(row["hot_state"]["spent_usd"]) == spent_nano
    assert found["agree"], found
    assert await hot.alarms() == {}
    await hot.close()


async def until_filled(hot: ValkeyHotState, budget_id: str, above: int) -> int:
    """Waits until the budget is backfilled for a configuration past `above`; which one."""
    async with asyncio.timeout(10):
        while True:
            version = (await hot.filled("default")).get(budget_id, 0)
            if version > above:
                return version
            await asyncio.sleep(0.02)
