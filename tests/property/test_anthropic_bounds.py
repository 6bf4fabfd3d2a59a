"""No answer that an Anthropic request can bring about costs more than its bound."""

from dataclasses import dataclass
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.estimate import UnpricedComponentError, strict_bound
from services.core.pricing import Price, Tier, Variant, price_usage
from services.core.usage.reading import AnswerShape, BodyReader
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.anthropic import BATCH_RESULTS, BATCHES, MESSAGES, AnthropicDialect

DIALECT = AnthropicDialect()
PARTS = ("cache_read", "cache_write", "cache_write_1h", "reasoning", "web_search")

# The vendor's published rules, written down once more: what an image counts at most, what tools add to the prompt, how
# often server tools run the model within one request.
IMAGE = 4_784
TOOL_PROMPT = 530
TOOL_DESCRIPTIONS = {"bash_20250124": 245, "text_editor_20250728": 700, "computer_20251124": 735 + 499}
LOOP = 10

# From a nano-dollar a token on: below that, rounding would be all there is.
rate = st.integers(1_000_000, 90_000_000_000)


@st.composite
def rate_sets(draw: st.DrawFn, parts: list[str]) -> dict[str, int]:
    return {name: draw(rate) for name in ("input", "output", *parts)}


@st.composite
def prices(draw: st.DrawFn) -> Price:
    parts = draw(st.lists(st.sampled_from(PARTS), unique=True))
    window = draw(st.integers(200_000, 1_000_000))
    if draw(st.booleans()):
        return Price(draw(rate_sets(parts)), max_output_tokens=64_000, context_window=window)
    contexts = draw(
        st.lists(
            st.sampled_from(
                [("processing", "batch"), ("speed", "fast"), ("inference_geo", "us"), ("service_tier", "priority")]
            ),
            unique=True,
        )
    )
    starts = sorted(draw(st.sets(st.integers(1, 300_000), max_size=2)))
    return Price(
        draw(rate_sets(parts)),
        tuple(Tier(start, draw(rate_sets(parts))) for start in starts),
        max_output_tokens=draw(st.integers(64_000, 128_000)),
        context_window=window,
        variants=tuple(Variant(dict([each]), draw(rate_sets(parts))) for each in contexts),
    )


@dataclass
class Asked:
    """A request, and what may be counted for it, by the vendor's rules and not by the code under test."""

    body: dict[str, Any]
    shown: int = 0
    unseen: bool = False
    runs: int = 1
    compacts: bool = False
    searches: int = 0
    one_hour: bool = False


@st.composite
def blocks(draw: st.DrawFn, asked: Asked) -> dict[str, Any]:
    kind = draw(
        st.sampled_from(["text", "text", "image", "image by url", "tool result", "pdf", "text file", "thinking"])
    )
    text = draw(st.text(max_size=20)) + "x" * draw(st.sampled_from([0, 10, 50_000]))
    if kind == "image" or kind == "image by url":
        asked.shown += IMAGE
        by_url = {"type": "url", "url": "https://example.com/a.png"}
        return {"type": "image", "source": by_url if kind == "image by url" else {"type": "base64", "data": "iVBO"}}
    if kind == "pdf":
        asked.unseen = True
        return {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0"}}
    asked.shown += len(text.encode())
    if kind == "tool result":
        asked.shown += IMAGE
        content = [{"type": "text", "text": text}, {"type": "image", "source": {"type": "file", "file_id": "f"}}]
        return {"type": "tool_result", "tool_use_id": "t", "content": content}
    if kind == "text file":
        return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}}
    if kind == "thinking":
        return {"type": "thinking", "thinking": text, "signature": "s"}
    block: dict[str, Any] = {"type": "text", "text": text}
    if draw(st.booleans()):
        ttl = draw(st.sampled_from(["5m", "1h"]))
        asked.one_hour = asked.one_hour or ttl == "1h"
        block["cache_control"] = {"type": "ephemeral", "ttl": ttl}
    return block


@st.composite
def tools(draw: st.DrawFn, asked: Asked) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for kind in draw(st.lists(st.sampled_from(["own", "web_search", "tool_search", *TOOL_DESCRIPTIONS]), max_size=3)):
        if kind == "own":
            description = draw(st.text(max_size=30))
            asked.shown += len(description.encode())
            made.append({"name": "f", "description": description, "input_schema": {"type": "object"}})
        elif kind == "web_search":
            uses = draw(st.integers(1, 20))
            asked.searches += uses
            asked.runs = LOOP
            made.append({"type": "web_search_20250305", "name": "web_search", "max_uses": uses})
        elif kind == "tool_search":
            asked.runs = LOOP
            made.append({"type": "tool_search_tool_bm25_20251119", "name": "tool_search_tool_bm25"})
        else:
            asked.shown += TOOL_DESCRIPTIONS[kind]
            made.append({"type": kind, "name": kind})
    asked.shown += TOOL_PROMPT if made else 0
    return made


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    asked = Asked({})
    content = draw(st.lists(blocks(asked), max_size=4))
    asked.body = {
        "model": "claude-sonnet-4-5",
        "max_tokens": draw(st.integers(0, 64_000)),
        "messages": [{"role": "user", "content": content}],
        "tools": draw(tools(asked)),
    }
    if draw(st.booleans()):
        asked.body["speed"] = draw(st.sampled_from(["standard", "fast"]))
    if draw(st.booleans()):
        asked.body["service_tier"] = draw(st.sampled_from(["auto", "standard_only"]))
    if draw(st.booleans()):
        asked.body["inference_geo"] = draw(st.sampled_from(["global", "us"]))
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["clear_thinking_20251015", "compact_20260112"]))
        asked.compacts = kind.startswith("compact")
        asked.body["context_management"] = {"edits": [{"type": kind}]}
    return asked


