"""No answer that a Gemini request can bring about costs more than its bound."""

import base64
import json
import struct
from dataclasses import dataclass, field
from typing import Any

import orjson
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.core.estimate import UnpricedComponentError, strict_bound
from services.core.pricing import Price, Tier, Variant, price_usage
from services.core.usage.reading import BodyReader
from services.gateway.vendors import Route, RouteRequest
from services.gateway.vendors.google import GoogleDialect

DIALECT = GoogleDialect()
IMAGE = "iVBORw0KGgoAAAANSUhEUgAA"
PARTS = (
    "cache_read", "audio_input", "audio_cache_read", "image_input", "image_cache_read", "video_input", "reasoning",
    "audio_output", "image_output", "video_output", "web_search",
)  # fmt: skip
OUTPUT = ("output", "reasoning", "audio_output", "image_output", "video_output")
INPUT = ("input", *(name for name in PARTS if name not in OUTPUT))
IMAGE_TOKENS = 6_450
DRAWN_TOKENS = 25_200

rate = st.integers(0, 90_000_000_000)


def route(name: str) -> Route:
    return next(each for each in DIALECT.routes if each.name == name)


@st.composite
def rate_sets(draw: st.DrawFn, parts: list[str], free: tuple[str, ...]) -> dict[str, int]:
    """Rates, now and then one for all: then nothing but the number of tokens is left to be bounded."""
    one = draw(st.none() | st.just(5_000_000_000))
    return {name: 0 if name in free else draw(rate) if one is None else one for name in ("input", "output", *parts)}


@st.composite
def prices(draw: st.DrawFn) -> Price:
    parts = draw(st.lists(st.sampled_from(PARTS), unique=True))
    # Where one side costs nothing, no slack of it can hide that the other is bounded too low.
    free = draw(st.sampled_from([(), INPUT, OUTPUT]))
    plain = draw(st.booleans())
    starts = [] if plain else sorted(draw(st.sets(st.integers(1, 20_000), max_size=2)))
    return Price(
        draw(rate_sets(parts, free)),
        tuple(Tier(start, draw(rate_sets(parts, free))) for start in starts),
        max_output_tokens=draw(st.none() | st.integers(1, 100_000)),
        context_window=draw(st.integers(20_000, 2_000_000)),
        variants=tuple(
            Variant({"service_tier": tier}, draw(rate_sets(parts, free)))
            for tier in ([] if plain else draw(st.lists(st.sampled_from(["flex", "priority"]), unique=True)))
        ),
    )


@dataclass
class Asked:
    """A request, and what may be counted for it, by the vendor's rules and not by the code under test."""

    body: dict[str, Any] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("TEXT", "IMAGE", "AUDIO"), 0))
    unseen: bool = False


def wave(rate_hz: int, channels: int, seconds: int) -> str:
    size = rate_hz * channels * 2 * seconds
    head = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt "
    head += struct.pack("<IHHIIHH", 16, 1, channels, rate_hz, rate_hz * channels * 2, channels * 2, 16)
    return base64.b64encode(head + b"data" + struct.pack("<I", size) + bytes(size)).decode()


@st.composite
def asked_parts(draw: st.DrawFn, asked: Asked) -> dict[str, Any]:
    kind = draw(st.sampled_from(["text", "text", "image", "audio", "file", "video", "text file"]))
    data, mime, both = ("inline_data", "mime_type", st.booleans())
    if draw(both):
        data, mime = "inlineData", "mimeType"
    if kind == "text":
        text = draw(st.text(max_size=40))
        asked.most["TEXT"] += len(text.encode(errors="replace"))
        return {"text": text}
    if kind == "text file":
        text = draw(st.text(st.characters(codec="utf-8"), max_size=40))
        asked.most["TEXT"] += len(text.encode())
        return {data: {mime: "text/csv", "data": base64.b64encode(text.encode()).decode()}}
    if kind == "image":
        asked.most["IMAGE"] += IMAGE_TOKENS
        return {data: {mime: "image/png", "data": IMAGE}}
    if kind == "audio":
        seconds = draw(st.integers(0, 3))
        asked.most["AUDIO"] += 32 * seconds
        return {data: {mime: "audio/wav", "data": wave(draw(st.integers(8, 80)), draw(st.integers(1, 2)), seconds)}}
    asked.unseen = True
    if kind == "file":
        return {"fileData": {"mimeType": "application/pdf", "fileUri": "https://example.com/a.pdf"}}
    return {data: {mime: "video/mp4", "data": IMAGE}}


@st.composite
def contents(draw: st.DrawFn, asked: Asked) -> dict[str, Any]:
    parts = [draw(asked_parts(asked)) for _ in range(draw(st.integers(1, 4)))]
    asked.most["TEXT"] += 8  # What a chat template puts around a turn.
    return {"role": "user", "parts": parts}


@st.composite
def split(draw: st.DrawFn, total: int, names: list[str]) -> list[dict[str, Any]]:
    counts = []
    for name in names:
        count = draw(st.integers(0, total))
        total -= count
        counts.append({"modality": name, "tokenCount": count})
    return counts


