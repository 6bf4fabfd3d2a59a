"""What the sandbox says: the same words for the same request, in OpenAI's shapes."""

import time
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any, Final

import orjson
from ulid import ULID

from services.sandbox.request import MODELS, ChatRequest

_TEXT: Final = "This is the sandbox. No vendor was asked, nothing was paid, and every word here counts as one token."
_WORDS: Final = tuple(_TEXT.split())
_CREATED: Final = 1_767_225_600  # When the sandbox's models are said to have been made: 2026-01-01.


def text_of(output_tokens: int) -> str:
    """An answer of that many words."""
    return " ".join(islice(cycle(_WORDS), output_tokens))


def completion(request: ChatRequest) -> bytes:
    """The answer as one JSON body."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text_of(request.output_tokens),
        "refusal": None,
        "annotations": [],
    }
    body: dict[str, Any] = {
        **_head("chat.completion", request),
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": request.finish_reason}
            for index in range(request.choices)
        ],
    }
    if request.fault != "no_usage":
        body["usage"] = _usage(request)
    return orjson.dumps(body)


def events(request: ChatRequest) -> Iterator[bytes]:
    """The answer as a stream: an event with the role, one a word, one with the finish reason, and the end."""
    head = _head("chat.completion.chunk", request)
    reports = request.include_usage and request.fault != "no_usage"
    if reports:
        head["usage"] = None
    everyone = range(request.choices)
    for index in everyone:
        yield _chunk(head, index, {"role": "assistant", "content": "", "refusal": None}, None)
    for place, word in enumerate(islice(cycle(_WORDS), request.output_tokens)):
        for index in everyone:
            yield _chunk(head, index, {"content": f" {word}" if place else word}, None)
    for index in everyone:
        yield _chunk(head, index, {}, request.finish_reason)
    if reports:
        yield _event({**head, "choices": [], "usage": _usage(request)})
    yield b"data: [DONE]\n\n"


def model_list() -> bytes:
    """The answer of ``GET /v1/models``."""
    models = [{"id": name, "object": "model", "created": _CREATED, "owned_by": "farthing-sandbox"} for name in MODELS]
    return orjson.dumps({"object": "list", "data": models})


def error(kind: str, message: str, param: str | None = None, code: str | None = None) -> bytes:
    """An error in OpenAI's envelope."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def _head(kind: str, request: ChatRequest) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{ULID()}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "service_tier": "default",
        "system_fingerprint": "fp_sandbox",
    }


def _usage(request: ChatRequest) -> dict[str, Any]:
    output_tokens = request.output_tokens * request.choices
    return {
        "prompt_tokens": request.input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": request.input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _chunk(head: dict[str, Any], index: int, delta: dict[str, Any], finish_reason: str | None) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _event({**head, "choices": [choice]})


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
