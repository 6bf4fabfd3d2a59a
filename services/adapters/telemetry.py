"""Every metric name, the tracer and the log format, in one place."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Final

import structlog
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter, Gauge, Histogram, start_http_server

from services import __version__
from services.adapters.config import Settings

_LATENCY_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_PROPAGATOR: Final = TraceContextTextMapPropagator()

# Gateway
REQUESTS = Counter("farthing_requests_total", "Calls answered, by vendor and outcome.", ["vendor", "outcome"])
DENIALS = Counter("farthing_denials_total", "Calls refused before they cost anything, by error code.", ["code"])
OVERHEAD = Histogram(
    "farthing_gateway_overhead_seconds",
    "Time Farthing adds to a call before the vendor sees it.",
    buckets=_LATENCY_BUCKETS,
)
VENDOR_LATENCY = Histogram(
    "farthing_vendor_first_byte_seconds", "Time to a vendor's response head.", ["vendor"], buckets=_LATENCY_BUCKETS
)
COST = Counter("farthing_settled_nano_usd_total", "Settled cost in nano-dollars, by vendor.", ["vendor"])
UNDERESTIMATES = Counter(
    "farthing_underestimates_total",
    "Calls that have cost more than was held for them, by vendor and estimate mode.",
    ["vendor", "mode"],
)
OUTBOX_SIZE = Gauge("farthing_outbox_events", "Events waiting to be published.")
PENDING_RELEASES = Gauge("farthing_pending_releases", "Holds of calls that were refused, still to be taken back.")
PENDING_SETTLEMENTS = Gauge(
    "farthing_pending_settlements", "Settlements that the outbox's disk has refused, still to be recorded."
)
PUBLISHED = Counter("farthing_published_events_total", "Events the log has acknowledged.")
PUBLISH_FAILURES = Counter("farthing_publish_failures_total", "Publications that will be tried again.")
SNAPSHOT_AGE = Gauge(
    "farthing_snapshot_age_seconds",
    "Time since what control has published was last looked at in the hot state.",
)
CONFIG_AGE = Gauge(
    "farthing_config_age_seconds",
    "Time since calls were last known to be decided by all that control has published.",
)
CONTROL_AGE = Gauge("farthing_control_age_seconds", "Time since control last said that all it has is published.")
CIRCUIT_OPEN = Gauge(
    "farthing_hot_state_circuit_open", "1 while a server of the hot state that has failed is left alone.", ["server"]
)
CIRCUIT_TRIPS = Counter(
    "farthing_hot_state_circuit_trips_total",
    "How often a server of the hot state failed and was left alone.",
    ["server"],
)

# Aggregator
FOLDED = Counter("farthing_folded_events_total", "Events by what the fold did with them.", ["result"])
FOLD_FENCE = Gauge("farthing_fold_next_offset", "Next offset the fold expects.", ["topic", "partition"])
FOLD_ALARM = Gauge(
    "farthing_fold_alarm", "1 while an alarm is on: the fold has stopped, or an org is left out.", ["alarm"]
)
EXPIRED_HOLDS = Counter("farthing_expired_holds_total", "Holds ended by their expiry.")
REBUILDS = Counter("farthing_rebuilds_total", "Orgs whose hot state was rebuilt.")

# Ledger
LEDGER_ROWS = Counter("farthing_ledger_rows_total", "Rows written to the ledger, by event type.", ["type"])
LEDGER_DUPLICATES = Counter("farthing_ledger_duplicates_total", "Events the ledger had already.")
LEDGER_FENCE = Gauge("farthing_ledger_next_offset", "Next offset the ledger expects.", ["topic", "partition"])
DEAD_LETTERS = Counter("farthing_dead_letters_total", "Messages that could not be read, by topic.", ["topic"])

_SECRET_WORDS: Final = ("authorization", "api_key", "apikey", "x-api-key", "password", "secret", "token", "dsn", "body")


def setup(service: str, settings: Settings) -> None:
    """Logging to standard error as JSON lines, metrics on their port, and spans when an OTLP endpoint is set."""
    setup_logging(service, settings.log_level)
    if settings.metrics_port is not None:
        start_http_server(settings.metrics_port, addr=settings.metrics_host)
    if settings.otlp_endpoint:
        _export_spans(service, settings.otlp_endpoint)


def _export_spans(service: str, endpoint: str) -> None:
    # Where nobody asks for spans, each process starts without these: they take as long to import as the gateway itself.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(
        resource=Resource.create({"service.name": f"farthing-{service}", "service.version": __version__})
    )
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    trace.set_tracer_provider(provider)


def shutdown() -> None:
    """Sends what spans are left; those of a process that exports none go nowhere."""
    end: Callable[[], None] | None = getattr(trace.get_tracer_provider(), "shutdown", None)
    if end is not None:
        end()


def setup_logging(service: str, level: str) -> None:
    """One JSON object a line on standard error, from structlog and the standard library alike, secrets redacted."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "uvicorn.access", "aiokafka", "faust", "mode"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.contextvars.bind_contextvars(service=service)


def tracer() -> trace.Tracer:
    """The tracer of this process (a no-op one unless `setup` found an endpoint)."""
    return trace.get_tracer("farthing", __version__)


@contextmanager
def continued_span(
    name: str, headers: Mapping[str, str], kind: SpanKind, attributes: Mapping[str, Any]
) -> Iterator[Span]:
    """A span under the trace that `headers` (``traceparent``, ``tracestate``) carry."""
    context = _PROPAGATOR.extract(dict(headers))
    with tracer().start_as_current_span(name, context=context, kind=kind, attributes=dict(attributes)) as span:
        yield span


def begin_span(
    name: str, headers: Mapping[str, str], kind: SpanKind, attributes: Mapping[str, Any], started_ns: int
) -> Span:
    """As `continued_span`, begun at Unix nanoseconds `started_ns`, ended by the caller, and never the current one."""
    context = _PROPAGATOR.extract(dict(headers))
    return tracer().start_span(name, context=context, kind=kind, attributes=dict(attributes), start_time=started_ns)


def trace_headers(span: Span | None = None) -> dict[str, str]:
    """The ``traceparent`` and ``tracestate`` that continue `span` (default: the current one), if there is one."""
    carrier: dict[str, str] = {}
    context = trace.set_span_in_context(span) if span is not None else None
    _PROPAGATOR.inject(carrier, context=context)
    return carrier


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in event:
        if any(word in name.lower() for word in _SECRET_WORDS):
            event[name] = "[redacted]"
    return event
