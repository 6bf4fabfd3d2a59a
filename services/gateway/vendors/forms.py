"""Multipart forms, as routes for files take them, read with the same care as JSON bodies."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from services.gateway.vendors.fields import invalid

# It tells of every malformed byte, which is the caller's doing and is answered to the caller.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

MAX_FORM_PARTS: Final = 1_000
_MAX_TEXT_BYTES: Final = 1024 * 1024
# The fields of all routes that are files, where they are decided by at all.
_FILES: Final = frozenset({"file", "image", "images", "mask", "markup"})


@dataclass(slots=True)
class Form:
    """A form's text fields, last value of each, and its files' bytes by field name (``image[]`` is ``image``)."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


def is_form(content_type: str) -> bool:
    """Whether a body of that content type is a form."""
    return content_type.lower().startswith("multipart/form-data")


def read_form(body: bytes, content_type: str, decided: frozenset[str]) -> Form:
    """The form in a body. Raises `RequestRefusedError` for what is none, or is ambiguous in a field of `decided`."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise invalid(None, "the request must be multipart/form-data with a boundary in its content type")
    reader = _Reader(decided)
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": reader.begin,
            "on_header_field": reader.header_name,
            "on_header_value": reader.header_value,
            "on_header_end": reader.header_end,
            "on_headers_finished": reader.headers_end,
            "on_part_data": reader.data,
            "on_part_end": reader.end,
            "on_end": reader.close,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise invalid(None, f"the form can't be read: {error}") from error
    if not reader.closed:
        raise invalid(None, "the form breaks off before its closing boundary")
    return reader.form


class _Reader:
    """Takes the parser's events; each is a piece of one part."""

    def __init__(self, decided: frozenset[str]) -> None:
        self.form = Form()
        self.closed = False
        self._decided = decided
        self._parts = 0
        self._headers: dict[bytes, bytes] = {}
        self._name = b""
        self._value = b""
        self._field = ""
        self._is_file = False
        self._data = bytearray()

    def begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_FORM_PARTS:
            raise invalid(None, f"the form has more than {MAX_FORM_PARTS} parts; send fewer")
        self._headers, self._data = {}, bytearray()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        name = self._name.lower()
        if name in self._headers:
            raise invalid(None, "a part of the form has a header twice; keep one")
        self._headers[name] = self._value
        self._name = self._value = b""

    def headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name")
        if not name:
            raise invalid(None, "each part of the form must have a name")
        self._field = name.decode("utf-8", "replace").removesuffix("[]")
        self._is_file = b"filename" in options or b"filename*" in options

    def data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def end(self) -> None:
        name = self._field
        folded = name.casefold()
        if folded != name and folded in self._decided:
            raise invalid(folded, f"the field {name[:40]!r} could be taken for {folded!r}; use {folded!r} only")
        # Servers do not agree on whether a part that has a file's name can be a text.
        if self._is_file and name in self._decided and name not in _FILES:
            raise invalid(name, f"the field {name!r} must be a text, not a file; leave its filename out")
        if name in self._decided and name in (self.form.texts if self._is_file else self.form.files):
            raise invalid(name, f"the field {name!r} is there as a text and as a file; keep one")
        if self._is_file:
            self.form.files.setdefault(name, []).append(bytes(self._data))
            return
        if name in self.form.texts and name in self._decided:
            raise invalid(name, f"the field {name!r} is there more than once; keep one")
        if len(self._data) > _MAX_TEXT_BYTES:
            raise invalid(name[:40], f"the field {name[:40]!r} is longer than {_MAX_TEXT_BYTES} bytes; send less")
        try:
            self.form.texts[name] = self._data.decode()
        except UnicodeDecodeError as error:
            raise invalid(name[:40], f"the field {name[:40]!r} is not UTF-8") from error

    def close(self) -> None:
        self.closed = True


def form_flag(texts: Mapping[str, str], name: str) -> bool:
    """The truth value in a field, false when it is missing or empty."""
    value = texts.get(name, "").strip().lower()
    if value in ("", "false", "0"):
        return False
    if value in ("true", "1"):
        return True
    raise invalid(name, f"{name} must be true or false")


def form_whole(texts: Mapping[str, str], name: str, most: int, *, least: int = 1) -> int | None:
    """The whole number in a field, None when it is missing or empty."""
    text = texts.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12 and least <= int(text) <= most):
        raise invalid(name, f"{name} must be a whole number from {least} to {most}")
    return int(text)
