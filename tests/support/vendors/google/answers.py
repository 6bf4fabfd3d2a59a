"""Gemini's answers: generated content, its streams, embeddings, token counts and models."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.vendors.framing import data_events, json_array

MODEL = "gemini-2.5-flash"
HELLO = "Hello! How can I help you today?"
WORDS = ("Hello!", " How can I help", " you today?")


def usage(
    prompt: int = 13,
    candidates: int | None = 9,
    cached: int | None = None,
    thoughts: int | None = None,
    tool_prompt: int | None = None,
    *,
    prompt_by: Mapping[str, int] | None = None,
    cached_by: Mapping[str, int] | None = None,
    candidates_by: Mapping[str, int] | None = None,
    tool_prompt_by: Mapping[str, int] | None = None,
    tier: str | None = None,
) -> dict[str, Any]:
    """A ``usageMetadata`` object: zeros are left out, as Google leaves them out; None too.

    `cached` is a part of `prompt`. `thoughts` is beside `candidates`, `tool_prompt` beside `prompt`: the total is the
    sum of the four. The `…_by` split a count by modality (``TEXT``, ``IMAGE``, ``AUDIO``, ``VIDEO``, ``DOCUMENT``);
    `prompt_by` None means all text. `tier` is ``serviceTier``, which newer answers carry.
    """
    counts = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": candidates,
        "totalTokenCount": prompt + (candidates or 0) + (thoughts or 0) + (tool_prompt or 0),
        "cachedContentTokenCount": cached,
        "promptTokensDetails": modalities({"TEXT": prompt} if prompt_by is None else prompt_by),
        "cacheTokensDetails": modalities(({"TEXT": cached} if cached else {}) if cached_by is None else cached_by),
        "candidatesTokensDetails": modalities(candidates_by or {}),
        "toolUsePromptTokenCount": tool_prompt,
        "toolUsePromptTokensDetails": modalities(tool_prompt_by or {}),
        "thoughtsTokenCount": thoughts,
        "serviceTier": tier,
    }
    return {name: value for name, value in counts.items() if value}


def modalities(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Token counts by modality."""
    return [{"modality": name, "tokenCount": count} for name, count in counts.items()]


def text_part(text: str = HELLO) -> dict[str, Any]:
    """A part of text."""
    return {"text": text}


def thought_part(text: str = "The user greets me.") -> dict[str, Any]:
    """A summary of thoughts: its text tells nothing about the tokens thought."""
    return {"text": text, "thought": True}


def call_part(name: str = "get_weather", arguments: object = None) -> dict[str, Any]:
    """A call of a function."""
    return {"functionCall": {"name": name, "args": {"city": "Zürich"} if arguments is None else arguments}}


def image_part(data: str = "iVBORw0KGgo=", kind: str = "image/png") -> dict[str, Any]:
    """A generated image, in base64."""
    return {"inlineData": {"mimeType": kind, "data": data}}


def grounding(queries: Sequence[str] = ("weather in Zürich",)) -> dict[str, Any]:
    """What a search found: how many queries were made is how it is billed."""
    chunk = {"web": {"uri": "https://example.com/weather", "title": "example.com"}}
    return {"webSearchQueries": list(queries), "groundingChunks": [chunk]}


