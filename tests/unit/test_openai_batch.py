"""OpenAI's batches: what the request and its lines can cost, and usage read off output files line by line."""

from typing import Any

import orjson
import pytest

from services.core.estimate import strict_bound
from services.core.pricing import Price, Variant, price_usage
from services.core.usage.openai_batch import BatchAnswer, BatchShape, read_output_line
from services.core.usage.reading import Reading
from services.gateway.vendors import RequestRefusedError, RouteRequest
from services.gateway.vendors.fields import TEMPLATE_TOKENS
from services.gateway.vendors.openai import OpenAIDialect
from services.gateway.vendors.openai_batch import BatchLine, BatchRequest, read_batch, read_batch_line
from services.gateway.vendors.openai_routes import BATCHES
from tests.support.vendors import openai as answers

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
BATCH = {"processing": "batch"}


def line_of(url: str = CHAT, **body: Any) -> bytes:
    asked = {"model": "gpt-4o", "messages": HELLO, **body}
    return orjson.dumps({"custom_id": "one", "method": "POST", "url": url, "body": asked})


def facts_of(line: bytes, endpoint: str = CHAT) -> Any:
    found = read_batch_line(endpoint, line)
    assert isinstance(found, BatchLine)
    return found.facts


def answer(endpoint: str, body: dict[str, Any] | None, status: int = 200, error: Any = None) -> BatchAnswer:
    response = {"status_code": status, "request_id": "req_1", "body": body}
    line = {"id": "batch_req_1", "custom_id": "one", "response": response, "error": error}
    found = read_output_line(endpoint, orjson.dumps(line) + b"\n", orjson.loads)
    assert found is not None
    return found


# ---- requests -------------------------------------------------------------------------------------------------------


def test_a_batch_names_its_endpoint_and_file() -> None:
    body = orjson.dumps({"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h"})
    assert read_batch(body) == BatchRequest(CHAT, "file-1")
    with pytest.raises(RequestRefusedError) as caught:
        OpenAIDialect().read_request(RouteRequest(BATCHES, body))
    assert (caught.value.code, caught.value.param) == ("unpriced_feature", "input_file_id")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": CHAT}, "input_file_id"),
        ({"endpoint": CHAT, "input_file_id": ""}, "input_file_id"),
        ({"input_file_id": "file-1"}, "endpoint"),
        ({"input_file_id": "file-1", "endpoint": "/v1/videos"}, "endpoint"),
        ({"input_file_id": "file-1", "endpoint": []}, "endpoint"),
    ],
)
def test_a_batch_that_can_not_be_read_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        read_batch(orjson.dumps(fields))
    assert caught.value.param == param


def test_a_batch_is_not_bounded_or_charged_at_the_full_price() -> None:
    line = line_of(max_tokens=100)
    facts = facts_of(line)
    asked = orjson.dumps(orjson.loads(line)["body"])
    assert facts.body == asked
    assert (facts.context, facts.demand.contexts) == (BATCH, (BATCH,))
    assert facts.demand.input_tokens == len(asked) + TEMPLATE_TOKENS
    half = {"input": 1_250_000_000, "output": 5_000_000_000}
    price = Price({name: 2 * rate for name, rate in half.items()}, variants=(Variant(BATCH, half),))
    bound = strict_bound(price, facts.demand)
    assert bound.amount_nano == facts.demand.input_tokens * 1_250 + 100 * 5_000
    used = answer(CHAT, answers.completion(used=answers.usage(1_000, 100), service_tier="default"))
    costs = price_usage(price, used.reading.usage, used.reading.context)
    # 1,000 at $1.25 a million and 100 at $5.
    assert sum(each.cost_nano for each in costs) == 1_250_000 + 500_000


