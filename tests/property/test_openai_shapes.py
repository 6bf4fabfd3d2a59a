"""Whatever a server answers, OpenAI's readers take it: no crash, no count that is none, nothing hidden by mistake."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.usage.openai_audio import SpeechShape, TranscriptionShape
from services.core.usage.openai_batch import SHAPES as BATCH_SHAPES
from services.core.usage.openai_batch import read_output_line
from services.core.usage.openai_images import ImagesShape
from services.core.usage.reading import AnswerShape, Reading
from services.gateway.vendors.openai import SHAPES

EVERY_SHAPE: dict[str, AnswerShape] = {
    **{name: each.shape for name, each in SHAPES.items()},
    "images by the image": ImagesShape(by_image=True),
    "transcriptions by the token": TranscriptionShape(by_time=False),
    "speech by the character": SpeechShape(by_character=True),
}
NAMES = (
    "id", "type", "status", "model", "usage", "choices", "delta", "message", "text", "content", "finish_reason",
    "x_groq", "error", "code", "cost", "total_cost", "cost_in_usd_ticks", "prompt_tokens", "completion_tokens",
    "total_tokens", "input_tokens", "output_tokens", "prompt_tokens_details", "completion_tokens_details",
    "input_tokens_details", "output_tokens_details", "cached_tokens", "reasoning_tokens", "audio_tokens",
    "citation_tokens", "num_sources_used", "prompt_audio_seconds", "response", "output", "item", "action",
    "tool_usage", "web_search", "num_requests", "data", "seconds", "duration", "audio", "service_tier",
    "custom_id", "body", "status_code",
)  # fmt: skip
WORDS = (
    "response.completed", "response.output_text.delta", "response.output_item.done", "web_search_call", "search",
    "file_search_call", "image_generation.completed", "transcript.text.done", "transcript.text.delta",
    "speech.audio.done", "speech.audio.delta", "error", "queued", "failed", "priority", "tokens", "duration", "stop",
)  # fmt: skip

scalars = (
    st.none() | st.booleans() | st.integers(-5, 10**12) | st.floats() | st.sampled_from(WORDS) | st.text(max_size=3)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=25,
)
objects = st.dictionaries(st.sampled_from(NAMES), values, max_size=8)


def assert_sound(reading: Reading) -> None:
    assert all(type(count) is int and count >= 0 for count in reading.usage.values())
    assert reading.text_bytes >= 0
    assert reading.failed is None or reading.failed


@pytest.mark.parametrize("name", EVERY_SHAPE)
@settings(max_examples=25, deadline=None)
@given(body=objects)
def test_any_answer_is_taken(name: str, body: dict[str, Any]) -> None:
    assert_sound(EVERY_SHAPE[name].whole(body))


@pytest.mark.parametrize("name", EVERY_SHAPE)
@settings(max_examples=25, deadline=None)
@given(events=st.lists(st.tuples(st.none() | st.sampled_from(WORDS), objects), max_size=6))
def test_any_stream_is_taken(name: str, events: list[tuple[str | None, dict[str, Any]]]) -> None:
    fold = EVERY_SHAPE[name].fold()
    for event_name, value in events:
        hidden = fold.take(event_name, value)
        if hidden:
            assert value["choices"] == []
            assert isinstance(value["usage"], dict)
    fold.done()
    assert_sound(fold.reading())


@settings(max_examples=100, deadline=None)
@given(endpoint=st.sampled_from(list(BATCH_SHAPES)), line=objects)
def test_any_line_of_a_batch_is_taken_or_told(endpoint: str, line: dict[str, Any]) -> None:
    try:
        found = read_output_line(endpoint, orjson.dumps(line), orjson.loads)
    except ValueError:
        return
    assert found is not None
    assert_sound(found.reading)
    assert found.charged or not found.reading.usage
