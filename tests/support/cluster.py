"""Farthing's own services as real processes on real engines, for tests that kill them.

`Cluster` starts control, ledger, aggregator, sandbox and any number of gateways with the same commands a cluster runs,
on engines that are handed in. Everything it starts it ends, by pid.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import httpx
import redis

from tests.support.valkey import free_port

REPOSITORY = Path(__file__).resolve().parents[2]


class Cluster:
    """The services on one set of engines. `kafka` None means the log is Valkey Streams at `log_url`."""

    def __init__(
        self,
        directory: Path,
        *,
        redis_url: str,
        postgres_dsn: str,
        kafka: str | None = None,
        log_url: str | None = None,
        hold_seconds: int = 900,
        extra: dict[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.redis_url = redis_url
        self.ports = {name: free_port() for name in ("control", "ledger", "sandbox", "aggregator")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("FARTHING_", "OTEL_"))
        } | {
            "FARTHING_REDIS_URL": redis_url,
            "FARTHING_POSTGRES_DSN": postgres_dsn,
            "FARTHING_CLICKHOUSE_DSN": f"chdb://{directory / 'clickhouse'}",
            "FARTHING_CONTROL_URL": f"http://127.0.0.1:{self.ports['control']}",
            "FARTHING_LEDGER_URL": f"http://127.0.0.1:{self.ports['ledger']}",
            "FARTHING_SANDBOX_URL": f"http://127.0.0.1:{self.ports['sandbox']}",
            "FARTHING_MASTER_KEY_FILE": str(directory / "secrets" / "master.key"),
            "FARTHING_STATE_DIR": str(directory),
            "FARTHING_HOLD_SECONDS": str(hold_seconds),
            "FARTHING_BOOTSTRAP_ORG": "default",
            **({"FARTHING_KAFKA": kafka} if kafka else {"FARTHING_LOG_URL": log_url or ""}),
            **(extra or {}),
        }
        self.admin_key = ""
        self.agent_key = ""

    def start(self, *names: str, seconds: float = 30.0) -> None:
        """Starts services (gateways are named ``gateway``, ``gateway-2``, …) and waits until each is ready."""
        for name in names:
            self.spawn(name)
        for name in names:
            self.wait_ready(name, seconds)

    def spawn(self, name: str) -> None:
        """Starts one service without waiting."""
        port = self.ports.setdefault(name, free_port())
        environment = self.environment | {
            "FARTHING_PORT": str(port),
            "FARTHING_OUTBOX_PATH": str(self.directory / f"{name}.outbox.sqlite"),
        }
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "service", name.partition("-")[0]],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def url(self, name: str = "gateway") -> str:
        """Base URL of a service."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def wait_ready(self, name: str, seconds: float = 30.0) -> None:
        """Waits for a service's readiness; the aggregator's is that every org is warm."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            process = self.processes[name]
            if process.poll() is not None:
                raise AssertionError(f"{name} ended with {process.returncode}:\n{self.log_tail(name)}")
            with contextlib.suppress(OSError, HTTPException, redis.RedisError):
                if self.is_warm() if name.startswith("aggregator") else self._says_ready(name):
                    return
            time.sleep(0.05)
        raise AssertionError(f"{name} was not ready in {seconds} s:\n{self.log_tail(name)}")

    def _says_ready(self, name: str) -> bool:
        # With nothing of httpx, whose every client reads all certificates there are: many wait at once.
        asking = HTTPConnection("127.0.0.1", self.ports[name], timeout=2)
        try:
            asking.request("GET", "/readyz")
            return asking.getresponse().status == 200
        finally:
            asking.close()

    def is_warm(self) -> bool:
        """Whether the default org's hot state is complete."""
        with redis.Redis.from_url(self.redis_url) as client:
            return bool(client.exists("{default}:epoch"))

    def log_tail(self, name: str, characters: int = 4000) -> str:
        """The end of a service's log."""
        return (self.directory / f"{name}.log").read_text(errors="replace")[-characters:]

    def take_first_keys(self) -> None:
        """Reads the bootstrap keys that control left for its supervisor."""
        keys = json.loads((self.directory / "first-keys.json").read_text())
        self.admin_key, self.agent_key = keys["admin_key"], keys["agent_key"]

    def kill(self, name: str) -> None:
        """``kill -9``: no clean-up of any kind runs in the process."""
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def terminate(self, name: str, seconds: float = 20.0) -> int:
        """SIGTERM, and the exit status."""
        self.processes[name].terminate()
        return self.processes[name].wait(seconds)

    def stop(self) -> None:
        """Ends everything that still runs, gateways first."""
        for name in sorted(self.processes, key=lambda each: not each.startswith("gateway")):
            process = self.processes[name]
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # ---- calls ------------------------------------------------------------------------------------------------------

    def admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """A management call through the gateway's one address; asserts success."""
        answer = httpx.request(
            method, self.url() + path, json=body, headers={"authorization": f"Bearer {self.admin_key}"}, timeout=20
        )
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def make_agent(self, team: str, agent: str) -> str:
        """A key pinned to a team and an agent."""
        return str(self.admin("POST", "/api/v1/keys", {"team": team, "agent": agent})["key"])

    def set_budget(self, limit_usd: str, window: str = "day", **scope: str) -> str:
        """Sets a budget and returns its id."""
        answer = self.admin("PUT", "/api/v1/budgets", {"limit_usd": limit_usd, "window": window, **scope})
        return str(answer["budget_id"])
