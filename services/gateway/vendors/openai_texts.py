"""OpenAI's legacy completions and its embeddings: what a request can cost."""

from typing import Any, Final

from services.core.estimate import Demand
from services.core.usage.openai_chat import ChatShape
from services.core.usage.openai_embeddings import EmbeddingsShape
from services.gateway.vendors import RequestFacts, RouteRequest
from services.gateway.vendors.fields import TEMPLATE_TOKENS, Fields, flag, invalid, model_name, read_object, whole
from services.gateway.vendors.openai_content import refuse_present, tiers_of
from services.gateway.vendors.openai_stream import asks_for_usage, with_usage

MAX_CHOICES: Final = 128
MAX_PROMPTS: Final = 20_000

_UNPRICED: Final = {
    "models": "a list of fallback models can't be priced; name one model in 'model' and leave models out",
    "plugins": "plugins are charged apart from tokens; leave plugins out",
}
COMPLETION_DECIDED: Final = frozenset(
    {"model", "prompt", "stream", "stream_options", "max_tokens", "n", "best_of", "echo", "service_tier", *_UNPRICED}
)
EMBEDDING_DECIDED: Final = frozenset({"model", "input", "service_tier"})
_COMPLETION_SHAPE: Final = ChatShape()
_EMBEDDING_SHAPE: Final = EmbeddingsShape()


def read_completion(request: RouteRequest) -> RequestFacts:
    """The facts of a legacy completion; raises `RequestRefusedError` naming the field."""
    fields = read_object(request.body, COMPLETION_DECIDED)
    return completion_facts(request.body, fields, model_name(fields.get("model")))


def completion_facts(body: bytes, fields: Fields, model: str) -> RequestFacts:
    """The facts of a legacy completion by a model, which Azure names in the path."""
    refuse_present(fields, _UNPRICED)
    stream = flag(fields, "stream")
    hide = stream and not asks_for_usage(fields)
    # A server that generates the best of several charges for all of them.
    choices = max(whole(fields, "n", MAX_CHOICES) or 1, whole(fields, "best_of", MAX_CHOICES) or 1)
    input_tokens = len(body) + TEMPLATE_TOKENS
    limit = whole(fields, "max_tokens", least=0)
    if limit is not None and flag(fields, "echo"):
        limit += input_tokens  # Some servers count the prompt that they repeat as output.
    contexts, distinct = tiers_of(fields)
    return RequestFacts(
        model=model,
        stream=stream,
        demand=Demand(
            input_tokens=input_tokens,
            output_tokens_limit=limit,
            choices=choices * _count(fields, "prompt", required=False),
            contexts=contexts,
            distinct=distinct,
        ),
        shape=_COMPLETION_SHAPE,
        body=with_usage(body, fields) if hide else body,
        hide_usage_chunk=hide,
    )


def read_embedding(request: RouteRequest) -> RequestFacts:
    """The facts of a request for embeddings; raises `RequestRefusedError` naming the field."""
    fields = read_object(request.body, EMBEDDING_DECIDED)
    return embedding_facts(request.body, fields, model_name(fields.get("model")))


def embedding_facts(body: bytes, fields: Fields, model: str) -> RequestFacts:
    """The facts of a request for embeddings by a model, which Azure names in the path."""
    _count(fields, "input", required=True)
    contexts, distinct = tiers_of(fields)
    return RequestFacts(
        model=model,
        stream=False,
        demand=Demand(
            # The JSON around each text outweighs the tokens that a model puts around it.
            input_tokens=len(body) + TEMPLATE_TOKENS,
            output_tokens_limit=0,
            contexts=contexts,
            distinct=distinct,
        ),
        shape=_EMBEDDING_SHAPE,
        body=body,
    )


def _count(fields: Fields, name: str, *, required: bool) -> int:
    """How many prompts or inputs a field has: a text, a list of texts, a list of tokens or a list of such lists."""
    value: Any = fields.get(name)
    if isinstance(value, str) or (value is None and not required):
        return 1
    if not isinstance(value, list) or not value:
        raise invalid(name, f"{name} must be a text, or a list of texts or tokens that is not empty")
    if all(type(each) is int for each in value):
        return 1
    if len(value) > MAX_PROMPTS:
        raise invalid(name, f"{name} has {len(value)} entries; send at most {MAX_PROMPTS}")
    for each in value:
        if not isinstance(each, str) and not (isinstance(each, list) and all(type(token) is int for token in each)):
            raise invalid(name, f"each of {name} must be a text or a list of tokens")
    return len(value)
