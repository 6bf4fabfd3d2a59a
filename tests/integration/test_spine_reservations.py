"""Reservations and parts of budgets as real processes on real engines: two gateways, fold, reaper, ledger."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis

from services.adapters.valkey_log import ValkeyLog
from tests.support.agreement import assert_agreement, hot_figures, judge_log, settle_down
from tests.support.cluster import Cluster
from tests.support.load import sandbox_body
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer

CENT = 10_000_000
GATEWAYS = ("gateway", "gateway-2")


@pytest.fixture(scope="module")
def log_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ValkeyServer(tmp_path_factory.mktemp("log"), appendonly="always") as log:
        yield log.url


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, log_url: str) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("reservations")
    with ValkeyServer(directory / "hot") as hot, PostgresServer(directory / "postgres") as postgres:
        cluster = Cluster(directory, redis_url=hot.url, postgres_dsn=postgres.dsn, log_url=log_url)
        try:
            cluster.start("control")
            cluster.take_first_keys()
            cluster.start("ledger", "sandbox", "aggregator", *GATEWAYS)
            yield cluster
        finally:
            cluster.stop()


class Caller:
    """One key, and a budget of its agent's."""

    def __init__(self, cluster: Cluster, agent: str, limit_usd: str) -> None:
        self.cluster = cluster
        self.key = cluster.make_agent("team-" + agent, agent)
        self.budget_id = cluster.set_budget(limit_usd, "month", agent=agent)
        for gateway in GATEWAYS:
            until(lambda at=gateway: self._is_charged(at), f"{gateway} knows key and budget")

    def _is_charged(self, gateway: str) -> bool:
        tried = self.post("/v1/reservations", {"amount_usd": "0"}, gateway=gateway)
        if tried.status_code != 201:
            return False
        self.post(f"/v1/reservations/{tried.json()['reservation_id']}/release", gateway=gateway)
        return self.budget_id in {each["budget_id"] for each in tried.json()["charges"]}

    def ask(self, method: str, path: str, body: object = None, gateway: str = "gateway", **headers: str) -> Any:
        return httpx.request(
            method,
            self.cluster.url(gateway) + path,
            content=None if body is None else json.dumps(body),
            headers={"authorization": f"Bearer {self.key}"} | headers,
            timeout=30,
            trust_env=False,
        )

    def post(self, path: str, body: object = None, **more: str) -> Any:
        return self.ask("POST", path, body, **more)

    def figures(self, budget_id: str | None = None) -> tuple[int, int]:
        """Spent and held of a budget in the hot state."""
        spent, held = hot_figures(self.cluster.redis_url)
        name = budget_id or self.budget_id
        return spent.get(name, 0), held.get(name, 0)

    def recorded(self, transaction_id: str) -> Any:
        """A transaction, as the ledger tells it."""
        return self.ask("GET", f"/v1/transactions/{transaction_id}").json()


