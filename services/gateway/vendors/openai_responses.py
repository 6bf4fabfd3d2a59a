"""OpenAI's responses: what a request can cost, and whether it goes on in the background."""

from typing import Any, Final

from services.core.estimate import Demand
from services.core.usage.openai_responses import ResponsesShape
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.fields import (
    Fields,
    asks_one_hour,
    flag,
    invalid,
    model_name,
    objects,
    read_object,
    unpriced,
    whole,
)
from services.gateway.vendors.openai_content import Content, note_cache_life, refuse_present, tiers_of

MAX_ITEMS: Final = 20_000
MAX_TOOLS: Final = 1_000
MAX_TOOL_CALLS: Final = 1_000

_UNPRICED: Final = {
    "plugins": "plugins are charged apart from tokens; leave plugins out",
    "models": "a list of fallback models can't be priced; name one model in 'model' and leave models out",
    "search_parameters": "live search is charged by the source, without a bound; leave search_parameters out",
}
_DECIDED: Final = frozenset(
    {
        "model", "input", "instructions", "stream", "background", "max_output_tokens", "max_tool_calls", "tools",
        "service_tier", "previous_response_id", "conversation", "prompt", "reasoning", "context_management",
        "prompt_cache_options", *_UNPRICED,
    }
)  # fmt: skip

# Tools that the client runs. What they return comes in a later request.
_FREE_TOOLS: Final = frozenset(
    {"function", "custom", "namespace", "apply_patch", "local_shell", "computer", "computer_use_preview"}
)
# Tools that the vendor runs, by the count that each call of them is charged as (OpenAI, "Pricing": built-in tools).
_SEARCH_TOOLS: Final = {
    "web_search": "web_searches",
    "web_search_2025_08_26": "web_searches",
    "file_search": "file_searches",
}
_REFUSED_TOOLS: Final = {
    "web_search_preview": "its price depends on the model in a way no catalog has; use the tool web_search",
    "web_search_preview_2025_03_11": "its price depends on the model in a way no catalog has; use web_search",
    "code_interpreter": "containers are charged by size and session; run the code yourself through a function tool",
    "image_generation": "its images are charged at another model's rates; call the images route",
    "mcp": "what its servers return has no bound; call them yourself through function tools",
    "programmatic_tool_calling": "the runs it makes have no bound; use function tools",
}

# Items with all their text in them; those the vendor completes from what it keeps; and those with parts.
_PLAIN_ITEMS: Final = frozenset(
    {
        "function_call", "custom_tool_call", "apply_patch_call", "apply_patch_call_output", "local_shell_call",
        "local_shell_call_output", "shell_call", "shell_call_output", "computer_call", "mcp_approval_request",
        "mcp_approval_response", "configuration_update", "compaction_trigger",
    }
)  # fmt: skip
_KEPT_ITEMS: Final = frozenset(
    {
        "item_reference", "reasoning", "compaction", "web_search_call", "file_search_call", "code_interpreter_call",
        "image_generation_call", "mcp_call", "mcp_list_tools", "tool_search_call", "program", "program_output",
    }
)  # fmt: skip
_TEXT_PARTS: Final = frozenset({"input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"})
_SHAPE: Final = ResponsesShape()


def read_response(request: RouteRequest) -> RequestFacts:
    """The facts of a response; raises `RequestRefusedError` naming the field."""
    body = request.body
    fields = read_object(body, _DECIDED)
    refuse_present(fields, _UNPRICED)
    model = model_name(fields.get("model"))
    content = _read_input(fields, model)
    if asks_one_hour(body):
        content.priced.add("cache_write_1h")
    kept = _kept_by_vendor(fields)
    counts = _read_tools(fields)
    calls = max(counts.values(), default=0)
    mode = (fields.get("reasoning") or {}).get("mode") if isinstance(fields.get("reasoning"), dict) else None
    if mode not in (None, "standard"):
        raise unpriced("reasoning.mode", "other modes run the model more often than can be bounded; leave it out")
    contexts, distinct = tiers_of(fields)
    # Compaction is one more run of the model.
    rounds = 1 + calls + (fields.get("context_management") is not None)
    return RequestFacts(
        model=model,
        stream=flag(fields, "stream"),
        demand=Demand(
            input_tokens=content.input_tokens(body),
            output_tokens_limit=whole(fields, "max_output_tokens"),
            rounds=rounds,
            counts=counts,
            parts=frozenset(content.priced),
            required=frozenset(content.required),
            contexts=contexts,
            distinct=distinct,
            limit_param="max_output_tokens",
            unseen=kept or content.unseen,
        ),
        shape=_SHAPE,
        body=body,
        in_background=flag(fields, "background"),
    )


