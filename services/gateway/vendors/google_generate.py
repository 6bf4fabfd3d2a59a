"""Gemini's generateContent: what a request can cost.

A request is read once, and refused when its cost could escape the bound: searches without a limit, code and stores that
Google runs, another model chosen on the way, an answer that would hide its usage.
"""

from typing import Final
from urllib.parse import parse_qsl

from services.core.estimate import Demand
from services.core.pricing import NO_CONTEXT, Context
from services.core.usage.google_generate import GenerateShape, searches_by_prompt
from services.core.usage.reading import Framing
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.fields import (
    TEMPLATE_TOKENS,
    Fields,
    invalid,
    model_name,
    refuse_unknown,
    unpriced,
    whole,
)
from services.gateway.vendors.google_fields import object_in, objects_in, read_fields
from services.gateway.vendors.google_media import Content

MAX_CANDIDATES: Final = 8
# Ten images an answer, 2,520 tokens each at most (Google, "Gemini API pricing" and "Nano Banana image generation").
MAX_IMAGE_OUTPUT_TOKENS: Final = 10 * 2_520

_FIELDS: Final = frozenset(
    {
        "model", "contents", "systemInstruction", "tools", "toolConfig", "safetySettings", "generationConfig",
        "cachedContent", "serviceTier", "labels", "store", "modelArmorConfig",
    }
)  # fmt: skip
_OTHER_MODELS: Final = ("routingConfig", "modelConfig", "modelSelectionConfig")
_OUTPUTS: Final = {
    "TEXT": None,
    "MODALITY_UNSPECIFIED": None,
    "AUDIO": None,  # Speech models have one rate for what they write; no other model speaks here.
    "IMAGE": "image_output",
    "VIDEO": "video_output",
}
_OUTPUT_PARTS: Final = frozenset({"audio_output", "image_output", "video_output"})
# Tools whose results come into the same context: what they bring in counts as input, and nothing beside it.
_UNSEEN_TOOLS: Final = frozenset({"urlContext", "computerUse"})
_SEARCHES: Final = frozenset({"googleSearch", "googleSearchRetrieval"})
_FREE_TOOLS: Final = frozenset({"functionDeclarations"})
_FLEX: Final[Context] = {"service_tier": "flex"}
_PRIORITY: Final[Context] = {"service_tier": "priority"}

# What of the address or head would make the answer unreadable, or another request of it (Google, "System parameters").
_HIDING: Final = frozenset({"fields", "callback", "$fields", "$callback", "$alt", "$.xgafv", "$httpmethod"})
_HIDING_HEADERS: Final = frozenset({b"x-goog-fieldmask", b"x-http-method-override", b"x-http-method"})
_TIER_HEADERS: Final = frozenset({b"x-vertex-ai-llm-shared-request-type", b"x-vertex-ai-llm-request-type"})


def read_generate(request: RouteRequest) -> RequestFacts:
    """The facts of a generateContent or streamGenerateContent; raises `RequestRefusedError` naming the field."""
    framing = check_parameters(request)
    model = model_of(request)
    fields = read_fields(request.body)
    refuse_unknown(fields, _FIELDS)
    check_model(fields, model)
    content = Content()
    if not fields.get("contents"):
        raise invalid("contents", "contents must be a list of at least one content")
    content.add(fields["contents"], "contents")
    content.add(_as_content(fields.get("systemInstruction")), "systemInstruction")
    if fields.get("cachedContent") is not None:
        content.hide("cachedContent")
    searches = _read_tools(fields, model, content)
    limit, choices, required = _read_config(fields, model)
    tiers = _tiers(fields)
    return RequestFacts(
        model=model,
        stream=request.route.name == "streamGenerateContent",
        demand=Demand(
            input_tokens=len(request.body) - content.data_bytes + content.tokens + TEMPLATE_TOKENS,
            output_tokens_limit=limit,
            choices=choices,
            counts={"web_searches": searches} if searches else {},
            # Models that can draw do so unasked, and only they have a price for it.
            parts=content.parts | _OUTPUT_PARTS,
            required=required,
            contexts=tiers,
            limit_param="generationConfig.maxOutputTokens",
            unseen=content.unseen,
            distinct=_PRIORITY if _PRIORITY in tiers else NO_CONTEXT,
        ),
        shape=GenerateShape(model),
        body=request.body,
        framing=framing,
        context=tiers[0],
    )