def candidate(
    parts: Sequence[dict[str, Any]] | None = None,
    finish_reason: str | None = "STOP",
    index: int = 0,
    grounded: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A candidate. `parts` None: a text; `finish_reason` None: one that goes on."""
    content = {"parts": [text_part()] if parts is None else list(parts), "role": "model"}
    answer: dict[str, Any] = {"content": content}
    if finish_reason is not None:
        answer["finishReason"] = finish_reason
    answer["index"] = index
    return answer if grounded is None else {**answer, "groundingMetadata": grounded}


def generated(
    model: str = MODEL,
    candidates: Sequence[dict[str, Any]] | None = None,
    used: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A JSON answer. `candidates` None: one with a text; `used` None: `usage()`; an empty dict leaves usage out."""
    answer: dict[str, Any] = {
        "candidates": [candidate()] if candidates is None else list(candidates),
        "usageMetadata": usage() if used is None else used,
        "modelVersion": model,
        "responseId": "tXqDaOuUJ7Gf1MkP2YfN4Ac",
    }
    if not answer["usageMetadata"]:
        del answer["usageMetadata"]
    return answer


def blocked(model: str = MODEL, reason: str = "PROHIBITED_CONTENT", prompt: int = 13) -> dict[str, Any]:
    """An answer to a prompt that was blocked: no candidates, the prompt counted."""
    answer = generated(model, [], usage(prompt, None))
    del answer["candidates"]
    return {"promptFeedback": {"blockReason": reason}, **answer}


def chunks(
    model: str = MODEL,
    steps: Sequence[Sequence[dict[str, Any]]] | None = None,
    used: dict[str, Any] | None = None,
    finish_reason: str = "STOP",
    grounded: dict[str, Any] | None = None,
    choices: int = 1,
) -> list[dict[str, Any]]:
    """The chunks of a stream, a list of parts each; all carry usage up to then, so the last is the whole."""
    parts = [[text_part(word)] for word in WORDS] if steps is None else [list(step) for step in steps]
    whole = usage() if used is None else used
    answer = []
    for place, step in enumerate(parts):
        last = place == len(parts) - 1
        candidates = [
            candidate(step, finish_reason if last else None, index, grounded if last else None)
            for index in range(choices)
        ]
        answer.append(generated(model, candidates, whole if last else _so_far(whole, place + 1, len(parts))))
    return answer


def _so_far(whole: dict[str, Any], step: int, steps: int) -> dict[str, Any]:
    """Usage after some of the steps: the input in full, the output in proportion."""
    known = {name: value for name, value in whole.items() if name != "candidatesTokensDetails"}
    if "candidatesTokenCount" in known:
        known["candidatesTokenCount"] = whole["candidatesTokenCount"] * step // steps
        known["totalTokenCount"] -= whole["candidatesTokenCount"] - known["candidatesTokenCount"]
    return {name: value for name, value in known.items() if value}


def event_stream(values: Sequence[dict[str, Any]]) -> list[bytes]:
    """Chunks as Google frames them for ``alt=sse``: CRLF, and no closing event."""
    return data_events(values, b"\r\n", done=False)


def array_stream(values: Sequence[dict[str, Any]]) -> list[bytes]:
    """Chunks as Google frames them without ``alt=sse``: one JSON array."""
    return json_array(values)


def embedding_usage(prompt: int = 8, prompt_by: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The usage that newer embedding models report."""
    split = modalities({"TEXT": prompt} if prompt_by is None else prompt_by)
    return {"promptTokenCount": prompt, "promptTokensDetails": split}


def embedding(used: dict[str, Any] | None = None, length: int = 4) -> dict[str, Any]:
    """The answer of embedContent: without usage, unless given."""
    answer: dict[str, Any] = {"embedding": _vector(length)}
    return answer if used is None else {**answer, "usageMetadata": used}


def embeddings(count: int = 1, used: dict[str, Any] | None = None, length: int = 4) -> dict[str, Any]:
    """The answer of batchEmbedContents: without usage, unless given."""
    answer: dict[str, Any] = {"embeddings": [_vector(length)] * count}
    return answer if used is None else {**answer, "usageMetadata": used}


def _vector(length: int) -> dict[str, Any]:
    return {"values": [round(0.25 - place / 64, 6) for place in range(length)]}


def token_count(total: int = 13, cached: int | None = None) -> dict[str, Any]:
    """The answer of countTokens: free."""
    counts = {"totalTokens": total, "cachedContentTokenCount": cached}
    known = {name: value for name, value in counts.items() if value is not None}
    return {**known, "promptTokensDetails": modalities({"TEXT": total})}


def model(name: str = MODEL) -> dict[str, Any]:
    """One model."""
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name.replace("-", " ").title(),
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
        "temperature": 1,
        "topP": 0.95,
        "topK": 64,
        "maxTemperature": 2,
        "thinking": True,
    }


def models(names: Sequence[str] = (MODEL, "gemini-2.5-pro", "gemini-embedding-001")) -> dict[str, Any]:
    """The list of models."""
    return {"models": [model(name) for name in names]}
