"""What the composition root fills the gateway's ports with."""

import socket
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import REGISTRY

from services.adapters import telemetry
from services.adapters.outbox import SqliteOutbox
from services.core.events import Reservation
from services.gateway import app
from tests.support.gateway import ScriptedAnswer, chat, world

OK = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}'
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "tracer", lambda: provider.get_tracer("test"))
    return exporter


async def test_a_call_is_a_server_span_with_the_genai_conventions(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    async with world(tmp_path, tracing=app._OpenTelemetry()) as there:
        there.answer(ScriptedAnswer([OK]))
        client = await there.call(traceparent=CALLER)
        (span,) = spans.get_finished_spans()
        assert (span.name, span.kind) == ("chat gpt-4o-mini", SpanKind.SERVER)
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == TRACE
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
        attributes = dict(span.attributes or {})
        assert attributes["gen_ai.operation.name"] == "chat"
        assert attributes["gen_ai.provider.name"] == "openai"
        assert attributes["gen_ai.request.model"] == "gpt-4o-mini"
        assert attributes["gen_ai.usage.input_tokens"] == 10
        assert attributes["farthing.cost_usd"] == client.header("x-spend-cost")
        assert attributes["farthing.transaction_id"] == client.header("x-spend-transaction-id")
        assert span.status.status_code is StatusCode.UNSET
        own = f"00-{TRACE}-{span.context.span_id:016x}-01".encode()
        for row in there.outbox.oldest(10):
            assert dict(row.message.headers)["traceparent"] == own
        assert dict(there.vendor.requests[0].headers)[b"traceparent"] == own


async def test_a_refused_call_is_an_error_span(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    async with world(tmp_path, tracing=app._OpenTelemetry()) as there:
        await there.call(chat(model="nobody-priced-it"))
        (span,) = spans.get_finished_spans()
        assert dict(span.attributes or {})["error.type"] == "unknown_model"
        assert span.status.status_code is StatusCode.ERROR
        assert span.parent is None


async def test_calls_are_counted_in_prometheus(tmp_path: Path) -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    completed = value("farthing_requests_total", vendor="openai", outcome="completed")
    denied = value("farthing_denials_total", code="unknown_model")
    cost = value("farthing_settled_nano_usd_total", vendor="openai")
    overheads = value("farthing_gateway_overhead_seconds_count")
    async with world(tmp_path, observer=app._Metrics()) as there:
        there.answer(ScriptedAnswer([OK]))
        await there.call()
        await there.call(chat(model="nobody-priced-it"))
        settled_nano = there.settlement().cost_nano
    assert value("farthing_requests_total", vendor="openai", outcome="completed") == completed + 1
    assert value("farthing_denials_total", code="unknown_model") == denied + 1
    assert value("farthing_settled_nano_usd_total", vendor="openai") == cost + settled_nano
    assert value("farthing_gateway_overhead_seconds_count") == overheads + 1


async def test_every_append_wakes_the_publisher(tmp_path: Path) -> None:
    woken: list[int] = []
    with closing(SqliteOutbox(tmp_path / "waking.sqlite", 10)) as outbox:
        recorder = app._WakingOutbox(outbox, lambda: woken.append(outbox.size()))
        async with world(tmp_path, recorder=recorder) as there:
            there.answer(ScriptedAnswer([OK]))
            await there.call()
        assert woken == [1, 2], "woken once it is in the file"
        assert isinstance(outbox.oldest(1)[0].message.value, bytes)
        assert Reservation.TYPE.encode() in outbox.oldest(1)[0].message.value


def test_a_taken_port_is_told() -> None:
    with app._listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP, "asyncio turns Nagle's delay off for no other"
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=f"can't listen on 127.0.0.1:{port}"):
            app._listen("127.0.0.1", port)
