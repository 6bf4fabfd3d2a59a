"""Answers of Mistral: pure functions that return bodies as dicts, and streams as lists of event bytes."""

from tests.support.vendors.mistral.answers import (
    HELLO,
    MODEL,
    WORDS,
    chunks,
    completion,
    embeddings,
    events,
    model,
    models,
    moderation,
    ocr,
    thinking,
    tool_call,
    usage,
)
from tests.support.vendors.mistral.errors import error, failure, stream_error, validation

__all__ = [
    "HELLO",
    "MODEL",
    "WORDS",
    "chunks",
    "completion",
    "embeddings",
    "error",
    "events",
    "failure",
    "model",
    "models",
    "moderation",
    "ocr",
    "stream_error",
    "thinking",
    "tool_call",
    "usage",
    "validation",
]
