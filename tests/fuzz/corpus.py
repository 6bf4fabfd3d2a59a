"""What mutation starts from: answers of every vendor, whole and streamed, and requests of every kind."""

import ast
import functools
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.core.usage.framing import splitter_for
from tests.support.vendors import anthropic, cohere, google, mistral, openai
from tests.support.vendors.framing import dump
from tests.support.vendors.openai import media

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "answers"
READERS = ("services/core/usage", "services/gateway/vendors")


@dataclass(frozen=True, slots=True)
class Seed:
    """An answer as its JSON texts: one of a body, several of a stream, each with the name of its event."""

    events: tuple[tuple[str | None, bytes], ...]
    stream: bool


@functools.cache
def answers() -> tuple[Seed, ...]:
    """The golden corpus, and what the stand-in vendors build."""
    return (*_golden(), *(_body(value) for value in _bodies()), *map(_stream, _streams()))


@functools.cache
def words() -> tuple[str, ...]:
    """Every short string in the readers' own code: names of fields, of events and of states."""
    found = set()
    for folder in READERS:
        for path in sorted((ROOT / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) <= 40:
                    found.add(node.value)
    return tuple(sorted(found))


def _body(value: object) -> Seed:
    return Seed(((None, dump(value)),), stream=False)


def _stream(pieces: Iterable[bytes | str]) -> Seed:
    raw = b"".join(piece.encode() if isinstance(piece, str) else piece for piece in pieces)
    kind: Any = "json_array" if raw.startswith(b"[") else "lines" if raw.startswith(b"{") else "sse"
    splitter = splitter_for(kind)
    frames = [*splitter.feed(raw), splitter.finish()]
    return Seed(tuple((frame.name, frame.data) for frame in frames if frame.data is not None), stream=True)


def _golden() -> list[Seed]:
    seeds = []
    for path in sorted(GOLDEN.rglob("*.json")):
        cases = json.loads(path.read_text())
        for case in cases if isinstance(cases, list) else cases.get("cases", []):
            if isinstance(case.get("body"), dict):
                seeds.append(_body(case["body"]))
            if isinstance(case.get("stream"), list):
                seeds.append(_stream(case["stream"]))
    return seeds


def _bodies() -> list[Any]:
    chat = openai.usage(2006, 300, 1920, 128, audio_in=20, audio_out=30, accepted=10, rejected=5)
    calls = [openai.weather_call()]
    response = openai.response_usage(100, 50, cached=20, reasoning=10, cache_write=8)
    claude = anthropic.usage(13, 12, 100, 50, 30, thinking=5, web_searches=2)
    gemini = google.usage(
        500, 90, 200, 40, 30, prompt_by={"TEXT": 100, "IMAGE": 258}, cached_by={"AUDIO": 5}, candidates_by={"TEXT": 90}
    )
    blocks = [anthropic.thinking_block(), anthropic.text_block(), anthropic.tool_block(), *anthropic.search_blocks()]
    line = openai.batch_line("a", openai.completion(used=chat))
    return [
        openai.completion(used=chat, tool_calls=calls, choices=2),
        openai.text_completion(used=openai.plain_usage()),
        openai.response(used=response),
        openai.response(status="in_progress", background=True),
        openai.embeddings(),
        openai.batch(used=openai.batch_usage()),
        line,
        openai.moderation(),
        media.images(used=media.image_usage()),
        media.transcription(used=media.token_usage()),
        media.transcription(used=media.duration_usage()),
        media.verbose_transcription(),
        openai.RATE_LIMITED,
        anthropic.message(used=claude, content=blocks),
        anthropic.batch(),
        google.generated(used=gemini),
        google.generated(candidates=[google.candidate(grounded=google.grounding())], used=gemini),
        google.blocked(),
        google.embedding(google.embedding_usage()),
        google.embeddings(2, google.embedding_usage()),
        mistral.completion(used=mistral.usage(audio_seconds=3, cached=4)),
        mistral.embeddings(),
        mistral.ocr(annotation="{}"),
        cohere.chat_v2(used=cohere.usage(cached=4.0, search_units=1.0)),
        cohere.chat_v1(),
        cohere.embeddings_floats(["a", "b"]),
        cohere.embeddings_by_type(["a"], ("float", "int8"), images=1),
        cohere.rerank(),
    ]


def _streams() -> list[list[bytes]]:
    chat = openai.usage(2006, 300, 1920, 128)
    claude = anthropic.message(used=anthropic.usage(13, 12, 100, 50, 30, web_searches=2))
    chunks = google.chunks(used=google.usage(500, 90, 200, 40, 30))
    return [
        openai.events(openai.chunks(openai.text_deltas("Hel", "lo 👋"), used=chat)),
        openai.events(openai.chunks(openai.tool_deltas(), used=chat, choices=2)),
        openai.events(openai.text_completion_chunks(used=openai.plain_usage())),
        openai.response_events(openai.response(used=openai.response_usage(100, 50))),
        media.transcription_events(used=media.token_usage()),
        media.image_events(used=media.image_usage()),
        media.speech_events(used=media.speech_usage()),
        anthropic.stream(claude, reports=(3, 7)),
        [*anthropic.stream(claude)[:4], anthropic.stream_error()],
        google.event_stream(chunks),
        google.array_stream(chunks),
        mistral.events(mistral.chunks(used=mistral.usage())),
        cohere.stream_v2(),
        cohere.stream_v1(),
        cohere.stream_v1(as_events=True),
    ]


# ---- requests -------------------------------------------------------------------------------------------------------


@functools.cache
def requests() -> tuple[bytes, ...]:
    """Bodies of requests: each of every route's kind, with the features that have a price."""
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "high"}}
    audio = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    function = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    text = {"type": "text", "text": "Hello 👋"}
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    bodies: list[Any] = [
        {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 10},
        {
            "model": "gpt-4o-audio-preview", "n": 2, "max_completion_tokens": 100, "service_tier": "flex",
            "messages": [{"role": "user", "content": [text, image, audio]}], "modalities": ["text", "audio"],
            "audio": {"voice": "alloy", "format": "wav"}, "tools": [function], "stream": True,
            "stream_options": {"include_usage": False}, "prediction": {"type": "content", "content": "Hello"},
        },
        {"model": "gpt-3.5-turbo-instruct", "prompt": ["a", [1, 2]], "best_of": 3, "n": 2, "echo": True},
        {
            "model": "gpt-5", "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
            "max_output_tokens": 100, "max_tool_calls": 3, "tools": [{"type": "web_search"}, {"type": "file_search"}],
            "background": True, "stream": True, "previous_response_id": "resp_1", "reasoning": {"effort": "low"},
        },
        {"model": "text-embedding-3-small", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 8},
        {"model": "gpt-image-1", "prompt": "a cat", "n": 2, "size": "1024x1024", "quality": "high", "stream": True},
        {"model": "tts-1", "input": "Hello", "voice": "alloy", "response_format": "mp3", "stream_format": "sse"},
        {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        {
            "model": "claude-sonnet-4-5", "max_tokens": 1024, "system": [{**text, "cache_control": {"type": "ephemeral",
            "ttl": "1h"}}], "messages": [{"role": "user", "content": [text, {"type": "image", "source": source},
            {"type": "document", "source": {**source, "media_type": "application/pdf"}}]}], "stream": True,
            "thinking": {"type": "enabled", "budget_tokens": 1024}, "service_tier": "auto", "speed": "fast",
            "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}, {"name": "f",
            "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
        },
        {"requests": [{"custom_id": "a", "params": {"model": "claude-sonnet-4-5", "max_tokens": 5, "messages": []}}]},
        {
            "contents": [{"role": "user", "parts": [{"text": "Hi"}, {"inlineData": {"mimeType": "image/png",
            "data": "iVBORw0KGgo="}}, {"fileData": {"fileUri": "gs://a", "mimeType": "video/mp4"}}]}],
            "generationConfig": {"maxOutputTokens": 100, "candidateCount": 2, "thinkingConfig": {"thinkingBudget": 64},
            "responseModalities": ["TEXT", "IMAGE"]}, "systemInstruction": {"parts": [{"text": "Be kind"}]},
            "tools": [{"googleSearch": {}}, {"functionDeclarations": [{"name": "f"}]}],
            "cachedContent": "cachedContents/1",
        },
        {"content": {"parts": [{"text": "Hi"}]}, "taskType": "RETRIEVAL_QUERY"},
        {"requests": [{"model": "models/gemini-embedding-001", "content": {"parts": [{"text": "Hi"}]}}]},
        {"model": "codestral-latest", "prompt": "def f(", "suffix": "return", "max_tokens": 10, "stream": True},
        {"model": "mistral-ocr-latest", "document": {"type": "document_url", "document_url": "https://e.org/a.pdf"},
         "pages": [0, 1], "bbox_annotation_format": {"type": "json_schema"}},
        {"model": "command-a-03-2025", "messages": [{"role": "user", "content": "Hi"}], "stream": True,
         "max_tokens": 10, "documents": [{"data": {"a": "b"}}]},
        {"model": "command-r", "message": "Hi", "chat_history": [{"role": "USER", "message": "a"}], "connectors":
         [{"id": "web-search"}]},
        {"model": "embed-v4.0", "texts": ["a"], "images": ["data:image/png;base64,iVBORw0KGgo="], "input_type":
         "search_query", "embedding_types": ["float"], "inputs": [{"content": [text, image]}]},
        {"model": "rerank-v3.5", "query": "a", "documents": ["b", {"text": "c"}], "top_n": 1, "max_tokens_per_doc": 5},
    ]  # fmt: skip
    lines = b"\n".join(
        dump({"custom_id": str(place), "method": "POST", "url": "/v1/chat/completions", "body": bodies[0]})
        for place in range(2)
    )
    return (*map(dump, bodies), lines, _form())


FORM_TYPE = "multipart/form-data; boundary=b0undary"


def _form() -> bytes:
    """A form as audio, images and files are sent."""
    fields = {"model": "whisper-1", "response_format": "json", "stream": "true", "n": "2", "purpose": "batch"}
    part = '--b0undary\r\nContent-Disposition: form-data; name="%s"'
    head = "".join(f"{part % name}\r\n\r\n{value}\r\n" for name, value in fields.items())
    head += f'{part % "file"}; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    wave = b"RIFF\x64\x00\x00\x00WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    return head.encode() + wave + b"data\x40\x00\x00\x00" + bytes(64) + b"\r\n--b0undary--\r\n"
