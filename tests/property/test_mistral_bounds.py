"""No answer that a Mistral request can bring about costs more than its bound."""

import base64
import json
import struct
from typing import Any

import orjson
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.core.estimate import UnpricedComponentError, strict_bound
from services.core.pricing import Price, Variant, price_usage
from services.core.usage.reading import BodyReader
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.mistral import MistralDialect

DIALECT = MistralDialect()
PICTURE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA"
IMAGE_TOKENS = 4_160
PARTS = ("cache_read", "image_input", "reasoning", "audio_duration", "page", "annotated_page", "request")

rate = st.integers(0, 90_000_000_000)


@st.composite
def rate_sets(draw: st.DrawFn, parts: list[str], free: tuple[str, ...]) -> dict[str, int]:
    """Rates, now and then one for all: then nothing but the number of tokens is left to be bounded."""
    one = draw(st.none() | rate)
    return {name: 0 if name in free else draw(rate) if one is None else one for name in ("input", "output", *parts)}


@st.composite
def prices(draw: st.DrawFn) -> Price:
    parts = draw(st.lists(st.sampled_from(PARTS), unique=True))
    # Where one side costs nothing, no slack of it can hide that the other is bounded too low.
    free = draw(st.sampled_from([(), ("input", "cache_read", "image_input"), ("output", "reasoning")]))
    tiers = draw(st.lists(st.just("priority"), max_size=1))
    return Price(
        draw(rate_sets(parts, free)),
        max_output_tokens=draw(st.none() | st.integers(1, 100_000)),
        context_window=draw(st.integers(1_000, 300_000)),
        variants=tuple(Variant({"service_tier": tier}, draw(rate_sets(parts, free))) for tier in tiers),
        minimums=draw(st.sampled_from([{}, {"audio_ms": 10_000}])),
    )


def read(name: str, body: bytes, content_type: str = "application/json") -> RequestFacts:
    route = next(each for each in DIALECT.routes if each.name == name)
    return DIALECT.read_request(RouteRequest(route, body, content_type=content_type))


def bound_of(price: Price, facts: RequestFacts) -> int:
    try:
        return strict_bound(price, facts.demand).amount_nano
    except UnpricedComponentError:
        assume(False)
        raise


def cost_of(price: Price, facts: RequestFacts, answer: dict[str, Any]) -> int:
    reader = BodyReader(facts.shape, orjson.loads)
    reader.feed(orjson.dumps(answer))
    reading = reader.finish()
    return sum(each.cost_nano for each in price_usage(price, reading.usage, {**facts.context, **reading.context}))


def wave(seconds: int) -> bytes:
    size = seconds * 200
    head = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 100, 200, 2, 16)
    return head + b"data" + struct.pack("<I", size) + bytes(size)


