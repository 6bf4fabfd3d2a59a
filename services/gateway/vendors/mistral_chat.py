"""Mistral's chat and fill-in-the-middle completions: what a request can cost."""

import base64
from dataclasses import dataclass
from typing import Any, Final

from services.core.estimate import Demand
from services.core.pricing import NO_CONTEXT, Context
from services.core.usage.mistral_chat import ChatShape
from services.core.usage.reading import text_bytes
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.audio_lengths import audio_length
from services.gateway.vendors.fields import (
    TEMPLATE_TOKENS,
    Fields,
    flag,
    invalid,
    is_plain,
    model_name,
    objects,
    parsed_by_pairs,
    read_object,
    refuse_unknown,
    unpriced,
    whole,
)
from services.gateway.vendors.messages import messages_of, parts_of

# What one image can count as at most: 1,024 pixels a side in patches of 16, and a token that ends each row (Pixtral);
# newer models merge patches, and count 3,080 at most for 1,540 pixels a side (mistral-common, "Images").
MAX_IMAGE_TOKENS: Final = 64 * 65
# Audio is cut into half minutes, each 375 tokens long (Voxtral: 12.5 a second), whether they are counted or not.
AUDIO_CHUNK_MS: Final = 30_000
AUDIO_CHUNK_TOKENS: Final = 375
# Reasoning models bring a system prompt of their own, about 1,000 bytes of text.
REASONING_TOKENS: Final = 2_048

MAX_CHOICES: Final = 128
MAX_MESSAGES: Final = 20_000
MAX_PARTS: Final = 20_000
MAX_TOOLS: Final = 1_000

_COMMON: Final = frozenset(
    {
        "model", "temperature", "top_p", "max_tokens", "min_tokens", "stream", "stop", "random_seed", "metadata",
        "prompt_cache_key", "service_tier",
    }
)  # fmt: skip
_CHAT: Final = _COMMON | frozenset(
    {
        "messages", "response_format", "tools", "tool_choice", "presence_penalty", "frequency_penalty", "n",
        "prediction", "parallel_tool_calls", "reasoning_effort", "prompt_mode", "safe_prompt", "guardrails",
        "document_image_limit", "document_page_limit",
    }
)  # fmt: skip
_FIM: Final = _COMMON | {"prompt", "suffix"}
_TEXT_PARTS: Final = frozenset({"text", "thinking", "reference"})
_STANDARD: Final = frozenset({"standard", "standard_only", "default"})
_PRIORITY: Final[Context] = {"service_tier": "priority"}
_SHAPE: Final = ChatShape()


@dataclass(slots=True)
class _Content:
    """What messages carry beside text: tokens and time of media, and their bytes in the body that are no text."""

    tokens: int = 0
    data_bytes: int = 0
    audio_ms: int = 0
    parts: frozenset[str] = frozenset()


def read_chat(request: RouteRequest) -> RequestFacts:
    """The facts of a chat completion; raises `RequestRefusedError` naming the field."""
    fields = read_fields(request.body, _CHAT)
    if fields.get("guardrails"):
        raise unpriced("guardrails", "guardrails run a model whose tokens are not reported; leave guardrails out")
    for tool in objects(fields, "tools", MAX_TOOLS):
        if tool.get("type", "function") != "function":
            raise unpriced("tools", "tools that Mistral runs are not priced yet; use function tools")
    content = _read_messages(fields)
    model = model_name(fields.get("model"))
    limit = whole(fields, "max_tokens")
    predicted = text_bytes(fields.get("prediction"), frozenset({"type"}))
    if predicted and limit is None:
        raise invalid("max_tokens", "a prediction can be charged beside the answer: name max_tokens, or leave it out")
    reasons = "magistral" in model or fields.get("prompt_mode") or fields.get("reasoning_effort")
    return _facts(
        request,
        fields,
        Demand(
            input_tokens=len(request.body)
            - content.data_bytes
            + content.tokens
            + TEMPLATE_TOKENS
            + (REASONING_TOKENS if reasons else 0),
            # What was predicted in vain is charged as output, too.
            output_tokens_limit=None if limit is None else limit + predicted,
            choices=whole(fields, "n", MAX_CHOICES) or 1,
            counts={"audio_ms": content.audio_ms} if content.audio_ms else {},
            parts=content.parts,
            contexts=_tiers(fields),
            distinct=_distinct(fields),
        ),
    )


