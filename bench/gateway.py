"""Gateway throughput and added latency, next to a direct call and to a bare FastAPI + httpx pass-through, in one run.

Everything runs on this machine: a stand-in vendor (a small asyncio server with a fixed answer), the pass-through, and
Farthing itself as `farthing up` runs it, with an org, a team and an agent budget on every call. The three are measured
in turn, several rounds, so that a drifting machine touches all alike: trust the ratios, not the absolute figures.

    python -m bench.gateway [--rounds 3] [--seconds 3] [--callers 16]
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httptools
import httpx

REPOSITORY = Path(__file__).resolve().parents[1]
ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": "gpt-4o-mini",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "x" * 640}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 180, "completion_tokens": 160, "total_tokens": 340},
    }
).encode()
BODY = json.dumps(
    {
        "model": "gpt-4o-mini",
        "max_tokens": 200,
        "messages": [{"role": "system", "content": "y" * 500}, {"role": "user", "content": "z" * 300}],
    }
).encode()


class VendorConnection(asyncio.Protocol):
    """Answers every request on a connection with `ANSWER`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
        )


async def serve_vendor(port: int) -> None:
    """The stand-in vendor, until cancelled."""
    server = await asyncio.get_running_loop().create_server(VendorConnection, "127.0.0.1", port)
    await server.serve_forever()


def serve_pass_through(port: int, vendor_url: str) -> None:
    """What most gateways start from: a FastAPI route and an httpx client, nothing held, priced or recorded."""
    import uvicorn
    from fastapi import FastAPI, Request, Response

    app = FastAPI()
    client = httpx.AsyncClient(base_url=vendor_url)

    @app.post("/v1/chat/completions")
    async def forward(request: Request) -> Response:
        answer = await client.post(
            "/v1/chat/completions", content=await request.body(), headers={"content-type": "application/json"}
        )
        return Response(answer.content, answer.status_code, media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


class Caller(asyncio.Protocol):
    """A keep-alive client connection that asks, waits for the whole answer, and asks again."""

    def __init__(self, request: bytes, ends_at: float, latencies: list[float], statuses: dict[int, int]) -> None:
        self.request, self.ends_at, self.latencies, self.statuses = request, ends_at, latencies, statuses
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.asked_at = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self.latencies.append(now - self.asked_at)
        status = self.parser.get_status_code()
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if now < self.ends_at:
            self._ask()
        else:
            self.transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


@dataclass(frozen=True, slots=True)
class Round:
    """One target's figures of one round."""

    rps: float
    p50_ms: float
    p99_ms: float


async def measure(port: int, key: str, callers: int, seconds: float) -> Round:
    """Calls `port` from `callers` connections for `seconds`; every answer must be a 200."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(BODY)}\r\n\r\n"
    )
    latencies: list[float] = []
    statuses: dict[int, int] = {}
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    connections = [
        (
            await loop.create_connection(
                lambda: Caller(head.encode() + BODY, started + seconds, latencies, statuses), "127.0.0.1", port
            )
        )[1]
        for _ in range(callers)
    ]
    await asyncio.gather(*(each.done for each in connections))
    elapsed = time.perf_counter() - started
    if set(statuses) != {200}:
        raise SystemExit(f"port {port} answered {statuses}; a benchmark of refusals measures nothing")
    latencies.sort()
    return Round(
        len(latencies) / elapsed, 1000 * statistics.median(latencies), 1000 * latencies[int(len(latencies) * 0.99)]
    )


@contextlib.contextmanager
def process(arguments: list[str], **options: object) -> Iterator["subprocess.Popen[bytes]"]:
    """A child that is ended with the block."""
    child = subprocess.Popen(arguments, cwd=REPOSITORY, **options)  # type: ignore[call-overload]
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def set_up_farthing(base_url: str, admin_key: str, vendor_port: int) -> str:
    """A connection to the stand-in vendor, budgets on org, team and agent, and an agent's key."""
    with httpx.Client(base_url=base_url, headers={"authorization": f"Bearer {admin_key}"}, timeout=20) as client:
        connection = {"api_key": "sk-stand-in", "base_url": f"http://127.0.0.1:{vendor_port}/v1"}
        client.put("/api/v1/connections/openai", json=connection).raise_for_status()
        for scope in ({}, {"team": "bench"}, {"agent": "bench"}):
            limit = {"limit_usd": "100000.00", "window": "day"}
            client.put("/api/v1/budgets", json=limit | scope).raise_for_status()
        answer = client.post("/api/v1/keys", json={"team": "bench", "agent": "bench"})
        answer.raise_for_status()
        time.sleep(1.5)  # a change is live within a second
        return str(answer.json()["key"])


def wait_for(port: int) -> None:
    """Waits until something listens on a loopback port."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/", timeout=1)
            return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def report(results: dict[str, list[Round]]) -> None:
    """Medians over the rounds, and each target's ratio to the direct call, round by round."""
    print(f"python {platform.python_version()}, {os.cpu_count()} cores, medians over {len(results['direct'])} rounds")
    print(f"{'target':<24}{'rps':>9}{'p50 ms':>9}{'p99 ms':>9}{'added p50 ms':>14}{'of direct rps':>15}")
    for name, rounds in results.items():
        added = statistics.median(a.p50_ms - b.p50_ms for a, b in zip(rounds, results["direct"], strict=True))
        ratio = statistics.median(a.rps / b.rps for a, b in zip(rounds, results["direct"], strict=True))
        rps = statistics.median(each.rps for each in rounds)
        p50 = statistics.median(each.p50_ms for each in rounds)
        p99 = statistics.median(each.p99_ms for each in rounds)
        print(f"{name:<24}{rps:>9.0f}{p50:>9.2f}{p99:>9.2f}{added:>14.2f}{ratio:>15.3f}")


def main() -> None:
    """Starts the three targets, measures them in turn, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--serve", choices=["vendor", "pass-through"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--vendor-port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve == "vendor":
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve_vendor(options.port))
        return
    if options.serve == "pass-through":
        serve_pass_through(options.port, f"http://127.0.0.1:{options.vendor_port}")
        return
    own = [sys.executable, "-m", "bench.gateway", "--serve"]
    vendor_port, pass_port, port, metrics_port = (free_port() for _ in range(4))
    ports = ["--port", str(port), "--metrics-port", str(metrics_port)]
    with (
        tempfile.TemporaryDirectory() as data_dir,
        process([*own, "vendor", "--port", str(vendor_port)]),
        process([*own, "pass-through", "--port", str(pass_port), "--vendor-port", str(vendor_port)]),
        process(
            [sys.executable, "-m", "services.cli", "up", "--json", "--data-dir", data_dir, *ports],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as up,
    ):
        assert up.stdout is not None
        ready = json.loads(up.stdout.readline())
        key = set_up_farthing(ready["base_url"], ready["admin_key"], vendor_port)
        targets = {"direct": vendor_port, "FastAPI + httpx": pass_port, "Farthing": port}
        for each in targets.values():
            wait_for(each)
        results: dict[str, list[Round]] = {name: [] for name in targets}
        for number in range(options.rounds + 1):
            for name, target in targets.items():
                measured = asyncio.run(measure(target, key, options.callers, options.seconds if number else 1.0))
                if number:  # the first round warms up
                    results[name].append(measured)
        report(results)


if __name__ == "__main__":
    main()
