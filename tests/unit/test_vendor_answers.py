"""The answers that stand-in vendors are given: samples fit their schemas, usage adds up in each vendor's own way."""

from typing import Any

import jsonschema
import pytest

from tests.support.vendors import anthropic, cohere, google
from tests.support.vendors import openai as answers
from tests.support.vendors.openai import compatible, usage
from tests.support.vendors.sampling import sample

TREE = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 9},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            },
            "required": ["name", "next"],
        }
    },
    "$ref": "#/$defs/Node",
}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": 20}, "b": {"enum": ["x"]}}},
        {"type": "array", "items": {"type": ["number", "null"], "maximum": -3}, "minItems": 2},
        {
            "type": "object",
            "properties": {"when": {"type": "string", "format": "date-time"}, "on": {"type": "boolean"}},
        },
        {"allOf": [{"type": "object", "properties": {"a": {"const": 3}}, "required": ["a"]}]},
        TREE,
    ],
)
def test_a_sample_conforms_to_its_schema(schema: dict[str, Any]) -> None:
    jsonschema.validate(sample(schema), schema)


def test_usage_adds_up_in_each_vendor_s_own_way() -> None:
    gemini = google.usage(100, 20, cached=30, thoughts=5, tool_prompt=7)
    assert gemini["totalTokenCount"] == 100 + 20 + 5 + 7, "thoughts and tool results are beside, cached tokens inside"
    assert "thoughtsTokenCount" not in google.usage(100, 20, thoughts=0), "Google leaves zeros out"
    claude = anthropic.usage(10, 20, cache_read=3, cache_5m=4, cache_1h=5)
    assert (claude["input_tokens"], claude["cache_creation_input_tokens"]) == (10, 9), "the input excludes the cache"
    assert usage(100, 20, cached=30, reasoning=5)["total_tokens"] == 120, "cached and reasoning tokens are inside"
    assert compatible.xai_usage(20, 7, reasoning=3)["total_tokens"] == 30, "xAI's reasoning is beside the completion"
    deepseek = compatible.deepseek_usage(100, 20, hit=30)
    assert deepseek["prompt_cache_hit_tokens"] + deepseek["prompt_cache_miss_tokens"] == deepseek["prompt_tokens"]
    assert compatible.vllm_usage()["prompt_tokens_details"] is None
    assert compatible.openrouter_usage(cost=0.25)["cost"] == 0.25
    last = compatible.groq_chunks(answers.text_deltas("Hi"), "llama", compatible.groq_usage(5, 6))[-1]
    assert last["x_groq"]["usage"]["total_tokens"] == 11
    assert last["choices"][0]["finish_reason"] == "stop"
    assert cohere.usage(5, 9)["billed_units"] != cohere.usage(5, 9)["tokens"], "what is billed is not what is counted"


def test_a_claude_stream_reports_growing_input_and_old_ends() -> None:
    whole = anthropic.message(used=anthropic.usage(500, 20, web_searches=1))
    steps = anthropic.steps(whole, started={"input_tokens": 40}, reports=[3, 9])
    assert steps[0]["message"]["usage"]["input_tokens"] == 40
    counts = [step["usage"]["output_tokens"] for step in steps if step["type"] == "message_delta"]
    assert counts == [3, 9, 20], "cumulative"
    assert steps[-2]["usage"]["input_tokens"] == 500
    assert anthropic.steps(whole, last_in_full=False)[-2]["usage"] == {"output_tokens": 20}
