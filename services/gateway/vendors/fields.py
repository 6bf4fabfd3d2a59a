"""A JSON request read once and safely, for every dialect: no key that two parsers could read differently, no body that
takes seconds to parse, every malformed field named; and changed, where it must be, without touching another byte."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from services.gateway.vendors import RequestRefusedError, RouteRequest

MAX_OUTPUT_TOKENS: Final = 2**31 - 1
MAX_MODEL_LENGTH: Final = 256

# Tokens are at least one byte long, and the JSON around each message outweighs what a chat template puts there. This
# is for what templates add of their own accord, whatever the request says (default system prompts, channel rules).
TEMPLATE_TOKENS: Final = 256

# Far beyond what any model takes; they keep the time and memory that one body can cost in proportion.
MAX_FIELDS: Final = 1_000
MAX_VALUES: Final = 2_000_000

_SPACE: Final = re.compile(r"[ \t\n\r]*")
# Skips a value at the speed of C. Numbers stay text: their conversion costs more than they are long, or is refused.
_SKIM: Final = json.JSONDecoder(parse_int=str, parse_float=str)
# From this size on, skimming the body once is quicker than counting each name in it.
_SKIM_BYTES: Final = 64 * 1024
# A letter or underscore of a key, written as an escape.
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")

# How a body can ask for one-hour cache writes: the value itself, or a letter of it written as an escape.
_ONE_HOUR: Final = (b'"1h"', b"\\u0031", b"\\u0068")

Fields = dict[str, Any]


def asks_one_hour(body: bytes) -> bool:
    """Whether a request can ask for one-hour cache writes, as Anthropic's models take it: ``"ttl": "1h"``."""
    return any(each in body for each in _ONE_HOUR)


def read_object(body: bytes, decided: frozenset[str]) -> Fields:
    """The fields of a request body. `decided` are the names of those that a decision rests on.

    Raises `RequestRefusedError` for a body that is no JSON object, too costly to read, or ambiguous in a decided field.
    """
    _refuse_too_many_values(body)
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(None, f"the request body is not JSON in UTF-8: {error}") from error
    if not isinstance(fields, dict):
        raise invalid(None, "the request body must be a JSON object")
    if len(fields) > MAX_FIELDS:
        raise _too_many_fields()
    _refuse_ambiguous_keys(body, fields, decided)
    return fields


def invalid(param: str | None, message: str) -> RequestRefusedError:
    """A request that can't be read."""
    return RequestRefusedError("invalid_request", param, message)


def unpriced(param: str, message: str) -> RequestRefusedError:
    """A request for something whose cost can't be known."""
    return RequestRefusedError("unpriced_feature", param, message)


def refuse_unknown(names: Iterable[str], known: frozenset[str]) -> None:
    """Refuses a field that is none of the `known` ones: it may cost anything."""
    for name in names:
        if name not in known:
            raise unpriced(name[:40], f"the field {name[:40]!r} is not priced yet; leave it out")


def whole(fields: Mapping[str, Any], name: str, most: int = MAX_OUTPUT_TOKENS, *, least: int = 1) -> int | None:
    """The whole number in a field, None when it is missing or null."""
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise invalid(name, f"{name} must be a whole number from {least} to {most}")
    return value


def flag(fields: Mapping[str, Any], name: str) -> bool:
    """The truth value in a field, false when it is missing or null."""
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(name, f"{name} must be true or false")
    return bool(value)


def model_name(value: object, param: str = "model") -> str:
    """The value as a model's name."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_MODEL_LENGTH or not value.isprintable():
        raise invalid(param, f"{param} must be a name of 1 to {MAX_MODEL_LENGTH} printable characters")
    return value


def entries(fields: Mapping[str, Any], name: str, most: int) -> list[Any]:
    """The list in a field, empty when it is missing or null."""
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(name, f"{name} must be a list")
    if len(value) > most:
        raise invalid(name, f"{name} has {len(value)} entries; send at most {most}")
    return value


def objects(fields: Mapping[str, Any], name: str, most: int) -> list[Fields]:
    """The list of objects in a field, empty when it is missing or null."""
    value = entries(fields, name, most)
    if not all(isinstance(each, dict) for each in value):
        raise invalid(name, f"each of {name} must be an object")
    return value


def encoded(value: object, param: str) -> bytes:
    """A part of a request as JSON; raises `RequestRefusedError` naming `param` when it is nested too deeply."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise invalid(param, f"{param} is nested too deeply; nest it less") from error


# ---- keys that two parsers could read differently -------------------------------------------------------------------


