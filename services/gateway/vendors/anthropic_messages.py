"""Reads requests for Anthropic's messages: what one can make the vendor count."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Final

from services.core.estimate import Demand
from services.core.pricing import Context
from services.core.usage.anthropic_messages import MessagesShape
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.anthropic_content import MAX_IMAGE_TOKENS, read_content, reference_bytes
from services.gateway.vendors.anthropic_tools import PROMPT_TOKENS, read_tools
from services.gateway.vendors.fields import (
    TEMPLATE_TOKENS,
    Fields,
    asks_one_hour,
    flag,
    invalid,
    model_name,
    read_object,
    unpriced,
    whole,
)

DECIDED: Final = frozenset(
    {
        "model", "max_tokens", "messages", "system", "stream", "tools", "mcp_servers", "thinking", "container",
        "context_management", "compaction", "thread", "output_config", "output_format",
        "service_tier", "speed", "inference_geo", "fallbacks", "billing_policy",
    }
)  # fmt: skip

# The window of models that get a longer one by a beta than the catalog has for them.
_LONG_WINDOW_BETA: Final = b"context-1m"
_LONG_WINDOW_TOKENS: Final = 1_000_000

_ONE_HOUR_PART: Final = frozenset({"cache_write_1h"})

# The values of fields that pick a price by which the standard one, or one that is not public, holds.
_STANDARD: Final[Mapping[str, frozenset[str]]] = {
    "speed": frozenset({"standard"}),
    "inference_geo": frozenset({"global"}),
    "service_tier": frozenset({"auto", "standard_only"}),
}
MAX_CHOICE_LENGTH: Final = 64

_SHAPE: Final = MessagesShape()


def read_messages(request: RouteRequest) -> RequestFacts:
    """The facts of a request; raises `RequestRefusedError` naming the field."""
    body = request.body
    fields = read_object(body, DECIDED)
    return RequestFacts(
        model=model_name(fields.get("model")),
        stream=flag(fields, "stream"),
        demand=demand_of(fields, len(body), one_hour=asks_one_hour(body), long_window=has_long_window(request.headers)),
        shape=_SHAPE,
        body=body,
    )


def has_long_window(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a beta gives the model a longer context window than it has by itself."""
    return any(name.lower() == b"anthropic-beta" and _LONG_WINDOW_BETA in value for name, value in headers)


def demand_of(fields: Fields, size: int, *, one_hour: bool, long_window: bool, batch: bool = False) -> Demand:
    """What a messages request of `size` bytes can make the vendor count; raises `RequestRefusedError`."""
    _refuse_unpriced(fields)
    content = read_content(fields)
    tools = read_tools(fields, content.definitions)
    unseen = content.unseen or _unseen(fields)
    tokens = (
        size
        + content.images * MAX_IMAGE_TOKENS
        + reference_bytes(content.references, tools.definitions)
        + tools.prompt_tokens
        + (PROMPT_TOKENS if _formats_output(fields) else 0)
        + TEMPLATE_TOKENS
    )
    rounds = tools.rounds
    limit: int | None = _output_limit(fields)
    if _compacts(fields):
        # Before each run the conversation may be summed up by a run of its own, which only the model's limit bounds.
        rounds, limit = rounds * 2, None
    if long_window and (rounds > 1 or unseen is not None):
        tokens = max(tokens, _LONG_WINDOW_TOKENS)
    choices = {name: _choice(fields, name) for name in _STANDARD}
    return Demand(
        input_tokens=tokens,
        output_tokens_limit=limit,
        rounds=rounds,
        counts=tools.counts,
        parts=_ONE_HOUR_PART if one_hour else frozenset(),
        contexts=_contexts(**choices, batch=batch),
        unseen=unseen,
        distinct={name: value for name, value in choices.items() if value and value not in _STANDARD[name]},
    )


def _refuse_unpriced(fields: Fields) -> None:
    if fields.get("fallbacks"):
        raise unpriced("fallbacks", "fallbacks run other models, which can't be priced here; leave fallbacks out")
    policy = fields.get("billing_policy")
    if isinstance(policy, dict) and policy.get("bill_to", "self") != "self":
        message = "billing_policy bills somebody else, which no budget here covers; leave billing_policy out"
        raise unpriced("billing_policy", message)


def _output_limit(fields: Fields) -> int:
    limit = whole(fields, "max_tokens", least=0)
    if limit is None:
        raise invalid("max_tokens", "max_tokens is required; name the most tokens that the answer may have")
    thinking = fields.get("thinking")
    budget = whole(thinking, "budget_tokens", least=0) if isinstance(thinking, dict) else None
    # Thinking counts toward max_tokens; only between tool calls may its budget be larger than that.
    return max(limit, budget or 0)


def _unseen(fields: Fields) -> str | None:
    """The field that brings in content which the vendor holds: a thread's earlier turns, a container's skills."""
    thread = fields.get("thread")
    if isinstance(thread, dict) and thread.get("type") != "create":
        return "thread"
    container = fields.get("container")
    return "container" if isinstance(container, dict) and container.get("skills") else None


def _compacts(fields: Fields) -> bool:
    if fields.get("compaction") is not None:
        return True
    management = fields.get("context_management")
    edits = management.get("edits") if isinstance(management, dict) else None
    if not isinstance(edits, list):
        return False
    # Clearing takes away only; of an edit not known here the most is expected.
    return not all(isinstance(each, dict) and str(each.get("type")).startswith("clear_") for each in edits)


def _formats_output(fields: Fields) -> bool:
    config = fields.get("output_config")
    return fields.get("output_format") is not None or (isinstance(config, dict) and config.get("format") is not None)


def _choice(fields: Fields, name: str) -> str | None:
    value = fields.get(name)
    if value is not None and (not isinstance(value, str) or not 0 < len(value) <= MAX_CHOICE_LENGTH):
        raise invalid(name, f"{name} must be a name of 1 to {MAX_CHOICE_LENGTH} characters")
    return value


@lru_cache(maxsize=256)
def _contexts(
    *, speed: str | None, inference_geo: str | None, service_tier: str | None, batch: bool
) -> tuple[Context, ...]:
    """The price contexts in reach. Left out, the tier and the geography are what the vendor's workspace is set to."""
    ways: Sequence[Sequence[Context]] = (
        ({"processing": "batch"},) if batch else ({},),
        ({}, {"speed": speed}) if speed else ({},),
        ({"inference_geo": inference_geo},) if inference_geo else ({}, {"inference_geo": "us"}),
        ({},) if service_tier == "standard_only" or batch else ({}, {"service_tier": "priority"}),
    )
    merged = []
    for parts in product(*ways):
        context: dict[str, str] = {}
        for part in parts:
            context.update(part)
        merged.append(context)
    return tuple(merged)
