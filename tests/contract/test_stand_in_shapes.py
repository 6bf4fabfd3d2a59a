"""The stand-in vendors answer in the shapes that the vendors publish: every builder of answers."""

import json
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import pytest

from tests.support.vendors import Answer, anthropic, cohere, google, mistral, openai
from tests.support.vendors.shapes import assert_fits, data_of, problems, shown, unmarked

Values = Callable[[], Iterable[Any]]

CHAT, CHAT_CHUNK = "CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"
FULL_USAGE = openai.usage(
    100, 50, 40, 20, audio_in=5, audio_out=6, accepted=3, rejected=4, cache_write=7, text_in=8, image_in=9, text_out=10
)
ITEMS = [
    openai.reasoning_item("It greets."),
    openai.reasoning_item(),
    openai.web_search_item(),
    openai.file_search_item(),
    openai.code_interpreter_item(),
    openai.image_generation_item(),
    openai.call_item(),
    openai.text_item(),
]
RESPONSES = [
    openai.response(),
    openai.response(output=ITEMS, used=openai.response_usage(90, 30, 10, 20, 5)),
    openai.response(output=ITEMS, background=True),
    openai.response(status="incomplete", reason="max_output_tokens"),
    openai.response(status="failed", output=[], failure=("server_error", "The server had an error.")),
    openai.response(status="queued", background=True),
]
LINES = [openai.batch_line("a", {"id": "x"}), openai.batch_line("b", None)]

OPENAI: dict[str, tuple[str, Values]] = {
    "completion": (
        CHAT,
        lambda: [
            openai.completion(),
            openai.completion(text=None, tool_calls=[openai.weather_call()], used=FULL_USAGE, choices=2),
            openai.completion(refusal="No.", annotations=[openai.web_citation()], service_tier="flex"),
            openai.completion(audio={"id": "audio_1", "data": "AAA=", "expires_at": 1_760_000_000, "transcript": "Hi"}),
        ],
    ),
    "chunks": (
        CHAT_CHUNK,
        lambda: [
            *openai.chunks(openai.text_deltas("a", "b"), used=FULL_USAGE, choices=2),
            *openai.chunks(openai.tool_deltas(), finish_reason="tool_calls"),
            *openai.chunks(openai.tool_deltas(openai.tool_call("f", {"a": 1})), used=openai.usage()),
        ],
    ),
    "text_completion": ("CreateCompletionResponse", lambda: [openai.text_completion(choices=2)]),
    "text_completion_chunks": (
        "CreateCompletionResponse",
        lambda: shown(openai.text_completion_chunks(used=openai.plain_usage(), choices=2), finish_reason="stop"),
    ),
    "response": ("Response", lambda: shown(RESPONSES)),
    "response_steps": (
        "ResponseStreamEvent",
        lambda: shown(step for one in RESPONSES[:5] for step in openai.response_steps(one)),
    ),
    "response_events": ("ResponseStreamEvent", lambda: shown(data_of(openai.response_events(RESPONSES[1])))),
    "response_error": ("ResponseStreamEvent", lambda: data_of([openai.response_error(4)])),
    "input_tokens": ("TokenCountsResource", lambda: [openai.input_tokens()]),
    "embeddings": ("CreateEmbeddingResponse", lambda: [openai.embeddings(count=2)]),
    "images": ("ImagesResponse", lambda: [openai.images(2), openai.images(links=True, report=False)]),
    "image_events": (
        "ImageGenStreamEvent",
        lambda: data_of(openai.image_events(partials=2)),
    ),
    "speech_events": ("CreateSpeechResponseStreamEvent", lambda: data_of(openai.speech_events())),
    "transcription": (
        "CreateTranscriptionResponseJson",
        lambda: [
            openai.transcription(),
            openai.transcription(used=openai.token_usage(3, 20, 9)),
            openai.transcription(used=openai.duration_usage(7)),
            openai.transcription(used={}),
        ],
    ),
    "verbose_transcription": ("CreateTranscriptionResponseVerboseJson", lambda: [openai.verbose_transcription()]),
    "diarized_transcription": ("CreateTranscriptionResponseDiarizedJson", lambda: [openai.diarized_transcription()]),
    "transcription_events": (
        "CreateTranscriptionResponseStreamEvent",
        lambda: data_of(openai.transcription_events()),
    ),
    "translation": ("CreateTranslationResponseJson", lambda: [openai.translation()]),
    "verbose_translation": ("CreateTranslationResponseVerboseJson", lambda: [openai.verbose_translation()]),
    "moderation": ("CreateModerationResponse", lambda: [openai.moderation(count=2), openai.moderation(flagged=True)]),
    "model": ("Model", lambda: [openai.model()]),
    "models": ("ListModelsResponse", lambda: [openai.models()]),
    "file": ("OpenAIFile", lambda: [openai.file(), openai.file(purpose="batch_output")]),
    "batch": (
        "Batch",
        lambda: [
            *(openai.batch(status=status) for status in ("validating", "in_progress", "finalizing", "cancelling")),
            *(openai.batch(status=status) for status in ("failed", "expired", "cancelled")),
            openai.batch(output_file="file-1", error_file="file-2", used=openai.batch_usage(), model_name="gpt-4o"),
        ],
    ),
    "page": ("ListFilesResponse", lambda: [openai.page([openai.file()]), openai.page([])]),
    "error": ("ErrorResponse", lambda: [openai.error("No.", "invalid_request_error", "model", "x")]),
    "failure": ("ErrorResponse", lambda: bodies(openai.failure, (400, 401, 403, 404, 413, 429, 500, 503))),
    "stream_error": ("ErrorResponse", lambda: data_of([openai.stream_error()])),
}

