"""The spine on real engines, as real processes: caps, bad input, live changes, one trace end to end."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import redis
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from services.adapters.kafka import KafkaLog
from tests.support.agreement import assert_agreement, judge_log, settle_down
from tests.support.checker import nano
from tests.support.cluster import Cluster
from tests.support.kafka import KafkaBroker
from tests.support.load import one_call, sandbox_body
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer

TRACEPARENT_HEADER = "00-{trace}-{parent}-01"


class Collector:
    """An OTLP/HTTP collector on loopback that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest()
                request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in request.resource_spans:
                    attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        for span in scope.spans:
                            links = [span.trace_id.hex(), *(link.trace_id.hex() for link in span.links)]
                            outer.spans.extend((attributes["service.name"], span.name, trace) for trace in links)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> "Collector":
        self.thread.start()
        return self

    def __exit__(self, *_arguments: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A broker of this module's own: the model reads the whole log, so nobody else may write to it."""
    with KafkaBroker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, broker: KafkaBroker, collector: Collector) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("spine")
    with ValkeyServer(directory / "valkey") as valkey, PostgresServer(directory / "postgres") as postgres:
        cluster = Cluster(
            directory,
            redis_url=valkey.url,
            postgres_dsn=postgres.dsn,
            kafka=broker.bootstrap,
            extra={"FARTHING_OTLP_ENDPOINT": collector.url},
        )
        try:
            cluster.start("control")
            cluster.take_first_keys()
            cluster.start("ledger", "sandbox", "aggregator", "gateway", "gateway-2")
            yield cluster
        finally:
            cluster.stop()


def call(cluster: Cluster, key: str, **options: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} | dict(options.pop("headers", {}))  # type: ignore[call-overload]
    options.setdefault("json", sandbox_body())
    return httpx.post(
        cluster.url() + "/v1/chat/completions",
        headers=headers,
        timeout=30,
        **options,  # type: ignore[arg-type]
    )


def hot_held_and_spent(cluster: Cluster, budget_id: str) -> tuple[int, int]:
    with redis.Redis.from_url(cluster.redis_url, decode_responses=True) as client:
        for name in client.scan_iter(f"{{default}}:b:{budget_id}:*"):
            figures = client.hgetall(name)
            return int(figures.get("held", 0)), int(figures.get("spent", 0))
    return 0, 0


