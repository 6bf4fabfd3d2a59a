"""Usage of OpenAI's batches, read from their output files: JSON lines, each with one whole answer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from services.core.usage.folding import SilentFold
from services.core.usage.openai_chat import ChatShape, error_code
from services.core.usage.openai_embeddings import EmbeddingsShape
from services.core.usage.openai_images import ImagesShape
from services.core.usage.openai_responses import ResponsesShape
from services.core.usage.reading import AnswerShape, Loads, Reading, text_at

# What a batch's lines are priced by, besides the model.
BATCH_CONTEXT: Final[Mapping[str, str]] = {"processing": "batch"}

_CHAT: Final = ChatShape()
_IMAGES: Final = ImagesShape()
_BY_ENDPOINT: Final[Mapping[str, AnswerShape]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _CHAT,
    "/v1/responses": ResponsesShape(),
    "/v1/embeddings": EmbeddingsShape(),
    "/v1/images/generations": _IMAGES,
    "/v1/images/edits": _IMAGES,
}
# By the batch's ``endpoint``, which Azure writes without a version, too. Moderations are free.
SHAPES: Final[Mapping[str, AnswerShape]] = {
    **_BY_ENDPOINT,
    **{endpoint.removeprefix("/v1"): shape for endpoint, shape in _BY_ENDPOINT.items()},
}


class BatchShape:
    """`reading.AnswerShape` of a batch as such: its id and how it stands.

    The sum of its usage that a batch may report has neither models nor modalities, so it prices nothing.
    """

    needed: tuple[str, ...] = ()

    def whole(self, body: Mapping[str, Any]) -> Reading:
        """The reading of a ``batch``."""
        return Reading({}, 0, complete=True, job=text_at(body, "id"), status=text_at(body, "status"))

    def fold(self) -> SilentFold:
        """Batches are not streamed: a fold that finds nothing."""
        return SilentFold()


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """One line of an output or error file.

    `custom_id` is the request's, None where the line has none; `reading` what its answer says, in the context of a
    batch. Not `charged`: the vendor refused or never ran that request, so it cost nothing.
    """

    custom_id: str | None
    charged: bool
    reading: Reading


def read_output_line(endpoint: str, line: bytes, loads: Loads) -> BatchAnswer | None:
    """The answer in one line of a batch's output or error file; None for a blank line.

    `endpoint` is the batch's. A line that can't be read, or an endpoint that is not known, raises `ValueError`: money
    may be in it, so nobody may pass it over.
    """
    if not line.strip():
        return None
    shape = SHAPES.get(endpoint)
    if shape is None:
        raise ValueError(f"the usage of a batch of {endpoint!r} can't be read; known are {', '.join(SHAPES)}")
    try:
        value = loads(line)
    except RecursionError as error:
        raise ValueError("a line of a batch's output is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("a line of a batch's output is no JSON object")
    return _answer(shape, value)


def _answer(shape: AnswerShape, value: Mapping[str, Any]) -> BatchAnswer:
    custom_id = text_at(value, "custom_id")
    response = value.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    status = response.get("status_code") if isinstance(response, dict) else None
    refused = type(status) is int and not 200 <= status < 300
    if refused or not isinstance(body, dict):
        failed = (error_code(body) if isinstance(body, dict) else None) or error_code(value)
        if failed is None and not refused:
            raise ValueError("a line of a batch's output has neither an answer nor an error")
        return BatchAnswer(custom_id, False, Reading({}, 0, complete=True, failed=failed or str(status)))
    reading = shape.whole(body)
    # The tier an answer was served in is the batch's own: its price is the batch price.
    return BatchAnswer(custom_id, True, replace(reading, context=BATCH_CONTEXT))
