"""What Cohere's answers say they used."""

from collections.abc import Iterable
from typing import Any

import orjson
import pytest

from services.core.usage.cohere_chat import ChatShape, ChatV1Shape
from services.core.usage.cohere_retrieval import EmbedShape, RerankShape
from services.core.usage.reading import AnswerShape, BodyReader, Reading, StreamReader


def whole(shape: AnswerShape, body: object) -> Reading:
    reader = BodyReader(shape)
    reader.feed(orjson.dumps(body))
    return reader.finish()


def events(values: Iterable[dict[str, Any]], more: bytes = b"") -> Reading:
    reader = StreamReader(ChatShape())
    for value in values:
        reader.feed(b"event: %s\ndata: %s\n\n" % (value["type"].encode(), orjson.dumps(value)))
    reader.feed(more)
    return reader.finish()[2]


def lines(values: Iterable[dict[str, Any]]) -> Reading:
    reader = StreamReader(ChatV1Shape(), "lines")
    for value in values:
        reader.feed(orjson.dumps(value) + b"\n")
    return reader.finish()[2]


def delta(text: str) -> dict[str, Any]:
    return {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": text}}}}


def end(reason: str = "COMPLETE", **units: float) -> dict[str, Any]:
    return {"type": "message-end", "delta": {"finish_reason": reason, "usage": {"billed_units": units}}}


def test_tokens_that_are_not_billed_are_not_charged() -> None:
    usage = {"billed_units": {"input_tokens": 5}, "tokens": {"input_tokens": 71, "output_tokens": 9}}
    reading = whole(ChatShape(), {"message": {"role": "assistant"}, "finish_reason": "COMPLETE", "usage": usage})
    assert reading.usage == {"input_tokens": 5, "prompt_tokens": 71}


def test_counts_that_are_none_are_missing() -> None:
    units = {"input_tokens": -1, "output_tokens": 1.5}
    assert whole(ChatShape(), {"usage": {"billed_units": units}}).usage == {}
    assert whole(ChatShape(), {"usage": "much"}).usage == {}


def test_text_is_what_the_model_wrote() -> None:
    call = {"id": "x" * 99, "type": "function", "function": {"name": "ab", "arguments": "{}"}}
    content = [{"type": "thinking", "thinking": "cd"}, {"type": "text", "text": "é"}]
    message = {"role": "assistant", "content": content, "tool_plan": "e", "tool_calls": [call]}
    assert whole(ChatShape(), {"message": message}).text_bytes == 2 + 2 + 2 + 2 + 1
    assert whole(ChatV1Shape(), {"text": "é", "chat_history": [{"message": "é"}]}).text_bytes == 2


def test_an_aborted_stream_is_not_free() -> None:
    reading = events([{"type": "message-start", "delta": {"message": {"role": "assistant"}}}, *[delta("word ")] * 806])
    assert (reading.usage, reading.text_bytes, reading.complete) == ({}, 806 * 5, False)
    reading = lines([{"event_type": "text-generation", "text": "word "}] * 806)
    assert (reading.usage, reading.text_bytes, reading.complete) == ({}, 806 * 5, False)


def test_citations_are_no_text_of_the_model() -> None:
    citation = {"type": "citation-start", "delta": {"message": {"citations": {"text": "x" * 99}}}}
    assert events([delta("ab"), citation]).text_bytes == 2


def test_message_end_completes_a_stream() -> None:
    reading = events([delta("ab"), end(input_tokens=1, output_tokens=0)])
    assert (reading.usage, reading.complete) == ({"input_tokens": 1, "output_tokens": 0}, True)
    assert events([delta("ab")], b"data: [DONE]\n\n").complete


@pytest.mark.parametrize(
    ("reason", "failed"),
    [("ERROR", "error"), ("TIMEOUT", "timeout"), ("MAX_TOKENS", None), ("COMPLETE", None), ("ERROR_LIMIT", None)],
)
def test_a_failure_is_named(reason: str, failed: str | None) -> None:
    assert events([end(reason, input_tokens=1)]).failed == failed
    assert whole(ChatShape(), {"finish_reason": reason}).failed == failed
    assert whole(ChatV1Shape(), {"finish_reason": reason}).failed == failed
    assert lines([{"event_type": "stream-end", "finish_reason": reason, "response": {}}]).failed == failed


def test_the_answer_at_the_end_of_a_v1_stream_is_not_counted_twice() -> None:
    meta = {"billed_units": {"input_tokens": 3, "output_tokens": 4}}
    last = {"event_type": "stream-end", "finish_reason": "COMPLETE", "response": {"text": "abcd", "meta": meta}}
    reading = lines([{"event_type": "text-generation", "text": "abcd"}, last])
    assert (reading.usage, reading.text_bytes, reading.complete) == ({"input_tokens": 3, "output_tokens": 4}, 4, True)


def test_calls_and_queries_of_a_v1_stream_are_text() -> None:
    chunk = {"event_type": "tool-calls-chunk", "text": "ab", "tool_call_delta": {"name": "cd", "index": 0}}
    queries = {"event_type": "search-queries-generation", "search_queries": [{"text": "ef", "generation_id": "g" * 9}]}
    assert lines([chunk, queries]).text_bytes == 6


@pytest.mark.parametrize("value", [{}, {"type": "message-end"}, {"event_type": "stream-end"}])
def test_events_that_say_nothing_report_nothing(value: dict[str, Any]) -> None:
    for shape in (ChatShape(), ChatV1Shape()):
        fold = shape.fold()
        assert fold.take(None, value) is False
        assert fold.reading().usage == {}


@pytest.mark.parametrize(
    ("units", "usage"),
    [
        ({"input_tokens": 7}, {"input_tokens": 7}),
        ({"input_tokens": 0}, {"input_tokens": 0}),
        ({"input_tokens": 7, "image_tokens": 5}, {"input_tokens": 12, "image_input_tokens": 5}),
        ({"input_tokens": 12, "text_tokens": 7, "image_tokens": 5}, {"input_tokens": 12, "image_input_tokens": 5}),
        ({"text_tokens": 7, "image_tokens": 5}, {"input_tokens": 12, "image_input_tokens": 5}),
        ({"images": 2}, {"input_tokens": 0, "images": 2}),
        ({"images": 2, "image_tokens": 5}, {"input_tokens": 5, "image_input_tokens": 5}),
        ({}, {}),
    ],
)
def test_embeddings_are_charged_by_what_is_billed(units: dict[str, int], usage: dict[str, int]) -> None:
    assert whole(EmbedShape(), {"meta": {"billed_units": units}}).usage == usage


def test_embeddings_are_not_billed_as_chat() -> None:
    assert EmbedShape().needed == ("input_tokens",)
    assert not EmbedShape().fold().reading().complete


def test_reranking_is_charged_by_search_unit() -> None:
    assert whole(RerankShape(), {"meta": {"billed_units": {"search_units": 2.0}}}).usage == {"rerank_searches": 2}
    assert whole(RerankShape(), {"meta": {}}).usage == {}
    assert RerankShape().needed == ("rerank_searches",)