@st.composite
def counts(draw: st.DrawFn, asked: Asked, most_input: int, most_output: int, *, full: bool) -> dict[str, Any]:
    """The usage of one run: the input split over its kinds in any way. `full`: all of one kind, as much as can be."""
    if full:
        whole, output = most_input, most_output
        read, written = draw(st.sampled_from([(0, 0), (whole, 0), (0, whole)]))
        long = written if asked.one_hour else 0
    else:
        whole, output = draw(st.integers(0, most_input)), draw(st.integers(0, most_output))
        read = draw(st.integers(0, whole))
        written = draw(st.integers(0, whole - read))
        long = draw(st.integers(0, written)) if asked.one_hour else 0
    return {
        "input_tokens": whole - read - written,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "cache_creation": {"ephemeral_5m_input_tokens": written - long, "ephemeral_1h_input_tokens": long},
        "output_tokens": output,
    }


@st.composite
def usages(draw: st.DrawFn, asked: Asked, price: Price, *, batch: bool) -> dict[str, Any]:
    """What the vendor may report for a request."""
    assert price.context_window is not None
    assert price.max_output_tokens is not None
    looping = asked.runs > 1 or asked.compacts
    most_input = price.context_window if asked.unseen or looping else asked.shown
    full = draw(st.booleans())
    total: dict[str, Any] = {}
    for _ in range(asked.runs if full else draw(st.integers(1, asked.runs))):
        add(total, draw(counts(asked, most_input, asked.body["max_tokens"], full=full)))
    total["output_tokens_details"] = {"thinking_tokens": draw(st.integers(0, total["output_tokens"]))}
    total["server_tool_use"] = {"web_search_requests": draw(st.integers(0, asked.searches)), "web_fetch_requests": 3}
    if asked.compacts:
        step = counts(asked, most_input, price.max_output_tokens, full=full)
        steps = draw(st.lists(step, min_size=asked.runs if full else 0, max_size=asked.runs))
        total["iterations"] = [{"type": "compaction", **step} for step in steps]
    if asked.body.get("speed") == "fast":
        total["speed"] = draw(st.sampled_from(["fast", "standard"]))
    total["inference_geo"] = asked.body.get("inference_geo") or draw(st.sampled_from(["global", "us", "not_available"]))
    tiers = ["standard"] if asked.body.get("service_tier") == "standard_only" else ["standard", "priority"]
    total["service_tier"] = "batch" if batch else draw(st.sampled_from(tiers))
    return total


def add(total: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value


def cost_of(shape: AnswerShape, answer: dict[str, Any], facts: RequestFacts, price: Price) -> int:
    reader = BodyReader(shape, orjson.loads)
    reader.feed(orjson.dumps(answer))
    reading = reader.finish()
    return sum(each.cost_nano for each in price_usage(price, reading.usage, {**facts.context, **reading.context}))


@settings(max_examples=150, deadline=None)
@given(requests(), prices(), st.data())
def test_no_message_costs_more_than_its_bound(asked: Asked, price: Price, data: st.DataObject) -> None:
    facts = DIALECT.read_request(RouteRequest(MESSAGES, orjson.dumps(asked.body)))
    try:
        bound = strict_bound(price, facts.demand)
    except UnpricedComponentError:
        return
    usage = data.draw(usages(asked, price, batch=False))
    assert cost_of(facts.shape, {"type": "message", "usage": usage}, facts, price) <= bound.amount_nano


@settings(max_examples=60, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=4), prices(), st.data())
def test_no_batch_costs_more_than_its_bound(asked: list[Asked], price: Price, data: st.DataObject) -> None:
    entries = [{"custom_id": str(place), "params": each.body} for place, each in enumerate(asked)]
    facts = DIALECT.read_request(RouteRequest(BATCHES, orjson.dumps({"requests": entries})))
    try:
        bound_nano = sum(strict_bound(price, line.demand).amount_nano for line in facts.lines)
    except UnpricedComponentError:
        return
    shape = DIALECT.shapes[BATCH_RESULTS.name].shape
    cost = 0
    for place, each in enumerate(asked):
        usage = data.draw(usages(each, price, batch=True))
        line = {"custom_id": str(place), "result": {"type": "succeeded", "message": {"usage": usage}}}
        cost += cost_of(shape, line, facts, price)
    assert cost <= bound_nano
