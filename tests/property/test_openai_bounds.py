"""No answer that a request to OpenAI's routes can bring about costs more than its bound."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import orjson
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.core.estimate import UnpricedComponentError, strict_bound
from services.core.pricing import Price, Tier, Variant, price_usage
from services.core.usage.reading import BodyReader
from services.gateway.vendors import RequestFacts, Route, RouteRequest
from services.gateway.vendors import openai_routes as routes
from services.gateway.vendors.openai import OpenAIDialect
from tests.support.audio import wave
from tests.support.forms import FORM_TYPE, form

DIALECT = OpenAIDialect()
WINDOW = 200_000
MAX_OUTPUT = 4_000
PARTS = (
    "cache_read", "cache_write", "audio_input", "audio_cache_read", "image_input", "image_cache_read", "reasoning",
    "audio_output", "image_output",
)  # fmt: skip
FLAT = ("web_search", "file_search", "character", "image", "audio_duration", "request")
# The most tokens of one image, by OpenAI's published rules for each model.
IMAGE_TOKENS = {"gpt-4o": 85 + 8 * 170, "gpt-4o-mini": 2_833 + 8 * 5_667, "gpt-4.1-nano": 3_779, "gpt-6-sol": 10_000}
TIERS = {
    None: ({}, {"service_tier": "priority"}, {"service_tier": "default"}),
    "auto": ({}, {"service_tier": "priority"}),
    "default": ({"service_tier": "default"},),
    "flex": ({"service_tier": "default"}, {"service_tier": "flex"}),
    "priority": ({"service_tier": "default"}, {"service_tier": "priority"}),
}

rate = st.integers(0, 90_000_000_000)
words = st.text(max_size=60)


@st.composite
def rate_sets(draw: st.DrawFn, parts: list[str], flat: tuple[str, ...]) -> dict[str, int]:
    return {name: draw(rate) for name in ("input", "output", *parts, *flat)}


@st.composite
def prices(draw: st.DrawFn) -> Price:
    parts = draw(st.lists(st.sampled_from(PARTS), unique=True))
    flat = tuple(draw(st.lists(st.sampled_from(FLAT), unique=True)))
    starts = sorted(draw(st.sets(st.integers(1, 20_000), max_size=2)))
    return Price(
        draw(rate_sets(parts, flat)),
        tuple(Tier(start, draw(rate_sets(parts, flat))) for start in starts),
        max_output_tokens=MAX_OUTPUT,
        context_window=WINDOW,
        variants=tuple(
            Variant({"service_tier": tier}, draw(rate_sets(parts, flat)))
            for tier in draw(st.lists(st.sampled_from(["flex", "priority"]), unique=True))
        ),
        minimums={"audio_ms": draw(st.sampled_from([0, 10_000]))},
    )


def read(route: Route, body: bytes, content_type: str = "application/json") -> RequestFacts:
    return DIALECT.read_request(RouteRequest(route, body, content_type=content_type))


def assert_bounded(price: Price, facts: RequestFacts, answer: Mapping[str, Any], contexts: Any) -> None:
    try:
        bound = strict_bound(price, facts.demand)
    except UnpricedComponentError:
        assume(False)
    reader = BodyReader(facts.shape, orjson.loads)
    reader.feed(json.dumps(answer).encode())
    usage = {**facts.counted, **reader.finish().usage}
    for context in contexts:
        cost = sum(each.cost_nano for each in price_usage(price, usage, {**facts.context, **context}))
        assert cost <= bound.amount_nano


def text_size(value: Any) -> int:
    """The bytes of every text in a request: a token is at least one of them."""
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return sum(map(text_size, inner))


@st.composite
def parts_of(draw: st.DrawFn, most: int, *names: str) -> dict[str, int]:
    """Counts of parts of `most` that may overlap."""
    return {name: draw(st.integers(0, most)) for name in draw(st.lists(st.sampled_from(names), unique=True))}


# ---- chat completions -----------------------------------------------------------------------------------------------


@st.composite
def chats(draw: st.DrawFn) -> tuple[dict[str, Any], int, int]:
    """A request, and the most tokens it can make OpenAI count as input and output."""
    model = draw(st.sampled_from(list(IMAGE_TOKENS)))
    text = draw(words)
    content: list[Any] = [{"type": "text", "text": text}]
    tokens = len(text.encode()) + 10
    for kind in draw(st.lists(st.sampled_from(["image", "data image", "audio", "file"]), max_size=3)):
        if kind in ("image", "data image"):
            url = (
                "https://example.com/i"
                if kind == "image"
                else "data:image/png;base64," + "A" * draw(st.integers(0, 90))
            )
            content.append({"type": "image_url", "image_url": {"url": url}})
            tokens += IMAGE_TOKENS[model]
        elif kind == "audio":
            seconds = draw(st.integers(1, 3))
            content.append(
                {
                    "type": "input_audio",
                    "input_audio": {"data": base64.b64encode(wave(seconds)).decode(), "format": "wav"},
                }
            )
            tokens += 10 * seconds
        else:
            content.append({"type": "file", "file": {"file_id": "file-1"}})
            tokens = WINDOW
    fields: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": content}]}
    fields["n"] = choices = draw(st.integers(1, 4))
    limits = draw(st.dictionaries(st.sampled_from(["max_tokens", "max_completion_tokens"]), st.integers(1, 50)))
    fields |= limits
    written = max(limits.values(), default=MAX_OUTPUT)
    if limits and draw(st.booleans()):
        fields["prediction"] = {"type": "content", "content": draw(words)}
        written += text_size(fields["prediction"]["content"])
    if draw(st.booleans()):
        fields["modalities"] = ["text", "audio"]
    if draw(st.booleans()):
        fields["web_search_options"] = {}
        tokens = WINDOW
    fields["service_tier"] = draw(st.sampled_from(list(TIERS)))
    return fields, tokens, written * choices


@settings(max_examples=120, deadline=None)
@given(price=prices(), chat=chats(), data=st.data())
def test_chat_completions(price: Price, chat: tuple[dict[str, Any], int, int], data: st.DataObject) -> None:
    fields, most_in, most_out = chat
    tokens, written = data.draw(st.integers(0, most_in)), data.draw(st.integers(0, most_out))
    names_in = ["cached_tokens", "cache_write_tokens"]
    content = fields["messages"][0]["content"]
    if any(part["type"] == "input_audio" for part in content):
        names_in.append("audio_tokens")
    if any(part["type"] in ("image_url", "file") for part in content):
        names_in.append("image_tokens")
    names_out = ["reasoning_tokens", "rejected_prediction_tokens"]
    if "modalities" in fields:
        names_out.append("audio_tokens")
    used = {
        "prompt_tokens": tokens,
        "completion_tokens": written,
        "total_tokens": tokens + written,
        "prompt_tokens_details": data.draw(parts_of(tokens, *names_in)),
        "completion_tokens_details": data.draw(parts_of(written, *names_out)),
    }
    facts = read(routes.CHAT, orjson.dumps(fields))
    assert_bounded(price, facts, {"choices": [], "usage": used}, TIERS[fields["service_tier"]])


@settings(max_examples=80, deadline=None)
@given(price=prices(), chat=chats(), data=st.data())
def test_reasoning_beside_the_completion_stays_within_the_limit(
    price: Price, chat: tuple[dict[str, Any], int, int], data: st.DataObject
) -> None:
    """xAI's limit holds reasoning and answer together, whichever way it reports them."""
    fields, most_in, most_out = chat
    tokens, written = data.draw(st.integers(0, most_in)), data.draw(st.integers(0, most_out))
    reasoning = data.draw(st.integers(0, written))
    used = {
        "prompt_tokens": tokens,
        "completion_tokens": written - reasoning,
        "total_tokens": tokens + written,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    facts = read(routes.CHAT, orjson.dumps(fields))
    assert_bounded(price, facts, {"choices": [], "usage": used}, TIERS[fields["service_tier"]])


# ---- responses ------------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(
    price=prices(),
    text=words,
    images=st.integers(0, 2),
    kept=st.sampled_from([None, "previous_response_id", "conversation"]),
    limit=st.none() | st.integers(1, 60),
    searches=st.sampled_from([None, "web_search", "file_search"]),
    calls=st.integers(1, 4),
    tier=st.sampled_from(list(TIERS)),
    data=st.data(),
)
def test_responses(
    price: Price, text: str, images: int, kept: str | None, limit: int | None, searches: str | None, calls: int,
    tier: str | None, data: st.DataObject,
) -> None:  # fmt: skip
    content = [{"type": "input_text", "text": text}]
    content += [{"type": "input_image", "image_url": "https://example.com/i"}] * images
    fields: dict[str, Any] = {
        "model": "gpt-6-sol",
        "input": [{"role": "user", "content": content}],
        "service_tier": tier,
    }
    fields |= {} if limit is None else {"max_output_tokens": limit}
    fields |= {} if kept is None else {kept: "id_1"}
    tokens = text_size(text) + 10 + images * IMAGE_TOKENS["gpt-6-sol"]
    most_in = WINDOW if kept is not None else tokens
    items = []
    if searches is not None:
        fields |= {"tools": [{"type": searches, "vector_store_ids": ["vs_1"]}], "max_tool_calls": calls}
        # Each call's results are read in a run of its own, and each run may fill the window.
        most_in = WINDOW * (calls + 1)
        items = [{"type": searches + "_call", "action": {"type": "search"}}] * data.draw(st.integers(0, calls))
    read_in = data.draw(st.integers(0, most_in))
    written = data.draw(st.integers(0, limit if limit is not None else MAX_OUTPUT))
    names = ["cached_tokens", "cache_write_tokens"] + (["image_tokens"] if images else [])
    used = {
        "input_tokens": read_in,
        "input_tokens_details": data.draw(parts_of(read_in, *names)),
        "output_tokens": written,
        "output_tokens_details": data.draw(parts_of(written, "reasoning_tokens")),
    }
    facts = read(routes.RESPONSES, orjson.dumps(fields))
    assert_bounded(price, facts, {"output": items, "usage": used, "status": "completed"}, TIERS[tier])