BLOCKS = [
    anthropic.thinking_block(),
    anthropic.redacted_block(),
    *anthropic.search_blocks(),
    anthropic.text_block("It is warm.", [anthropic.web_citation()]),
    anthropic.tool_block(),
]
MESSAGES = [
    anthropic.message(),
    anthropic.message(content=BLOCKS, used=anthropic.usage(1, 2, 3, 4, 5, thinking=1, web_searches=1, web_fetches=2)),
    anthropic.message(used=anthropic.usage(cache_split=False, service_tier="batch", inference_geo="us", speed="fast")),
    anthropic.message(stop_reason="stop_sequence", stop_sequence="END", container="container_1"),
]
KINDS = ("message", "compaction", "advisor_message", "fallback_message")
ITERATIONS = [anthropic.iteration(kind, model=None if kind == "compaction" else "claude-haiku-4-5") for kind in KINDS]
ANTHROPIC: dict[str, tuple[str, Values]] = {
    "message": ("Message", lambda: MESSAGES),
    "steps": (
        "RawMessageStreamEvent",
        lambda: [step for one in MESSAGES for step in anthropic.steps(one, reports=[3, 7])],
    ),
    "stream": (
        "RawMessageStreamEvent",
        lambda: data_of(anthropic.stream(MESSAGES[1], pings=False, started={"input_tokens": 1}, last_in_full=False)),
    ),
    "usage": ("BetaUsage", lambda: [anthropic.usage(), anthropic.usage(iterations=ITERATIONS)]),
    "token_count": ("MessageTokensCount", lambda: [anthropic.token_count()]),
    "model": ("ModelInfo", lambda: [anthropic.model()]),
    "batch": (
        "MessageBatch",
        lambda: [
            anthropic.batch(),
            anthropic.batch(status="in_progress"),
            anthropic.batch(status="canceling", canceled=True),
            anthropic.batch(results_url="https://example.com/results"),
        ],
    ),
    "batch_result": (
        "MessageBatchIndividualResponse",
        lambda: [
            anthropic.batch_result("a", anthropic.message()),
            anthropic.batch_result("b", error=anthropic.error("invalid_request_error", "No.")),
            anthropic.batch_result("c"),
            anthropic.batch_result("d", kind="canceled"),
        ],
    ),
    "batch_results": (
        "MessageBatchIndividualResponse",
        lambda: map(json.loads, anthropic.batch_results([anthropic.batch_result("a")] * 2).splitlines()),
    ),
    "error": (
        "ErrorResponse",
        lambda: [anthropic.error("api_error", "No."), anthropic.error("api_error", "No.", None)],
    ),
    # 413 has a kind of error of its own, named in the vendor's list of errors but not in its models.
    "failure": ("ErrorResponse", lambda: bodies(anthropic.failure, (400, 401, 402, 403, 404, 429, 500, 503, 504, 529))),
    "stream_error": ("ErrorResponse", lambda: data_of([anthropic.stream_error()])),
}

