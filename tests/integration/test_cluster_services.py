"""Every service as a real process over a hot state that is a cluster: a call, its settlement, and two kinds of loss."""

import asyncio
import time
from collections.abc import Iterator

import httpx
import pytest

from services.adapters.valkey_cluster import ClusterConnection
from tests.support.cluster import Cluster
from tests.support.hot_state import read_state
from tests.support.load import sandbox_body
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer, free_port
from tests.support.valkey_cluster import ValkeyCluster, ask

EPOCH = "{default}:epoch"


class OnCluster(Cluster):
    """The services; the org's hot state is looked for where it is."""

    hot: ValkeyCluster

    def is_warm(self) -> bool:
        return bool(ask(self.hot.server_for(EPOCH).port, "EXISTS", EPOCH))

    def call(self) -> httpx.Response:
        """A call of the sandbox's."""
        return httpx.post(
            self.url() + "/v1/chat/completions",
            headers={"authorization": f"Bearer {self.agent_key}"},
            json=sandbox_body(),
            timeout=30,
        )

    def until_served(self, seconds: float = 30.0) -> httpx.Response:
        """The first call that is answered."""
        deadline = time.monotonic() + seconds
        while (answer := self.call()).status_code != 200:
            assert answer.status_code == 503, answer.text
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.1)
        return answer


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnCluster]:
    directory = tmp_path_factory.mktemp("on-cluster")
    log = ValkeyServer(directory / "log", appendonly="always")
    with log, ValkeyCluster(directory / "hot") as hot, PostgresServer(directory / "postgres") as postgres:
        services = OnCluster(directory, redis_url=hot.url, postgres_dsn=postgres.dsn, log_url=log.url)
        services.hot = hot
        try:
            services.start("control")
            services.take_first_keys()
            services.start("ledger", "sandbox", "aggregator")
            services.environment["FARTHING_METRICS_PORT"] = str(free_port())
            services.start("gateway")
            yield services
        finally:
            services.stop()


async def spent_and_held(services: OnCluster) -> tuple[int, int]:
    connection = ClusterConnection(services.redis_url)
    state = await read_state(connection, "default")  # type: ignore[arg-type]
    await connection.close()
    return sum(each.spent_nano for each in state.windows.values()), sum(
        each.held_nano for each in state.windows.values()
    )


async def until_folded(services: OnCluster, cost_nano: int) -> None:
    async with asyncio.timeout(20):
        while await spent_and_held(services) != (cost_nano, 0):  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.05)


def nano(answer: httpx.Response) -> int:
    dollars, _, fraction = answer.headers["x-spend-cost"].partition(".")
    return int(dollars + fraction)


def metric(services: OnCluster, name: str) -> float | None:
    text = httpx.get(f"http://127.0.0.1:{services.environment['FARTHING_METRICS_PORT']}/metrics", timeout=5).text
    found = [line for line in text.splitlines() if line.startswith(name)]
    return float(found[0].rpartition(" ")[2]) if found else None


async def test_a_call_is_held_settled_folded_and_survives_the_loss_of_its_server(services: OnCluster) -> None:
    services.set_budget("1.00")
    await asyncio.sleep(1.2)
    cost_nano = nano(services.until_served())
    assert cost_nano > 0
    await until_folded(services, cost_nano)
    # Its server comes back empty: refused until it is rebuilt, from the log, to what it was.
    server = services.hot.server_for(EPOCH)
    server.kill()
    began_s = time.monotonic()
    refused = services.call()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert time.monotonic() - began_s < 2
    server.start()
    cost_nano += nano(services.until_served())
    await until_folded(services, cost_nano)


async def test_a_paused_server_is_left_alone_and_the_gateway_says_so(services: OnCluster) -> None:
    services.until_served()
    assert (metric(services, "farthing_control_age_seconds") or 99) < 10
    assert (metric(services, "farthing_config_age_seconds") or 99) < 10
    server = services.hot.server_for(EPOCH)
    where = f'{{server="127.0.0.1:{server.port}"}}'
    assert metric(services, f"farthing_hot_state_circuit_open{where}") in (None, 0)
    server.pause()
    try:
        async with httpx.AsyncClient(timeout=30) as client:
            calls = [
                client.post(
                    services.url() + "/v1/chat/completions",
                    headers={"authorization": f"Bearer {services.agent_key}"},
                    json=sandbox_body(),
                )
                for _ in range(20)
            ]
            assert {each.status_code for each in await asyncio.gather(*calls)} == {503}
        assert metric(services, f"farthing_hot_state_circuit_open{where}") == 1
        began_s = time.monotonic()
        assert [services.call().status_code for _ in range(5)] == [503] * 5
        assert time.monotonic() - began_s < 8, "each would wait two seconds for an answer"
    finally:
        server.resume()
    services.until_served()
    assert metric(services, f"farthing_hot_state_circuit_open{where}") == 0
    assert (metric(services, f"farthing_hot_state_circuit_trips_total{where}") or 0) >= 1
