"""Anthropic's messages: answers, content blocks and event streams, with every usage detail."""

import json
from collections.abc import Sequence
from typing import Any

from tests.support.vendors.framing import named_events

MESSAGE_ID = "msg_01XFDUDYJgAACzvnptvVoYEL"
MODEL = "claude-sonnet-4-5-20250929"
HELLO = "Hello! How can I help you today?"
SIGNATURE = "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds="


def usage(
    input_tokens: int = 13,
    output_tokens: int = 12,
    cache_read: int = 0,
    cache_5m: int = 0,
    cache_1h: int = 0,
    *,
    thinking: int | None = None,
    web_searches: int | None = None,
    web_fetches: int = 0,
    service_tier: str = "standard",
    cache_split: bool = True,
    inference_geo: str | None = None,
    speed: str | None = None,
    iterations: Sequence[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A usage object. The whole input is `input_tokens` + `cache_read` + `cache_5m` + `cache_1h`: none holds another.

    `thinking` is a part of `output_tokens`. Without `cache_split` cache writes come as a sum only, as old answers had
    them. `web_searches` None leaves the counts of server tools out. `iterations` is the beta's list: `iteration`.
    """
    answer: dict[str, Any] = {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": cache_5m + cache_1h,
        "cache_read_input_tokens": cache_read,
        "output_tokens": output_tokens,
        "service_tier": service_tier,
    }
    if cache_split:
        split = {"ephemeral_5m_input_tokens": cache_5m, "ephemeral_1h_input_tokens": cache_1h}
        answer["cache_creation"] = split
    if thinking is not None:
        answer["output_tokens_details"] = {"thinking_tokens": thinking}
    if web_searches is not None:
        answer["server_tool_use"] = {"web_search_requests": web_searches, "web_fetch_requests": web_fetches}
    given = {"inference_geo": inference_geo, "speed": speed}
    answer |= {name: value for name, value in given.items() if value is not None}
    return answer if iterations is None else {**answer, "iterations": list(iterations)}


def iteration(
    kind: str = "message",
    input_tokens: int = 13,
    output_tokens: int = 12,
    cache_read: int = 0,
    cache_5m: int = 0,
    cache_1h: int = 0,
    model: str | None = None,
) -> dict[str, Any]:
    """One of the beta's iterations: ``message``, ``compaction``, ``advisor_message`` or ``fallback_message``.

    The tokens of a ``compaction`` are not in the totals beside the list. `model` is named by all kinds but that one.
    """
    answer: dict[str, Any] = {
        "type": kind,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cache_read_input_tokens": cache_read,
        "cache_creation_input_tokens": cache_5m + cache_1h,
        "cache_creation": {"ephemeral_5m_input_tokens": cache_5m, "ephemeral_1h_input_tokens": cache_1h},
    }
    return answer if model is None else {**answer, "model": model}


def text_block(text: str = HELLO, citations: Sequence[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A block of text; without citations the field is left out."""
    return {"type": "text", "text": text, **({} if citations is None else {"citations": list(citations)})}


def thinking_block(thinking: str = "The user greets me.") -> dict[str, Any]:
    """A block of (summarised) thinking: its text tells nothing about the tokens thought."""
    return {"type": "thinking", "thinking": thinking, "signature": SIGNATURE}


def redacted_block() -> dict[str, Any]:
    """Thinking that is only given encrypted."""
    return {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"}


def tool_block(name: str = "get_weather", arguments: object = None) -> dict[str, Any]:
    """A call of a tool of the caller."""
    given = {"city": "Zürich"} if arguments is None else arguments
    return {"type": "tool_use", "id": "toolu_01T1x1fJ34qAmk2tNTrN7Up6", "name": name, "input": given}


def search_blocks(query: str = "weather in Zürich", place: int = 0) -> list[dict[str, Any]]:
    """A call of the hosted web search and its result."""
    call = f"srvtoolu_01WYG3ziw53XMcoyKL4XcZm{place}"
    page = {
        "type": "web_search_result",
        "title": "Weather",
        "url": "https://example.com/weather",
        "encrypted_content": "EqgfCioIARgBIiQ3YTAwMjY1Mi1mZjM5LTQ1NGUtODgxNC1kNjNjNTk1ZWI3Y",
        "page_age": "April 30, 2026",
    }
    return [
        {"type": "server_tool_use", "id": call, "name": "web_search", "input": {"query": query}},
        {"type": "web_search_tool_result", "tool_use_id": call, "content": [page]},
    ]


def web_citation() -> dict[str, Any]:
    """A citation of a page that the web search found."""
    return {
        "type": "web_search_result_location",
        "url": "https://example.com/weather",
        "title": "Weather",
        "encrypted_index": "Eo8BCioIAhgBIiQyYjQ0OWJmZi1lNm",
        "cited_text": "It is warm in Zürich.",
    }


def message(
    model: str = MODEL,
    content: Sequence[dict[str, Any]] | None = None,
    used: dict[str, Any] | None = None,
    stop_reason: str | None = None,
    stop_sequence: str | None = None,
    container: str | None = None,
) -> dict[str, Any]:
    """A JSON answer. `content` None: a block of text; `used` None: `usage()`. `container`: of code execution."""
    blocks = [text_block()] if content is None else list(content)
    called = any(block["type"] == "tool_use" for block in blocks)
    answer: dict[str, Any] = {
        "id": MESSAGE_ID,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": stop_reason or ("tool_use" if called else "end_turn"),
        "stop_sequence": stop_sequence,
        "usage": usage() if used is None else used,
    }
    if container is not None:
        answer["container"] = {"id": container, "expires_at": "2026-11-27T12:00:00Z"}
    return answer


def steps(
    whole: dict[str, Any],
    piece_length: int = 7,
    reports: Sequence[int] = (),
    started: dict[str, Any] | None = None,
    last_in_full: bool = True,
) -> list[dict[str, Any]]:
    """The events of a stream that ends in `whole`, pings left out.

    The first event has the input counts and one token of output; each ``message_delta`` has the counts up to then, so
    the last is the whole. `reports` are output counts of ``message_delta`` events before the last one. `started` are
    counts of the first event that grow later, as input does when a server tool runs. Without `last_in_full` the last
    event has the output only, as it was once and is at servers that imitate the vendor.
    """
    used = whole["usage"]
    first = {**used, "output_tokens": min(1, used["output_tokens"]), **(started or {})}
    for later in ("output_tokens_details", "server_tool_use", "iterations"):
        first.pop(later, None)
    opening = {**whole, "content": [], "stop_reason": None, "stop_sequence": None, "usage": first}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": opening}]
    for index, block in enumerate(whole["content"]):
        events += [{**step, "index": index} for step in _block_steps(block, piece_length)]
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"]}
    names = (
        "input_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "output_tokens",
        "output_tokens_details",
        "server_tool_use",
        "iterations",
    )
    last = {name: used[name] for name in (names if last_in_full else ("output_tokens",)) if name in used}
    events += [
        {"type": "message_delta", "delta": {"stop_reason": None, "stop_sequence": None}, "usage": {"output_tokens": n}}
        for n in reports
    ]
    return [*events, {"type": "message_delta", "delta": delta, "usage": last}, {"type": "message_stop"}]


def stream(
    whole: dict[str, Any] | None = None,
    piece_length: int = 7,
    reports: Sequence[int] = (),
    pings: bool = True,
    started: dict[str, Any] | None = None,
    last_in_full: bool = True,
) -> list[bytes]:
    """The stream of an answer (`steps`), an event a piece, with a ping after the first block has begun."""
    events = steps(message() if whole is None else whole, piece_length, reports, started, last_in_full)
    return named_events([*events[:2], {"type": "ping"}, *events[2:]] if pings else events)


def _block_steps(block: dict[str, Any], piece_length: int) -> list[dict[str, Any]]:
    kind = block["type"]
    deltas: list[dict[str, Any]] = []
    begun = block
    if kind == "text":
        begun = {**block, "text": "", **({"citations": []} if "citations" in block else {})}
        deltas = [{"type": "text_delta", "text": piece} for piece in _pieces(block["text"], piece_length)]
        deltas += [{"type": "citations_delta", "citation": citation} for citation in block.get("citations", ())]
    elif kind == "thinking":
        begun = {**block, "thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(block["thinking"], piece_length)]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    elif kind in ("tool_use", "server_tool_use"):
        begun = {**block, "input": {}}
        text = json.dumps(block["input"], ensure_ascii=False)
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *_pieces(text, piece_length))]
    return [
        {"type": "content_block_start", "content_block": begun},
        *({"type": "content_block_delta", "delta": delta} for delta in deltas),
        {"type": "content_block_stop"},
    ]


def _pieces(text: str, length: int) -> list[str]:
    return [text[place : place + length] for place in range(0, len(text), length)]
