"""Reads a ``multipart/form-data`` body, as vendors take audio, images and files."""

from email.parser import BytesParser
from email.policy import HTTP

from tests.support.vendors.server import Received


def fields_of(request: Received) -> dict[str, str]:
    """The plain fields of a form, the last value of each name; ``name[]`` is read as ``name``."""
    return {name: value.decode() for name, filename, value in parts_of(request) if filename is None}


def files_of(request: Received) -> dict[str, tuple[str, bytes]]:
    """The files of a form: field name → file name and content."""
    return {name: (filename, value) for name, filename, value in parts_of(request) if filename is not None}


def parts_of(request: Received) -> list[tuple[str, str | None, bytes]]:
    """Every part: field name, file name, content. Raises `ValueError` when the body is not a form."""
    kind = request.header("content-type") or ""
    head = f"Content-Type: {kind}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + request.body)
    if not message.is_multipart():
        raise ValueError(f"not a form: content-type {kind!r}")
    parts = []
    for part in message.iter_parts():
        name = str(part.get_param("name", header="content-disposition")).removesuffix("[]")
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        parts.append((name, part.get_filename(), content))
    return parts
