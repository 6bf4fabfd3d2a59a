"""OpenAI's responses route: answers, output items and event streams, with every usage detail."""

import json
from collections.abc import Sequence
from typing import Any

from tests.support.vendors.framing import named_events
from tests.support.vendors.openai.chat import CREATED, HELLO

RESPONSE_ID = "resp_68f1c0a3b5d881919f2f0e1d2c3b4a59"
MESSAGE_ID = "msg_68f1c0a4c2a48191b1f0e9d8c7b6a594"
CALL_ID = "fc_68f1c0a4d1b48191a0f9e8d7c6b5a493"


def response_usage(
    input_tokens: int = 13,
    output_tokens: int = 9,
    cached: int = 0,
    reasoning: int = 0,
    cache_write: int | None = 0,
    cache_write_by_age: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """A usage object: `cached` and `cache_write` are parts of the input, `reasoning` of the output.

    `cache_write` None leaves the field out, as answers did before it was there. `cache_write_by_age` splits it into
    the tokens kept for 30 minutes and for 12 hours.
    """
    written: dict[str, Any] = {} if cache_write is None else {"cache_write_tokens": cache_write}
    if cache_write_by_age is not None:
        split = dict(zip(("ttl_30m_tokens", "ttl_12h_tokens"), cache_write_by_age, strict=True))
        written |= {"cache_write_tokens": sum(cache_write_by_age), "cache_write_tokens_details": split}
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached, **written},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input_tokens + output_tokens,
    }


def text_item(text: str = HELLO, status: str = "completed") -> dict[str, Any]:
    """A message of the assistant."""
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"id": MESSAGE_ID, "type": "message", "status": status, "role": "assistant", "content": content}


def call_item(name: str = "get_weather", arguments: object = None) -> dict[str, Any]:
    """A call of a function tool."""
    text = json.dumps({"city": "Zürich"} if arguments is None else arguments, ensure_ascii=False)
    return {
        "id": CALL_ID,
        "type": "function_call",
        "status": "completed",
        "name": name,
        "call_id": "call_x7Hk1mT0pWqYd2",
        "arguments": text,
    }


def reasoning_item(summary: str | None = None) -> dict[str, Any]:
    """A reasoning item, with a summary or without."""
    parts = [] if summary is None else [{"type": "summary_text", "text": summary}]
    return {"id": "rs_68f1c0a3f0e48191", "type": "reasoning", "summary": parts}


def web_search_item(query: str = "weather in Zürich", place: int = 0) -> dict[str, Any]:
    """A call of the hosted web search; each is billed by itself, and only its count tells."""
    action = {"type": "search", "query": query}
    return {"id": f"ws_68f1c0a3e{place:03}", "type": "web_search_call", "status": "completed", "action": action}


def file_search_item(query: str = "terms of delivery", place: int = 0) -> dict[str, Any]:
    """A call of the hosted file search."""
    names: dict[str, Any] = {"type": "file_search_call", "status": "completed", "queries": [query], "results": None}
    return {"id": f"fs_68f1c0a3d{place:03}", **names}


def code_interpreter_item(container: str = "cntr_68f1c0a3c", place: int = 0) -> dict[str, Any]:
    """A call of the hosted code interpreter; billed by container session."""
    names = {"type": "code_interpreter_call", "status": "completed", "container_id": container}
    return {"id": f"ci_68f1c0a3b{place:03}", **names, "code": "1 + 1", "outputs": None}


def image_generation_item(place: int = 0) -> dict[str, Any]:
    """A call of the hosted image generation."""
    names = {"type": "image_generation_call", "status": "completed", "result": "iVBORw0KGgo="}
    return {"id": f"ig_68f1c0a3a{place:03}", **names}