# ---- completions and embeddings -------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    price=prices(),
    prompt=words | st.lists(words, min_size=1, max_size=4) | st.lists(st.integers(0, 99), min_size=1, max_size=9),
    n=st.integers(1, 3),
    best_of=st.integers(1, 5),
    limit=st.none() | st.integers(0, 60),
    echo=st.booleans(),
    data=st.data(),
)
def test_completions(
    price: Price, prompt: Any, n: int, best_of: int, limit: int | None, echo: bool, data: st.DataObject
) -> None:
    fields = {"model": "m", "prompt": prompt, "n": n, "best_of": best_of, "max_tokens": limit, "echo": echo}
    is_tokens = isinstance(prompt, list) and isinstance(prompt[0], int)
    prompts = len(prompt) if isinstance(prompt, list) and not is_tokens else 1
    tokens = len(prompt) if is_tokens else text_size(prompt)
    most_out = (MAX_OUTPUT if limit is None else limit) * max(n, best_of) * prompts
    if echo and limit is not None:
        most_out += tokens * max(n, best_of)  # as servers count that repeat the prompt
    read_in, written = data.draw(st.integers(0, tokens)), data.draw(st.integers(0, most_out))
    used = {"prompt_tokens": read_in, "completion_tokens": written, "total_tokens": read_in + written}
    assert_bounded(price, read(routes.COMPLETIONS, orjson.dumps(fields)), {"choices": [], "usage": used}, TIERS[None])