def read_compaction(request: RouteRequest) -> RequestFacts:
    """The facts of a compaction, which is charged as a response; raises `RequestRefusedError`."""
    return read_response(request)


def _kept_by_vendor(fields: Fields) -> str | None:
    """The field that brings in what the vendor keeps: an earlier response, a conversation, a stored prompt."""
    if fields.get("prompt") is not None and fields.get("tools") is None:
        raise unpriced(
            "prompt", "a stored prompt may bring tools that are charged by the call; name the tools, [] for none"
        )
    for name in ("previous_response_id", "conversation", "prompt"):
        if fields.get(name) is not None:
            return name
    return None


def _read_tools(fields: Fields) -> dict[str, int]:
    """How often each kind of charged tool may be called."""
    counted = set()
    for tool in objects(fields, "tools", MAX_TOOLS):
        kind = tool.get("type")
        if isinstance(kind, str) and kind in _SEARCH_TOOLS:
            counted.add(_SEARCH_TOOLS[kind])
        elif not _is_free(tool):
            reason = _REFUSED_TOOLS.get(kind) if isinstance(kind, str) else None
            raise unpriced("tools", f"the tool {str(kind)[:40]!r} can't be priced: {reason or 'it is not known here'}")
    if not counted:
        return {}
    calls = whole(fields, "max_tool_calls", MAX_TOOL_CALLS)
    if calls is None:
        raise unpriced("max_tool_calls", "searches are charged by the call: name max_tool_calls, which bounds them")
    return dict.fromkeys(counted, calls)


def _is_free(tool: Fields) -> bool:
    kind = tool.get("type")
    if kind == "shell":  # A container of the vendor's is charged for; the client's own machine is not.
        environment = tool.get("environment")
        return isinstance(environment, dict) and environment.get("type") == "local"
    if kind == "tool_search":
        return tool.get("execution") == "client"
    return isinstance(kind, str) and kind in _FREE_TOOLS


# ---- input ----------------------------------------------------------------------------------------------------------


def _read_input(fields: Fields, model: str) -> Content:
    content = Content(model, "input")
    note_cache_life(fields.get("prompt_cache_options"), content.priced, content.required)
    given = fields.get("input")
    if given is None or isinstance(given, str):
        return content
    if not isinstance(given, list):
        raise invalid("input", "input must be a text or a list of items")
    if len(given) > MAX_ITEMS:
        raise invalid("input", f"input has {len(given)} items; send at most {MAX_ITEMS}")
    for item in given:
        if not isinstance(item, dict):
            raise invalid("input", "each item of input must be an object")
        _read_item(item, content)
    return content


def _read_item(item: Fields, content: Content) -> None:
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    if kind == "message":
        _read_parts(item.get("content"), content)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        _read_parts(item.get("output"), content)
    elif kind == "computer_call_output":
        _read_parts([item.get("output")], content)
    elif isinstance(kind, str) and kind in _KEPT_ITEMS:
        # Their results, or their hidden thoughts, are the vendor's to fill in.
        content.add_unseen()
    elif not isinstance(kind, str) or kind not in _PLAIN_ITEMS:
        raise unpriced("input", f"input items of type {str(kind)[:40]!r} are not priced; leave them out")


def _read_parts(parts: Any, content: Content) -> None:
    if parts is None or isinstance(parts, str):
        return
    if not isinstance(parts, list):
        raise invalid("input", "the content of an item must be text or a list of parts")
    content.count_parts(parts)
    for part in parts:
        if not isinstance(part, dict):
            raise invalid("input", "each content part must be an object")
        _read_part(part, content)


def _read_part(part: Fields, content: Content) -> None:
    kind = part.get("type")
    # What a part carries counts, whatever it says it is.
    is_file = kind == "input_file" or not part.keys().isdisjoint(("file_data", "file_url"))
    is_image = kind in ("input_image", "computer_screenshot") or "image_url" in part
    is_audio = kind == "input_audio" or "input_audio" in part
    if is_file:
        content.add_unseen(part.get("file_data"))
    if is_image:
        content.add_image(part.get("image_url"))
    if is_audio:
        content.add_audio(part.get("input_audio"))
    if not (is_file or is_image or is_audio) and not (isinstance(kind, str) and kind in _TEXT_PARTS):
        raise unpriced("input", f"content parts of type {str(kind)[:40]!r} are not priced; send text or images")
    content.note_caching(part)