def until(condition: Any, what: str, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def forget_answers(cluster: Cluster) -> None:
    with redis.Redis.from_url(cluster.redis_url) as client:
        names = list(client.scan_iter("answers:*"))
        assert names, "no answers were kept"
        client.delete(*names)


def test_a_reservation_is_held_grown_and_settled(cluster: Cluster) -> None:
    caller = Caller(cluster, "tool", "1.00")
    held = caller.post("/v1/reservations", {"amount_usd": "0.40", "vendor": "tavily"})
    assert held.status_code == 201, held.text
    name = held.json()["reservation_id"]
    assert caller.figures() == (0, 40 * CENT)
    assert caller.post(f"/v1/reservations/{name}/extend", {"amount_usd": "0.90"}, gateway="gateway-2").is_success
    assert caller.figures() == (0, 90 * CENT)
    assert caller.post("/v1/reservations", {"amount_usd": "0.20"}).status_code == 402
    assert caller.post(f"/v1/reservations/{name}/extend", {"amount_usd": "1.10"}).status_code == 402
    settled = caller.post(f"/v1/reservations/{name}/settle", {"cost_usd": "0.25"}, gateway="gateway-2")
    assert settled.json()["cost_usd"] == "0.250000000"
    until(lambda: caller.figures() == (25 * CENT, 0), "the settlement is folded")
    until(lambda: caller.recorded(name)["state"] == "settled", "the ledger has it")
    told = caller.recorded(name)
    assert (told["cost_usd"], told["held_usd"]) == ("0.250000000", "0.900000000")
    assert told["opened"]["held_usd"] == "0.400000000"
    assert (told["vendor"], told["billing_class"]) == ("tavily", "metered.tavily")
    free = caller.post("/v1/reservations", {"amount_usd": "0.75"}).json()["reservation_id"]
    assert caller.post(f"/v1/reservations/{free}/release").json()["state"] == "released"
    until(lambda: caller.figures() == (25 * CENT, 0), "the release is folded")


async def test_one_key_on_two_gateways_at_once_is_one_reservation_told_for_ever(cluster: Cluster) -> None:
    caller = await asyncio.to_thread(Caller, cluster, "twice", "1.00")

    def reserve(number: int, amount: str = "0.30", key: str = "order-1") -> Any:
        body = {"amount_usd": amount}
        return caller.post("/v1/reservations", body, gateway=GATEWAYS[number % 2], **{"idempotency-key": key})

    answers = await asyncio.gather(*(asyncio.to_thread(reserve, number) for number in range(12)))
    assert {(each.status_code, each.text) for each in answers} == {(201, answers[0].text)}
    assert caller.figures() == (0, 30 * CENT)
    refused = reserve(0, "0.80", "order-2")
    assert refused.status_code == 402
    name = answers[0].json()["reservation_id"]
    assert caller.post(f"/v1/reservations/{name}/extend", {"amount_usd": "0.50"}).status_code == 200
    settle = {"cost_usd": "0.10"}
    ends = await asyncio.gather(
        *(
            asyncio.to_thread(caller.post, f"/v1/reservations/{name}/settle", settle, gateway=GATEWAYS[number % 2])
            for number in range(6)
        )
    )
    assert {(each.status_code, each.text) for each in ends} == {(200, ends[0].text)}
    until(lambda: caller.recorded(name)["state"] == "settled", "the ledger has it")
    until(lambda: caller.recorded(refused.json()["reservation_id"]).get("state") == "denied", "the ledger has it")
    await asyncio.to_thread(forget_answers, cluster)
    assert (reserve(1).status_code, reserve(1).text) == (201, answers[0].text)
    assert (reserve(0, "0.80", "order-2").status_code, reserve(0, "0.80", "order-2").text) == (402, refused.text)
    assert reserve(0, "0.31").status_code == 409
    again = caller.post(f"/v1/reservations/{name}/settle", settle)
    assert (again.status_code, again.text) == (200, ends[0].text)
    assert caller.post(f"/v1/reservations/{name}/settle", {"cost_usd": "0.11"}).status_code == 409
    assert caller.post(f"/v1/reservations/{name}/release").status_code == 409
    until(lambda: caller.figures() == (10 * CENT, 0), "nothing was spent twice")


def works(url: str, headers: dict[str, str]) -> bool:
    """Whether a part's key has made a call; where the part is not known yet, that is a 503, and never a 401."""
    status = httpx.post(url, json=sandbox_body(), headers=headers, timeout=30).status_code
    assert status in (200, 503), status
    return status == 200


def test_a_part_is_spent_by_its_key_and_what_is_left_returns(cluster: Cluster) -> None:
    caller = Caller(cluster, "boss", "1.00")
    path = f"/v1/budgets/{caller.budget_id}/delegate"
    part = caller.post(path, {"amount_usd": "0.60", "agent": "boss/helper", "session": "run-7"})
    assert part.status_code == 201, part.text
    part_id, key = part.json()["budget_id"], part.json()["key"]
    assert caller.figures() == (0, 60 * CENT)
    assert caller.post(path, {"amount_usd": "0.50"}).status_code == 402
    headers = {"authorization": f"Bearer {key}"}
    url = cluster.url("gateway-2") + "/v1/chat/completions"
    until(lambda: works(url, headers), "the key works")
    until(lambda: caller.figures(part_id)[0] > 0 and caller.figures(part_id)[1] == 0, "its call is folded")
    spent_nano, _ = caller.figures(part_id)
    assert caller.figures() == (0, 60 * CENT), "its calls are charged to the part alone"
    shown = caller.ask("GET", f"/v1/budgets/{part_id}").json()
    assert (shown["state"], shown["held_usd"]) == ("live", "0.000000000")
    ended = caller.post(f"/v1/budgets/{part_id}/end", gateway="gateway-2")
    assert ended.json() == {"budget_id": part_id, "state": "ended"}
    until(lambda: caller.figures() == (spent_nano, 0), "what is left returns")
    until(lambda: httpx.post(url, json=sandbox_body(), headers=headers).status_code == 401, "its key is revoked")
    reservation_id = part.json()["reservation_id"]
    until(lambda: caller.recorded(reservation_id).get("state") == "settled", "the ledger has it")
    assert caller.recorded(reservation_id)["route"] == "delegation"


async def test_one_key_on_two_gateways_at_once_is_one_part(cluster: Cluster) -> None:
    caller = Caller(cluster, "runner", "1.00")
    path, body = f"/v1/budgets/{caller.budget_id}/delegate", {"amount_usd": "0.60"}

    def delegate(number: int) -> httpx.Response:
        return caller.post(path, body, gateway=GATEWAYS[number % 2], **{"idempotency-key": "run-7"})

    answers = await asyncio.gather(*(asyncio.to_thread(delegate, number) for number in range(6)))
    assert {each.status_code for each in answers} == {201}, answers[0].text
    assert len({each.text for each in answers}) == 1
    assert caller.figures() == (0, 60 * CENT)
    part = answers[0].json()
    other = caller.post(path, {"amount_usd": "0.61"}, **{"idempotency-key": "run-7"})
    assert (other.status_code, other.json()["error"]) == (409, "idempotency_conflict")
    url, headers = cluster.url("gateway-2") + "/v1/chat/completions", {"authorization": f"Bearer {part['key']}"}
    until(lambda: works(url, headers), "the key works")
    part_id = part["budget_id"]
    until(lambda: caller.figures(part_id)[0] > 0 and caller.figures(part_id)[1] == 0, "its call is folded")
    spent_nano, _ = caller.figures(part_id)
    assert caller.post(f"/v1/budgets/{part_id}/end").status_code == 200
    until(lambda: caller.figures() == (spent_nano, 0), "what is left returns")
    again = caller.post(path, body, gateway=GATEWAYS[1], **{"idempotency-key": "run-7"})
    assert (again.status_code, again.text) == (201, answers[0].text)
    assert caller.figures() == (spent_nano, 0)


def test_a_part_is_held_for_all_of_its_time_and_so_the_ledger_says(cluster: Cluster) -> None:
    caller = Caller(cluster, "planner", "1.00")
    path, once = f"/v1/budgets/{caller.budget_id}/delegate", {"idempotency-key": "run-7"}
    part = caller.post(path, {"amount_usd": "0.60", "expires_in_seconds": 7_200}, **once)
    assert part.status_code == 201, part.text
    with redis.Redis.from_url(cluster.redis_url) as client:
        (due,) = [
            expires_ms
            for name in client.scan_iter("*:hx")
            for reservation, expires_ms in client.zrange(name, 0, -1, withscores=True)
            if reservation.decode() == part.json()["reservation_id"]
        ]
    assert due / 1000 - time.time() > 7_000
    name = part.json()["reservation_id"]
    until(lambda: caller.recorded(name).get("expires_at", "") >= part.json()["expires_at"], "the ledger has it")
    forget_answers(cluster)
    again = caller.post(path, {"amount_usd": "0.60", "expires_in_seconds": 7_200}, gateway=GATEWAYS[1], **once)
    assert (again.status_code, again.text) == (201, part.text), "the ledger says that it is held whole"
    assert caller.figures() == (0, 60 * CENT)
    assert caller.post(f"/v1/budgets/{part.json()['budget_id']}/end").is_success
    until(lambda: caller.figures() == (0, 0), "what is left returns")


async def test_the_books_agree(cluster: Cluster, log_url: str) -> None:
    log = ValkeyLog(log_url)
    try:
        await settle_down(cluster, log, GATEWAYS)
        assert_agreement(await judge_log(log), cluster)
    finally:
        await log.close()
    deadline = time.monotonic() + 15
    while True:
        found = await asyncio.to_thread(cluster.admin, "GET", "/v1/reconciliation")
        if not found["lagging"] or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    assert found["agree"], found
