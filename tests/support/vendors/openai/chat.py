"""OpenAI's chat completions and completions: answers and streams, with every usage detail."""

import json
from collections.abc import Sequence
from typing import Any

from tests.support.vendors.framing import data_events

CREATED = 1_760_000_000
FINGERPRINT = "fp_8802369eaa"
HELLO = "Hello! How can I help you today?"
HELLO_WORDS = ("Hello", "!", " How", " can", " I", " help", "?")


def usage(
    prompt: int = 13,
    completion: int = 9,
    cached: int = 0,
    reasoning: int = 0,
    audio: int = 0,
    *,
    audio_in: int | None = None,
    audio_out: int | None = None,
    accepted: int = 0,
    rejected: int = 0,
    **more: int,
) -> dict[str, Any]:
    """A usage object. `audio` tokens are counted in both directions unless `audio_in` or `audio_out` says otherwise.

    `cached` and `audio_in` are parts of `prompt`; `reasoning`, `audio_out`, `accepted` and `rejected` of `completion`.
    Further details, left out unless named: `cache_write`, `text_in`, `image_in` of the prompt, `text_out` of the
    completion.
    """
    prompt_names = {"cache_write": "cache_write_tokens", "text_in": "text_tokens", "image_in": "image_tokens"}
    completion_names = {"text_out": "text_tokens"}
    if unknown := set(more) - set(prompt_names) - set(completion_names):
        raise TypeError(f"unknown usage details {sorted(unknown)}")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": cached,
            "audio_tokens": audio if audio_in is None else audio_in,
            **{field: more[name] for name, field in prompt_names.items() if name in more},
        },
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": audio if audio_out is None else audio_out,
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": rejected,
            **{field: more[name] for name, field in completion_names.items() if name in more},
        },
    }


def completion(
    model: str = "gpt-4o-2024-08-06",
    text: str | None = HELLO,
    tool_calls: Sequence[dict[str, Any]] = (),
    used: dict[str, Any] | None = None,
    choices: int = 1,
    *,
    finish_reason: str | None = None,
    service_tier: str = "default",
    refusal: str | None = None,
    annotations: Sequence[dict[str, Any]] = (),
    audio: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A JSON answer. `used` is its usage, None for `usage()`."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text,
        "refusal": refusal,
        "annotations": list(annotations),
    }
    if tool_calls:
        message["tool_calls"] = list(tool_calls)
    if audio is not None:
        message["audio"] = audio
    reason = finish_reason or ("tool_calls" if tool_calls else "stop")
    return {
        "id": "chatcmpl-CKmZ8QbWQFTRzGWcWfGmPbVDCcRWc",
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": reason} for index in range(choices)
        ],
        "usage": usage() if used is None else used,
        "service_tier": service_tier,
        "system_fingerprint": FINGERPRINT,
    }


def tool_call(name: str, arguments: object, call: str = "call_x7Hk1mT0pWqYd2") -> dict[str, Any]:
    """A call of a function tool; `arguments` are dumped as JSON."""
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": call, "type": "function", "function": {"name": name, "arguments": text}}


def weather_call(city: str = "Zürich") -> dict[str, Any]:
    """A call of a weather tool."""
    return tool_call("get_weather", {"city": city})


def web_citation(url: str = "https://example.com/weather") -> dict[str, Any]:
    """An annotation of a search model: the text up to 5 cites a page."""
    citation = {"start_index": 0, "end_index": 5, "url": url, "title": "Weather"}
    return {"type": "url_citation", "url_citation": citation}


def chunks(
    deltas: Sequence[dict[str, Any]],
    model: str = "gpt-4o-2024-08-06",
    used: dict[str, Any] | None = None,
    finish_reason: str = "stop",
    choices: int = 1,
    service_tier: str = "default",
) -> list[dict[str, Any]]:
    """The chunks of a stream: one a delta, one with the finish reason; with `used`, the extra usage chunk.

    With several `choices` each delta comes once for each, in turns.
    """
    head: dict[str, Any] = {
        "id": "chatcmpl-CKmZ9Bq0Y3H2iXn1WlYyQb0nq2Xq1",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": model,
        "service_tier": service_tier,
        "system_fingerprint": FINGERPRINT,
    }
    if used is not None:
        head["usage"] = None
    steps: list[tuple[dict[str, Any], str | None]] = [*((delta, None) for delta in deltas), ({}, finish_reason)]
    answer = [
        {**head, "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}]}
        for delta, reason in steps
        for index in range(choices)
    ]
    if used is not None:
        answer.append({**head, "choices": [], "usage": used})
    return answer


def text_deltas(*words: str) -> list[dict[str, Any]]:
    """The deltas of an answer in text."""
    return [{"role": "assistant", "content": "", "refusal": None}, *({"content": word} for word in words)]


def tool_deltas(call: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The deltas of a call of a function tool (None: of the weather tool), its arguments in pieces."""
    if call is None:
        call = weather_call()
        pieces = ['{"', "city", '":"', "Zür", "ich", '"}']
    else:
        text = call["function"]["arguments"]
        pieces = [text[place : place + 7] for place in range(0, len(text), 7)]
    opening = {**call, "index": 0, "function": {"name": call["function"]["name"], "arguments": ""}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [opening], "refusal": None},
        *({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in pieces),
    ]


def events(answer: Sequence[dict[str, Any]]) -> list[bytes]:
    """Chunks as the events of a stream, the closing ``[DONE]`` included."""
    return data_events(answer)


def text_completion(
    model: str = "gpt-3.5-turbo-instruct",
    text: str = " Hello there.",
    used: dict[str, Any] | None = None,
    choices: int = 1,
    finish_reason: str = "stop",
) -> dict[str, Any]:
    """A JSON answer of the completions route. `used`: None for `plain_usage()`."""
    return {
        "id": "cmpl-CKmZ7uLr3LkxZfCt1rXnqoTe5u0mX",
        "object": "text_completion",
        "created": CREATED,
        "model": model,
        "choices": [
            {"text": text, "index": index, "logprobs": None, "finish_reason": finish_reason} for index in range(choices)
        ],
        "usage": plain_usage() if used is None else used,
    }


def text_completion_chunks(
    words: Sequence[str] = (" Hello", " there", "."),
    model: str = "gpt-3.5-turbo-instruct",
    used: dict[str, Any] | None = None,
    choices: int = 1,
) -> list[dict[str, Any]]:
    """The chunks of a completions stream; with `used`, the extra usage chunk. Frame them with `events`."""
    head: dict[str, Any] = {
        "id": "cmpl-CKmZ7uLr3LkxZfCt1rXnqoTe5u0mY",
        "object": "text_completion",
        "created": CREATED,
        "model": model,
    }
    if used is not None:
        head["usage"] = None
    steps: list[tuple[str, str | None]] = [*((word, None) for word in words), ("", "stop")]
    answer = [
        {**head, "choices": [{"text": text, "index": index, "logprobs": None, "finish_reason": reason}]}
        for text, reason in steps
        for index in range(choices)
    ]
    if used is not None:
        answer.append({**head, "choices": [], "usage": used})
    return answer


def plain_usage(prompt: int = 5, completion: int = 3) -> dict[str, Any]:
    """A usage object without details, as the completions route and many compatible servers send it."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
