"""Reads requests for Cohere's embed and rerank, both versions."""

from collections.abc import Iterable
from typing import Final

from services.core.estimate import Demand
from services.core.usage.cohere_retrieval import EmbedShape, RerankShape
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.fields import (
    TEMPLATE_TOKENS,
    Fields,
    encoded,
    entries,
    invalid,
    model_name,
    read_object,
    unpriced,
    whole,
)

MAX_INPUTS: Final = 10_000

# What embedding one input can count at most: the context of the largest embedding model (Embed v4).
MAX_IMAGE_TOKENS: Final = 128_000
# What marks the begin and end of each input.
_MARK_TOKENS: Final = 16

# One search unit is a query with up to 100 documents; a document of more than 500 tokens, the query included, counts as
# one more for each further chunk, and a query takes at most half the room (Cohere, "Pricing" and "Best practices").
DOCUMENTS_PER_UNIT: Final = 100
_CHUNK_TOKENS: Final = 250

_EMBED: Final = EmbedShape()
_RERANK: Final = RerankShape()


def read_embed(request: RouteRequest) -> RequestFacts:
    """The facts of an embed request; raises `RequestRefusedError` naming the field."""
    fields = read_object(request.body, frozenset({"model", "texts", "images", "inputs"}))
    model = model_name(fields.get("model"))
    texts = [_text(each, "texts") for each in entries(fields, "texts", MAX_INPUTS)]
    images = len(entries(fields, "images", MAX_INPUTS))
    for parts in (_parts(each) for each in entries(fields, "inputs", MAX_INPUTS)):
        for part in parts:
            if "image_url" in part or part.get("type") == "image_url":
                images += 1
            else:
                texts.append(_text(part.get("text"), "inputs"))
    size = sum(len(each.encode()) for each in texts)
    # Embed v3 charges by the image, v4 by the tokens of images, at a rate of their own.
    by_image = images > 0 and "v3" in model
    by_token: frozenset[str] = frozenset({"image_input"}) if images > 0 and not by_image else frozenset()
    return RequestFacts(
        model=model,
        stream=False,
        demand=Demand(
            input_tokens=size + len(texts) * _MARK_TOKENS + images * MAX_IMAGE_TOKENS + TEMPLATE_TOKENS,
            output_tokens_limit=0,
            counts={"images": images} if by_image else {},
            parts=by_token,
            required=by_token,
        ),
        shape=_EMBED,
        body=request.body,
    )


def read_rerank(request: RouteRequest) -> RequestFacts:
    """The facts of a rerank request; raises `RequestRefusedError` naming the field."""
    names = frozenset({"model", "query", "documents", "max_chunks_per_doc", "max_tokens_per_doc"})
    fields = read_object(request.body, names)
    most_tokens = whole(fields, "max_tokens_per_doc")
    most_chunks = whole(fields, "max_chunks_per_doc")
    sizes = [_size(each) for each in entries(fields, "documents", MAX_INPUTS)]
    chunks = 0
    for size in sizes:
        tokens = size if most_tokens is None else min(size, most_tokens)
        in_document = max(1, -(-tokens // _CHUNK_TOKENS))
        chunks += in_document if most_chunks is None else min(in_document, most_chunks)
    return RequestFacts(
        model=model_name(fields.get("model")),
        stream=False,
        demand=Demand(
            input_tokens=0,
            output_tokens_limit=0,
            counts={"rerank_searches": max(1, -(-chunks // DOCUMENTS_PER_UNIT))},
        ),
        shape=_RERANK,
        body=request.body,
    )


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise invalid(name, f"each text of {name} must be a string")
    return value


def _parts(entry: object) -> Iterable[Fields]:
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise invalid("inputs", "each of inputs must have a list of parts as its content")
    for part in content:
        if part.get("type") not in ("text", "image_url") and "image_url" not in part:
            raise unpriced("inputs", f"parts of type {str(part.get('type'))[:40]!r} are not priced")
    return content


def _size(document: object) -> int:
    if isinstance(document, str):
        return len(document.encode())
    if not isinstance(document, dict):
        raise invalid("documents", "each of documents must be text or an object")
    return len(encoded(document, "documents"))