@settings(max_examples=60, deadline=None)
@given(
    price=prices(),
    given_input=words | st.lists(words, min_size=1, max_size=6) | st.lists(st.integers(0, 99), min_size=1, max_size=9),
    data=st.data(),
)
def test_embeddings(price: Price, given_input: Any, data: st.DataObject) -> None:
    is_tokens = isinstance(given_input, list) and isinstance(given_input[0], int)
    tokens = len(given_input) if is_tokens else text_size(given_input)
    # Some models put a token before and after each text.
    tokens += 2 * (len(given_input) if isinstance(given_input, list) else 1)
    read_in = data.draw(st.integers(0, tokens))
    facts = read(routes.EMBEDDINGS, orjson.dumps({"model": "m", "input": given_input}))
    assert_bounded(
        price, facts, {"data": [], "usage": {"prompt_tokens": read_in, "total_tokens": read_in}}, TIERS[None]
    )


# ---- images and audio -----------------------------------------------------------------------------------------------

IMAGE_OUTPUT = {"low": 272, "medium": 1_056, "high": 6_240}


@settings(max_examples=80, deadline=None)
@given(
    price=prices(),
    prompt=words,
    n=st.integers(1, 3),
    partial=st.integers(0, 3),
    quality=st.sampled_from(list(IMAGE_OUTPUT)),
    inputs=st.integers(0, 3),
    data=st.data(),
)
def test_images(
    price: Price, prompt: str, n: int, partial: int, quality: str, inputs: int, data: st.DataObject
) -> None:
    texts = (
        ("model", "gpt-image-1"),
        ("prompt", prompt),
        ("n", str(n)),
        ("quality", quality),
        ("partial_images", str(partial)),
    )
    body = form(
        *((name, value.replace("\r", "").replace("\n", "")) for name, value in texts), *[("image[]", b"png")] * inputs
    )
    # High fidelity adds 6,240 tokens to the 65 and 129 for each of 8 tiles of an image (OpenAI, "Image generation").
    tokens = n * (text_size(prompt) + inputs * (65 + 8 * 129 + 6_240))
    written = n * (IMAGE_OUTPUT[quality] + 100 * partial)
    read_in = data.draw(st.integers(0, tokens))
    used = {
        "input_tokens": read_in,
        "input_tokens_details": data.draw(parts_of(read_in, "image_tokens", "cached_tokens")),
        "output_tokens": data.draw(st.integers(0, written)),
    }
    facts = read(routes.EDITS, body, FORM_TYPE)
    assert_bounded(price, facts, {"data": [], "usage": used}, ({},))