FULL_METADATA = google.usage(
    100,
    20,
    30,
    5,
    7,
    prompt_by={"TEXT": 60, "IMAGE": 40},
    cached_by={"TEXT": 30},
    candidates_by={"TEXT": 15, "AUDIO": 5},
    tool_prompt_by={"TEXT": 7},
)
PARTS = [google.thought_part(), google.text_part(), google.call_part(), google.image_part()]
GENERATED = [
    google.generated(),
    google.generated(candidates=[google.candidate(PARTS, "STOP", 1, google.grounding())], used=FULL_METADATA),
    google.generated(used={}),
]
GOOGLE: dict[str, tuple[str, Values]] = {
    "generated": ("GenerateContentResponse", lambda: GENERATED),
    "blocked": ("GenerateContentResponse", lambda: [google.blocked()]),
    "chunks": (
        "GenerateContentResponse",
        lambda: google.chunks(used=FULL_METADATA, grounded=google.grounding(), choices=2),
    ),
    "event_stream": ("GenerateContentResponse", lambda: data_of(google.event_stream(google.chunks()))),
    "array_stream": ("GenerateContentResponse", lambda: json.loads(b"".join(google.array_stream(google.chunks())))),
    "embedding": ("EmbedContentResponse", lambda: [google.embedding()]),
    "embeddings": ("BatchEmbedContentsResponse", lambda: [google.embeddings(2)]),
    "token_count": ("CountTokensResponse", lambda: [google.token_count(), google.token_count(13, 4)]),
    "model": ("Model", lambda: [google.model()]),
    "models": ("ListModelsResponse", lambda: [google.models()]),
}

MISTRAL_USAGE = mistral.usage(13, 9, audio_seconds=3, cached=4, cached_in_details=4, cached_in_detail=4)
MISTRAL: dict[str, tuple[str, Values]] = {
    "completion": (
        "ChatCompletionResponse",
        lambda: [
            mistral.completion(),
            mistral.completion(tool_calls=[mistral.tool_call()], used=MISTRAL_USAGE, choices=2),
            mistral.completion(content=[mistral.thinking(), {"type": "text", "text": "Hello."}]),
        ],
    ),
    "chunks": (
        "CompletionChunk",
        lambda: [*mistral.chunks(used=MISTRAL_USAGE, choices=2), *mistral.chunks(tool_calls=[mistral.tool_call()])],
    ),
    "events": ("CompletionChunk", lambda: data_of(mistral.events(mistral.chunks()))),
    "embeddings": ("EmbeddingResponse", lambda: [mistral.embeddings(count=2)]),
    "ocr": ("OCRResponse", lambda: [mistral.ocr(), mistral.ocr(annotation="{}", size=None)]),
    "moderation": ("ModerationResponse", lambda: [mistral.moderation()]),
    "model": ("BaseModelCard", lambda: [mistral.model()]),
    "models": ("ModelList", lambda: [mistral.models()]),
    "validation": ("HTTPValidationError", lambda: [mistral.validation()]),
    "failure": ("HTTPValidationError", lambda: bodies(mistral.failure, (422,))),
}

