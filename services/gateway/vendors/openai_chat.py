"""OpenAI's chat completions: what a request can cost.

A request is read once, and refused when its cost could escape the bound: a key that two parsers could read differently,
a feature that costs what no price covers.
"""

import re
from typing import Final

from services.core.estimate import Demand
from services.core.usage.openai_chat import ChatShape
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.fields import (
    MAX_OUTPUT_TOKENS,
    Fields,
    asks_one_hour,
    encoded,
    flag,
    invalid,
    model_name,
    objects,
    read_object,
    unpriced,
    whole,
)
from services.gateway.vendors.messages import messages_of, parts_of
from services.gateway.vendors.openai_content import MAX_PARTS, Content, note_cache_life, refuse_present, tiers_of
from services.gateway.vendors.openai_stream import asks_for_usage, with_usage

MAX_CHOICES: Final = 128
MAX_MESSAGES: Final = 20_000
MAX_TOOLS: Final = 1_000

# Fields of compatible servers that bring charges which nothing here can bound, and what to say of them.
_UNPRICED: Final = {
    "models": "a list of fallback models can't be priced; name one model in 'model' and leave models out",
    "plugins": "plugins are charged apart from tokens; leave plugins out",
    "search_parameters": "live search is charged by the source, without a bound; leave search_parameters out",
    "enable_search": "web search is charged by the search, without a bound; leave enable_search out",
    "data_sources": "what a data source brings in is charged apart from tokens; leave data_sources out",
}
CHAT_DECIDED: Final = frozenset(
    {
        "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "best_of",
        "service_tier", "modalities", "audio", "tools", "prediction", "web_search_options", "prompt_cache_options",
        *_UNPRICED,
    }
)  # fmt: skip
_TEXT_PARTS: Final = ("text", "refusal")
_FREE_TOOLS: Final = ("function", "custom")
# Models that search the web once for every request, for a fee (OpenAI, "Web search": chat completions).
_SEARCHES_ALWAYS: Final = re.compile(r"gpt-[\w.]+(?:-mini)?-search-(?:api|preview)")
# Perplexity's models search for a fee by the request, which their price has.
_SEARCHES_INCLUDED: Final = re.compile(r"(?:perplexity/)?sonar")
_SHAPE: Final = ChatShape()


def read_chat(request: RouteRequest) -> RequestFacts:
    """The facts of a chat completion; raises `RequestRefusedError` naming the field."""
    body = request.body
    fields = read_object(body, CHAT_DECIDED)
    return chat_facts(body, fields, model_name(fields.get("model")))


def chat_facts(body: bytes, fields: Fields, model: str) -> RequestFacts:
    """The facts of a chat completion by a model, which Azure names in the path."""
    refuse_present(fields, _UNPRICED)
    _refuse_searching(model)
    _check_tools(fields)
    stream = flag(fields, "stream")
    content = _read_content(fields, model)
    note_cache_life(fields.get("prompt_cache_options"), content.priced, content.required)
    if asks_one_hour(body):  # OpenRouter passes cache_control on to Anthropic, wherever in the body it is.
        content.priced.add("cache_write_1h")
    searches = _searches(fields, model)
    if searches:
        content.unseen = content.unseen or "web_search_options"
    hide = stream and not asks_for_usage(fields)
    contexts, distinct = tiers_of(fields)
    return RequestFacts(
        model=model,
        stream=stream,
        demand=Demand(
            input_tokens=content.input_tokens(body),
            output_tokens_limit=_output_limit(fields),
            choices=max(whole(fields, "n", MAX_CHOICES) or 1, whole(fields, "best_of", MAX_CHOICES) or 1),
            counts={"web_searches": searches} if searches else {},
            parts=frozenset(content.priced),
            required=frozenset(content.required),
            contexts=contexts,
            distinct=distinct,
            unseen=content.unseen,
        ),
        shape=_SHAPE,
        body=with_usage(body, fields) if hide else body,
        hide_usage_chunk=hide,
        counted={"web_searches": searches} if searches else {},
    )


def _refuse_searching(model: str) -> None:
    if model.endswith(":online"):
        raise unpriced("model", "a model's ':online' form searches the web for a fee; name the model without it")
    if "deep-research" in model:
        raise unpriced(
            "model", "deep research searches the web as often as it likes, so a chat completion of it has no bound"
        )


def _searches(fields: Fields, model: str) -> int:
    """The web searches that the request itself is charged for."""
    if _SEARCHES_ALWAYS.match(model):
        return 1
    return int(fields.get("web_search_options") is not None and not _SEARCHES_INCLUDED.match(model))


def _check_tools(fields: Fields) -> None:
    for tool in objects(fields, "tools", MAX_TOOLS):
        if tool.get("type", "function") not in _FREE_TOOLS:
            raise unpriced("tools", "tools that the vendor runs can't be bounded here; use function or custom tools")


def _output_limit(fields: Fields) -> int | None:
    """The most that one choice can write.

    Which of the two limits a server heeds is its own affair, so the larger one is the bound. What a prediction got
    wrong is charged as output beyond it (OpenAI, "Predicted outputs"), a token for each byte of it at most.
    """
    limits = (whole(fields, "max_tokens"), whole(fields, "max_completion_tokens", MAX_OUTPUT_TOKENS))
    limit = max(limits[0] or 0, limits[1] or 0)
    prediction = fields.get("prediction")
    if prediction is None:
        return limit or None
    if not limit:
        raise unpriced("max_tokens", "a wrong prediction is charged beyond the output: name max_tokens with it")
    return limit + len(encoded(prediction, "prediction"))


def _read_content(fields: Fields, model: str) -> Content:
    """What the messages bring in and the answer may bring about beyond text."""
    messages = messages_of(fields, MAX_MESSAGES)
    content = Content(model, "messages")
    if any(message.get("audio") is not None for message in messages):
        content.add_earlier_audio()
    for part in parts_of(messages, MAX_PARTS):
        _read_part(part, content)
    if _speaks(fields):
        content.priced.add("audio_output")
        content.required.add("audio_output")
    return content


def _read_part(part: object, content: Content) -> None:
    if isinstance(part, str):
        return
    if not isinstance(part, dict):
        raise invalid("messages", "each content part must be an object")
    kind = part.get("type")
    # What a part carries counts, whatever it says it is.
    is_file = kind == "file" or "file" in part
    is_image = kind == "image_url" or "image_url" in part
    is_audio = kind == "input_audio" or "input_audio" in part
    if is_file:
        file = part.get("file")
        content.add_unseen(file.get("file_data") if isinstance(file, dict) else None)
    if is_image:
        image = part.get("image_url")
        content.add_image(image.get("url") if isinstance(image, dict) else image)
    if is_audio:
        content.add_audio(part.get("input_audio"))
    if not (is_file or is_image or is_audio) and kind not in _TEXT_PARTS:
        raise unpriced("messages", f"content parts of type {str(kind)[:40]!r} are not priced; send text or images")
    content.note_caching(part)


def _speaks(fields: Fields) -> bool:
    modalities = fields.get("modalities")
    if modalities is None:
        return fields.get("audio") is not None
    if not isinstance(modalities, list) or not all(isinstance(each, str) for each in modalities):
        raise invalid("modalities", "modalities must be a list of names")
    if not set(modalities) <= {"text", "audio"}:
        raise unpriced("modalities", "only text and audio output are priced here; leave the others out")
    return "audio" in modalities or fields.get("audio") is not None
