"""Reads requests for Cohere's chat, both versions."""

from typing import Final

from services.core.estimate import Demand
from services.core.usage.cohere_chat import ChatShape, ChatV1Shape
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.fields import (
    TEMPLATE_TOKENS,
    Fields,
    flag,
    invalid,
    model_name,
    read_object,
    unpriced,
    whole,
)
from services.gateway.vendors.messages import messages_of, parts_of

# An image is scaled down to 1,536 by 2,048 pixels, and cut into tiles of 512 by 512: at most twelve, and one that shows
# all of it, of 256 tokens each (Cohere, "Image inputs").
MAX_IMAGE_TOKENS: Final = 13 * 256

MAX_MESSAGES: Final = 20_000
MAX_PARTS: Final = 20_000

_DECIDED: Final = frozenset({"model", "messages", "stream", "max_tokens", "tools", "documents", "thinking"})
_DECIDED_V1: Final = frozenset(
    {"model", "message", "stream", "max_tokens", "connectors", "conversation_id", "chat_history", "documents", "tools"}
)
_TEXT_PARTS: Final = ("text", "thinking", "document")
_SHAPE: Final = ChatShape()
_SHAPE_V1: Final = ChatV1Shape()


def read_chat(request: RouteRequest) -> RequestFacts:
    """The facts of a v2 chat; raises `RequestRefusedError` naming the field."""
    fields = read_object(request.body, _DECIDED)
    return RequestFacts(
        model=model_name(fields.get("model")),
        stream=flag(fields, "stream"),
        demand=Demand(
            input_tokens=len(request.body) + _count_images(fields) * MAX_IMAGE_TOKENS + TEMPLATE_TOKENS,
            output_tokens_limit=_output_limit(fields),
        ),
        shape=_SHAPE,
        body=request.body,
    )


def read_chat_v1(request: RouteRequest) -> RequestFacts:
    """The facts of a v1 chat, whose stream comes as lines; raises `RequestRefusedError` naming the field."""
    fields = read_object(request.body, _DECIDED_V1)
    if fields.get("connectors"):
        message = "connectors bring in what can't be seen here, so it can't be priced; send documents instead"
        raise unpriced("connectors", message)
    conversation = fields.get("conversation_id")
    return RequestFacts(
        model=model_name(fields.get("model")),
        stream=flag(fields, "stream"),
        demand=Demand(
            input_tokens=len(request.body) + TEMPLATE_TOKENS,
            output_tokens_limit=_output_limit(fields),
            # The vendor holds what was said before.
            unseen="conversation_id" if conversation else None,
        ),
        shape=_SHAPE_V1,
        body=request.body,
        framing="lines",
    )


def _output_limit(fields: Fields) -> int | None:
    limit = whole(fields, "max_tokens", least=0)
    if not limit:
        return None  # Zero is none: such a limit is ignored by some versions.
    thinking = fields.get("thinking")
    budget = whole(thinking, "token_budget", least=0) if isinstance(thinking, dict) else None
    # The documentation leaves open whether the budget is a part of max_tokens, so both are in the bound.
    return limit + (budget or 0)


def _count_images(fields: Fields) -> int:
    return sum(map(_is_image, parts_of(messages_of(fields, MAX_MESSAGES), MAX_PARTS)))


def _is_image(part: object) -> bool:
    if not isinstance(part, dict):
        raise invalid("messages", "each content part must be an object")
    # What a part carries counts, whatever it says it is.
    if "image_url" in part or part.get("type") == "image_url":
        return True
    if part.get("type") not in _TEXT_PARTS:
        raise unpriced("messages", f"content parts of type {str(part.get('type'))[:40]!r} are not priced")
    return False