V2 = [
    cohere.chat_v2(),
    cohere.chat_v2(thinking="The user greets me.", used=cohere.usage(cached=3, search_units=1, classifications=2)),
    cohere.chat_v2(tool_calls=[cohere.tool_call()]),
    cohere.chat_v2(finish_reason="MAX_TOKENS", used=cohere.usage(tokens_input=None, tokens_output=None)),
]
ALL_UNITS = {"input_tokens": 1, "output_tokens": 2, "search_units": 3, "images": 4, "image_tokens": 5}
V1 = [
    cohere.chat_v1(),
    cohere.chat_v1("", [{"name": "f", "parameters": {"a": 1}}]),
    cohere.chat_v1(used=cohere.meta("1", (5, 6), 2, ["old"], **ALL_UNITS)),
]
ALL_TYPES = ("float", "int8", "uint8", "binary", "ubinary", "base64")
COHERE: dict[str, tuple[str, Values]] = {
    "chat_v2": ("ChatResponseV2", lambda: V2),
    "steps_v2": ("StreamedChatResponseV2", lambda: [step for one in V2 for step in cohere.steps_v2(one)]),
    "stream_v2": ("StreamedChatResponseV2", lambda: data_of(cohere.stream_v2(V2[1]))),
    "stream_error_v2": ("StreamedChatResponseV2", lambda: data_of([cohere.stream_error_v2()])),
    "chat_v1": ("NonStreamedChatResponse", lambda: V1),
    "steps_v1": ("StreamedChatResponse", lambda: [step for one in V1 for step in unmarked(cohere.steps_v1(one))]),
    "stream_v1": ("StreamedChatResponse", lambda: unmarked(map(json.loads, cohere.stream_v1()))),
    "stream_error_v1": ("StreamedChatResponse", lambda: unmarked([json.loads(cohere.stream_error_v1())])),
    "embeddings_floats": ("EmbedFloatsResponse", lambda: [cohere.embeddings_floats(["a", "b"])]),
    "embeddings_by_type": (
        "EmbedByTypeResponse",
        lambda: [cohere.embeddings_by_type(["a"], ALL_TYPES, length=8), cohere.embeddings_by_type([], images=2)],
    ),
    "rerank": ("POST /v2/rerank 200", lambda: [cohere.rerank()]),
    "tokens": ("POST /v1/tokenize 200", lambda: [cohere.tokens()]),
    "model": ("GetModelResponse", lambda: [cohere.model()]),
    "models": ("ListModelsResponse", lambda: [cohere.models()]),
    "error": ("POST /v2/chat 400", lambda: [cohere.error("No."), cohere.error("No.", None)]),
    "failure": ("POST /v2/chat 429", lambda: bodies(cohere.failure, (400, 401, 403, 404, 429, 500, 503))),
}

# Builders of parts, which are checked inside the answers above, and of bodies that no description has.
INSIDE = {
    "openai": {
        *("usage", "plain_usage", "tool_call", "weather_call", "web_citation", "text_deltas", "tool_deltas", "events"),
        *("call_item", "code_interpreter_item", "file_search_item", "image_generation_item", "reasoning_item"),
        *("text_item", "web_search_item", "response_usage", "image_usage", "token_usage", "duration_usage"),
        *("speech_usage", "batch_usage", "batch_line", "batch_output", "dump"),
    },
    "anthropic": {
        *("iteration", "redacted_block", "search_blocks", "text_block", "thinking_block", "tool_block"),
        *("web_citation", "models", "page"),
    },
    "google": {
        *("usage", "modalities", "text_part", "thought_part", "call_part", "image_part", "grounding", "candidate"),
        *("embedding_usage", "error", "error_info", "retry_info", "body_of", "failure", "stream_error", "array_error"),
    },
    "mistral": {"usage", "tool_call", "thinking", "error", "stream_error"},
    "cohere": {"usage", "meta", "tool_call"},
}
TABLES: dict[str, tuple[ModuleType, dict[str, tuple[str, Values]]]] = {
    "openai": (openai, OPENAI),
    "anthropic": (anthropic, ANTHROPIC),
    "google": (google, GOOGLE),
    "mistral": (mistral, MISTRAL),
    "cohere": (cohere, COHERE),
}


def bodies(failure: Callable[[int], Answer], statuses: Iterable[int]) -> list[Any]:
    """The bodies of failed requests, each sent with the status asked for."""
    answers = {status: failure(status) for status in statuses}
    assert all(answer.status == status for status, answer in answers.items())
    return [json.loads(answer.body) for answer in answers.values()]


@pytest.mark.parametrize(
    ("vendor", "builder"), [(vendor, builder) for vendor, (_, table) in TABLES.items() for builder in table]
)
def test_a_builder_answers_as_published(vendor: str, builder: str) -> None:
    schema, values = TABLES[vendor][1][builder]
    assert_fits(vendor, schema, values())


@pytest.mark.parametrize("vendor", TABLES)
def test_every_builder_is_checked(vendor: str) -> None:
    module, table = TABLES[vendor]
    builders = {name for name in module.__all__ if callable(getattr(module, name))}
    assert builders == set(table) | INSIDE[vendor]


def test_responses_usage_is_as_the_newer_client_has_it() -> None:
    used = openai.response_usage(100, 10, 20, 5, cache_write_by_age=(3, 4))
    assert problems("openai-sdk", "ResponseUsage", used) == []
    assert problems("openai-sdk", "CompletionUsage", FULL_USAGE) == []
