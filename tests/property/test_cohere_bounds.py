"""No answer that a Cohere request can bring about costs more than its bound."""

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.estimate import UnpricedComponentError, strict_bound
from services.core.pricing import Price, price_usage
from services.core.usage.reading import BodyReader
from services.gateway.vendors import Route, RouteRequest
from services.gateway.vendors.cohere import CHAT, CHAT_V1, EMBED, EMBED_V1, RERANK, RERANK_V1, CohereDialect

DIALECT = CohereDialect()
PARTS = ("cache_read", "image_input", "image", "rerank_search")

# The vendor's published rules, written down once more.
TILES, TOKENS_OF_A_TILE = 13, 256
CONTEXT_OF_EMBED = 128_000
CHUNK, QUERY, PER_UNIT = 500, 250, 100

rate = st.integers(1_000_000, 90_000_000_000)
texts = st.text(max_size=20).map(str) | st.integers(0, 30_000).map(lambda length: "x" * length)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    names = ("input", "output", *draw(st.lists(st.sampled_from(PARTS), unique=True)))
    return Price(
        {name: draw(rate) for name in names},
        max_output_tokens=draw(st.integers(1_000, 32_000)),
        context_window=draw(st.integers(128_000, 256_000)),
    )


def up_to(most: int) -> st.SearchStrategy[int]:
    return st.just(most) | st.integers(0, most)


def holds(route: Route, request: dict[str, Any], price: Price, answer: dict[str, Any]) -> None:
    """Asserts that the answer costs no more than the request's bound; nothing where the request is not priced."""
    facts = DIALECT.read_request(RouteRequest(route, orjson.dumps(request)))
    try:
        bound = strict_bound(price, facts.demand)
    except UnpricedComponentError:
        return
    reader = BodyReader(facts.shape, orjson.loads)
    reader.feed(orjson.dumps(answer))
    cost = sum(each.cost_nano for each in price_usage(price, reader.finish().usage))
    assert cost <= bound.amount_nano


@settings(max_examples=120, deadline=None)
@given(st.lists(texts, max_size=3), st.integers(0, 4), st.none() | st.integers(1, 4_000), prices(), st.data())
def test_no_chat_costs_more_than_its_bound(
    said: list[str], images: int, limit: int | None, price: Price, data: st.DataObject
) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    content: list[Any] = [*({"type": "text", "text": text} for text in said), *[image] * images]
    request = {"model": "command-a", "messages": [{"role": "user", "content": content}], "max_tokens": limit}
    most = sum(len(text.encode()) for text in said) + images * TILES * TOKENS_OF_A_TILE
    holds(CHAT, request, price, {"usage": data.draw(used(most, limit or price.max_output_tokens or 0))})


@settings(max_examples=80, deadline=None)
@given(texts, st.booleans(), st.none() | st.integers(1, 4_000), prices(), st.data())
def test_no_v1_chat_costs_more_than_its_bound(
    said: str, goes_on: bool, limit: int | None, price: Price, data: st.DataObject
) -> None:
    request = {"model": "command-r", "message": said, "max_tokens": limit}
    most = len(said.encode())
    if goes_on:
        request["conversation_id"] = "c1"
        most = price.context_window or 0
    holds(CHAT_V1, request, price, {"meta": data.draw(used(most, limit or price.max_output_tokens or 0))})


@st.composite
def used(draw: st.DrawFn, most_input: int, most_output: int) -> dict[str, Any]:
    units = {"input_tokens": draw(up_to(most_input)), "output_tokens": draw(up_to(most_output))}
    cached = draw(up_to(units["input_tokens"]))
    return {"billed_units": units, "tokens": {"input_tokens": units["input_tokens"] + 900}, "cached_tokens": cached}


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([EMBED, EMBED_V1]),
    st.sampled_from(["embed-v4.0", "embed-english-v3.0"]),
    st.lists(texts, max_size=4),
    st.integers(0, 3),
    prices(),
    st.data(),
)
def test_no_embedding_costs_more_than_its_bound(
    route: Route, model: str, said: list[str], images: int, price: Price, data: st.DataObject
) -> None:
    request = {"model": model, "texts": said, "images": ["data:image/png;base64,iVBO"] * images}
    # Each text may be marked at its begin and end.
    units = {"input_tokens": data.draw(up_to(sum(len(text.encode()) + 2 for text in said)))}
    if images and "v3" in model:
        units["images"] = data.draw(up_to(images))
    elif images:
        units |= {"image_tokens": data.draw(up_to(images * CONTEXT_OF_EMBED)), "images": images}
    holds(route, request, price, {"meta": {"billed_units": units}})


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([RERANK, RERANK_V1]),
    st.lists(texts, max_size=5),
    st.integers(1, 60),
    st.none() | st.integers(1, 10),
    st.integers(0, QUERY),
    prices(),
    st.data(),
)
def test_no_reranking_costs_more_than_its_bound(
    route: Route, said: list[str], times: int, most_chunks: int | None, query: int, price: Price, data: st.DataObject
) -> None:
    request: dict[str, Any] = {"model": "rerank", "query": "x" * query, "documents": said * times}
    if most_chunks is not None:
        request["max_chunks_per_doc"] = most_chunks
    chunks = 0
    for text in said * times:
        own = max(1, -(-len(text.encode()) // (CHUNK - query)))
        chunks += own if most_chunks is None else min(own, most_chunks)
    units = data.draw(up_to(max(1, -(-chunks // PER_UNIT))))
    holds(route, request, price, {"meta": {"billed_units": {"search_units": units}}})
