"""The stand-in vendors answer unscripted requests in the shapes that the vendors publish."""

import json
from typing import Any

import httpx
import pytest

from tests.support.vendors import RESPONDERS, Answer, Received
from tests.support.vendors.shapes import assert_fits, data_of, shown, unmarked

CHAT, CHAT_CHUNK = "CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"
GREETING = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
AUDIO = {"file": ("a.mp3", b"\x00\r\n--\xff")}
ASKED: dict[str, Any] = {"model": "m", "messages": GREETING}
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
CLAUDE: dict[str, Any] = {**ASKED, "max_tokens": 100}
FLOW: dict[str, Any] = {"stream": True}
TOLD: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
FORCED: dict[str, Any] = {"tools": [FUNCTION], "tool_choice": "required"}
STRICT = {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}}
CLAUDE_TOOLS = {"tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}}
SEARCHES = {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}
GEMINI_TOOLS = {
    "tools": [{"functionDeclarations": [{"name": "f", "parameters": SCHEMA}]}, {"googleSearch": {}}],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
    "generationConfig": {"thinkingConfig": {"include_thoughts": True}, "candidateCount": 2},
}
DOCUMENT = {"document": {"type": "document_url", "document_url": "https://example.com/a.pdf"}}
BATCH = {"requests": [{"custom_id": "a", "params": CLAUDE}]}
Sent = tuple[str, str, str, dict[str, Any] | None, str]
REQUESTS: list[Sent] = [
    *(("openai", "POST", "/v1/chat/completions", ASKED | more, CHAT) for more in ({}, {"n": 2}, FORCED, STRICT)),
    *(("openai", "POST", "/v1/chat/completions", ASKED | more, CHAT_CHUNK) for more in (FLOW, TOLD, TOLD | FORCED)),
    *(
        ("openai", "POST", "/v1/responses", {"model": "m", "input": "Hi"} | more, "Response")
        for more in ({}, {"background": True}, {"max_output_tokens": 3})
    ),
    ("openai", "POST", "/v1/responses", {"model": "m", "input": "Hi", **FLOW}, "ResponseStreamEvent"),
    ("openai", "POST", "/v1/responses/input_tokens", {"model": "m", "input": "Hi"}, "TokenCountsResource"),
    *(
        ("openai", "POST", "/v1/completions", {"model": "m", "prompt": "Hi"} | more, "CreateCompletionResponse")
        for more in ({}, FLOW, TOLD)
    ),
    ("openai", "POST", "/v1/embeddings", {"model": "m", "input": ["a", "b"]}, "CreateEmbeddingResponse"),
    *(
        ("openai", "POST", "/v1/images/generations", {"model": name, "prompt": "x"}, "ImagesResponse")
        for name in ("gpt-image-1", "dall-e-3")
    ),
    (
        "openai",
        "POST",
        "/v1/images/generations",
        {"model": "gpt-image-1", "prompt": "x", **FLOW},
        "ImageGenStreamEvent",
    ),
    ("openai", "POST", "/v1/images/edits", {"model": "gpt-image-1", "prompt": "x", **FLOW}, "ImageEditStreamEvent"),
    (
        "openai",
        "POST",
        "/v1/audio/speech",
        {"model": "m", "input": "x", "voice": "alloy", "stream_format": "sse"},
        "CreateSpeechResponseStreamEvent",
    ),
    ("openai", "POST", "/v1/moderations", {"input": "x"}, "CreateModerationResponse"),
    ("openai", "GET", "/v1/models", None, "ListModelsResponse"),
    ("openai", "GET", "/v1/models/gpt-4o", None, "Model"),
    ("openai", "GET", "/v1/files", None, "ListFilesResponse"),
    ("openai", "GET", "/v1/batches", None, "ListBatchesResponse"),
    ("openai", "GET", "/v1/files/none", None, "ErrorResponse"),
    ("openai", "POST", "/v1/chat/completions", {"model": "m"}, "ErrorResponse"),
    *(("anthropic", "POST", "/v1/messages", CLAUDE | more, "Message") for more in ({}, CLAUDE_TOOLS, SEARCHES)),
    *(
        ("anthropic", "POST", "/v1/messages", CLAUDE | FLOW | more, "RawMessageStreamEvent")
        for more in ({}, CLAUDE_TOOLS, SEARCHES)
    ),
    ("anthropic", "POST", "/v1/messages/count_tokens", ASKED, "MessageTokensCount"),
    ("anthropic", "GET", "/v1/models/claude-sonnet-4-5", None, "ModelInfo"),
    ("anthropic", "POST", "/v1/messages/batches", BATCH, "MessageBatch"),
    ("anthropic", "POST", "/v1/messages", ASKED, "ErrorResponse"),
    *(
        ("google", "POST", "/v1beta/models/m:generateContent", CONTENTS | more, "GenerateContentResponse")
        for more in ({}, GEMINI_TOOLS)
    ),
    *(
        (
            "google",
            "POST",
            f"/v1beta/models/m:streamGenerateContent{query}",
            CONTENTS | GEMINI_TOOLS,
            "GenerateContentResponse",
        )
        for query in ("", "?alt=sse")
    ),
    ("google", "POST", "/v1/models/m:embedContent", {"content": {"parts": []}}, "EmbedContentResponse"),
    ("google", "POST", "/v1/models/m:batchEmbedContents", {"requests": [{}, {}]}, "BatchEmbedContentsResponse"),
    ("google", "POST", "/v1/models/m:countTokens", CONTENTS, "CountTokensResponse"),
    ("google", "GET", "/v1beta/models", None, "ListModelsResponse"),
    *(
        ("mistral", "POST", "/v1/chat/completions", ASKED | more, "ChatCompletionResponse")
        for more in ({}, FORCED, STRICT)
    ),
    *(("mistral", "POST", "/v1/chat/completions", ASKED | FLOW | more, "CompletionChunk") for more in ({}, FORCED)),
    *(
        ("mistral", "POST", "/v1/fim/completions", {"model": "m", "prompt": "x"} | more, schema)
        for more, schema in (({}, "FIMCompletionResponse"), (FLOW, "CompletionChunk"))
    ),
    ("mistral", "POST", "/v1/embeddings", {"model": "m", "input": ["a"]}, "EmbeddingResponse"),
    ("mistral", "POST", "/v1/ocr", DOCUMENT, "OCRResponse"),
    ("mistral", "GET", "/v1/models", None, "ModelList"),
    ("mistral", "POST", "/v1/chat/completions", {}, "HTTPValidationError"),
    *(
        ("cohere", "POST", "/v2/chat", ASKED | more, "ChatResponseV2")
        for more in ({}, {"tools": [FUNCTION], "tool_choice": "REQUIRED"})
    ),
    ("cohere", "POST", "/v2/chat", ASKED | FLOW, "StreamedChatResponseV2"),
    ("cohere", "POST", "/v1/chat", {"message": "Hi"}, "NonStreamedChatResponse"),
    ("cohere", "POST", "/v1/chat", {"message": "Hi"} | FLOW, "StreamedChatResponse"),
    ("cohere", "POST", "/v1/embed", {"texts": ["a"]}, "EmbedFloatsResponse"),
    ("cohere", "POST", "/v2/embed", {"model": "m", "input_type": "image", "images": ["data:"]}, "EmbedByTypeResponse"),
    (
        "cohere",
        "POST",
        "/v1/rerank",
        {"query": "q", "documents": ["a"], "return_documents": True},
        "POST /v1/rerank 200",
    ),
    ("cohere", "POST", "/v2/rerank", {"model": "m", "query": "q", "documents": ["a"]}, "POST /v2/rerank 200"),
    ("cohere", "POST", "/v2/chat", {}, "POST /v2/chat 400"),
]
FORMS: list[tuple[str, dict[str, str], dict[str, Any], str]] = [
    ("images/edits", {"model": "gpt-image-1", "prompt": "x"}, {"image": ("a.png", b"x")}, "ImagesResponse"),
    ("audio/transcriptions", {"model": "gpt-4o-transcribe"}, AUDIO, "CreateTranscriptionResponseJson"),
    ("audio/transcriptions", {"model": "whisper-1"}, AUDIO, "CreateTranscriptionResponseJson"),
    (
        "audio/transcriptions",
        {"model": "whisper-1", "response_format": "verbose_json"},
        AUDIO,
        "CreateTranscriptionResponseVerboseJson",
    ),
    ("audio/transcriptions", {"model": "m", "stream": "true"}, AUDIO, "CreateTranscriptionResponseStreamEvent"),
    ("audio/translations", {"model": "whisper-1"}, AUDIO, "CreateTranslationResponseJson"),
    ("files", {"purpose": "batch"}, {"file": ("b.jsonl", b"{}")}, "OpenAIFile"),
]


def received(request: httpx.Request) -> Received:
    """A request as a stand-in gets it, with a credential."""
    headers = tuple((name.lower(), value) for name, value in request.headers.items())
    return Received(request.method, request.url.raw_path.decode(), headers, request.read(), "key")


def answered(answer: Answer) -> list[Any]:
    """The JSON texts of an answer of any kind."""
    kind = dict(answer.headers)["content-type"]
    if kind.startswith("text/event-stream"):
        return [value for value in data_of(answer.pieces) if value.get("type") != "ping"]
    if kind == "application/stream+json":
        return unmarked(map(json.loads, answer.pieces))
    whole = json.loads(answer.body)
    return whole if isinstance(whole, list) else [whole]


@pytest.mark.parametrize(("vendor", "method", "target", "body", "schema"), REQUESTS)
def test_a_default_answer_is_as_published(vendor: str, method: str, target: str, body: Any, schema: str) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    request = httpx.Request(method, f"http://vendor{target}", json=body, headers=headers)
    values = answered(RESPONDERS[vendor]()(received(request)))
    assert_fits(vendor, schema, shown(values, finish_reason="stop") if vendor == "openai" else values)


@pytest.mark.parametrize(("route", "fields", "files", "schema"), FORMS)
def test_a_default_answer_to_a_form_is_as_published(
    route: str, fields: dict[str, str], files: dict[str, Any], schema: str
) -> None:
    request = httpx.Request("POST", f"http://vendor/v1/{route}", data=fields, files=files)
    assert_fits("openai", schema, answered(RESPONDERS["openai"]()(received(request))))