@settings(max_examples=120, deadline=None)
@given(st.data(), prices())
def test_no_chat_costs_more_than_its_bound(data: st.DataObject, price: Price) -> None:
    draw = data.draw
    most = 0
    seconds = 0
    parts: list[dict[str, Any]] = []
    for kind in draw(st.lists(st.sampled_from(["text", "image", "audio", "thinking"]), min_size=1, max_size=4)):
        if kind == "text":
            text = draw(st.text(max_size=40))
            most += len(text.encode(errors="replace"))
            parts.append({"type": "text", "text": text})
        elif kind == "thinking":
            parts.append({"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]})
            most += 2
        elif kind == "image":
            parts.append({"type": "image_url", "image_url": draw(st.sampled_from([PICTURE, {"url": PICTURE}]))})
            most += IMAGE_TOKENS
        else:
            length = draw(st.integers(1, 40))
            seconds += length
            most += 375 * -(-length // 30)
            parts.append({"type": "input_audio", "input_audio": base64.b64encode(wave(length)).decode()})
    body: dict[str, Any] = {"model": "voxtral-small-latest", "messages": [{"role": "user", "content": parts}]}
    most += 8  # What a chat template puts around a turn.
    limit = draw(st.none() | st.integers(1, 5_000))
    if limit is not None:
        body["max_tokens"] = limit
    choices = draw(st.none() | st.integers(1, 9))
    if choices is not None:
        body["n"] = choices
    predicted = 0
    if limit is not None and draw(st.booleans()):
        content = draw(st.text(max_size=30)) * 40
        predicted = len(content.encode(errors="replace"))
        body["prediction"] = {"type": "content", "content": content}
    tier = draw(st.sampled_from([None, "standard", "priority"]))
    if tier is not None:
        body["service_tier"] = tier
    facts = read("chat.completions", json.dumps(body, ensure_ascii=draw(st.booleans())).encode(errors="replace"))
    bound = bound_of(price, facts)

    written = (price.max_output_tokens or price.context_window or 0) if limit is None else limit + predicted
    output = draw(st.integers(0, written * (choices or 1)) | st.just(written * (choices or 1)))
    prompt = draw(st.integers(0, most) | st.just(most))
    served = draw(st.sampled_from([None, "standard"] if tier == "standard" else [None, "standard", "priority"]))
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "prompt_tokens_details": {"cached_tokens": draw(st.integers(0, prompt))},
        "completion_tokens_details": {"reasoning_tokens": draw(st.integers(0, output))},
        "service_tier": served,
        **({"prompt_audio_seconds": seconds} if seconds else {}),
    }
    assert cost_of(price, facts, {"usage": usage}) <= bound


@settings(max_examples=50, deadline=None)
@given(st.data(), prices(), st.text(max_size=60), st.none() | st.integers(1, 500))
def test_no_code_costs_more_than_its_bound(data: st.DataObject, price: Price, prompt: str, limit: int | None) -> None:
    body = {"model": "codestral-latest", "prompt": prompt, "suffix": prompt, "max_tokens": limit}
    facts = read("fim.completions", json.dumps(body).encode(errors="replace"))
    bound = bound_of(price, facts)
    written = (price.max_output_tokens or price.context_window or 0) if limit is None else limit
    most = 2 * len(prompt.encode(errors="replace")) + 8
    usage = {
        "prompt_tokens": data.draw(st.integers(0, most)),
        "completion_tokens": data.draw(st.integers(0, written)),
        "num_cached_tokens": data.draw(st.integers(0, most)),
    }
    assert cost_of(price, facts, {"usage": usage}) <= bound


@settings(max_examples=50, deadline=None)
@given(st.data(), prices(), st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_no_embeddings_or_moderations_cost_more_than_their_bound(
    data: st.DataObject, price: Price, texts: list[str]
) -> None:
    name = data.draw(st.sampled_from(["embeddings", "moderations", "classifications"]))
    facts = read(name, json.dumps({"model": "m", "input": texts}).encode(errors="replace"))
    around = 2 if name == "embeddings" else 200
    most = sum(len(text.encode(errors="replace")) + around for text in texts)
    usage = {"prompt_tokens": data.draw(st.integers(0, most)), "completion_tokens": data.draw(st.integers(0, 9))}
    assert cost_of(price, facts, {"usage": usage}) <= bound_of(price, facts)


@settings(max_examples=50, deadline=None)
@given(st.data(), prices(), st.lists(st.integers(0, 9_999), min_size=1, max_size=30), st.booleans(), st.booleans())
def test_no_ocr_costs_more_than_its_bound(
    data: st.DataObject, price: Price, numbers: list[int], as_text: bool, annotated: bool
) -> None:
    body: dict[str, Any] = {"model": "mistral-ocr-latest", "document": {"type": "file", "file_id": "f"}}
    chosen = data.draw(st.booleans())
    if chosen:
        body["pages"] = ",".join(map(str, numbers)) if as_text else numbers
    if annotated:
        body["document_annotation_format"] = {"type": "json_schema"}
    facts = read("ocr", json.dumps(body).encode())
    bound = bound_of(price, facts)
    pages = data.draw(st.integers(0, len(set(numbers)) if chosen else 1_000))
    answer: dict[str, Any] = {"usage_info": {"pages_processed": pages}, "pages": []}
    if annotated:
        answer["document_annotation"] = "{}"
    assert cost_of(price, facts, answer) <= bound


@settings(max_examples=50, deadline=None)
@given(st.data(), prices(), st.integers(1, 50), st.sampled_from(["voxtral-mini-latest", "voxtral-small-latest"]))
def test_no_transcription_costs_more_than_its_bound(
    data: st.DataObject, price: Price, seconds: int, model: str
) -> None:
    head = f'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n--B\r\n'
    head += 'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = head.encode() + wave(seconds) + b"\r\n--B--\r\n"
    facts = read("audio.transcriptions", body, "multipart/form-data; boundary=B")
    bound = bound_of(price, facts)
    written = price.max_output_tokens or price.context_window or 0
    usage = {
        "prompt_audio_seconds": seconds,
        "prompt_tokens": data.draw(st.integers(0, 375 * -(-seconds // 30))),
        "completion_tokens": data.draw(st.integers(0, written)),
    }
    assert cost_of(price, facts, {"usage": usage, "text": ""}) <= bound
