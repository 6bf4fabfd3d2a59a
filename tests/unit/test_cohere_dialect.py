"""What Cohere requests can cost at most, what is refused, and how errors look."""

from typing import Any

import orjson
import pytest

from services.core.estimate import UnboundedError, UnpricedComponentError, strict_bound
from services.core.pricing import Price
from services.gateway.vendors import RequestFacts, RequestRefusedError, Route, RouteRequest
from services.gateway.vendors.cohere import CHAT, CHAT_V1, EMBED, EMBED_V1, RERANK, RERANK_V1, CohereDialect
from services.gateway.vendors.fields import TEMPLATE_TOKENS

DIALECT = CohereDialect()
USD = 10**9
TOKENS_OF_AN_IMAGE = 3_328


def read(request: object, route: Route = CHAT) -> RequestFacts:
    body = request if isinstance(request, bytes) else orjson.dumps(request)
    return DIALECT.read_request(RouteRequest(route, body))


def refused(request: object, route: Route = CHAT) -> RequestRefusedError:
    with pytest.raises(RequestRefusedError) as caught:
        read(request, route)
    return caught.value


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "command-a-03-2025", "messages": [{"role": "user", "content": "Hi"}], **fields}


def chat_v1(**fields: Any) -> dict[str, Any]:
    return {"model": "command-r-08-2024", "message": "Hi", **fields}


def parts(*content: object) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": list(content)}])


# ---- chat -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("route", "request_of"), [(CHAT, chat), (CHAT_V1, chat_v1)])
def test_a_chat_is_bounded_by_its_bytes_and_max_tokens(route: Route, request_of: Any) -> None:
    facts = read(request_of(max_tokens=100, stream=True), route)
    assert facts.stream
    assert facts.demand.input_tokens == len(facts.body) + TEMPLATE_TOKENS
    assert facts.demand.output_tokens_limit == 100
    assert facts.framing == DIALECT.shapes[route.name].framing


@pytest.mark.parametrize("limit", [None, 0])
def test_without_a_limit_the_models_own_bounds_the_output(limit: int | None) -> None:
    demand = read(chat(max_tokens=limit)).demand
    rates = {"input": USD, "output": USD}
    assert strict_bound(Price(rates, max_output_tokens=8_000), demand).output_tokens == 8_000
    with pytest.raises(UnboundedError, match="max_tokens"):
        strict_bound(Price(rates), demand)


def test_a_thinking_budget_is_in_the_bound() -> None:
    thinking = {"type": "enabled", "token_budget": 400}
    assert read(chat(max_tokens=100, thinking=thinking)).demand.output_tokens_limit == 500
    assert read(chat(thinking=thinking)).demand.output_tokens_limit is None


def test_each_image_counts_at_most_thirteen_tiles() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "high"}}
    disguised = {"type": "text", "text": "x", "image_url": {"url": "u"}}
    facts = read(parts({"type": "text", "text": "What?"}, image, disguised))
    assert facts.demand.input_tokens == len(facts.body) + 2 * TOKENS_OF_AN_IMAGE + TEMPLATE_TOKENS


def test_a_conversation_the_vendor_holds_may_fill_the_window() -> None:
    demand = read(chat_v1(conversation_id="c1"), CHAT_V1).demand
    assert demand.unseen == "conversation_id"
    price = Price({"input": USD, "output": USD}, max_output_tokens=4_000, context_window=128_000)
    assert strict_bound(price, demand).input_tokens == 128_000


def test_connectors_are_refused_by_name() -> None:
    error = refused(chat_v1(connectors=[{"id": "web-search"}]), CHAT_V1)
    assert (error.code, error.param) == ("unpriced_feature", "connectors")
    assert "send documents" in str(error)
    read(chat_v1(connectors=[]), CHAT_V1)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"stream": 1}, "stream"),
        ({"max_tokens": 5, "thinking": {"token_budget": "big"}}, "token_budget"),
    ],
)
def test_malformed_fields_are_named(change: dict[str, Any], param: str) -> None:
    error = refused(chat(**change))
    assert (error.code, error.param) == ("invalid_request", param)


def test_unknown_parts_are_refused() -> None:
    error = refused(parts({"type": "audio", "data": "x"}))
    assert (error.code, error.param) == ("unpriced_feature", "messages")


def test_v1_needs_a_model_to_be_priced() -> None:
    assert refused({"message": "Hi"}, CHAT_V1).param == "model"


@pytest.mark.parametrize("field", ["model", "max_tokens", "stream"])
def test_a_decided_field_that_is_there_twice_is_refused(field: str) -> None:
    body = orjson.dumps({**chat(), field: None if field != "model" else "m"})
    assert refused(body[:-1] + b',"' + field.encode() + b'":null}').param == field


# ---- embed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [EMBED, EMBED_V1])
def test_texts_are_bounded_by_their_bytes(route: Route) -> None:
    demand = read({"model": "embed-v4.0", "texts": ["Zürich", "hi"], "input_type": "search_query"}, route).demand
    assert 7 + 2 <= demand.input_tokens <= 7 + 2 + 2 * 16 + TEMPLATE_TOKENS
    assert demand.output_tokens_limit == 0
    assert strict_bound(Price({"input": USD}), demand).output_tokens == 0


