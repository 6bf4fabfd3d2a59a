"""OpenAI's legacy completions and embeddings: what a request can cost, and how the answers are read."""

import json
from typing import Any

import orjson
import pytest

from services.core.estimate import strict_bound
from services.core.pricing import Price, price_usage
from services.core.usage.openai_embeddings import EmbeddingsShape
from services.core.usage.reading import BodyReader, StreamReader
from services.gateway.vendors import RequestFacts, RequestRefusedError, Route, RouteRequest
from services.gateway.vendors.fields import TEMPLATE_TOKENS
from services.gateway.vendors.openai import OpenAIDialect
from services.gateway.vendors.openai_routes import COMPLETIONS, EMBEDDINGS
from services.gateway.vendors.openai_texts import MAX_PROMPTS
from tests.support.vendors import openai as answers

DIALECT = OpenAIDialect()


def read(route: Route, **fields: Any) -> RequestFacts:
    return DIALECT.read_request(RouteRequest(route, orjson.dumps({"model": "m", **fields})))


def refusal(route: Route, **fields: Any) -> tuple[str, str | None]:
    with pytest.raises(RequestRefusedError) as caught:
        read(route, **fields)
    return caught.value.code, caught.value.param


# ---- completions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ({}, 1),
        ({"prompt": "one"}, 1),
        ({"prompt": ["one", "two"]}, 2),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1], [2, 3], [4]]}, 3),
        ({"prompt": ["one", "two"], "n": 3}, 6),
        ({"prompt": "one", "n": 2, "best_of": 5}, 5),
        ({"prompt": ["one", "two"], "n": 2, "best_of": 5}, 10),
    ],
)
def test_every_prompt_and_everything_generated_counts(fields: dict[str, Any], choices: int) -> None:
    assert read(COMPLETIONS, max_tokens=7, **fields).demand.choices == choices


def test_limits_of_completions() -> None:
    facts = read(COMPLETIONS, prompt="Hello", max_tokens=7)
    assert facts.demand.input_tokens == len(facts.body) + TEMPLATE_TOKENS
    assert facts.demand.output_tokens_limit == 7
    assert read(COMPLETIONS, prompt="Hello").demand.output_tokens_limit is None
    assert read(COMPLETIONS, prompt="Hello", max_tokens=0).demand.output_tokens_limit == 0
    echoed = read(COMPLETIONS, prompt="Hello", max_tokens=7, echo=True)
    assert echoed.demand.output_tokens_limit == 7 + echoed.demand.input_tokens


def test_usage_of_a_completion_s_stream_is_asked_for_and_hidden() -> None:
    facts = read(COMPLETIONS, prompt="Hello", stream=True)
    assert facts.hide_usage_chunk
    assert json.loads(facts.body)["stream_options"] == {"include_usage": True}
    assert not read(COMPLETIONS, prompt="x", stream=True, stream_options={"include_usage": True}).hide_usage_chunk


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 7}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "two"]}, "prompt"),
        ({"prompt": [[1, "two"]]}, "prompt"),
        ({"prompt": [{}]}, "prompt"),
        ({"prompt": ["x"] * (MAX_PROMPTS + 1)}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"best_of": "2"}, "best_of"),
        ({"echo": 1, "max_tokens": 1}, "echo"),
        ({"model": None}, "model"),
    ],
)
def test_a_malformed_field_of_a_completion_is_named(fields: dict[str, Any], param: str) -> None:
    assert refusal(COMPLETIONS, **fields) == ("invalid_request", param)


def test_a_completion_s_stream_counts_its_text() -> None:
    shape = read(COMPLETIONS, prompt="x").shape
    reader = StreamReader(shape)
    reader.feed(b"".join(answers.events(answers.text_completion_chunks([" Hello", "!"], "m", None))))
    _, _, reading = reader.finish()
    assert (reading.usage, reading.text_bytes, reading.complete) == ({}, 7, True)


# ---- embeddings -----------------------------------------------------------------------------------------------------


def test_embeddings_are_not_billed_as_chat() -> None:
    facts = read(EMBEDDINGS, input=["one", "two"])
    assert facts.demand.output_tokens_limit == 0
    price = Price({"input": 20_000_000})
    bound = strict_bound(price, facts.demand)
    assert (bound.output_tokens, bound.input_tokens) == (0, len(facts.body) + TEMPLATE_TOKENS)
    reader = BodyReader(facts.shape)
    reader.feed(json.dumps(answers.embeddings("m", 2, 8)).encode())
    reading = reader.finish()
    assert reading.usage == {"input_tokens": 8}
    assert facts.shape.needed == ("input_tokens",)
    # 8 tokens at $0.02 a million.
    assert sum(each.cost_nano for each in price_usage(price, reading.usage)) == 160


def test_some_servers_report_a_total_only() -> None:
    shape = EmbeddingsShape()
    assert shape.whole({"usage": {"total_tokens": 9}}).usage == {"input_tokens": 9}
    assert shape.whole({"usage": {"prompt_tokens": 0, "total_tokens": 9}}).usage == {"input_tokens": 0}
    assert shape.whole({"data": []}).usage == {}
    assert shape.fold().reading().complete is False


@pytest.mark.parametrize("given", ["one", ["one"], [1, 2], [[1, 2], [3]]])
def test_inputs_of_every_kind(given: Any) -> None:
    facts = read(EMBEDDINGS, input=given)
    assert facts.demand.input_tokens == len(facts.body) + TEMPLATE_TOKENS


@pytest.mark.parametrize("given", [None, [], 7, [{}], [["x"]], {"text": "x"}])
def test_a_malformed_input_is_named(given: Any) -> None:
    assert refusal(EMBEDDINGS, input=given) == ("invalid_request", "input")
