"""What a vendor may be called: its name is the first part of a path of its own, and must not be one of ours."""

import re
from typing import Final

from services.control.errors import invalid

SANDBOX: Final = "sandbox"

_VENDOR: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
# First parts of Farthing's own paths; the sandbox is built in.
_RESERVED: Final = frozenset({SANDBOX, "api", "docs", "redoc", "internal", "healthz", "readyz", "metrics"})
# First parts of the vendors' own paths: v1, v1beta, v2, …
_VERSION: Final = re.compile(r"v\d+[a-z0-9]*")


def check_vendor_name(vendor: str) -> None:
    """Raises a 400 for a name that no connection can have."""
    if _is_taken(vendor):
        raise invalid("vendor", f"vendor {vendor!r} is the beginning of other paths here; choose another name")
    if _VENDOR.fullmatch(vendor) is None:
        raise invalid("vendor", "vendor must be 1 to 63 lower-case letters, digits or -, starting with a letter")


def is_vendor_name(vendor: str) -> bool:
    """Whether a connection can have this name."""
    return _VENDOR.fullmatch(vendor) is not None and not _is_taken(vendor)


def _is_taken(vendor: str) -> bool:
    return vendor in _RESERVED or _VERSION.fullmatch(vendor) is not None
