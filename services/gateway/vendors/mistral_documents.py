"""Mistral's embeddings, classifiers, OCR and transcriptions: what a request can cost."""

import re
from typing import Final

from services.core.estimate import Demand
from services.core.usage.mistral_chat import InputShape
from services.core.usage.mistral_documents import OcrShape, TranscriptionShape
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.audio_lengths import audio_length
from services.gateway.vendors.fields import TEMPLATE_TOKENS, Fields, invalid, model_name, refuse_unknown, unpriced
from services.gateway.vendors.forms import form_flag, read_form
from services.gateway.vendors.mistral_chat import audio_tokens, read_fields

# A document has at most so many pages (Mistral, "Document AI").
MAX_PAGES: Final = 1_000

_EMBEDDINGS: Final = frozenset({"model", "input", "metadata", "output_dimension", "output_dtype", "encoding_format"})
_CLASSIFIED: Final = frozenset({"model", "input", "metadata"})
_OCR: Final = frozenset(
    {
        "model", "id", "document", "pages", "include_image_base64", "image_limit", "image_min_size",
        "bbox_annotation_format", "document_annotation_format", "document_annotation_prompt", "table_format",
        "extract_header", "extract_footer", "include_blocks", "confidence_scores_granularity",
    }
)  # fmt: skip
_ANNOTATIONS: Final = ("bbox_annotation_format", "document_annotation_format")
_FORM: Final = frozenset(
    {
        "model", "file", "file_url", "file_id", "language", "temperature", "stream", "diarize", "context_bias",
        "timestamp_granularities",
    }
)  # fmt: skip
# These hold one picture. Others can hold many pages, whatever they are called.
_ONE_PAGE: Final = re.compile(r"data:image/(?:png|jpe?g);base64,", re.IGNORECASE)
_RANGE: Final = re.compile(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?")

_INPUT_SHAPE: Final = InputShape()


def read_embeddings(request: RouteRequest) -> RequestFacts:
    """The facts of embeddings; raises `RequestRefusedError` naming the field."""
    return _input_facts(request, read_fields(request.body, _EMBEDDINGS), TEMPLATE_TOKENS)


def read_classified(request: RouteRequest) -> RequestFacts:
    """The facts of a moderation or classification; raises `RequestRefusedError` naming the field."""
    fields = read_fields(request.body, _CLASSIFIED)
    value = fields.get("input")
    # A template may stand around each input.
    return _input_facts(request, fields, TEMPLATE_TOKENS * (len(value) if isinstance(value, list) else 1))


def _input_facts(request: RouteRequest, fields: Fields, template_tokens: int) -> RequestFacts:
    if not fields.get("input"):
        raise invalid("input", "input must be there, and not empty")
    return RequestFacts(
        model=model_name(fields.get("model")),
        stream=False,
        demand=Demand(input_tokens=len(request.body) + template_tokens, output_tokens_limit=0),
        shape=_INPUT_SHAPE,
        body=request.body,
    )


def read_ocr(request: RouteRequest) -> RequestFacts:
    """The facts of an OCR; raises `RequestRefusedError` naming the field."""
    fields = read_fields(request.body, _OCR)
    annotated = any(fields.get(name) is not None for name in _ANNOTATIONS)
    pages = _most_pages(fields)
    return RequestFacts(
        model=model_name(fields.get("model")),
        stream=False,
        demand=Demand(
            input_tokens=0,
            output_tokens_limit=0,
            counts={"pages": pages, "annotated_pages": pages} if annotated else {"pages": pages},
            required=frozenset({"annotated_page"}) if annotated else frozenset(),
        ),
        shape=OcrShape(annotated=annotated),
        body=request.body,
    )


def _most_pages(fields: Fields) -> int:
    document = fields.get("document")
    if not isinstance(document, dict):
        raise invalid("document", "document must be an object with document_url, image_url or file_id")
    wanted = fields.get("pages")
    if wanted is not None:
        return min(_count_pages(wanted), MAX_PAGES)
    image = document.get("image_url")
    address = image.get("url") if isinstance(image, dict) else image
    alone = "document_url" not in document and "file_id" not in document
    return 1 if alone and isinstance(address, str) and _ONE_PAGE.match(address) else MAX_PAGES


def _count_pages(value: object) -> int:
    """How many pages are named, by a list of their numbers or as in ``"0-5,7"``."""
    if isinstance(value, list):
        if not value or not all(type(each) is int and each >= 0 for each in value):
            raise invalid("pages", "pages must be a list of page numbers from 0 on, or a text like '0-5,7'")
        return len(value)
    found = [_RANGE.fullmatch(each) for each in value.split(",")] if isinstance(value, str) else [None]
    count = 0
    for each in found:
        if each is None or int(each[2] or each[1]) < int(each[1]):
            raise invalid("pages", "pages must be a list of page numbers from 0 on, or a text like '0-5,7'")
        count += int(each[2] or each[1]) - int(each[1]) + 1
    return count


def read_transcription(request: RouteRequest) -> RequestFacts:
    """The facts of a transcription; raises `RequestRefusedError` naming the field."""
    form = read_form(request.body, request.content_type, _FORM)
    refuse_unknown([*form.texts, *form.files], _FORM)
    for name in ("file_url", "file_id"):
        if form.texts.get(name) or name in form.files:
            raise unpriced(name, "the length of audio that is elsewhere can't be seen here; send it as file")
    files = form.files.get("file", [])
    if len(files) != 1:
        raise invalid("file", "file must be there once, with the audio")
    model = model_name(form.texts.get("model"))
    most_ms = audio_length(files[0]).most_ms
    # Voxtral Small is a chat model that hears; those that only transcribe are charged by the time alone.
    by_token = "small" in model and "transcribe" not in model
    text = len(request.body) - len(files[0])
    return RequestFacts(
        model=model,
        stream=form_flag(form.texts, "stream"),
        demand=Demand(
            input_tokens=text + audio_tokens(most_ms) + TEMPLATE_TOKENS if by_token else 0,
            output_tokens_limit=None if by_token else 0,
            counts={"audio_ms": most_ms},
        ),
        shape=TranscriptionShape(by_token=by_token),
        body=request.body,
    )
