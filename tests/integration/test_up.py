"""``farthing up`` itself: real engines, real services, one command, on ports and a directory of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.embedded.stack import free_ports
from tests.support.kafka import KafkaBroker
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer

REPOSITORY = Path(__file__).resolve().parents[2]
CALL = {
    "model": "sandbox-small",
    "messages": [{"role": "user", "content": "How much is a farthing?"}],
    "max_tokens": 40,
    "sandbox": {"output_tokens": 30},
}
PROCESSES = {"hotstate", "log", "postgres", "control", "ledger", "aggregator", "sandbox", "gateway"}


class Up:
    """One ``farthing up`` after another on the same ports and data directory."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.options = options
        self.data_dir = folder / "data"
        self.port, self.metrics_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[str] | None = None
        self.agent_key = ""

    def command(self, *more: str) -> list[str]:
        ports = ("--port", str(self.port), "--metrics-port", str(self.metrics_port))
        return [
            sys.executable,
            "-m",
            "services.cli",
            "up",
            *ports,
            "--data-dir",
            str(self.data_dir),
            *self.options,
            *more,
        ]

    def start(self, *more: str) -> str:
        """Starts it; the first line of standard output."""
        self.process = subprocess.Popen(
            self.command(*more), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors()
        return line

    def errors(self) -> str:
        assert self.process is not None
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def pids(self) -> dict[str, int]:
        found = json.loads((self.data_dir / "run" / "processes.json").read_text())
        return {name: pid for name, (pid, _) in found.items()}

    def family(self) -> list[psutil.Process]:
        """The processes and all of theirs."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Sends a signal and waits: the exit code and what else was printed."""
        assert self.process is not None
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out

    def clear(self) -> None:
        """Ends what still runs."""
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGTERM)

    def farthing(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command on the same data directory, from another folder."""
        return subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments, "--data-dir", str(self.data_dir)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def ask(self, *arguments: str) -> Any:
        """The same with ``--json``; asserts success."""
        done = self.farthing(*arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def call(self, key: str | None = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {key or self.agent_key}"}
        return httpx.post(self.url + "/v1/chat/completions", json=CALL, headers=headers, timeout=30)


def eventually(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    instance = Up(tmp_path_factory.mktemp("up"))
    began = time.monotonic()
    try:
        ready = json.loads(instance.start("--json"))
        assert time.monotonic() - began < 60
        assert ready.keys() == {"base_url", "metrics_url", "admin_key", "agent_key", "data_dir"}
        assert ready["base_url"] == instance.url
        assert ready["metrics_url"] == f"http://127.0.0.1:{instance.metrics_port}"
        assert ready["data_dir"] == str(instance.data_dir)
        instance.agent_key = ready["agent_key"]
        yield instance
    finally:
        instance.clear()


def test_a_call_is_answered_priced_and_recorded(up: Up) -> None:
    answer = up.call()
    assert answer.status_code == 200, answer.text
    assert answer.json()["object"] == "chat.completion"
    name = answer.headers["x-spend-transaction-id"]
    eventually(lambda: up.farthing("transactions", name).returncode == 0)
    eventually(lambda: up.ask("transactions", name)["state"] == "settled")
    assert up.ask("transactions", name)["cost_usd"] == answer.headers["x-spend-cost"]
    assert name in {row["transaction_id"] for row in up.ask("transactions")["transactions"]}


def test_every_process_is_its_own_and_none_is_open_to_others(up: Up) -> None:
    assert up.pids().keys() == PROCESSES
    for path in (up.data_dir, up.data_dir / "secrets", up.data_dir / "run", up.data_dir / "logs"):
        assert path.stat().st_mode & 0o077 == 0, path
    for path in (up.data_dir / "secrets").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert not (up.data_dir / "first-keys.json").exists()
    listening = {
        connection.laddr.ip
        for process in up.family()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    engines = [psutil.Process(up.pids()[name]) for name in ("hotstate", "log", "postgres")]
    assert not [each for engine in engines for each in engine.net_connections("tcp")]
    if os.geteuid() == 0:
        assert psutil.Process(up.pids()["postgres"]).uids().effective != 0


def test_commands_manage_the_running_instance(up: Up) -> None:
    status = up.ask("status")
    assert (status["hot_state"], status["published"], status["alarms"]) == ("warm", True, {})
    key = up.ask("keys", "create", "--team", "shop", "--agent", "shop-bot")["key"]
    budget = up.ask("budgets", "set", "--team", "shop", "--limit", "0", "--window", "month", "--zone", "Europe/Berlin")
    eventually(lambda: up.call(key).status_code == 402)
    assert up.call(key).json()["error"]["budget_id"] == budget["budget_id"]
    up.ask("budgets", "rm", budget["budget_id"])
    eventually(lambda: up.call(key).status_code == 200)
    eventually(lambda: any(row["value"] == "shop" for row in up.ask("spend", "--by", "team")["rows"]))
    assert "org default" in up.farthing("budgets", "list").stdout
    refused = up.farthing("budgets", "set", "--team", "shop", "--limit", "1", "--window", "fortnight")
    assert refused.returncode == 1
    assert "fortnight" in refused.stderr
    key_id = next(each["key_id"] for each in up.ask("keys", "list")["keys"] if each["agent"] == "shop-bot")
    up.ask("keys", "revoke", key_id)
    eventually(lambda: up.call(key).status_code == 401)
    connected = up.ask("connections", "set", "openai", "--no-key", "--base-url", "http://127.0.0.1:9/v1")
    assert connected in up.ask("connections", "list")["connections"]
    up.ask("connections", "rm", "openai")


def test_the_doctor_finds_it_healthy(up: Up) -> None:
    up.call()
    eventually(lambda: up.farthing("doctor").returncode == 0)
    checks = up.ask("doctor")["checks"]
    assert {"gateway", "spend state", "configuration", "alarms", "processes"} <= {each["name"] for each in checks}
    assert not [each for each in checks if each["status"] == "failed"]


def test_the_demo_exhausts_a_budget_and_the_books_agree(up: Up) -> None:
    report = up.ask("demo")
    research, support = report["teams"]
    assert report["exhausted"] == research["name"]
    assert report["agree"] is True
    assert research["refused"] > 0
    assert "budget" in report["refusal"]
    assert float(research["spent_usd"]) <= float(research["limit_usd"])
    assert support["refused"] == 0
    assert support["calls"] > 0
    for team in (research, support):
        assert team["held_usd"] == "0.000000000"
        row = next(each for each in report["reconciliation"]["budgets"] if each["scope"] == f"team:{team['name']}")
        assert {row[book]["spent_usd"] for book in ("hot_state", "log", "ledger")} == {team["spent_usd"]}


def test_metrics_of_every_service_are_on_one_port(up: Up) -> None:
    up.call()
    text = httpx.get(f"http://127.0.0.1:{up.metrics_port}/metrics", timeout=20).text
    services: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            services.setdefault(sample.name, set()).add(sample.labels["service"])
    assert services["farthing_requests_total"] == {"gateway"}
    assert services["process_cpu_seconds_total"] == PROCESSES - {"hotstate", "log", "postgres"}
    assert services["farthing_process_up"] == PROCESSES
    assert httpx.get(f"http://127.0.0.1:{up.metrics_port}/healthz").json() == {"status": "ok", "down": []}


def test_a_second_instance_and_taken_ports_are_refused(up: Up, tmp_path: Path) -> None:
    def refusal(*command: str) -> str:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert "already runs on the data directory" in refusal(*up.command("--json"))
    elsewhere = [*up.command("--json", "--data-dir", str(tmp_path / "other"))]
    assert f"Port {up.port} on 127.0.0.1 is taken" in refusal(*elsewhere)
    assert up.call().status_code == 200


def test_a_killed_service_comes_back(up: Up) -> None:
    before = up.pids()
    os.kill(before["gateway"], signal.SIGKILL)
    eventually(lambda: up.pids()["gateway"] != before["gateway"])

    def answers() -> bool:
        try:
            return up.call().status_code == 200
        except httpx.HTTPError:
            return False

    eventually(answers)
    assert {name: pid for name, pid in up.pids().items() if name != "gateway"} == {
        name: pid for name, pid in before.items() if name != "gateway"
    }


def test_an_interrupt_ends_it_all_and_the_next_start_has_it_all(up: Up) -> None:
    name = up.call().headers["x-spend-transaction-id"]
    family = up.family()
    assert len(family) >= len(PROCESSES)
    assert up.end(signal.SIGINT) == (0, "")
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not (up.data_dir / "instance.json").exists()
    began = time.monotonic()
    ready = json.loads(up.start("--json"))
    assert time.monotonic() - began < 20  # twice the promise: the machine may be busy with other tests
    assert (ready["admin_key"], ready["agent_key"]) == (None, None)
    assert up.call().status_code == 200
    eventually(lambda: up.ask("transactions", name)["state"] == "settled")


def test_the_printed_curl_line_works_as_it_stands(up: Up) -> None:
    """With a key in it: the keys are put back as a start that was killed before showing them would have left them."""
    up.end(signal.SIGTERM)
    keys = {"admin_key": (up.data_dir / "secrets" / "admin.key").read_text().strip(), "agent_key": up.agent_key}
    (up.data_dir / "first-keys.json").write_text(json.dumps(keys))
    first = up.start()
    assert f"is ready at {up.url}" in first
    assert up.process is not None
    assert up.process.stdout is not None
    lines = [first]
    while "Stop: Ctrl-C" not in lines[-1]:
        lines.append(up.process.stdout.readline())
    assert keys["admin_key"] in "".join(lines)
    [curl] = [line for line in lines if line.strip().startswith("curl ")]
    done = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, timeout=30)
    assert json.loads(done.stdout)["model"] == "sandbox-small"


def test_a_killed_supervisor_takes_everything_with_it_and_starts_again(up: Up) -> None:
    name = up.call().headers["x-spend-transaction-id"]
    family = up.family()
    code, _ = up.end(signal.SIGKILL)
    assert code == -signal.SIGKILL
    if sys.platform == "linux":
        eventually(lambda: not [process for process in family if process.is_running()])
    assert json.loads(up.start("--json"))["agent_key"] is None
    assert up.call().status_code == 200
    eventually(lambda: up.ask("transactions", name)["state"] == "settled")


def test_engines_can_be_elsewhere(tmp_path: Path) -> None:
    """The very same services on Apache Kafka and a Valkey and PostgreSQL that somebody else runs."""
    with (
        KafkaBroker(tmp_path / "kafka") as kafka,
        ValkeyServer(tmp_path / "valkey") as valkey,
        PostgresServer(tmp_path / "postgres") as postgres,
    ):
        up = Up(tmp_path, "--kafka", kafka.bootstrap, "--redis", valkey.url, "--postgres", postgres.dsn)
        try:
            up.agent_key = json.loads(up.start("--json"))["agent_key"]
            assert up.pids().keys() == PROCESSES - {"hotstate", "log", "postgres"}
            name = up.call().headers["x-spend-transaction-id"]
            eventually(lambda: up.ask("transactions", name)["state"] == "settled")
            eventually(lambda: up.ask("doctor")["healthy"])
            assert up.end(signal.SIGTERM) == (0, "")
        finally:
            up.clear()
