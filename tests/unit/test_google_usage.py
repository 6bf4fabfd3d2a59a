"""What Gemini's answers say they used, where the corpus of answers does not reach."""

import json
from typing import Any

import pytest

from services.core.usage.google_embed import EmbedShape
from services.core.usage.google_generate import GenerateShape, read_usage
from services.core.usage.reading import BodyReader, Reading, StreamReader
from tests.support.vendors.google import (
    array_error,
    array_stream,
    blocked,
    candidate,
    chunks,
    embedding,
    embedding_usage,
    embeddings,
    event_stream,
    generated,
    grounding,
    stream_error,
    text_part,
    thought_part,
    usage,
)


def whole(body: object, shape: Any = None) -> Reading:
    reader = BodyReader(shape or GenerateShape())
    reader.feed(json.dumps(body).encode())
    return reader.finish()


def streamed(pieces: list[bytes], framing: Any = "sse", model: str = "") -> Reading:
    reader = StreamReader(GenerateShape(model), framing)
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()[2]


def test_an_answer_says_its_model_tier_and_text() -> None:
    reading = whole(generated("gemini-2.5-flash", used=usage(13, 9, tier="flex")))
    assert reading == Reading(
        {"input_tokens": 13, "output_tokens": 9}, 32, True, "gemini-2.5-flash", {"service_tier": "flex"}
    )


@pytest.mark.parametrize(
    ("fields", "tier"),
    [
        ({"trafficType": "ON_DEMAND"}, "standard"),
        ({"trafficType": "ON_DEMAND_FLEX"}, "flex"),
        ({"trafficType": "ON_DEMAND_PRIORITY"}, "priority"),
        ({"serviceTier": "SERVICE_TIER_PRIORITY"}, "priority"),
        ({"serviceTier": "standard"}, "standard"),
        ({"trafficType": "PROVISIONED_THROUGHPUT"}, None),
        ({"trafficType": 7}, None),
    ],
)
def test_the_tier_that_answered(fields: dict[str, Any], tier: str | None) -> None:
    reading = whole(generated(used={**usage(), **fields}))
    assert dict(reading.context) == ({} if tier is None else {"service_tier": tier})


def test_reasoning_tokens_are_neither_lost_nor_doubled() -> None:
    reading = whole(generated(used=usage(10, 20, thoughts=300)))
    assert reading.usage["output_tokens"] == 320
    assert reading.usage["reasoning_tokens"] == 300


def test_an_explicit_zero_is_not_replaced() -> None:
    zeros = {"promptTokenCount": 7, "candidatesTokenCount": 0, "totalTokenCount": 7}
    assert whole(generated(used=zeros)).usage == {"input_tokens": 7, "output_tokens": 0}


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({}, {}),
        ({"promptTokenCount": "13"}, {}),
        ({"promptTokenCount": -1, "candidatesTokenCount": 2}, {"output_tokens": 2}),
        ({"promptTokenCount": True}, {}),
        ({"promptTokenCount": 10**12, "candidatesTokenCount": 1}, {"output_tokens": 1}),
        # A total that does not hold the tools' share never makes thoughts vanish.
        (
            {"promptTokenCount": 9, "toolUsePromptTokenCount": 90, "thoughtsTokenCount": 5, "totalTokenCount": 14},
            {"input_tokens": 99, "output_tokens": 5, "reasoning_tokens": 5},
        ),
        ({"thoughtsTokenCount": 5}, {"output_tokens": 5, "reasoning_tokens": 5}),
        ({"promptTokensDetails": [{"modality": "AUDIO"}, 3, {"modality": [], "tokenCount": 1}]}, {}),
        ({"promptTokensDetails": {"modality": "AUDIO", "tokenCount": 3}}, {}),
    ],
)
def test_what_is_malformed_is_as_good_as_missing(reported: dict[str, Any], expected: dict[str, int]) -> None:
    assert read_usage(reported) == expected


def test_a_missing_usage_is_estimated_and_not_taken_for_zero() -> None:
    reading = whole(generated(used={}))
    assert (dict(reading.usage), reading.text_bytes, reading.complete) == ({}, 32, True)


def test_a_signature_is_no_text() -> None:
    parts = [{**text_part("Hi"), "thoughtSignature": "A" * 4_000}]
    assert whole(generated(candidates=[candidate(parts)])).text_bytes == 2


def test_a_blocked_prompt_ends_a_stream() -> None:
    reading = streamed(event_stream([blocked()]))
    assert (reading.complete, dict(reading.usage)) == (True, {"input_tokens": 13, "output_tokens": 0})


def test_an_answer_without_its_model_is_charged_for_searches_as_the_one_asked_for() -> None:
    body = generated(candidates=[candidate(grounded=grounding(["a", "b"]))])
    del body["modelVersion"]
    assert whole(body, GenerateShape("gemini-2.5-pro")).usage["web_searches"] == 1
    assert whole(body, GenerateShape("gemini-3-pro-preview")).usage["web_searches"] == 2
    assert whole(body).usage["web_searches"] == 2


