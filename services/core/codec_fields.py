"""An event's JSON, field by field: each of these gives the field as it should be, or raises naming it."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn, TypeVar

from services.core.identity import IdentityError, check_name
from services.core.money import MoneyError, format_usd, parse_usd

Fields = dict[str, Any]
_T = TypeVar("_T")

# Every consumer keeps counts and amounts in signed 64 bits.
MAX_INTEGER: Final = 2**63 - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIME: Final = re.compile(r"(?:19[789]|2[01]\d)\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)


class UnreadableEventError(ValueError):
    """These bytes are not an event of a known type and shape; they belong in the dead-letter topic."""


def format_time(time_ms: int) -> str:
    """RFC 3339 text of an instant, in UTC, with milliseconds."""
    return (_EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds")[:23] + "Z"


def parse_time(text: str) -> int:
    """Unix milliseconds of `format_time` text, 1970 to 2199; raises `ValueError` on any other text."""
    if _TIME.fullmatch(text) is None:
        raise ValueError("not an RFC 3339 time in UTC with milliseconds, from 1970 to 2199")
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(milliseconds=1)


def parse_object(value: bytes) -> Fields:
    """The fields of a JSON object in UTF-8."""
    try:
        text = value.decode()
        fields = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:
            # An escaped lone surrogate is a string that can never be written as UTF-8 again.
            json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UnreadableEventError("not JSON in UTF-8") from error
    if not isinstance(fields, dict):
        raise UnreadableEventError("not a JSON object")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def typed(name: str, value: object, kind: type[_T]) -> _T:
    """The value when it is of that kind."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UnreadableEventError(f"field {name!r} is not a {kind.__name__}")
    return value


def take(fields: Fields, name: str, kind: type[_T]) -> _T:
    """The field, which must be there, when it is of that kind."""
    if name not in fields:
        raise UnreadableEventError(f"field {name!r} is missing")
    return typed(name, fields[name], kind)


def name_in(fields: Fields, name: str) -> str:
    """The field when it is a name."""
    return checked(name, take(fields, name, str))


def checked(name: str, value: object) -> str:
    """The value when it is a name."""
    try:
        return check_name(name, typed(name, value, str))
    except IdentityError as error:
        raise UnreadableEventError(f"field {name!r}: {error}") from error


def count_in(fields: Fields, name: str) -> int:
    """The field when it is a count."""
    value = take(fields, name, int)
    if not 0 <= value <= MAX_INTEGER:
        raise UnreadableEventError(f"field {name!r} is not from 0 to {MAX_INTEGER}")
    return value


def counts_in(fields: Fields, name: str) -> Mapping[str, int]:
    """The field when it is an object of counts."""
    item = take(fields, name, dict)
    return {key: count_in(item, key) for key in item}


def texts_in(fields: Fields, name: str) -> Mapping[str, str]:
    """The field when it is an object of texts."""
    item = take(fields, name, dict)
    return {key: take(item, key, str) for key in item}


def list_of_texts(fields: Fields, name: str) -> list[str]:
    """The field when it is a list of texts."""
    return [typed(name, each, str) for each in take(fields, name, list)]


def usd_in(fields: Fields, name: str, *, signed: bool = False) -> int:
    """Nano-dollars of the field when it is an amount with nine decimals."""
    text = take(fields, name, str)
    try:
        nano = parse_usd(text)
    except MoneyError as error:
        raise UnreadableEventError(f"field {name!r}: {error}") from error
    if format_usd(nano) != text or abs(nano) > MAX_INTEGER:
        raise UnreadableEventError(f"field {name!r}: {text!r} is not an amount with nine decimals that fits 64 bits")
    if nano < 0 and not signed:
        raise UnreadableEventError(f"field {name!r} is negative")
    return nano


def instant_in(fields: Fields, name: str) -> int:
    """Unix milliseconds of the field when it is an instant."""
    text = take(fields, name, str)
    try:
        return parse_time(text)
    except ValueError as error:
        raise UnreadableEventError(f"field {name!r}: {text[:40]!r} is {error}") from error


def one_of(fields: Fields, name: str, allowed: tuple[str, ...]) -> str:
    """The field when it is one of the allowed texts."""
    value = take(fields, name, str)
    if value not in allowed:
        raise UnreadableEventError(f"field {name!r} is {value[:40]!r}; one of {', '.join(allowed)} was expected")
    return value


def texts_if_there(fields: Fields, name: str) -> tuple[str, ...]:
    """The texts of a field that events of earlier releases do not have."""
    return tuple(list_of_texts(fields, name)) if name in fields else ()


def instant_if_there(fields: Fields, name: str) -> int:
    """Unix milliseconds of a field that events of earlier releases do not have; 0 then."""
    return instant_in(fields, name) if name in fields else 0
