"""What dialects send in the same way: the headers of a key, errors with our fields in them, events."""

from collections.abc import Mapping
from typing import Final

_STREAM_STATUS: Final[Mapping[str, int]] = {
    "budget_exhausted": 402,
    "BudgetCapExceeded": 402,
    "policy_blocked": 403,
    "rate_limited": 429,
}


def key_header(name: bytes, vendor_key: str | None, prefix: bytes = b"") -> tuple[tuple[bytes, bytes], ...]:
    """The header that carries a key; nothing without a key."""
    return () if vendor_key is None else ((name, prefix + vendor_key.encode()),)


def bearer(vendor_key: str | None) -> tuple[tuple[bytes, bytes], ...]:
    """The key as a bearer token; nothing without a key."""
    return key_header(b"authorization", vendor_key, b"Bearer ")


def stream_status(code: str) -> int:
    """The HTTP status that goes with an error in a stream, whose own status is 200 by then."""
    return _STREAM_STATUS.get(code, 500)


def with_fields(error: Mapping[str, object], fields: Mapping[str, object]) -> dict[str, object]:
    """A vendor's error with our fields behind its own, none of which they take the place of."""
    return {**error, **fields, **error}


def event(data: bytes, name: bytes = b"") -> bytes:
    """A server-sent event, with a name or without. Blank lines first end whatever event was under way."""
    head = b"event: " + name + b"\n" if name else b""
    return b"\n\n" + head + b"data: " + data + b"\n\n"
