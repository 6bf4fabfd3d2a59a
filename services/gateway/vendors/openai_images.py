"""OpenAI's images: generations, edits and variations, as JSON or as forms, and what they can cost."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.core.estimate import Demand
from services.core.usage.openai_images import ImagesShape
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.fields import TEMPLATE_TOKENS, flag, invalid, model_name, read_object, unpriced, whole
from services.gateway.vendors.forms import form_flag, form_whole, is_form, read_form
from services.gateway.vendors.openai_content import MAX_IMAGE_TOKENS

MAX_IMAGES: Final = 10
MAX_PARTIAL_IMAGES: Final = 3

_DECIDED: Final = frozenset(
    {"model", "prompt", "n", "size", "quality", "stream", "partial_images", "output_format", "svg", "image", "images",
     "mask", "markup"}
)  # fmt: skip
_BY_TOKEN: Final = re.compile(r"gpt-image|chatgpt-image")
# Beyond what the largest image in the highest quality counts. gpt-image-1: 6,240 (OpenAI, "Image generation", cost and
# latency); gpt-image-2: 96 x 96 patches scaled by (2,000,000 + 8,294,400 pixels) / 4,000,000, which is 23,719. The
# rest is for what these models write besides. Later ones have qualities whose counts are not published.
_MAX_OUTPUT_TOKENS: Final = 32_768
_PARTIAL_TOKENS: Final = 100
_BOUNDED: Final = re.compile(r"gpt-image-(?:1|2)(?:$|-)|gpt-image-1\.5|chatgpt-image-latest")
_BY_TOKEN_SHAPE: Final = ImagesShape()
_BY_IMAGE_SHAPE: Final = ImagesShape(by_image=True)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What an images request asks for, however it was written. `text_bytes` is the length of what is no image."""

    model: str
    stream: bool
    count: int
    partial: int
    inputs: int
    text_bytes: int
    format: str | None
    size: str
    quality: str


def read_images(request: RouteRequest) -> RequestFacts:
    """The facts of a request for images; raises `RequestRefusedError` naming the field."""
    return images_facts(request, None)


def images_facts(request: RouteRequest, model: str | None) -> RequestFacts:
    """The facts of a request for images by a model, which Azure names in the path."""
    asked = _from_form(request, model) if is_form(request.content_type) else _from_json(request, model)
    if asked.format in ("svg", "gif"):
        raise unpriced("output_format", "what these formats count is not published; ask for png, webp or jpeg")
    if asked.stream and asked.count > 1:
        raise unpriced(
            "n", "how a stream reports the usage of several images is not published; ask for one, or no stream"
        )
    context = {"size": asked.size, "quality": asked.quality}
    if _BY_TOKEN.match(asked.model) is None:
        return RequestFacts(
            model=asked.model,
            stream=asked.stream,
            demand=Demand(0, 0, counts={"images": asked.count}, contexts=(context,)),
            shape=_BY_IMAGE_SHAPE,
            body=request.body,
            context=context,
        )
    limit = _MAX_OUTPUT_TOKENS + asked.partial * _PARTIAL_TOKENS if _BOUNDED.match(asked.model) else None
    tokens = asked.text_bytes + TEMPLATE_TOKENS + asked.inputs * MAX_IMAGE_TOKENS
    return RequestFacts(
        model=asked.model,
        stream=asked.stream,
        demand=Demand(
            # Several images are made as by several requests, each of which reads the prompt.
            input_tokens=tokens * asked.count,
            output_tokens_limit=limit,
            choices=asked.count,
            parts=frozenset({"image_input", "image_cache_read", "image_output"}),
            limit_param="model",
        ),
        shape=_BY_TOKEN_SHAPE,
        body=request.body,
    )


def _from_json(request: RouteRequest, model: str | None) -> _Asked:
    fields = read_object(request.body, _DECIDED)
    if fields.get("svg") is not None:
        raise unpriced("svg", "the model that writes the SVG is charged apart; leave svg out")
    images = fields.get("images")
    if images is not None and not isinstance(images, list):
        raise invalid("images", "images must be a list")
    others = [fields[name] for name in ("image", "mask", "markup") if fields.get(name) is not None]
    references = [*(images or ()), *others]
    return _Asked(
        model=model or _named(fields.get("model")),
        stream=flag(fields, "stream"),
        count=whole(fields, "n", MAX_IMAGES) or 1,
        partial=whole(fields, "partial_images", MAX_PARTIAL_IMAGES, least=0) or 0,
        inputs=len(references),
        text_bytes=len(request.body) - sum(_data_length(each) for each in references),
        format=_text(fields, "output_format") or None,
        size=_text(fields, "size") or "auto",
        quality=_text(fields, "quality") or "auto",
    )


def _from_form(request: RouteRequest, model: str | None) -> _Asked:
    form = read_form(request.body, request.content_type, _DECIDED)
    texts = form.texts
    if texts.get("svg") or any(name.startswith("svg[") for name in texts):
        raise unpriced("svg", "the model that writes the SVG is charged apart; leave svg out")
    return _Asked(
        model=model or _named(texts.get("model") or None),
        stream=form_flag(texts, "stream"),
        count=form_whole(texts, "n", MAX_IMAGES) or 1,
        partial=form_whole(texts, "partial_images", MAX_PARTIAL_IMAGES, least=0) or 0,
        inputs=sum(len(files) for files in form.files.values()),
        text_bytes=len(request.body) - sum(len(data) for files in form.files.values() for data in files),
        format=texts.get("output_format") or None,
        size=texts.get("size") or "auto",
        quality=texts.get("quality") or "auto",
    )


def _named(value: object) -> str:
    if value is None:
        raise invalid("model", "name a model: which one stands in for none has changed, and with it the price")
    return model_name(value)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise invalid(name, f"{name} must be a text")
    return value or ""


def _data_length(reference: object) -> int:
    """The length of an image's data within the JSON; its address or file id stays with the text."""
    url = reference.get("image_url") if isinstance(reference, dict) else reference
    return len(url) if isinstance(url, str) and url.startswith("data:") else 0
