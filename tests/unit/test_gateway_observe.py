"""What the gateway tells of a call: its trace, its counts."""

from collections.abc import Mapping
from pathlib import Path

from services.core.money import format_usd
from services.gateway.observe import AttributeValue, CallSpan
from tests.support.gateway import ScriptedAnswer, chat, world

OK = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}'
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OWN = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"


class Span:
    def __init__(self) -> None:
        self.headers: Mapping[str, str] = {"traceparent": OWN, "tracestate": "a=1"}
        self.ended: list[tuple[Mapping[str, AttributeValue], str | None]] = []

    def end(self, attributes: Mapping[str, AttributeValue], error: str | None = None) -> None:
        self.ended.append((attributes, error))


class Tracing:
    def __init__(self) -> None:
        self.begun: list[tuple[str, str, Mapping[str, str], int]] = []
        self.spans: list[Span] = []

    def begin(self, model: str, vendor: str, caller: Mapping[str, str], started_ns: int) -> CallSpan:
        self.begun.append((model, vendor, caller, started_ns))
        self.spans.append(Span())
        return self.spans[-1]


class Counting:
    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def denied(self, code: str) -> None:
        self.seen.append(("denied", code))

    def forwarded(self, overhead_s: float) -> None:
        self.seen.append(("forwarded", 0 < overhead_s < 5))

    def answered(self, vendor: str, wait_s: float) -> None:
        self.seen.append(("answered", vendor, 0 < wait_s < 5))

    def settled(self, vendor: str, outcome: str, cost_nano: int) -> None:
        self.seen.append(("settled", vendor, outcome, cost_nano))


def trace_headers(headers: object) -> dict[object, object]:
    return {name: value for name, value in headers if str(name).strip("b'").startswith("trace")}  # type: ignore[attr-defined]


async def test_a_calls_span_continues_the_callers_trace_and_is_continued_by_events_and_vendor(tmp_path: Path) -> None:
    tracing = Tracing()
    async with world(tmp_path, tracing=tracing) as there:
        there.answer(ScriptedAnswer([OK]))
        assert (await there.call(traceparent=CALLER, tracestate="b=2")).status == 200
        ((model, vendor, caller, started_ns),) = tracing.begun
        assert (model, vendor, caller) == ("gpt-4o-mini", "openai", {"traceparent": CALLER, "tracestate": "b=2"})
        assert started_ns > 1_700_000_000_000_000_000
        (span,) = tracing.spans
        ((attributes, error),) = span.ended
        settlement = there.settlement()
        assert error is None
        assert attributes["gen_ai.usage.input_tokens"] == 10
        assert attributes["gen_ai.usage.output_tokens"] == 5
        assert attributes["farthing.transaction_id"] == settlement.transaction_id
        assert attributes["farthing.cost_usd"] == format_usd(settlement.cost_nano)
        for row in there.outbox.oldest(10):
            assert trace_headers(row.message.headers) == {"traceparent": OWN.encode(), "tracestate": b"a=1"}
        sent = trace_headers(there.vendor.requests[0].headers)
        assert sent == {b"traceparent": OWN.encode(), b"tracestate": b"a=1"}


async def test_refused_and_failed_calls_end_their_span_with_the_reason(tmp_path: Path) -> None:
    tracing = Tracing()
    async with world(tmp_path, tracing=tracing) as there:
        await there.call(chat(model="nobody-priced-it"))
        there.answer(ScriptedAnswer([b"{}"], 400))
        await there.call()
        assert [[error for _, error in span.ended] for span in tracing.spans] == [["unknown_model"], ["vendor_error"]]


async def test_without_tracing_the_callers_trace_is_passed_on(tmp_path: Path) -> None:
    async with world(tmp_path) as there:
        there.answer(ScriptedAnswer([OK]), ScriptedAnswer([OK]))
        await there.call(traceparent=CALLER)
        assert trace_headers(there.vendor.requests[0].headers) == {b"traceparent": CALLER.encode()}
        for row in there.outbox.oldest(10):
            assert trace_headers(row.message.headers) == {"traceparent": CALLER.encode()}
        await there.call()
        assert trace_headers(there.vendor.requests[1].headers) == {}
        assert trace_headers(there.outbox.oldest(10)[-1].message.headers) == {}


async def test_calls_and_refusals_are_counted(tmp_path: Path) -> None:
    counting = Counting()
    async with world(tmp_path, observer=counting) as there:
        there.answer(ScriptedAnswer([OK]))
        await there.call()
        await there.call(authorization="Bearer nonsense")
        cost_nano = there.settlement().cost_nano
    assert counting.seen == [
        ("forwarded", True),
        ("answered", "openai", True),
        ("settled", "openai", "completed", cost_nano),
        ("denied", "invalid_key"),
    ]
