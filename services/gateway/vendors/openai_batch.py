"""OpenAI's batches: what a request for one names, and what each line of its input file can cost."""

from dataclasses import dataclass, replace
from typing import Final

from services.core.pricing import Context
from services.core.usage.openai_batch import BATCH_CONTEXT, SHAPES
from services.gateway.vendors import RequestFacts, Route, RouteRequest
from services.gateway.vendors.fields import invalid, read_object, unpriced, value_span
from services.gateway.vendors.openai_chat import read_chat
from services.gateway.vendors.openai_images import read_images
from services.gateway.vendors.openai_responses import read_response
from services.gateway.vendors.openai_texts import read_completion, read_embedding

_DECIDED: Final = frozenset({"input_file_id", "endpoint", "completion_window"})
_LINE_DECIDED: Final = frozenset({"custom_id", "method", "url", "body"})
_VERSION: Final = "/v1"
_READERS: Final = {
    "/v1/chat/completions": read_chat,
    "/v1/completions": read_completion,
    "/v1/responses": read_response,
    "/v1/embeddings": read_embedding,
    "/v1/images/generations": read_images,
    "/v1/images/edits": read_images,
}
FREE_ENDPOINTS: Final = frozenset({"/v1/moderations", "/moderations"})
_LINE_ROUTE: Final = Route("batches.line", "POST", "/v1/batches", "held", "usage in the output file's line")


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A request for a batch: its `endpoint`, and the id of the file with its lines."""

    endpoint: str
    input_file_id: str


@dataclass(frozen=True, slots=True)
class BatchLine:
    """A line of a batch's input file; `facts` is None for one that is free."""

    custom_id: str
    facts: RequestFacts | None


def read_batch(body: bytes) -> BatchRequest:
    """The facts of a request for a batch; raises `RequestRefusedError` naming the field."""
    fields = read_object(body, _DECIDED)
    endpoint, file_id = fields.get("endpoint"), fields.get("input_file_id")
    if not isinstance(file_id, str) or not file_id:
        raise invalid("input_file_id", "input_file_id must be the id of an uploaded file")
    if not isinstance(endpoint, str) or (endpoint not in SHAPES and endpoint not in FREE_ENDPOINTS):
        known = ", ".join(sorted(_READERS.keys() | FREE_ENDPOINTS))
        raise unpriced("endpoint", f"batches of {str(endpoint)[:60]!r} are not priced; priced are {known}")
    return BatchRequest(endpoint, file_id)


def read_batch_line(endpoint: str, line: bytes) -> BatchLine | None:
    """What one line of a batch's input file can cost; None for a blank line.

    Its facts are in the context of a batch, and no stream. Raises `RequestRefusedError` naming the field.
    """
    if not line.strip():
        return None
    fields = read_object(line.strip(), _LINE_DECIDED)
    custom_id, url, inner = fields.get("custom_id"), fields.get("url"), fields.get("body")
    if not isinstance(custom_id, str):
        raise invalid("custom_id", "each line of a batch must have its custom_id")
    if url != endpoint:
        raise invalid("url", f"the line's url must be the batch's endpoint, {endpoint}")
    if not isinstance(inner, dict):
        raise invalid("body", "each line of a batch must have a request in its body")
    if endpoint in FREE_ENDPOINTS:
        return BatchLine(custom_id, None)
    # The bytes as they are: only they tell of a key that is there twice.
    start, end = value_span(line, "body")
    facts = _READERS[_VERSION + endpoint.removeprefix(_VERSION)](RouteRequest(_LINE_ROUTE, line[start:end]))
    contexts: tuple[Context, ...] = (BATCH_CONTEXT,)
    demand = replace(facts.demand, contexts=contexts, distinct={})
    return BatchLine(custom_id, replace(facts, stream=False, demand=demand, context=BATCH_CONTEXT))
