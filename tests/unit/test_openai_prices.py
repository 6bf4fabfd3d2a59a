"""OpenAI's routes with the prices that Farthing ships: what is held and what is charged, by the dollar."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

import services.control.prices
from services.core.catalog import Catalog, Found, decode_catalog
from services.core.estimate import strict_bound
from services.core.pricing import price_usage
from services.core.usage.reading import BodyReader
from services.gateway.vendors import RequestFacts, Route, RouteRequest
from services.gateway.vendors import openai_routes as routes
from services.gateway.vendors.openai import OpenAIDialect
from tests.support.audio import wave
from tests.support.forms import FORM_TYPE, form
from tests.support.vendors import openai as answers

AT_MS = 1_795_000_000_000  # November 2026
DIALECT = OpenAIDialect()


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return decode_catalog((Path(services.control.prices.__file__).parent / "catalog.json").read_bytes())


def found(catalog: Catalog, model: str) -> Found:
    price = catalog.find("openai", model, AT_MS)
    assert price is not None
    return price


def cost(catalog: Catalog, facts: RequestFacts, answer: dict[str, Any]) -> int:
    reader = BodyReader(facts.shape, orjson.loads)
    reader.feed(json.dumps(answer).encode())
    reading = reader.finish()
    usage = {**facts.counted, **reading.usage}
    price = found(catalog, facts.model).price
    return sum(each.cost_nano for each in price_usage(price, usage, {**facts.context, **reading.context}))


def read(route: Route, **fields: Any) -> RequestFacts:
    return DIALECT.read_request(RouteRequest(route, orjson.dumps(fields)))


@pytest.mark.parametrize(
    ("model", "priced", "cost_nano"),
    [
        # 1,000 tokens in and 100 out: at $5 and $15, at $2.50 and $10, and at $0.15 and $0.60 a million.
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13", 6_500_000),
        ("gpt-4o-2024-08-06", "gpt-4o", 3_500_000),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini", 210_000),
    ],
)
def test_a_dated_model_name_is_not_priced_as_a_different_model(
    catalog: Catalog, model: str, priced: str, cost_nano: int
) -> None:
    assert found(catalog, model).model_priced == priced
    facts = read(routes.CHAT, model=model, messages=[], max_tokens=100)
    assert cost(catalog, facts, answers.completion(model, used=answers.usage(1_000, 100))) == cost_nano


def test_a_model_that_is_not_listed_is_given_no_other_s_price(catalog: Catalog) -> None:
    for model in ("gpt-4o-turbo", "gpt-4o-2024", "gpt-40", "gpt-9"):
        assert catalog.find("openai", model, AT_MS) is None


def test_the_tier_that_answered_sets_the_price(catalog: Catalog) -> None:
    facts = read(routes.CHAT, model="gpt-4o", messages=[], max_tokens=100)
    # 1,000 tokens in and 100 out: at $2.50 and $10, and as priority at $4.25 and $17 a million.
    for tier, expected in (("default", 3_500_000), ("priority", 5_950_000)):
        answer = answers.completion(used=answers.usage(1_000, 100), service_tier=tier)
        assert cost(catalog, facts, answer) == expected
    plain = read(routes.CHAT, model="gpt-4o", messages=[], max_tokens=100, service_tier="default")
    price = found(catalog, "gpt-4o").price
    assert strict_bound(price, plain.demand).amount_nano < strict_bound(price, facts.demand).amount_nano


def test_audio_tokens_are_not_charged_at_the_text_rate(catalog: Catalog) -> None:
    facts = read(routes.CHAT, model="gpt-audio", messages=[], max_tokens=9, modalities=["text", "audio"])
    used = answers.usage(prompt=1_000, completion=500)
    used["prompt_tokens_details"]["audio_tokens"] = 900
    used["completion_tokens_details"]["audio_tokens"] = 400
    # 100 at $2.50, 900 at $32, 100 at $10, 400 at $64 a million.
    expected = 250_000 + 28_800_000 + 1_000_000 + 25_600_000
    assert cost(catalog, facts, answers.completion(used=used)) == expected


def test_every_route_s_usual_model_can_be_held(catalog: Catalog) -> None:
    heard = form(("model", "gpt-4o-transcribe"), ("file", wave(seconds=1)))
    asked = [
        read(routes.CHAT, model="gpt-5", messages=[]),
        read(routes.RESPONSES, model="gpt-6-sol", input="x", tools=[{"type": "web_search"}], max_tool_calls=1),
        read(routes.COMPACT, model="gpt-5.4", previous_response_id="resp_1"),
        read(routes.COMPLETIONS, model="gpt-3.5-turbo-instruct", prompt="x"),
        read(routes.EMBEDDINGS, model="text-embedding-3-small", input="x"),
        read(routes.IMAGES, model="gpt-image-2", prompt="x"),
        read(routes.SPEECH, model="tts-1", input="x"),
        read(routes.SPEECH, model="gpt-4o-mini-tts", input="x"),
        DIALECT.read_request(RouteRequest(routes.TRANSCRIPTIONS, heard, content_type=FORM_TYPE)),
    ]
    for facts in asked:
        assert strict_bound(found(catalog, facts.model).price, facts.demand).amount_nano > 0
