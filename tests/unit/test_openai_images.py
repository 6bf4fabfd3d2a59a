"""OpenAI's images: what a request can cost as JSON or as a form, and how the answers are read."""

import json
from typing import Any

import orjson
import pytest

from services.core.estimate import UnboundedError, strict_bound
from services.core.pricing import Price, Variant, price_usage
from services.core.usage.reading import BodyReader, Reading, StreamReader
from services.gateway.vendors import RequestFacts, RequestRefusedError, RouteRequest
from services.gateway.vendors.fields import TEMPLATE_TOKENS
from services.gateway.vendors.openai import OpenAIDialect
from services.gateway.vendors.openai_content import MAX_IMAGE_TOKENS
from services.gateway.vendors.openai_routes import EDITS, IMAGES, VARIATIONS
from tests.support.forms import FORM_TYPE, form
from tests.support.vendors import openai as answers

DIALECT = OpenAIDialect()
TOKEN_PARTS = {"image_input", "image_cache_read", "image_output"}


def read(**fields: Any) -> RequestFacts:
    return DIALECT.read_request(
        RouteRequest(IMAGES, orjson.dumps({"model": "gpt-image-1", "prompt": "A cat", **fields}))
    )


def read_form(*parts: tuple[str, str | bytes]) -> RequestFacts:
    return DIALECT.read_request(RouteRequest(EDITS, form(*parts), content_type=FORM_TYPE))


def refusal(**fields: Any) -> tuple[str, str | None]:
    with pytest.raises(RequestRefusedError) as caught:
        read(**fields)
    return caught.value.code, caught.value.param


# ---- requests -------------------------------------------------------------------------------------------------------


def test_images_counted_in_tokens() -> None:
    facts = read(n=3, size="1024x1024", quality="high")
    demand = facts.demand
    assert demand.input_tokens == 3 * (len(facts.body) + TEMPLATE_TOKENS)
    assert (demand.output_tokens_limit, demand.choices, demand.parts) == (32_768, 3, TOKEN_PARTS)
    assert facts.shape.needed == ("input_tokens", "output_tokens")


def test_partial_images_count_a_hundred_tokens_each() -> None:
    facts = read(stream=True, partial_images=3)
    assert (facts.stream, facts.demand.output_tokens_limit) == (True, 32_768 + 300)


def test_a_model_whose_qualities_have_no_published_counts_needs_a_maximum() -> None:
    demand = read(model="gpt-image-2.5-sunburst").demand
    assert demand.output_tokens_limit is None
    with pytest.raises(UnboundedError) as caught:
        strict_bound(Price({"input": 1, "output": 1}), demand)
    assert caught.value.param == "model"
    assert (
        strict_bound(Price({"input": 0, "output": 1_000_000}, max_output_tokens=50_000), demand).amount_nano == 50_000
    )


def test_images_priced_by_the_image() -> None:
    facts = read(model="dall-e-3", n=2, size="1024x1792", quality="hd")
    assert (facts.demand.counts, facts.demand.output_tokens_limit) == ({"images": 2}, 0)
    assert facts.context == {"size": "1024x1792", "quality": "hd"}
    assert facts.shape.needed == ("images",)
    price = Price(
        {"image": 40_000_000_000_000},
        variants=(Variant({"size": "1024x1792", "quality": "hd"}, {"image": 120_000_000_000_000}),),
    )
    # Two images at $0.12.
    assert strict_bound(price, facts.demand).amount_nano == 240_000_000
    assert sum(each.cost_nano for each in price_usage(price, {"images": 2}, facts.context)) == 240_000_000


def test_a_form_s_files_are_images() -> None:
    pixels = bytes(range(256)) * 400
    parts = (
        ("model", "gpt-image-1"),
        ("prompt", "A hat on it"),
        ("n", "2"),
        ("image[]", pixels),
        ("image[]", pixels),
        ("mask", pixels),
    )
    facts = read_form(*parts)
    text_bytes = len(form(*parts)) - 3 * len(pixels)
    assert facts.demand.input_tokens == 2 * (text_bytes + TEMPLATE_TOKENS + 3 * MAX_IMAGE_TOKENS)
    assert facts.demand.choices == 2
    assert facts.body == form(*parts)