def test_a_grounded_prompt_counts_though_its_queries_are_not_told() -> None:
    body = generated("gemini-2.5-flash", [candidate(grounded=grounding([]))])
    assert whole(body).usage["web_searches"] == 1
    assert "web_searches" not in whole(generated("gemini-3-pro-preview", [candidate(grounded=grounding([]))])).usage


def test_image_searches_are_queries_too() -> None:
    found = {"webSearchQueries": ["a"], "imageSearchQueries": ["a", "c"]}
    assert whole(generated("gemini-3.1-flash-image", [candidate(grounded=found)])).usage["web_searches"] == 2


def test_a_later_report_adds_to_the_earlier_ones() -> None:
    first = generated(candidates=[candidate(finish_reason=None)], used=usage(13, None, cached=5))
    last = generated(candidates=[candidate()])
    last["usageMetadata"] = {"candidatesTokenCount": 9}
    reading = streamed(event_stream([first, last]))
    assert (reading.complete, reading.usage) == (True, {"input_tokens": 13, "cache_read_tokens": 5, "output_tokens": 9})


def test_a_stream_is_complete_when_every_candidate_finished() -> None:
    two = chunks(choices=2)
    assert streamed(event_stream(two)).complete is True
    last = {**two[-1], "candidates": [candidate([text_part("!")], None, 1)]}
    assert streamed(event_stream([*two[:-1], last])).complete is False
    unspecified = chunks(finish_reason="FINISH_REASON_UNSPECIFIED")
    assert streamed(event_stream(unspecified)).complete is False


def test_usage_in_the_chunk_after_the_finish_reason_is_not_lost() -> None:
    *first, last = chunks()
    used = last.pop("usageMetadata")
    reading = streamed(event_stream([*first, last, {"usageMetadata": used}]))
    assert (dict(reading.usage), reading.complete) == ({"input_tokens": 13, "output_tokens": 9}, True)


def test_an_abort_is_not_a_free_call() -> None:
    """Text came, and no report yet counts it: it is left to the estimate, though the total says there was none."""
    first = generated(candidates=[candidate([text_part("Hello")], None)], used=usage(13, None))
    reading = streamed(event_stream([first]))
    assert (dict(reading.usage), reading.text_bytes, reading.complete) == ({"input_tokens": 13}, 5, False)


def test_an_abort_after_thoughts_holds_them() -> None:
    thinking = generated(candidates=[candidate([thought_part("Hm")], None)], used=usage(13, None, thoughts=500))
    reading = streamed(event_stream([thinking]))
    assert "output_tokens" not in reading.usage
    assert reading.text_bytes == 2 + 500


def test_an_abort_after_text_without_a_report_is_estimated() -> None:
    counted, late = chunks()[:2]
    del late["usageMetadata"]
    reading = streamed(event_stream([counted, late]))
    assert (dict(reading.usage), reading.text_bytes) == ({"input_tokens": 13}, len("Hello! How can I help"))


def test_a_stream_that_fails_says_why_and_is_not_complete() -> None:
    reading = streamed([*event_stream(chunks()[:2]), stream_error(503)])
    assert (reading.failed, reading.complete, reading.usage["output_tokens"]) == ("UNAVAILABLE", False, 6)
    pieces = array_stream(chunks())
    reading = streamed([*pieces[:-1], array_error(500)], "json_array")
    assert (reading.failed, reading.complete) == ("INTERNAL", False)
    assert whole({"error": {"code": 418}}).failed == "418"


def test_an_array_is_read_element_by_element() -> None:
    reading = streamed(array_stream(chunks(used=usage(20, 9, thoughts=30))), "json_array")
    assert (dict(reading.usage), reading.complete) == (
        {"input_tokens": 20, "output_tokens": 39, "reasoning_tokens": 30},
        True,
    )


def test_junk_in_a_stream_changes_nothing() -> None:
    junk = [b"data: 7\n\n", b'data: {"candidates": 3, "usageMetadata": []}\n\n', b'data: {"candidates": [[]]}\n\n']
    reading = streamed([*event_stream(chunks()), *junk])
    assert reading.usage == {"input_tokens": 13, "output_tokens": 9}


def test_embeddings_are_not_billed_as_chat() -> None:
    reading = whole(embedding(embedding_usage(8)), EmbedShape())
    assert dict(reading.usage) == {"input_tokens": 8}
    assert EmbedShape.needed == ("input_tokens",)


def test_embeddings_without_usage_leave_it_to_the_estimate() -> None:
    assert dict(whole(embedding(), EmbedShape()).usage) == {}
    assert dict(whole(embeddings(2), EmbedShape()).usage) == {}
    told = embeddings(2)
    told["embeddings"][0] = {**told["embeddings"][0], "statistics": {"tokenCount": 5}}
    assert dict(whole(told, EmbedShape()).usage) == {}, "one of two says nothing"


def test_the_fold_of_embeddings_reads_their_answer() -> None:
    fold = EmbedShape().fold()
    assert fold.reading() == Reading({}, 0, complete=False)
    assert fold.take(None, embedding(embedding_usage(8))) is False
    fold.done()
    assert fold.reading().usage == {"input_tokens": 8}
