"""Reads requests for Anthropic's message batches: whole messages requests, inline, run at the batch price."""

import json
from typing import Any, Final

from services.core.estimate import Demand
from services.core.usage.anthropic_messages import BatchShape, MessagesShape
from services.gateway.vendors import RequestFacts, RequestRefusedError, RouteRequest
from services.gateway.vendors.anthropic_messages import DECIDED, demand_of, has_long_window
from services.gateway.vendors.fields import (
    Fields,
    asks_one_hour,
    encoded,
    flag,
    invalid,
    is_plain,
    model_name,
    objects,
    read_object,
)

MAX_REQUESTS: Final = 100_000
_CONTEXT: Final = {"processing": "batch"}
_ONCE: Final = DECIDED | {"params", "max_uses"}
_SHAPE: Final = BatchShape()
_LINE_SHAPE: Final = MessagesShape()
_NOTHING: Final = Demand(input_tokens=0, output_tokens_limit=0)


def read_batch(request: RouteRequest) -> RequestFacts:
    """The facts of a batch, those of its requests in `lines`; raises `RequestRefusedError` naming the field."""
    fields = read_object(request.body, frozenset({"requests"}))
    if not is_plain(request.body, fields):
        _refuse_twice(request.body)
    entries = objects(fields, "requests", MAX_REQUESTS)
    if not entries:
        raise invalid("requests", "requests must be a list of at least one request")
    long_window = has_long_window(request.headers)
    lines = []
    for place, entry in enumerate(entries):
        where = f"requests[{place}].params"
        params = entry.get("params")
        if not isinstance(params, dict):
            raise invalid(where, f"{where} must be an object")
        try:
            model, demand = model_name(params.get("model")), _demand(params, long_window=long_window)
        except RequestRefusedError as error:
            raise RequestRefusedError(error.code, f"{where}.{error.param}", f"{where}: {error}") from error
        lines.append(RequestFacts(model, False, demand, _LINE_SHAPE, b"", context=_CONTEXT))
    return RequestFacts(
        model=lines[0].model,
        stream=False,
        demand=_NOTHING,
        shape=_SHAPE,
        body=request.body,
        context=_CONTEXT,
        lines=tuple(lines),
    )


def _demand(params: Fields, *, long_window: bool) -> Demand:
    if flag(params, "stream"):
        raise invalid("stream", "a batch is not streamed; leave stream out")
    # In the batch it may be longer, but only by white space and escapes, which are no tokens of their own.
    text = encoded(params, "params")
    return demand_of(params, len(text), one_hour=asks_one_hour(text), long_window=long_window, batch=True)


def _refuse_twice(body: bytes) -> None:
    """Refuses a decided field that is there twice in any object: parsers differ in which of two they take."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            for name in _ONCE & found.keys():
                if names.count(name) > 1:
                    raise invalid(f"requests.{name}", f"the field {name!r} is there more than once; keep one")
        return found

    try:
        json.loads(body, object_pairs_hook=checked, parse_int=str, parse_float=str)
    except RecursionError as error:
        raise invalid("requests", "the request body is nested too deeply; nest it less") from error