async def test_300_concurrent_calls_at_a_budget_that_fits_exactly_k(cluster: Cluster) -> None:
    """Over two gateways: k pass, the rest are refused with 402, and no sample ever shows more than the limit."""
    keys = [cluster.make_agent("crowd", agent) for agent in ("crowd-1", "crowd-2")]
    body = sandbox_body(tokens=50, delay_ms=1500)
    probe = call(cluster, cluster.make_agent("probe", "probe"), json=body)
    transaction = cluster.admin("GET", f"/v1/transactions/{probe.headers['x-spend-transaction-id']}")
    held, fits = nano(transaction["held_usd"]), 40
    limit = held * fits + held // 2
    whole, fraction = divmod(limit, 1_000_000_000)
    budget_id = cluster.set_budget(f"{whole}.{fraction:09d}", "month", team="crowd")
    await asyncio.sleep(1.2)
    urls = [cluster.url("gateway"), cluster.url("gateway-2")]
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=300), timeout=60) as client:
        calls = [
            asyncio.create_task(one_call(client, urls[number % 2], keys[number // 2 % 2], body))
            for number in range(300)
        ]
        samples = []
        while not all(each.done() for each in calls):
            samples.append(sum(await asyncio.to_thread(hot_held_and_spent, cluster, budget_id)))
            await asyncio.sleep(0.01)
        seen = [each.result() for each in calls]
    statuses = [each.status for each in seen]
    # Answers that came in while holds were in flight were decided against holds alone: exactly k fit.
    assert statuses.count(200) >= fits
    assert statuses.count(200) + statuses.count(402) == 300
    assert max(samples) <= limit
    assert max(samples) >= held, "the budget was never seen to hold anything"
    assert {each.code for each in seen if each.status == 402} == {"budget_exhausted"}
    _held, spent = hot_held_and_spent(cluster, budget_id)
    assert spent <= limit


async def test_everything_agrees_with_the_independent_model(cluster: Cluster, broker: KafkaBroker) -> None:
    log = KafkaLog(broker.bootstrap)
    try:
        await settle_down(cluster, log, ["gateway", "gateway-2"])
        verdict = await judge_log(log)
    finally:
        await log.close()
    assert_agreement(verdict, cluster)
    by_team, by_agent = verdict.spent_by("team"), verdict.spent_by("agent")
    assert sum(by_team.values()) == sum(by_agent.values()) == sum(verdict.spent_by("org").values()) > 0
    for dimension, expected in (("team", by_team), ("agent", by_agent), ("vendor", verdict.spent_by("vendor"))):
        answer = cluster.admin("GET", f"/v1/spend?by={dimension}&window=30d")
        assert {row["value"]: nano(row["cost_usd"]) for row in answer["rows"]} == expected


@pytest.mark.parametrize(
    ("options", "status", "code", "names"),
    [
        ({"content": b"{not json", "json": None}, 400, "invalid_request", "JSON"),
        ({"content": b"[1]", "json": None}, 400, "invalid_request", "object"),
        ({"json": {"messages": []}}, 400, "invalid_request", "model"),
        ({"json": sandbox_body() | {"model": "gpt-nobody-priced"}}, 400, "unknown_model", "gpt-nobody-priced"),
        ({"json": sandbox_body() | {"max_tokens": -1}}, 400, "invalid_request", "max_tokens"),
        ({"headers": {"x-spend-team": "a\x01b"}}, 400, None, None),
        ({"headers": {"x-spend-team": "another"}}, 403, "identity_mismatch", "x-spend-team"),
        ({"headers": {"authorization": "Bearer nonsense"}}, 401, "invalid_key", "key"),
        ({"headers": {"authorization": "Bearer fk_live_" + "a" * 40}}, 401, "invalid_key", "key"),
    ],
)
def test_bad_calls_are_told_what_is_wrong_and_hold_nothing(
    cluster: Cluster, options: dict[str, object], status: int, code: str | None, names: str | None
) -> None:
    key = cluster.make_agent("bad", "bad")
    budget_id = cluster.set_budget("1.00", team="bad")
    if options.get("json", 1) is None:
        options = {"content": options["content"]}
        answer = httpx.post(
            cluster.url() + "/v1/chat/completions",
            headers={"authorization": f"Bearer {key}"},
            **options,  # type: ignore[arg-type]
        )
    else:
        answer = call(cluster, key, **options)
    assert answer.status_code == status, answer.text
    if code is not None:
        error = answer.json()["error"]
        assert error["code"] == code
        assert str(names).lower() in (error["message"] + str(error.get("param"))).lower()
    assert hot_held_and_spent(cluster, budget_id) == (0, 0)


def test_no_key_is_refused(cluster: Cluster) -> None:
    answer = httpx.post(cluster.url() + "/v1/chat/completions", json=sandbox_body())
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_key")


def test_a_body_of_50_megabytes_is_refused_readably(cluster: Cluster) -> None:
    key = cluster.make_agent("bad", "bad")
    body = json.dumps(sandbox_body() | {"padding": "x" * 50_000_000}).encode()
    answer = httpx.post(
        cluster.url() + "/v1/chat/completions", content=body, headers={"authorization": f"Bearer {key}"}, timeout=60
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limit_usd": "-1", "window": "day"}, "limit_usd"),
        ({"limit_usd": "1.0000000001", "window": "day"}, "limit_usd"),
        ({"limit_usd": "1", "window": "fortnight"}, "window"),
        ({"limit_usd": "1", "window": "day", "zone": "Mars/Olympus"}, "zone"),
        ({"limit_usd": "1", "window": "day", "team": "a b"}, "team"),
        ({"limit_usd": "1", "window": "day", "colour": "red"}, "colour"),
    ],
)
def test_bad_budgets_are_refused_by_field(cluster: Cluster, body: dict[str, str], field: str) -> None:
    answer = httpx.put(
        cluster.url() + "/api/v1/budgets", json=body, headers={"authorization": f"Bearer {cluster.admin_key}"}
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["field"] == field
    assert answer.json()["message"]


def test_changes_are_live_within_a_second_on_every_gateway(cluster: Cluster) -> None:
    """A new key and a budget of nothing, then the key revoked."""
    made = cluster.admin("POST", "/api/v1/keys", {"team": "quick", "agent": "quick"})
    gateways = ("gateway", "gateway-2")

    def statuses() -> list[int]:
        headers = {"authorization": f"Bearer {made['key']}"}
        return [
            httpx.post(cluster.url(name) + "/v1/chat/completions", json=sandbox_body(), headers=headers).status_code
            for name in gateways
        ]

    time.sleep(1)
    assert statuses() == [200, 200]
    cluster.set_budget("0", team="quick")
    time.sleep(1)
    assert statuses() == [402, 402]
    cluster.admin("DELETE", f"/api/v1/keys/{made['key_id']}")
    time.sleep(1)
    assert statuses() == [401, 401]


def test_one_trace_from_the_client_through_gateway_log_fold_and_ledger(cluster: Cluster, collector: Collector) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    header = {"traceparent": TRACEPARENT_HEADER.format(trace=trace, parent="b7ad6b7169203331")}
    assert call(cluster, cluster.make_agent("traced", "traced"), headers=header).status_code == 200
    expected = {"farthing-gateway", "farthing-aggregator", "farthing-ledger"}
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        seen = {service for service, _name, span_trace in collector.spans if span_trace == trace}
        if seen >= expected:
            break
        time.sleep(0.1)
    assert seen >= expected
    noise = {name for _service, name, _trace in collector.spans if "fastapi" in name or name.startswith("GET ")}
    assert not noise, "probes and a framework's insides are no calls"


def test_logs_hold_neither_keys_nor_bodies(cluster: Cluster) -> None:
    """After everything above."""
    for path in Path(cluster.directory).glob("*.log"):
        text = path.read_text(errors="replace")
        assert "fk_live_" not in text, path.name
        assert "How much is a farthing?" not in text, path.name
