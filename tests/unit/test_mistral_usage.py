"""What Mistral's answers say they used, where the corpus of answers does not reach."""

import json
from typing import Any

import pytest

from services.core.usage.mistral_chat import ChatShape, InputShape, read_usage
from services.core.usage.mistral_documents import OcrShape, TranscriptionShape
from services.core.usage.reading import BodyReader, Reading, StreamReader
from tests.support.vendors.mistral import (
    WORDS,
    chunks,
    completion,
    embeddings,
    error,
    events,
    moderation,
    stream_error,
    thinking,
    usage,
)

FAILED = error("Service unavailable.", "unreachable_backend", "1100")


def whole(body: object, shape: Any = None) -> Reading:
    reader = BodyReader(shape or ChatShape())
    reader.feed(json.dumps(body).encode())
    return reader.finish()


def streamed(pieces: list[bytes], shape: Any = None) -> Reading:
    reader = StreamReader(shape or ChatShape())
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()[2]


def test_an_answer_says_its_model_tier_and_text() -> None:
    reading = whole(completion("mistral-small-2603", used=usage(13, 9, service_tier="Priority")))
    assert reading == Reading(
        {"input_tokens": 13, "output_tokens": 9}, 32, True, "mistral-small-2603", {"service_tier": "priority"}
    )


def test_thinking_is_text_and_its_frame_is_not() -> None:
    assert whole(completion(content=[thinking("Hm"), {"type": "text", "text": "Hi"}])).text_bytes == 4


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        (None, {}),
        ({}, {}),
        ({"prompt_tokens": -1, "completion_tokens": "9"}, {}),
        ({"prompt_tokens": 0, "completion_tokens": 0}, {"input_tokens": 0, "output_tokens": 0}),
        ({"prompt_tokens": 5, "prompt_audio_seconds": 1.5}, {"input_tokens": 5}),
        ({"prompt_tokens": 5, "prompt_tokens_details": None, "num_cached_tokens": None}, {"input_tokens": 5}),
        ({"prompt_tokens": 5, "prompt_tokens_details": []}, {"input_tokens": 5}),
    ],
)
def test_what_is_malformed_is_as_good_as_missing(reported: object, expected: dict[str, int]) -> None:
    assert read_usage(reported) == expected


def test_a_stream_ends_with_its_usage_or_its_closing_event() -> None:
    *early, last = chunks()
    assert streamed(events([*early, last])[:-1]).complete is True
    bare = {name: value for name, value in last.items() if name != "usage"}
    assert streamed(events([*early, bare])[:-1]).complete is False
    closed = streamed(events([*early, bare]))
    assert (closed.complete, dict(closed.usage), closed.text_bytes) == (True, {}, len("".join(WORDS)))


def test_an_abort_is_not_a_free_call() -> None:
    reading = streamed(events(chunks())[:4])
    assert (dict(reading.usage), reading.complete, reading.text_bytes) == ({}, False, len("".join(WORDS[:3])))


def test_many_deltas_are_not_billed_as_one_token() -> None:
    words = ["word "] * 806
    reading = streamed(events(chunks(words=words, used=usage(10, 806))))
    assert reading.usage["output_tokens"] == 806
    assert streamed(events(chunks(words=words))[:-2]).text_bytes == 806 * 5


def test_a_stream_that_fails_says_why_and_is_not_complete() -> None:
    reading = streamed([*events(chunks())[:3], stream_error()])
    assert (reading.failed, reading.complete) == ("unreachable_backend", False)
    for shape in (ChatShape(), InputShape(), OcrShape(), TranscriptionShape()):
        assert (whole(FAILED, shape).failed, whole(FAILED, shape).complete) == ("unreachable_backend", False)
    assert whole({"error": {"code": "1100"}}).failed == "1100"
    assert whole({"object": "error"}).failed == "error"


def test_junk_in_a_stream_changes_nothing() -> None:
    junk = [b"data: 7\n\n", b'data: {"choices": 3, "usage": []}\n\n', b'data: {"choices": [[]]}\n\n']
    assert streamed([*junk, *events(chunks()), *junk]).usage == {"input_tokens": 13, "output_tokens": 9}


def test_embeddings_are_not_billed_as_chat() -> None:
    answer = embeddings(prompt=8)
    answer["usage"]["completion_tokens"] = 3
    assert dict(whole(answer, InputShape()).usage) == {"input_tokens": 8}


def test_a_moderation_without_usage_leaves_it_to_the_estimate() -> None:
    answer = moderation()
    answer.pop("usage", None)
    assert dict(whole(answer, InputShape()).usage) == {}
    assert InputShape.needed == ("input_tokens",)


def test_annotations_that_were_asked_for_are_charged_though_none_came() -> None:
    answer = {"pages": [], "model": "mistral-ocr-2512", "usage_info": {"pages_processed": 2}}
    assert dict(whole(answer, OcrShape(annotated=True)).usage) == {"pages": 2, "annotated_pages": 2}
    assert OcrShape(annotated=True).needed == ("pages", "annotated_pages")
    assert dict(whole(answer, OcrShape()).usage) == {"pages": 2}
    assert dict(whole({"usage_info": {"pages_processed": None}}, OcrShape()).usage) == {}


def test_a_chat_model_that_transcribes_is_charged_for_tokens_too() -> None:
    used = {"prompt_audio_seconds": 4, "prompt_tokens": 5, "completion_tokens": 6}
    answer = {"model": "voxtral-small-2507", "text": "Hi", "usage": used}
    shape = TranscriptionShape(by_token=True)
    assert whole(answer, shape).usage == {"audio_ms": 4_000, "input_tokens": 5, "output_tokens": 6}
    assert shape.needed == ("audio_ms", "input_tokens", "output_tokens")
    assert whole(answer, TranscriptionShape()).usage == {"audio_ms": 4_000}


def test_a_transcription_is_complete_with_its_last_event_only() -> None:
    delta = b'event: transcription.text.delta\ndata: {"text": "Hi"}\n\n'
    last = b'event: transcription.done\ndata: {"model": "v", "text": "Hi", "usage": {"prompt_audio_seconds": 2}}\n\n'
    shape = TranscriptionShape()
    assert streamed([delta, b"data: {}\n\n", b"data: [DONE]\n\n"], shape) == Reading({}, 2, complete=False)
    assert streamed([delta, last], shape) == Reading({"audio_ms": 2_000}, 2, True, "v")


def test_the_fold_of_what_is_not_streamed_reads_the_answer() -> None:
    for shape, answer in ((InputShape(), embeddings(prompt=8)), (OcrShape(), {"usage_info": {"pages_processed": 1}})):
        fold = shape.fold()
        assert fold.reading() == Reading({}, 0, complete=False)
        assert fold.take(None, answer) is False
        fold.done()
        assert fold.reading() == whole(answer, shape)
