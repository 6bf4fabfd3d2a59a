"""Who pays for a call: API keys, what they pin, and what identity headers may fill in (ID-1, ID-2)."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["org_admin", "agent"]

KEY_PREFIX: Final = "fk_live_"
_KEY_TEXT: Final = re.compile(r"fk_live_[A-Za-z0-9]{40}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}")
MAX_TAGS: Final = 16

# The dimensions a key may pin and a header may fill in, in the order in which they are written everywhere.
DIMENSIONS: Final = ("team", "agent", "user", "project", "session", "environment")


class IdentityError(ValueError):
    """Base of what can be wrong with a caller's identity. `code` is the machine-readable error."""

    code = "invalid_identity"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class IdentityMismatchError(IdentityError):
    """A header contradicts what the key pins."""

    code = "identity_mismatch"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is known of an API key. A pin of None leaves that dimension open to the request's headers."""

    key_id: str
    org: str
    role: Role
    pins: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a call is charged to. Open dimensions are None."""

    org: str
    key_id: str
    team: str | None = None
    agent: str | None = None
    user: str | None = None
    project: str | None = None
    session: str | None = None
    environment: str | None = None
    tags: tuple[str, ...] = ()


def is_key_text(text: str) -> bool:
    """Whether `text` has the shape of a Farthing key; anything else needs no look-up to be refused."""
    return _KEY_TEXT.fullmatch(text) is not None


def hash_key(key: str, pepper: bytes) -> str:
    """HMAC-SHA256 of a key under the server's pepper, in hex: the only form in which a key is stored."""
    return hmac.new(pepper, key.encode(), hashlib.sha256).hexdigest()


def is_name(text: str) -> bool:
    """Whether `text` can name a team, agent, session or the like."""
    return _NAME.fullmatch(text) is not None


def check_name(field: str, text: str) -> str:
    """`text` when it can name a team, agent, session or the like; raises `IdentityError` naming `field` otherwise."""
    if not is_name(text):
        raise IdentityError(
            field, f"{field} must be 1 to 128 letters, digits or any of . _ : @ / + -, starting with a letter or digit"
        )
    return text


def parse_tags(field: str, text: str) -> tuple[str, ...]:
    """Tags of a comma-separated header, in order, without repeats."""
    tags = tuple(dict.fromkeys(check_name(field, tag.strip()) for tag in text.split(",") if tag.strip()))
    if len(tags) > MAX_TAGS:
        raise IdentityError(field, f"{field} names {len(tags)} tags; at most {MAX_TAGS} are kept")
    return tags


def resolve_identity(record: KeyRecord, headers: Mapping[str, str], prefix: str = "x-spend-") -> Identity:
    """The identity of a call made with the key `record` and the given headers (lower-case names).

    Headers fill in what the key leaves open. Raises `IdentityMismatchError` when one contradicts a pin and
    `IdentityError` when one is malformed; both name the header.
    """
    known: dict[str, str] = dict(record.pins)
    for dimension in DIMENSIONS:
        field = prefix + dimension
        text = headers.get(field)
        if text is None:
            continue
        value = check_name(field, text)
        pinned = known.setdefault(dimension, value)
        if pinned != value:
            raise IdentityMismatchError(
                field,
                f"{field} says {value!r}, but this key is pinned to {dimension} {pinned!r}; "
                "drop the header or use another key",
            )
    tags_field = prefix + "tags"
    tags = parse_tags(tags_field, headers[tags_field]) if tags_field in headers else ()
    return Identity(org=record.org, key_id=record.key_id, tags=tags, **{name: known.get(name) for name in DIMENSIONS})