def test_lines_of_other_endpoints() -> None:
    line = orjson.dumps(
        {"custom_id": "one", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}
    )
    assert facts_of(line, "/v1/embeddings").demand.output_tokens_limit == 0
    free = orjson.dumps({"custom_id": "one", "method": "POST", "url": "/v1/moderations", "body": {"input": "x"}})
    assert read_batch_line("/v1/moderations", free) == BatchLine("one", None)
    assert read_batch_line(CHAT, b" \n") is None
    azure = facts_of(line_of("/chat/completions", max_tokens=3), "/chat/completions")
    assert azure.demand.output_tokens_limit == 3
    assert answer("/chat/completions", answers.completion(used=answers.usage(7, 3))).reading.usage["input_tokens"] == 7
    assert facts_of(line_of(stream=True)).stream is False


@pytest.mark.parametrize(
    ("line", "param"),
    [
        (b"{", None),
        (line_of().replace(b'"custom_id":"one",', b""), "custom_id"),
        (line_of("/v1/embeddings"), "url"),
        (orjson.dumps({"custom_id": "one", "url": CHAT, "body": "x"}), "body"),
        (line_of().replace(b'"model":"gpt-4o"', b'"model":"gpt-4o","model":"gpt-4o-mini"'), "model"),
        (line_of()[:-1] + b',"body":{}}', "body"),
        (line_of(n=0), "n"),
    ],
)
def test_a_line_that_can_not_be_read_is_refused(line: bytes, param: str | None) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        read_batch_line(CHAT, line)
    assert caught.value.param == param


# ---- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "body", "usage"),
    [
        ("/v1/completions", answers.text_completion("m", "x", answers.plain_usage(5, 7)), (5, 7)),
        ("/v1/responses", answers.response(used=answers.response_usage(13, 9)), (13, 9)),
        ("/v1/embeddings", answers.embeddings("m", 1, 8), (8, None)),
        ("/v1/images/generations", answers.images(1, answers.image_usage(10, 0, 272)), (10, 272)),
    ],
)
def test_answers_of_every_endpoint(endpoint: str, body: dict[str, Any], usage: tuple[int, int | None]) -> None:
    found = answer(endpoint, body)
    assert (found.custom_id, found.charged) == ("one", True)
    assert (found.reading.usage["input_tokens"], found.reading.usage.get("output_tokens")) == usage
    assert found.reading.context == BATCH


def test_a_request_that_was_refused_or_never_run_costs_nothing() -> None:
    refused = answer(CHAT, {"error": {"code": "invalid_value", "message": "x"}}, status=400)
    assert (refused.charged, refused.reading.usage, refused.reading.failed) == (False, {}, "invalid_value")
    expired = answer(CHAT, None, error={"code": "batch_expired", "message": "x"})
    assert (expired.charged, expired.reading.failed) == (False, "batch_expired")
    line = orjson.dumps({"custom_id": "one", "response": None, "error": {"code": "batch_cancelled"}})
    cancelled = read_output_line(CHAT, line, orjson.loads)
    assert cancelled is not None
    assert (cancelled.charged, cancelled.reading.failed) == (False, "batch_cancelled")


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'"x"', b"{}", b'{"custom_id":"one","response":{"status_code":200}}', b"[" * 100_000]
)
def test_a_line_that_money_may_hide_in_is_not_passed_over(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_output_line(CHAT, line, orjson.loads)


def test_blank_lines_and_unknown_endpoints() -> None:
    assert read_output_line(CHAT, b"\n", orjson.loads) is None
    with pytest.raises(ValueError, match="videos"):
        read_output_line("/v1/videos", b"{}", orjson.loads)


def test_a_batch_itself_says_how_it_stands_and_prices_nothing() -> None:
    batch = answers.batch("batch_1", "in_progress", CHAT, "file-1")
    batch["usage"] = answers.batch_usage(1_000, 100)
    assert BatchShape().whole(batch) == Reading({}, 0, complete=True, job="batch_1", status="in_progress")
    assert BatchShape().fold().reading().complete is False