def check_parameters(request: RouteRequest) -> Framing:
    """How a stream of the answer comes; raises `RequestRefusedError` for parameters that would hide its usage."""
    alternatives = []
    for name, value in parse_qsl(request.query, keep_blank_values=True):
        if name.lower() in _HIDING:
            raise invalid(name[:40], f"the query parameter {name[:40]!r} can hide what was used; leave it out")
        if name == "alt":
            alternatives.append(value)
    if len(alternatives) > 1 or not set(alternatives) <= {"sse", "json"}:
        raise invalid("alt", "alt must be sse or json, once; other forms of an answer can't be read here")
    for header, content in request.headers:
        shown = header.decode("latin-1")
        if header.lower() in _HIDING_HEADERS:
            raise invalid(shown, f"the header {shown} is not passed on; leave it out")
        if header.lower() in _TIER_HEADERS and content.lower() != b"standard":
            raise unpriced(shown, "ask for a service tier with serviceTier, not with a header")
    return "sse" if alternatives == ["sse"] else "json_array"


def model_of(request: RouteRequest) -> str:
    """The model that the path names; a tuned one is never mistaken for a base model of the same name."""
    model = model_name(request.params.get("model"))
    return f"tunedModels/{model}" if "/tunedModels/" in request.route.path else model


def check_model(fields: Fields, model: str) -> None:
    """Refuses a body that names another model than the path."""
    named = fields.get("model")
    if named is not None and (not isinstance(named, str) or named.removeprefix("models/") != model):
        raise invalid("model", f"the path names the model {model!r}; name no other one in the body")


def _as_content(value: object) -> object:
    # Google takes bare text for a system instruction, too; its bytes count with the body's.
    return None if isinstance(value, str) else value


def _read_tools(fields: Fields, model: str, content: Content) -> int:
    """The most searches that the call is charged for."""
    searches = 0
    for tool in objects_in(fields.get("tools"), "tools"):
        for name, value in tool.items():
            if value is None or name in _FREE_TOOLS:
                continue
            if name in _UNSEEN_TOOLS:
                content.hide("tools")
            elif name not in _SEARCHES:
                message = f"the tool {name[:40]!r} has no bound or no price yet; use functionDeclarations or urlContext"
                raise unpriced("tools", message)
            elif not searches_by_prompt(model):
                message = (
                    f"{model} is charged for each search, and no field of the request limits how many it makes; "
                    "leave googleSearch out, or use a Gemini 2 model, which is charged once a prompt"
                )
                raise unpriced("tools", message)
            else:
                content.hide("tools")
                searches = 1
    return searches


def _read_config(fields: Fields, model: str) -> tuple[int | None, int, frozenset[str]]:
    """The output limit of a candidate, how many there are, and the components that must have their own price."""
    config = object_in(fields, "generationConfig")
    for name in _OTHER_MODELS:
        if config.get(name) is not None:
            raise unpriced(f"generationConfig.{name}", f"{name} lets Google pick another model; leave it out")
    limit = whole(config, "maxOutputTokens")
    choices = whole(config, "candidateCount", MAX_CANDIDATES) or 1
    # Thoughts count against maxOutputTokens, as measured by many; Google's words leave room for a larger budget.
    budget = whole(object_in(config, "thinkingConfig"), "thinkingBudget", least=-1) or 0
    wanted = _modalities(config)
    draws = "IMAGE" in wanted or "image" in model or "banana" in model
    if limit is not None:
        limit = max(limit, budget) + MAX_IMAGE_OUTPUT_TOKENS * draws
    if "VIDEO" in wanted:
        limit = None  # No rule says that the limit holds for frames.
    return limit, choices, frozenset(part for each in wanted if (part := _OUTPUTS[each]) is not None)


def _modalities(config: Fields) -> frozenset[str]:
    value = config.get("responseModalities")
    found = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in found):
        raise invalid("generationConfig.responseModalities", "responseModalities must be a list of names")
    wanted = frozenset(each.upper() for each in found)
    if not wanted <= _OUTPUTS.keys():
        raise unpriced("generationConfig.responseModalities", "only TEXT, IMAGE, AUDIO and VIDEO output are priced")
    return wanted


def _tiers(fields: Fields) -> tuple[Context, ...]:
    """The service tiers in reach, the one asked for first."""
    value = fields.get("serviceTier")
    if value is None:
        return (NO_CONTEXT,)
    tier = value.lower().removeprefix("service_tier_") if isinstance(value, str) else None
    if tier in ("standard", "unspecified"):
        return (NO_CONTEXT,)
    if tier == "flex":
        return (_FLEX, NO_CONTEXT)
    if tier == "priority":
        return (_PRIORITY, NO_CONTEXT)
    raise invalid("serviceTier", "serviceTier must be standard, flex or priority")