def response(
    model: str = "gpt-4o-2024-08-06",
    output: Sequence[dict[str, Any]] | None = None,
    used: dict[str, Any] | None = None,
    status: str = "completed",
    *,
    response_id: str = RESPONSE_ID,
    background: bool = False,
    service_tier: str = "default",
    reason: str | None = None,
    failure: tuple[str, str] | None = None,
    echo: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A JSON answer. `output` None: a text item; `used` None: `response_usage()`.

    Usage is there only once a response has ended. `reason` is why it is ``incomplete``, `failure` code and message of
    a ``failed`` one; `echo` are fields of the request that come back.
    """
    ended = status in ("completed", "incomplete", "failed")
    items = [text_item()] if output is None else list(output)
    return {
        "id": response_id,
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "background": background,
        "error": None if failure is None else {"code": failure[0], "message": failure[1]},
        "incomplete_details": None if reason is None else {"reason": reason},
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "model": model,
        "output": items if ended else [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": service_tier if ended else "auto",
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": (response_usage() if used is None else used) if ended and failure is None else None,
        "metadata": {},
        **(echo or {}),
    }


def response_steps(whole: dict[str, Any], piece_length: int = 5) -> list[dict[str, Any]]:
    """The events of a stream that ends in `whole`, as dicts in order; usage is in the last event only."""
    opening = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None, "error": None}
    steps: list[dict[str, Any]] = []
    if whole["background"]:
        steps.append({"type": "response.queued", "response": {**opening, "status": "queued"}})
    created = {"type": "response.created", "response": opening}
    steps = [created, *steps, {"type": "response.in_progress", "response": opening}]
    for place, item in enumerate(whole["output"]):
        steps += [{**step, "output_index": place} for step in _item_steps(item, piece_length)]
    steps.append({"type": f"response.{whole['status']}", "response": whole})
    return [{**step, "sequence_number": number} for number, step in enumerate(steps)]


def response_events(whole: dict[str, Any], piece_length: int = 5, starting_after: int = -1) -> list[bytes]:
    """`response_steps` as the events of a stream, those after a sequence number. No ``[DONE]`` ends this stream."""
    steps = response_steps(whole, piece_length)
    return named_events([step for step in steps if step["sequence_number"] > starting_after])


def _item_steps(item: dict[str, Any], piece_length: int) -> list[dict[str, Any]]:
    blanks: dict[str, dict[str, Any]] = {"message": {"content": []}, "function_call": {"arguments": ""}}
    blank = blanks.get(item["type"], {})
    begun = {**item, **blank, **({"status": "in_progress"} if "status" in item else {})}
    middle: list[dict[str, Any]] = []
    if item["type"] == "message":
        for place, part in enumerate(item["content"]):
            middle += [{**step, "content_index": place} for step in _text_steps(part, piece_length)]
    elif item["type"] == "function_call":
        text = item["arguments"]
        name = "response.function_call_arguments"
        middle += [{"type": f"{name}.delta", "delta": piece} for piece in _pieces(text, piece_length)]
        middle.append({"type": f"{name}.done", "name": item["name"], "arguments": text})
    elif item["type"] == "reasoning":
        for place, part in enumerate(item["summary"]):
            middle += [{**step, "summary_index": place} for step in _summary_steps(part, piece_length)]
    elif item["type"] == "web_search_call":
        middle += [{"type": f"response.web_search_call.{state}"} for state in ("in_progress", "searching", "completed")]
    return [
        {"type": "response.output_item.added", "item": begun},
        *({**step, "item_id": item["id"]} for step in middle),
        {"type": "response.output_item.done", "item": item},
    ]


def _text_steps(part: dict[str, Any], piece_length: int) -> list[dict[str, Any]]:
    name = "response.output_text"
    deltas = [
        {"type": f"{name}.delta", "delta": piece, "logprobs": []} for piece in _pieces(part["text"], piece_length)
    ]
    return [
        {"type": "response.content_part.added", "part": {**part, "text": ""}},
        *deltas,
        {"type": f"{name}.done", "text": part["text"], "logprobs": []},
        {"type": "response.content_part.done", "part": part},
    ]


def _summary_steps(part: dict[str, Any], piece_length: int) -> list[dict[str, Any]]:
    name = "response.reasoning_summary"
    deltas = [{"type": f"{name}_text.delta", "delta": piece} for piece in _pieces(part["text"], piece_length)]
    return [
        {"type": f"{name}_part.added", "part": {**part, "text": ""}},
        *deltas,
        {"type": f"{name}_text.done", "text": part["text"]},
        {"type": f"{name}_part.done", "part": part},
    ]


def _pieces(text: str, length: int) -> list[str]:
    return [text[place : place + length] for place in range(0, len(text), length)]


def input_tokens(count: int = 13) -> dict[str, Any]:
    """The answer of the route that counts input tokens."""
    return {"object": "response.input_tokens", "input_tokens": count}