def test_an_edit_as_json_counts_its_references() -> None:
    url = "data:image/png;base64," + "A" * 9_000
    body = orjson.dumps(
        {"model": "gpt-image-1.5", "prompt": "x", "images": [{"image_url": url}, {"file_id": "file-1"}]}
    )
    facts = DIALECT.read_request(RouteRequest(EDITS, body))
    assert facts.demand.input_tokens == len(body) - len(url) + TEMPLATE_TOKENS + 2 * MAX_IMAGE_TOKENS


def test_a_variation_is_counted_by_the_image() -> None:
    request = RouteRequest(
        VARIATIONS, form(("model", "dall-e-2"), ("image", b"png"), ("n", "4")), content_type=FORM_TYPE
    )
    assert DIALECT.read_request(request).demand.counts == {"images": 4}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": None}, ("invalid_request", "model")),
        ({"n": 11}, ("invalid_request", "n")),
        ({"partial_images": 4}, ("invalid_request", "partial_images")),
        ({"size": 7}, ("invalid_request", "size")),
        ({"images": {}}, ("invalid_request", "images")),
        ({"output_format": "svg"}, ("unpriced_feature", "output_format")),
        ({"output_format": "gif"}, ("unpriced_feature", "output_format")),
        ({"svg": {"model": "gpt-6-sol"}}, ("unpriced_feature", "svg")),
        ({"stream": True, "n": 2}, ("unpriced_feature", "n")),
    ],
)
def test_a_field_that_can_not_be_read_or_bounded_is_named(fields: dict[str, Any], error: tuple[str, str]) -> None:
    assert refusal(**fields) == error


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ((("prompt", "x"),), "model"),
        ((("model", "gpt-image-1"), ("model", "dall-e-2")), "model"),
        ((("model", "gpt-image-1"), ("MODEL", "dall-e-2")), "model"),
        ((("model", "gpt-image-1"), ("n", "two")), "n"),
        ((("model", "gpt-image-1"), ("n", "0")), "n"),
        ((("model", "gpt-image-1"), ("n", "99999999999999999999")), "n"),
        ((("model", "gpt-image-1"), ("stream", "yes")), "stream"),
        ((("model", "gpt-image-1"), ("svg[model]", "gpt-6-sol")), "svg"),
    ],
)
def test_a_form_s_field_that_can_not_be_read_is_named(parts: tuple[tuple[str, str], ...], param: str) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        read_form(*parts)
    assert caught.value.param == param


# ---- answers --------------------------------------------------------------------------------------------------------


def whole(facts: RequestFacts, body: dict[str, Any]) -> Reading:
    reader = BodyReader(facts.shape)
    reader.feed(json.dumps(body).encode())
    return reader.finish()


def test_usage_in_tokens() -> None:
    reading = whole(read(), answers.images(1, answers.image_usage(text=50, image=388, output=4_160)))
    assert reading.usage == {
        "input_tokens": 438,
        "image_input_tokens": 388,
        "output_tokens": 4_160,
        "image_output_tokens": 4_160,
    }


def test_a_split_of_the_output_is_believed() -> None:
    used = {**answers.image_usage(output=300), "output_tokens_details": {"image_tokens": 272, "text_tokens": 28}}
    assert whole(read(), answers.images(1, used)).usage["image_output_tokens"] == 272


def test_images_are_counted_where_they_are_priced_by_the_image() -> None:
    assert whole(read(model="dall-e-2"), answers.images(3, report=False)).usage == {"images": 3}
    assert whole(read(model="dall-e-2"), {"error": {"code": "x"}}).usage == {}


@pytest.mark.parametrize("kind", ["image_generation", "image_edit"])
def test_a_stream_s_usage_is_in_its_last_event(kind: str) -> None:
    reader = StreamReader(read().shape)
    events = answers.image_events(answers.image_usage(text=10, output=472, details=False), kind, partials=2)
    for event in events:
        reader.feed(event)
    reading = reader.finish()[2]
    assert reading.complete
    assert reading.usage == {
        "input_tokens": 10,
        "image_input_tokens": 0,
        "output_tokens": 472,
        "image_output_tokens": 472,
    }
    broken = StreamReader(read().shape)
    broken.feed(events[0])
    assert broken.finish()[2] == Reading({}, 0, complete=False)