@st.composite
def prompt_usage(draw: st.DrawFn, asked: Asked, window: int) -> dict[str, Any]:
    if asked.unseen:
        prompt = draw(st.integers(0, window) | st.just(window))
        details = draw(split(prompt, ["AUDIO", "VIDEO", "IMAGE"]))
        tools = draw(st.integers(0, window - prompt))
    else:
        tools = 0
        counts = {name: draw(st.integers(0, most) | st.just(most)) for name, most in asked.most.items()}
        details = [{"modality": name, "tokenCount": count} for name, count in counts.items()]
        prompt = sum(counts.values())
    cached = draw(st.integers(0, prompt))
    by = {each["modality"]: each["tokenCount"] for each in details}
    audio = draw(st.integers(0, min(cached, by.get("AUDIO", 0))))
    image = draw(st.integers(0, min(cached - audio, by.get("IMAGE", 0))))
    return {
        "promptTokenCount": prompt,
        "promptTokensDetails": details,
        "toolUsePromptTokenCount": tools,
        "cachedContentTokenCount": cached,
        "cacheTokensDetails": [
            {"modality": "AUDIO", "tokenCount": audio},
            {"modality": "IMAGE", "tokenCount": image},
        ],
    }


def cost_of(price: Price, facts: Any, answer: dict[str, Any]) -> int:
    reader = BodyReader(facts.shape, orjson.loads)
    reader.feed(orjson.dumps(answer))
    reading = reader.finish()
    return sum(each.cost_nano for each in price_usage(price, reading.usage, {**facts.context, **reading.context}))


@settings(max_examples=150, deadline=None)
@given(st.data(), prices())
def test_no_generated_content_costs_more_than_its_bound(data: st.DataObject, price: Price) -> None:
    draw = data.draw
    asked = Asked()
    asked.body["contents"] = [draw(contents(asked)) for _ in range(draw(st.integers(1, 3)))]
    model = draw(st.sampled_from(["gemini-2.5-flash", "gemini-2.5-flash-image", "gemini-4-argon"]))
    config: dict[str, Any] = {}
    limit = draw(st.none() | st.integers(1, 5_000))
    if limit is not None:
        config[draw(st.sampled_from(["maxOutputTokens", "max_output_tokens"]))] = limit
    choices = draw(st.none() | st.integers(1, 8))
    if choices is not None:
        config[draw(st.sampled_from(["candidateCount", "candidate_count"]))] = choices
    budget = draw(st.sampled_from([None, -1, 0, 4_000, 24_576]))
    if budget is not None:
        config["thinkingConfig"] = {"thinkingBudget": budget}
    draws = "image_output" in price.rates and draw(st.booleans())
    if draws:
        config["responseModalities"] = ["TEXT", "IMAGE"]
    asked.body[draw(st.sampled_from(["generationConfig", "generation_config"]))] = config
    searches = "web_search" in price.rates and model.startswith("gemini-2") and draw(st.booleans())
    if searches:
        asked.unseen = True
        asked.body["tools"] = [{draw(st.sampled_from(["googleSearch", "google_search"])): {}}]
    dearer = any(each.when["service_tier"] == "priority" for each in price.variants)
    tier = draw(st.sampled_from([None, "flex", "priority"] if dearer else [None, "flex"]))
    if tier:
        asked.body["serviceTier"] = tier
    if draw(st.booleans()):
        asked.unseen = True
        asked.body["cachedContent"] = "cachedContents/abc"

    body = json.dumps(asked.body, ensure_ascii=draw(st.booleans())).encode(errors="replace")
    facts = DIALECT.read_request(RouteRequest(route("generateContent"), body, {"model": model}))
    bound = strict_bound(price, facts.demand)

    window = price.context_window or 0
    most = price.max_output_tokens or window
    if limit is not None:
        most = max(limit, budget or 0) + DRAWN_TOKENS * (draws or "image" in model)
    output = draw(st.integers(0, most * (choices or 1)) | st.just(most * (choices or 1)))
    thoughts = draw(st.integers(0, output))
    answered = draw(
        st.sampled_from({None: [None, "standard"], "flex": [None, "flex", "standard"]}.get(tier, [None, tier]))
    )
    usage = draw(prompt_usage(asked, window)) | {
        "candidatesTokenCount": output - thoughts,
        "thoughtsTokenCount": thoughts,
        "candidatesTokensDetails": draw(split(output - thoughts, ["AUDIO", "IMAGE"])),
        "serviceTier": answered,
    }
    queries = draw(st.lists(st.text(max_size=3), max_size=5)) if searches else []
    candidate = {"finishReason": "STOP", "groundingMetadata": {"webSearchQueries": queries}}
    named = {"modelVersion": model} if draw(st.booleans()) else {}
    assert cost_of(price, facts, {"candidates": [candidate], "usageMetadata": usage, **named}) <= bound.amount_nano


@settings(max_examples=80, deadline=None)
@given(st.data(), prices(), st.booleans())
def test_no_embeddings_cost_more_than_their_bound(data: st.DataObject, price: Price, many: bool) -> None:
    draw = data.draw
    asked = Asked()
    requests = []
    windows = 0
    for _ in range(draw(st.integers(1, 3)) if many else 1):
        one = Asked()
        requests.append({"model": "models/gemini-embedding-2", "content": draw(contents(one))})
        windows += 1
        asked.unseen |= one.unseen
        for name, most in one.most.items():
            asked.most[name] += most
    body = json.dumps({"requests": requests} if many else requests[0]).encode(errors="replace")
    name = "batchEmbedContents" if many else "embedContent"
    facts = DIALECT.read_request(RouteRequest(route(name), body, {"model": "gemini-embedding-2"}))
    try:
        bound = strict_bound(price, facts.demand)
    except UnpricedComponentError:
        assume(False)
        raise
    usage = draw(prompt_usage(asked, (price.context_window or 0) * windows))
    usage["toolUsePromptTokenCount"] = 0
    assert cost_of(price, facts, {"usageMetadata": usage}) <= bound.amount_nano