@settings(max_examples=60, deadline=None)
@given(price=prices(), n=st.integers(1, 10), data=st.data())
def test_images_priced_by_the_image(price: Price, n: int, data: st.DataObject) -> None:
    facts = read(routes.IMAGES, orjson.dumps({"model": "dall-e-3", "prompt": "x", "n": n, "size": "1024x1024"}))
    assert_bounded(price, facts, {"data": [{}] * data.draw(st.integers(0, n))}, ({},))


@settings(max_examples=60, deadline=None)
@given(price=prices(), text=words, model=st.sampled_from(["tts-1", "gpt-4o-mini-tts"]), data=st.data())
def test_speech(price: Price, text: str, model: str, data: st.DataObject) -> None:
    facts = read(routes.SPEECH, orjson.dumps({"model": model, "input": text}))
    # At the slowest speed, a quarter of fifteen characters a second, at 20 tokens a second.
    used = {
        "input_tokens": data.draw(st.integers(0, text_size(text) + 10)),
        "output_tokens": data.draw(st.integers(0, 20 * (4 * len(text) // 15 + 1))),
    }
    assert_bounded(price, facts, {} if model == "tts-1" else {"usage": used}, ({},))


@settings(max_examples=60, deadline=None)
@given(
    price=prices(),
    seconds=st.floats(0.1, 5),
    prompt=words,
    model=st.sampled_from(["whisper-1", "gpt-4o-transcribe"]),
    verbose=st.booleans(),
    data=st.data(),
)
def test_transcriptions(
    price: Price, seconds: float, prompt: str, model: str, verbose: bool, data: st.DataObject
) -> None:
    said = prompt.replace("\r", "").replace("\n", "")
    facts = read(routes.TRANSCRIPTIONS, form(("model", model), ("prompt", said), ("file", wave(seconds))), FORM_TYPE)
    heard = data.draw(st.floats(0, seconds))
    if model == "whisper-1":
        billed = {"type": "duration", "seconds": -(-heard // 1)}
        assert_bounded(price, facts, {"duration": heard} if verbose else {"usage": billed}, ({},))
        return
    audio = int(heard * 10)
    text = data.draw(st.integers(0, text_size(said)))
    used = {
        "input_tokens": audio + text,
        "input_token_details": {"audio_tokens": audio, "text_tokens": text},
        "output_tokens": data.draw(st.integers(0, MAX_OUTPUT)),
    }
    assert_bounded(price, facts, {"text": "", "usage": used}, ({},))


def test_every_held_route_is_bounded_above() -> None:
    proven = {
        routes.CHAT, routes.RESPONSES, routes.COMPACT, routes.COMPLETIONS, routes.EMBEDDINGS, routes.IMAGES,
        routes.EDITS, routes.VARIATIONS, routes.SPEECH, routes.TRANSCRIPTIONS, routes.TRANSLATIONS,
    }  # fmt: skip
    assert {each for each in DIALECT.routes if each.billing == "held"} == proven