def read_fim(request: RouteRequest) -> RequestFacts:
    """The facts of a fill-in-the-middle completion; raises `RequestRefusedError` naming the field."""
    fields = read_fields(request.body, _FIM)
    return _facts(
        request,
        fields,
        Demand(
            input_tokens=len(request.body) + TEMPLATE_TOKENS,
            output_tokens_limit=whole(fields, "max_tokens"),
            contexts=_tiers(fields),
            distinct=_distinct(fields),
        ),
    )


def read_fields(body: bytes, known: frozenset[str]) -> Fields:
    """The fields of a request body that has only `known` ones, none of them and nothing in them twice."""
    fields = read_object(body, known)
    refuse_unknown(fields, known)
    if not is_plain(body, fields):
        parsed_by_pairs(body, _once)
    return fields


def _once(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)[:40]
        raise invalid(twice, f"the field {twice!r} is there more than once; keep one")


def _facts(request: RouteRequest, fields: Fields, demand: Demand) -> RequestFacts:
    return RequestFacts(
        model=model_name(fields.get("model")),
        stream=flag(fields, "stream"),
        demand=demand,
        shape=_SHAPE,
        body=request.body,
        context=demand.contexts[0],
    )


def _tiers(fields: Fields) -> tuple[Context, ...]:
    """The service tiers in reach: an organisation may have priority without asking for it."""
    tier = fields.get("service_tier")
    if tier is None:
        return (NO_CONTEXT, _PRIORITY)
    if not isinstance(tier, str):
        raise invalid("service_tier", "service_tier must be a name")
    return (NO_CONTEXT,) if tier.lower() in _STANDARD else (_PRIORITY, NO_CONTEXT)


def _distinct(fields: Fields) -> Context:
    return _PRIORITY if _tiers(fields)[0] is _PRIORITY else NO_CONTEXT


def _read_messages(fields: Fields) -> _Content:
    content = _Content()
    for part in parts_of(messages_of(fields, MAX_MESSAGES), MAX_PARTS):
        _read_part(part, content)
    return content


def _read_part(part: object, content: _Content) -> None:
    if not isinstance(part, dict):
        raise invalid("messages", "each content part must be an object")
    kind = part.get("type")
    # What a part carries counts, whatever it says it is.
    for name in ("document_url", "file", "file_id"):
        if kind == name or name in part:
            raise unpriced(
                "messages", "the pages of a document can't be seen here; read it by /v1/ocr, or send its text"
            )
    if kind == "image_url" or "image_url" in part:
        image = part.get("image_url")
        address = image.get("url") if isinstance(image, dict) else image
        if not isinstance(address, str):
            raise invalid("messages", "image_url must be an address, or an object with url")
        content.tokens += MAX_IMAGE_TOKENS
        content.data_bytes += len(address) if address.startswith("data:") else 0
        content.parts |= {"image_input"}
    elif kind == "input_audio" or "input_audio" in part:
        _read_audio(part.get("input_audio"), content)
    elif kind not in _TEXT_PARTS:
        raise unpriced("messages", f"content parts of type {str(kind)[:40]!r} are not priced yet")


def _read_audio(value: object, content: _Content) -> None:
    data = value.get("data") if isinstance(value, dict) else value
    if not isinstance(data, str):
        raise invalid("messages", "input_audio must be audio in base64")
    if data.startswith(("http://", "https://")):
        raise unpriced("messages", "the length of audio at an address can't be seen here; send it in base64")
    coded = data.partition(",")[2] if data.startswith("data:") else data
    try:
        audio = base64.b64decode(coded, validate=True)
    except ValueError as error:
        raise invalid("messages", f"input_audio is not base64: {error}") from error
    most_ms = audio_length(audio).most_ms
    content.audio_ms += most_ms
    content.tokens += audio_tokens(most_ms)
    content.data_bytes += len(data)


def audio_tokens(duration_ms: int) -> int:
    """The most tokens that audio of that length can count as."""
    return -(-duration_ms // AUDIO_CHUNK_MS) * AUDIO_CHUNK_TOKENS
