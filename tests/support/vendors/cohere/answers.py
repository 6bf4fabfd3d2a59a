"""Cohere's answers: chat of both versions, embed, rerank, tokenize and models."""

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any

from tests.support.vendors.framing import DONE, data_events, json_lines, named_events

MODEL = "command-a-03-2025"
HELLO = "Hello! How can I help you today?"
WORDS = ("Hello", "!", " How", " can", " I", " help", " you", " today", "?")
ID = "c14c80c3-18eb-4519-9460-6c92edd8cfb4"


def usage(
    billed_input: float = 5,
    billed_output: float = 9,
    tokens_input: float | None = 71,
    tokens_output: float | None = 9,
    *,
    cached: float | None = None,
    search_units: float | None = None,
    classifications: float | None = None,
) -> dict[str, Any]:
    """The usage of v2 chat. Only ``billed_units`` are charged; ``tokens`` count the vendor's own prompt too.

    `cached` is a part of the input tokens. What is None is left out.
    """
    units = {
        "input_tokens": billed_input,
        "output_tokens": billed_output,
        "search_units": search_units,
        "classifications": classifications,
    }
    answer: dict[str, Any] = {"billed_units": _known(units)}
    tokens = _known({"input_tokens": tokens_input, "output_tokens": tokens_output})
    answer |= {"tokens": tokens} if tokens else {}
    return answer | ({} if cached is None else {"cached_tokens": cached})


def meta(
    version: str = "1",
    tokens: tuple[float, float] | None = None,
    cached: float | None = None,
    warnings: Sequence[str] = (),
    **billed: float,
) -> dict[str, Any]:
    """The ``meta`` of everything but v2 chat. `billed`: input_tokens, output_tokens, search_units, images,
    image_tokens, classifications, pages; `tokens`: input and output."""
    answer: dict[str, Any] = {"api_version": {"version": version}, "billed_units": billed}
    if tokens is not None:
        answer["tokens"] = {"input_tokens": tokens[0], "output_tokens": tokens[1]}
    answer |= {} if cached is None else {"cached_tokens": cached}
    return answer | ({"warnings": list(warnings)} if warnings else {})


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def tool_call(name: str = "get_weather", arguments: object = None) -> dict[str, Any]:
    """A call of a function in v2."""
    text = json.dumps({"city": "Zürich"} if arguments is None else arguments, ensure_ascii=False)
    return {"id": f"{name}_qw4s7d9f", "type": "function", "function": {"name": name, "arguments": text}}


def chat_v2(
    text: str | None = HELLO,
    tool_calls: Sequence[dict[str, Any]] = (),
    used: dict[str, Any] | None = None,
    finish_reason: str | None = None,
    thinking: str | None = None,
) -> dict[str, Any]:
    """A JSON answer of v2 chat. It does not name its model. `used` None: `usage()`."""
    message: dict[str, Any] = {"role": "assistant"}
    content = [] if thinking is None else [{"type": "thinking", "thinking": thinking}]
    if tool_calls:
        message |= {"tool_plan": "I will look that up.", "tool_calls": list(tool_calls)}
    elif text is not None:
        content.append({"type": "text", "text": text})
    if content:
        message["content"] = content
    reason = finish_reason or ("TOOL_CALL" if tool_calls else "COMPLETE")
    return {"id": ID, "message": message, "finish_reason": reason, "usage": usage() if used is None else used}


