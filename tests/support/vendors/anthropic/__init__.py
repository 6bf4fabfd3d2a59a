"""Answers of Anthropic: pure functions that return bodies as dicts, and streams as lists of event bytes."""

from tests.support.vendors.anthropic.errors import error, failure, stream_error
from tests.support.vendors.anthropic.lists import (
    batch,
    batch_result,
    batch_results,
    model,
    models,
    page,
    token_count,
)
from tests.support.vendors.anthropic.messages import (
    HELLO,
    MODEL,
    iteration,
    message,
    redacted_block,
    search_blocks,
    steps,
    stream,
    text_block,
    thinking_block,
    tool_block,
    usage,
    web_citation,
)

__all__ = [
    "HELLO",
    "MODEL",
    "batch",
    "batch_result",
    "batch_results",
    "error",
    "failure",
    "iteration",
    "message",
    "model",
    "models",
    "page",
    "redacted_block",
    "search_blocks",
    "steps",
    "stream",
    "stream_error",
    "text_block",
    "thinking_block",
    "token_count",
    "tool_block",
    "usage",
    "web_citation",
]
