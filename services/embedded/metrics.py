"""One metrics address for the instance: every process's metrics under a ``service`` label, and the supervisor's own."""

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from socket import AF_INET6
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from services.embedded import loopback
from services.embedded.data_dir import UpError
from services.embedded.supervisor import ProcessState

_SCRAPE_TIMEOUT_S: Final = 2.0


class MergedMetrics(Collector):
    """Asks each process for its metrics when someone asks for all of them; one that doesn't answer has none."""

    def __init__(self, sources: Mapping[str, str], states: Callable[[], Sequence[ProcessState]]) -> None:
        self._sources = sources
        self._states = states

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: what there is, the processes say."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Every family once, its samples labelled with the service they came from."""
        families: dict[str, Metric] = {}
        for service, url in self._sources.items():
            for family in _scrape(url):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.samples.append(sample._replace(labels={**sample.labels, "service": service}))
        yield from families.values()
        up = GaugeMetricFamily("farthing_process_up", "1 while the process runs.", labels=["service"])
        restarts = CounterMetricFamily(
            "farthing_process_restarts", "How often the supervisor started the process again.", labels=["service"]
        )
        for state in self._states():
            up.add_metric([state.name], int(state.up))
            restarts.add_metric([state.name], state.restarts)
        yield up
        yield restarts


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True

    def server_bind(self) -> None:
        # The base class would ask the name service for this machine's name, which can take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = AF_INET6


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Says nothing: a scrape every few seconds is no news."""


def serve_metrics(
    host: str, port: int, sources: Mapping[str, str], states: Callable[[], Sequence[ProcessState]]
) -> tuple[int, Callable[[], None]]:
    """Serves ``/metrics`` and ``/healthz`` from a thread of its own; answers the port and what closes it."""
    registry = CollectorRegistry()
    registry.register(MergedMetrics(sources, states))
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start_response)  # type: ignore[no-any-return]
        if environ["PATH_INFO"] == "/healthz":
            down = [state.name for state in states() if not state.up]
            start_response("503 Service Unavailable" if down else "200 OK", [("Content-Type", "application/json")])
            return [json.dumps({"status": "degraded" if down else "ok", "down": down}).encode()]
        start_response("404 Not Found", [("Content-Type", "application/json")])
        return [b'{"error":"not_found","message":"there is /metrics and /healthz here"}']

    try:
        server = make_server(
            host, port, application, server_class=_Server6 if ":" in host else _Server, handler_class=_QuietHandler
        )
    except OSError as error:
        raise UpError(
            f"Can't serve metrics on {host}:{port} ({error.strerror}); pick another --metrics-port."
        ) from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()

    def close() -> None:
        server.shutdown()
        server.server_close()

    return server.server_port, close


def _scrape(url: str) -> Iterable[Metric]:
    try:
        with loopback.client(_SCRAPE_TIMEOUT_S) as client:
            answer = client.get(url).raise_for_status()
        return tuple(text_string_to_metric_families(answer.text))
    except (httpx.HTTPError, ValueError):
        return ()  # It is starting or down; farthing_process_up says so.