def steps_v2(whole: dict[str, Any], words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The events of a v2 stream that ends in `whole`; usage is in the last. `words` None: texts in pieces of seven."""
    message = whole["message"]
    steps: list[dict[str, Any]] = [{"type": "message-start", "id": ID, "delta": {"message": {"role": "assistant"}}}]
    for index, part in enumerate(message.get("content", ())):
        kind = part["type"]
        pieces = list(words) if words is not None and kind == "text" else _pieces(part[kind])
        blank = {"type": kind, kind: ""}
        steps.append({"type": "content-start", "index": index, "delta": {"message": {"content": blank}}})
        steps += [
            {"type": "content-delta", "index": index, "delta": {"message": {"content": {kind: piece}}}}
            for piece in pieces
        ]
        steps.append({"type": "content-end", "index": index})
    steps += [
        {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": piece}}}
        for piece in _pieces(message.get("tool_plan", ""))
    ]
    for index, call in enumerate(message.get("tool_calls", ())):
        steps += [{**step, "index": index} for step in _call_steps(call)]
    end = {"finish_reason": whole["finish_reason"], "usage": whole["usage"]}
    return [*steps, {"type": "message-end", "id": ID, "delta": end}]


def _call_steps(call: dict[str, Any]) -> list[dict[str, Any]]:
    begun = {**call, "function": {**call["function"], "arguments": ""}}
    deltas = [{"function": {"arguments": piece}} for piece in _pieces(call["function"]["arguments"])]
    return [
        {"type": "tool-call-start", "delta": {"message": {"tool_calls": begun}}},
        *({"type": "tool-call-delta", "delta": {"message": {"tool_calls": delta}}} for delta in deltas),
        {"type": "tool-call-end"},
    ]


def _pieces(text: str, length: int = 7) -> list[str]:
    return [text[place : place + length] for place in range(0, len(text), length)]


def stream_v2(whole: dict[str, Any] | None = None, words: Sequence[str] | None = None) -> list[bytes]:
    """A v2 stream: named events and the closing ``[DONE]``."""
    return [*named_events(steps_v2(chat_v2() if whole is None else whole, words)), DONE]


def chat_v1(
    text: str = HELLO,
    tool_calls: Sequence[dict[str, Any]] = (),
    used: dict[str, Any] | None = None,
    finish_reason: str = "COMPLETE",
    message: str = "Hello",
) -> dict[str, Any]:
    """A JSON answer of v1 chat; a tool call is ``{name, parameters}``. `used` is its ``meta``, None for ten tokens."""
    history = [{"role": "USER", "message": message}, {"role": "CHATBOT", "message": text}]
    answer: dict[str, Any] = {
        "response_id": "5d2f1c3a-6f25-4a2c-9f3a-7b0f2a4a6a11",
        "generation_id": ID,
        "text": text,
        "chat_history": history,
        "finish_reason": finish_reason,
        "meta": meta(tokens=(71, 9), input_tokens=5, output_tokens=9) if used is None else used,
    }
    return {**answer, "tool_calls": list(tool_calls)} if tool_calls else answer


def steps_v1(whole: dict[str, Any], words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The events of a v1 stream that ends in `whole`: its last event holds the whole answer."""
    steps: list[dict[str, Any]] = [{"event_type": "stream-start", "generation_id": ID}]
    pieces = list(words) if words is not None else _pieces(whole["text"])
    steps += [{"event_type": "text-generation", "text": piece} for piece in pieces]
    if whole.get("tool_calls"):
        steps.append({"event_type": "tool-calls-generation", "tool_calls": whole["tool_calls"]})
    end = {"event_type": "stream-end", "finish_reason": whole["finish_reason"], "response": whole}
    return [{"is_finished": False, **step} for step in steps] + [{"is_finished": True, **end}]


def stream_v1(
    whole: dict[str, Any] | None = None, words: Sequence[str] | None = None, as_events: bool = False
) -> list[bytes]:
    """A v1 stream: JSON lines, or events for who accepts ``text/event-stream``."""
    steps = steps_v1(chat_v1() if whole is None else whole, words)
    return data_events(steps, done=False) if as_events else json_lines(steps)


def embeddings_floats(texts: Sequence[str], billed: dict[str, Any] | None = None, length: int = 4) -> dict[str, Any]:
    """Embeddings of v1 without types. `billed` is its ``meta``, None for eight tokens a text."""
    return {
        "response_type": "embeddings_floats",
        "id": ID,
        "embeddings": [_vector(length)] * len(texts),
        "texts": list(texts),
        "meta": meta(input_tokens=8 * len(texts)) if billed is None else billed,
    }


def embeddings_by_type(
    texts: Sequence[str],
    kinds: Sequence[str] = ("float",),
    billed: dict[str, Any] | None = None,
    images: int = 0,
    length: int = 4,
    version: str = "2",
) -> dict[str, Any]:
    """Embeddings by type. `billed` None: eight tokens a text, or as many image tokens an image and the image itself."""
    count = len(texts) + images
    vector = _vector(length)
    packed = base64.b64encode(struct.pack(f"<{length}f", *vector)).decode()
    bits = max(1, length // 8)
    shapes: dict[str, Any] = {
        "float": vector,
        "int8": [-12, 4, 0, 7] * max(1, length // 4),
        "uint8": [116, 132, 128, 135] * max(1, length // 4),
        "binary": [-54] * bits,
        "ubinary": [74] * bits,
        "base64": packed,
    }
    answer: dict[str, Any] = {
        "response_type": "embeddings_by_type",
        "id": ID,
        "embeddings": {kind: [shapes[kind]] * count for kind in kinds},
    }
    if texts:
        answer["texts"] = list(texts)
    if images:
        answer["images"] = [{"width": 64, "height": 64, "format": "png", "bit_depth": 24}] * images
    units: dict[str, Any] = {"input_tokens": 8 * len(texts)} if texts else {}
    units |= {"images": images, "image_tokens": 8 * images} if images else {}
    return {**answer, "meta": meta(version, **units) if billed is None else billed}


def _vector(length: int) -> list[float]:
    return [round(0.25 - place / 64, 6) for place in range(length)]


def rerank(
    documents: int = 3,
    top: int | None = None,
    search_units: float = 1,
    texts: Sequence[str] | None = None,
    version: str = "2",
) -> dict[str, Any]:
    """Documents in a new order: charged by search unit, up to 100 documents each. `texts`: v1 gives them back."""
    shown = documents if top is None else min(top, documents)
    results: list[dict[str, Any]] = [
        {"index": documents - 1 - place, "relevance_score": round(0.99 / (place + 1), 6)} for place in range(shown)
    ]
    if texts is not None:
        results = [{**result, "document": {"text": texts[result["index"]]}} for result in results]
    return {"id": ID, "results": results, "meta": meta(version, search_units=search_units)}


def tokens(text: str = "Hello there.") -> dict[str, Any]:
    """The answer of tokenize: free."""
    words = text.split()
    return {"tokens": list(range(len(words))), "token_strings": words, "meta": {"api_version": {"version": "1"}}}


def model(name: str = MODEL) -> dict[str, Any]:
    """One model."""
    return {
        "name": name,
        "endpoints": ["chat"],
        "finetuned": False,
        "context_length": 256_000,
        "tokenizer_url": "https://example.com/tokenizer.json",
        "default_endpoints": [],
        "features": ["tools"],
    }


def models(names: Sequence[str] = (MODEL, "embed-v4.0", "rerank-v3.5")) -> dict[str, Any]:
    """The list of models."""
    return {"models": [model(name) for name in names]}
