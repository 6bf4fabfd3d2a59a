"""Gemini's embedContent and batchEmbedContents: what a request can cost."""

from typing import Final

from services.core.estimate import Demand
from services.core.usage.google_embed import EmbedShape
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.fields import TEMPLATE_TOKENS, Fields, invalid, refuse_unknown
from services.gateway.vendors.google_fields import objects_in, read_fields
from services.gateway.vendors.google_generate import check_model, check_parameters, model_of
from services.gateway.vendors.google_media import Content

_FIELDS: Final = frozenset(
    {
        "model", "content", "taskType", "task_type", "title", "outputDimensionality", "embedContentConfig",
        "autoTruncate",
    }
)  # fmt: skip
_BATCH_FIELDS: Final = frozenset({"model", "requests"})
_SHAPE: Final = EmbedShape()


def read_embed(request: RouteRequest) -> RequestFacts:
    """The facts of an embedContent; raises `RequestRefusedError` naming the field."""
    model = model_of(request)
    return _facts(request, model, [read_fields(request.body)])


def read_batch(request: RouteRequest) -> RequestFacts:
    """The facts of a batchEmbedContents, many at once; raises `RequestRefusedError` naming the field."""
    model = model_of(request)
    fields = read_fields(request.body)
    refuse_unknown(fields, _BATCH_FIELDS)
    check_model(fields, model)
    return _facts(request, model, objects_in(fields.get("requests"), "requests"))


def _facts(request: RouteRequest, model: str, requests: list[Fields]) -> RequestFacts:
    check_parameters(request)
    content = Content()
    for fields in requests:
        refuse_unknown(fields, _FIELDS)
        check_model(fields, model)
        if not fields.get("content"):
            raise invalid("content", "content must be there, with at least one part")
        content.add(fields["content"], "content")
    if not requests:
        raise invalid("requests", "requests must be a list of at least one request")
    return RequestFacts(
        model=model,
        stream=False,
        demand=Demand(
            input_tokens=len(request.body) - content.data_bytes + content.tokens + TEMPLATE_TOKENS * len(requests),
            output_tokens_limit=0,
            # Each of the contents may fill the window.
            rounds=1 if content.unseen is None else len(requests),
            parts=content.parts,
            required=content.parts & {"image_input", "audio_input", "video_input"},
            unseen=content.unseen,
        ),
        shape=_SHAPE,
        body=request.body,
    )