def test_images_of_newer_models_need_a_price_of_their_own() -> None:
    mixed = {"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:x"}}]}
    demand = read({"model": "embed-v4.0", "images": ["data:image/png;base64,iVBO"], "inputs": [mixed]}, EMBED).demand
    assert demand.required == {"image_input"}
    assert demand.input_tokens >= 2 * 128_000
    with pytest.raises(UnpricedComponentError, match="image input"):
        strict_bound(Price({"input": USD}), demand)
    strict_bound(Price({"input": USD, "image_input": 4 * USD}), demand)


def test_images_of_older_models_are_counted() -> None:
    demand = read({"model": "embed-english-v3.0", "images": ["data:image/png;base64,iVBO"]}, EMBED).demand
    assert demand.counts == {"images": 1}
    with pytest.raises(UnpricedComponentError, match="image"):
        strict_bound(Price({"input": USD}), demand)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"texts": "hi"}, "invalid_request", "texts"),
        ({"texts": [7]}, "invalid_request", "texts"),
        ({"texts": ["a"] * 10_001}, "invalid_request", "texts"),
        ({"inputs": [{"content": "hi"}]}, "invalid_request", "inputs"),
        ({"inputs": [{"content": [{"type": "text"}]}]}, "invalid_request", "inputs"),
        ({"inputs": [{"content": [{"type": "video"}]}]}, "unpriced_feature", "inputs"),
        ({"model": ""}, "invalid_request", "model"),
    ],
)
def test_malformed_inputs_are_named(change: dict[str, Any], code: str, param: str) -> None:
    error = refused({"model": "embed-v4.0", **change}, EMBED)
    assert (error.code, error.param) == (code, param)


# ---- rerank ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [RERANK, RERANK_V1])
@pytest.mark.parametrize(
    ("documents", "more", "units"),
    [
        (["short"], {}, 1),
        (["short"] * 100, {}, 1),
        (["short"] * 101, {}, 2),
        ([], {}, 1),
        # 25,001 bytes are 101 chunks of 250 tokens at most.
        (["x" * 25_000], {}, 1),
        (["x" * 25_001], {}, 2),
        (["x" * 25_001], {"max_tokens_per_doc": 4096}, 1),
        (["x" * 25_001] * 100, {"max_chunks_per_doc": 1}, 1),
        ([{"text": "x" * 25_001}], {}, 2),
    ],
)
def test_search_units_are_bounded_by_documents_and_their_chunks(
    route: Route, documents: list[Any], more: dict[str, int], units: int
) -> None:
    demand = read({"model": "rerank-v3.5", "query": "q", "documents": documents, **more}, route).demand
    assert demand.counts == {"rerank_searches": units}
    bound = strict_bound(Price({"rerank_search": 2_000 * USD}), demand)
    assert bound.amount_nano == units * 2_000_000
    with pytest.raises(UnpricedComponentError, match="rerank search"):
        strict_bound(Price({"input": USD}), demand)


@pytest.mark.parametrize("documents", ["all", [7]])
def test_malformed_documents_are_named(documents: object) -> None:
    assert refused({"model": "rerank-v3.5", "query": "q", "documents": documents}, RERANK).param == "documents"


def test_a_document_that_is_nested_too_deeply_is_refused() -> None:
    body = orjson.dumps({"model": "rerank-v3.5", "documents": [{"text": "@"}]})
    assert refused(body.replace(b'"@"', b"[" * 900 + b"]" * 900), RERANK).param == "documents"


# ---- routes, keys, errors -------------------------------------------------------------------------------------------


def test_every_route_that_costs_money_says_how_it_is_read() -> None:
    held = {route.name for route in DIALECT.routes if route.billing == "held"}
    assert held == DIALECT.shapes.keys() == {"chat", "chat.v1", "embed", "embed.v1", "rerank", "rerank.v1"}
    assert {route.path.split("/")[1] for route in DIALECT.routes} == set(DIALECT.versions)


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/generate", "/v1/summarize", "/v2/parse", "/v2/batches"])
def test_routes_whose_cost_cannot_be_known_are_not_declared(path: str) -> None:
    assert path not in {route.path for route in DIALECT.routes}


def test_another_model_changes_nothing_else() -> None:
    body = b'{ "messages": [] , "model" : "command-a" }'
    assert DIALECT.renamed(RouteRequest(CHAT, body), "command-b").body == body.replace(b"command-a", b"command-b")


def test_keys_are_bearer_tokens() -> None:
    assert DIALECT.credential_headers(None) == ()
    assert DIALECT.credential_headers("k") == ((b"authorization", b"Bearer k"),)


def test_an_error_is_in_the_vendors_envelope() -> None:
    fields = {"budget_id": "b1", "message": "hidden", "transaction_id": "tx1"}
    error = orjson.loads(DIALECT.error_body(402, "budget_exhausted", "No money left.", "model", fields))
    assert error == {
        "message": "No money left.", "id": "tx1", "code": "budget_exhausted", "param": "model",
        "budget_id": "b1", "transaction_id": "tx1",
    }  # fmt: skip


def test_an_error_in_a_stream_ends_the_message() -> None:
    event = DIALECT.stream_error("budget_exhausted", "No money left.", {"budget_id": "b1"})
    assert event.startswith(b"\n\nevent: message-end\ndata: ")
    assert event.endswith(b"\n\n")
    end = orjson.loads(event.split(b"data: ", 1)[1])
    assert end["type"] == "message-end"
    assert end["delta"]["finish_reason"] == "ERROR"
    assert end["delta"]["error"] == "No money left."
    assert end["delta"]["budget_id"] == "b1"
