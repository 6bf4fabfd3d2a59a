"""Mistral's answers: chat, fill-in-the-middle, embeddings, OCR, moderations and models."""

import json
from collections.abc import Sequence
from typing import Any

from tests.support.vendors.framing import data_events

CREATED = 1_760_000_000
MODEL = "mistral-small-latest"
HELLO = "Hello! How can I help you today?"
WORDS = ("Hello", "!", " How", " can", " I", " help", " you", " today", "?")


def usage(
    prompt: int = 13,
    completion: int = 9,
    *,
    audio_seconds: int | None = None,
    cached: int | None = None,
    cached_in_details: int | None = None,
    cached_in_detail: int | None = None,
    service_tier: str | None = None,
) -> dict[str, Any]:
    """A usage object. Cached tokens are a part of `prompt`, and have three documented places, all for the same count:
    `cached` is ``num_cached_tokens``, the others in ``prompt_tokens_details`` (the usual) and ``prompt_token_details``.

    Audio is counted in seconds beside the tokens. What is None is left out.
    """
    answer: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    given: dict[str, Any] = {
        "prompt_audio_seconds": audio_seconds,
        "num_cached_tokens": cached,
        "prompt_tokens_details": None if cached_in_details is None else {"cached_tokens": cached_in_details},
        "prompt_token_details": None if cached_in_detail is None else {"cached_tokens": cached_in_detail},
        "service_tier": service_tier,
    }
    return answer | {name: value for name, value in given.items() if value is not None}


def tool_call(name: str = "get_weather", arguments: object = None, index: int = 0) -> dict[str, Any]:
    """A call of a function."""
    text = json.dumps({"city": "Zürich"} if arguments is None else arguments, ensure_ascii=False)
    return {"id": "D681PevKs", "type": "function", "index": index, "function": {"name": name, "arguments": text}}


def thinking(text: str = "The user greets me.") -> dict[str, Any]:
    """A chunk of thinking, as reasoning models put it before the text; its tokens are in the completion."""
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}], "closed": True}


def completion(
    model: str = MODEL,
    content: str | Sequence[dict[str, Any]] = HELLO,
    tool_calls: Sequence[dict[str, Any]] = (),
    used: dict[str, Any] | None = None,
    choices: int = 1,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    """A JSON answer of chat or fill-in-the-middle. `used` None: `usage()`."""
    body = content if isinstance(content, str) else list(content)
    message: dict[str, Any] = {"role": "assistant", "content": body, "tool_calls": list(tool_calls) or None}
    reason = finish_reason or ("tool_calls" if tool_calls else "stop")
    return {
        "id": "cmpl-e5cc70bb28c444948073e77776eb30ef",
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [{"index": index, "message": message, "finish_reason": reason} for index in range(choices)],
        "usage": usage() if used is None else used,
    }


def chunks(
    model: str = MODEL,
    words: Sequence[str] = WORDS,
    tool_calls: Sequence[dict[str, Any]] = (),
    used: dict[str, Any] | None = None,
    choices: int = 1,
    finish_reason: str | None = None,
) -> list[dict[str, Any]]:
    """The chunks of a stream. Usage comes unasked, in the chunk with the finish reason."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [] if tool_calls else [{"content": word} for word in words]
    last: dict[str, Any] = {"content": "", **({"tool_calls": list(tool_calls)} if tool_calls else {})}
    head = {
        "id": "cmpl-e5cc70bb28c444948073e77776eb30ee",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": model,
    }
    answer = [
        {**head, "choices": [{"index": index, "delta": delta, "finish_reason": None}]}
        for delta in deltas
        for index in range(choices)
    ]
    reason = finish_reason or ("tool_calls" if tool_calls else "stop")
    ends = [{"index": index, "delta": last, "finish_reason": reason} for index in range(choices)]
    return [*answer, {**head, "choices": ends, "usage": usage() if used is None else used}]


def events(values: Sequence[dict[str, Any]]) -> list[bytes]:
    """Chunks as events, the closing ``[DONE]`` included."""
    return data_events(values)


def embeddings(model: str = "mistral-embed", count: int = 1, prompt: int = 8, length: int = 4) -> dict[str, Any]:
    """Embeddings of `count` inputs, all together `prompt` tokens."""
    vector = [round(0.25 - place / 64, 6) for place in range(length)]
    return {
        "id": "embd-aad6fc62b17349b192ef09225058bc45",
        "object": "list",
        "model": model,
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index in range(count)],
        "usage": usage(prompt, 0),
    }


def ocr(
    model: str = "mistral-ocr-latest",
    pages: int = 2,
    size: int | None = 4096,
    annotation: str | None = None,
) -> dict[str, Any]:
    """Pages read: billed by page, annotated pages (`annotation`) at another price."""
    page = {
        "markdown": "# Farthing\n\nA quarter of a penny.",
        "images": [],
        "dimensions": {"dpi": 200, "height": 2200, "width": 1700},
    }
    return {
        "pages": [{"index": index, **page} for index in range(pages)],
        "model": model,
        "document_annotation": annotation,
        "usage_info": {"pages_processed": pages, "doc_size_bytes": size},
    }


def moderation(model: str = "mistral-moderation-latest", count: int = 1) -> dict[str, Any]:
    """A moderation of `count` inputs."""
    names = ("sexual", "hate_and_discrimination", "violence_and_threats", "selfharm", "pii")
    one = {"categories": dict.fromkeys(names, False), "category_scores": dict.fromkeys(names, 0.0001)}
    return {"id": "mod-e5cc70bb28c444948073e77776eb30ef", "model": model, "results": [one] * count}


def model(name: str = MODEL) -> dict[str, Any]:
    """One model."""
    capabilities = {"completion_chat": True, "completion_fim": False, "function_calling": True, "vision": True}
    return {
        "id": name,
        "object": "model",
        "created": CREATED,
        "owned_by": "mistralai",
        "name": name,
        "description": None,
        "max_context_length": 131_072,
        "aliases": [],
        "deprecation": None,
        "default_model_temperature": 0.3,
        "type": "base",
        "capabilities": capabilities,
    }


def models(names: Sequence[str] = (MODEL, "codestral-latest", "mistral-embed")) -> dict[str, Any]:
    """The list of models."""
    return {"object": "list", "data": [model(name) for name in names]}
