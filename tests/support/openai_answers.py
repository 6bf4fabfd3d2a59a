"""OpenAI chat answers, as the real API sends them: bodies, event streams and errors, with every usage detail."""

import json
from collections.abc import Sequence
from typing import Any

CREATED = 1_760_000_000
FINGERPRINT = "fp_8802369eaa"


def usage(prompt: int = 13, completion: int = 9, cached: int = 0, reasoning: int = 0, audio: int = 0) -> dict[str, Any]:
    """A usage object. `audio` tokens are counted in both directions."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": audio},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": audio,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def completion(
    model: str = "gpt-4o-2024-08-06",
    text: str | None = "Hello! How can I help you today?",
    tool_calls: Sequence[dict[str, Any]] = (),
    used: dict[str, Any] | None = None,
    choices: int = 1,
) -> dict[str, Any]:
    """A JSON answer. `used` is its usage, None for `usage()`."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    if tool_calls:
        message["tool_calls"] = list(tool_calls)
    reason = "tool_calls" if tool_calls else "stop"
    return {
        "id": "chatcmpl-CKmZ8QbWQFTRzGWcWfGmPbVDCcRWc",
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": reason} for index in range(choices)
        ],
        "usage": usage() if used is None else used,
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }


def weather_call(city: str = "Zürich") -> dict[str, Any]:
    """A call of a function tool."""
    arguments = json.dumps({"city": city}, ensure_ascii=False)
    return {
        "id": "call_x7Hk1mT0pWqYd2",
        "type": "function",
        "function": {"name": "get_weather", "arguments": arguments},
    }


def chunks(
    deltas: Sequence[dict[str, Any]],
    model: str = "gpt-4o-2024-08-06",
    used: dict[str, Any] | None = None,
    finish_reason: str = "stop",
) -> list[dict[str, Any]]:
    """The chunks of a stream: one a delta, one with the finish reason; with `used`, the extra usage chunk."""
    head: dict[str, Any] = {
        "id": "chatcmpl-CKmZ9Bq0Y3H2iXn1WlYyQb0nq2Xq1",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": model,
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }
    if used is not None:
        head["usage"] = None
    answer = [
        {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]} for delta in deltas
    ]
    answer.append({**head, "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish_reason}]})
    if used is not None:
        answer.append({**head, "choices": [], "usage": used})
    return answer


def text_deltas(*words: str) -> list[dict[str, Any]]:
    """The deltas of an answer in text."""
    return [{"role": "assistant", "content": "", "refusal": None}, *({"content": word} for word in words)]


def tool_deltas() -> list[dict[str, Any]]:
    """The deltas of a call of a function tool, its arguments in pieces."""
    call = weather_call()
    opening = {**call, "index": 0, "function": {"name": "get_weather", "arguments": ""}}
    pieces = ('{"', "city", '":"', "Zür", "ich", '"}')
    return [
        {"role": "assistant", "content": None, "tool_calls": [opening], "refusal": None},
        *({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in pieces),
    ]


def events(answer: Sequence[dict[str, Any]]) -> list[bytes]:
    """Chunks as the events of a stream, the closing ``[DONE]`` included."""
    return [b"data: " + dump(chunk) + b"\n\n" for chunk in answer] + [b"data: [DONE]\n\n"]


def error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


INVALID_KEY = error(
    "Incorrect API key provided: sk-none. You can find your API key at https://platform.openai.com/account/api-keys.",
    "invalid_request_error",
    code="invalid_api_key",
)
BAD_REQUEST = error(
    "Invalid type for 'temperature': expected a decimal, but got a string instead.",
    "invalid_request_error",
    "temperature",
    "invalid_type",
)
RATE_LIMITED = error(
    "Rate limit reached for gpt-4o on requests per min (RPM): Limit 3, Used 3, Requested 1.",
    "requests",
    code="rate_limit_exceeded",
)
SERVER_ERROR = error("The server had an error while processing your request. Sorry about that!", "server_error")
OVERLOADED = error("The engine is currently overloaded, please try again later", "server_error", code="overloaded")


def dump(value: object) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