def _refuse_ambiguous_keys(body: bytes, fields: Fields, decided: frozenset[str]) -> None:
    """Refuses a field we decide by that is there twice, or once more in other letters.

    Parsers differ in which of two equal keys they take, and some ignore case: the vendor might run another model, or
    with another limit, than the one that was priced.
    """
    for key in fields:
        folded = key.casefold()
        if folded != key and folded in decided and key not in decided:
            raise invalid(folded, f"the field {key[:40]!r} could be taken for {folded!r}; use {folded!r} only")
    names = fields.keys() & decided
    if not names or is_plain(body, fields):
        return
    if (
        len(body) < _SKIM_BYTES
        and all(body.count(b'"%s"' % name.encode()) == 1 for name in names)
        and _ESCAPED_LETTER.search(body) is None
    ):
        return  # Each is spelled out once in the whole body, so it can't be there twice.
    seen = set()
    for key, _ in members(body, body.index(b"{")):
        if key in names and key in seen:
            raise invalid(key, f"the field {key!r} is there more than once; keep one")
        seen.add(key)


def is_plain(body: bytes, fields: Fields) -> bool:
    """Whether the body is what anyone would write for its fields, so that no object in it has a key twice.

    Most clients send just that, byte for byte, and writing it again is much quicker than searching it. A body that is
    written in another way, as with white space, may be sound all the same.
    """
    try:
        return orjson.dumps(fields) == body
    except orjson.JSONEncodeError:
        return False  # It is nested deeper than can be written.


def parsed_by_pairs(body: bytes, make: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    """A body that `read_object` has taken, each object in it made by `make` of its members, equal keys among them.

    Raises `RequestRefusedError` as `make` does, and for what Python's own parser does not take: deep nesting, numbers
    of thousands of digits.
    """
    try:
        return json.loads(body, object_pairs_hook=make)
    except RecursionError as error:
        raise invalid(None, "the request body is nested too deeply; nest it less") from error
    except RequestRefusedError:
        raise
    except ValueError as error:
        raise invalid(None, f"the request body is not JSON: {error}") from error


def _refuse_too_many_values(body: bytes) -> None:
    """Refuses what would take seconds and hundreds of megabytes to parse, before it is parsed."""
    # Every value has a comma before it or opens an object or list, so there are no more of them than of these.
    if len(body) > MAX_VALUES and sum(map(body.count, (b",", b"{", b"["))) > MAX_VALUES:
        message = f"the request body has more than {MAX_VALUES} commas and opening brackets; send less in one request"
        raise invalid(None, message)


def _too_many_fields() -> RequestRefusedError:
    return invalid(None, f"an object of the request has more than {MAX_FIELDS} fields; send fewer")


def members(body: bytes, opening: int) -> Iterator[tuple[str, int]]:
    """Each key of the object that opens at `opening`, in order, and where its value starts. `body` is valid JSON.

    Only ASCII keys are read as they are. Raises `RequestRefusedError` for more than `MAX_FIELDS` members.
    """
    # One character a byte: what is found in the text is there in the body too.
    text = body.decode("latin-1")
    at = _past_space(text, opening + 1)
    count = 0
    while text[at] != "}":
        count += 1
        if count > MAX_FIELDS:
            raise _too_many_fields()
        key, at = _SKIM.raw_decode(text, at)
        start = _past_space(text, _past_space(text, at) + 1)
        yield key, start
        try:
            _, at = _SKIM.raw_decode(text, start)
        except RecursionError as error:
            raise invalid(None, "the request body is nested too deeply; nest it less") from error
        at = _past_space(text, at)
        if text[at] == ",":
            at = _past_space(text, at + 1)


def _past_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None, "it matches nothing, too"
    return space.end()


# ---- changes that leave every other byte as it was -----------------------------------------------------------------


def spliced(body: bytes, at: int, length: int, new: bytes) -> bytes:
    """The body with `length` bytes at `at` replaced by `new`."""
    return body[:at] + new + body[at + length :]


def value_span(body: bytes, name: str) -> tuple[int, int]:
    """Where the value of a field starts and ends in the body of a JSON object; the field must be there once."""
    start = dict(members(body, body.index(b"{")))[name]
    _, end = _SKIM.raw_decode(body.decode("latin-1"), start)
    return start, end


def with_model(request: RouteRequest, model: str) -> RouteRequest:
    """The request for another model, which its body names once."""
    start, end = value_span(request.body, "model")
    return replace(request, body=spliced(request.body, start, end - start, orjson.dumps(model)))


def with_path_model(request: RouteRequest, model: str) -> RouteRequest:
    """The request for another model, which its path names."""
    return replace(request, params={**request.params, "model": model})
