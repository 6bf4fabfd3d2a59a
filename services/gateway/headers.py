"""Headers, read once: the caller's key, what identifies the caller, and what may go on to the vendor (ID-4)."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.core.identity import is_key_text
from services.gateway.refusal import RefusedError

Headers = Sequence[tuple[bytes, bytes]]

MAX_VALUE_BYTES: Final = 8192
DEFAULT_PREFIX: Final = b"x-spend-"

# Of this connection only (RFC 9110, 7.6.1), in either direction.
HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# What says who or where the caller is, and what the gateway sets itself.
_NOT_FOR_VENDORS: Final = HOP_BY_HOP | {
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"x-goog-api-key",
    b"x-vendor-key",
    b"cookie",
    b"forwarded",
    b"via",
    b"x-real-ip",
    b"host",
    b"content-length",
    b"accept-encoding",
    b"expect",
    b"traceparent",
    b"tracestate",
    # A free route must not become a billable one on its way.
    b"x-http-method",
    b"x-http-method-override",
    b"x-method-override",
}
# Where clients of all vendors send their keys, ours among them.
_KEY_ORDER: Final = ("authorization", "x-api-key", "x-goog-api-key", "api-key")
_CREDENTIALS: Final = frozenset((*(name.encode() for name in _KEY_ORDER), b"x-vendor-key"))
# Claude Code names its session in every request of it.
_CLAUDE_CODE_SESSION: Final = b"x-claude-code-session-id"
_PLAIN_CONNECTION: Final = frozenset((b"keep-alive", b"close"))
_TRACEPARENT: Final = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_MAX_TRACESTATE_BYTES: Final = 512
CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(slots=True)
class CallHeaders:
    """A request's headers, sorted out.

    `key` is the caller's Farthing key, `vendor_key` the caller's own key of the vendor (GW-2), `credentials` what came
    in headers that vendors take keys in, by name. `spend` holds every prefixed header by its lower-case name;
    `forwarded` those a vendor may see, in order; `trace` the caller's ``traceparent`` and ``tracestate``.
    `client_session` is what the client itself calls its session, in a header of its own. `content_length` is None when
    it is not known.
    """

    key: str | None = field(default=None, repr=False)
    vendor_key: str | None = field(default=None, repr=False)
    credentials: dict[str, str] = field(default_factory=dict, repr=False)
    content_type: str = ""
    spend: dict[str, str] = field(default_factory=dict)
    forwarded: list[tuple[bytes, bytes]] = field(default_factory=list)
    trace: dict[str, str] = field(default_factory=dict)
    content_length: int | None = None
    client_session: str | None = None


class HeaderReader:
    """Sorts headers under a given prefix for ours (lower case, with its last dash)."""

    def __init__(self, prefix: str) -> None:
        self._prefixes = tuple({prefix.encode(), DEFAULT_PREFIX})
        self._key_name = prefix + "key"

    def read(self, headers: Headers) -> CallHeaders:
        """Sorts the headers out; raises `RefusedError` (400) naming one that can't be read."""
        check_values(headers)
        found = CallHeaders()
        nominated: frozenset[bytes] = frozenset()
        for name, value in headers:
            if name in _NOT_FOR_VENDORS:
                if name in _CREDENTIALS:
                    text = _credential(name, value)
                    if text is not None:
                        found.credentials[name.decode()] = text
                elif name == b"connection":
                    nominated = _nominated(value)
                elif name == b"content-length" and value.isdigit():
                    found.content_length = int(value)
                elif name == b"traceparent":
                    if _TRACEPARENT.fullmatch(value) is not None:
                        found.trace["traceparent"] = value.decode()
                elif name == b"tracestate" and len(value) <= _MAX_TRACESTATE_BYTES:
                    found.trace["tracestate"] = value.decode("latin-1")
            elif name.startswith(self._prefixes):
                self._keep(found.spend, name.decode("latin-1"), value.decode("latin-1"))
            elif not name.startswith(b"x-forwarded-"):
                found.forwarded.append((name, value))
                if name == b"content-type":
                    found.content_type = value.decode("latin-1")
                elif name == _CLAUDE_CODE_SESSION:
                    found.client_session = value.decode("latin-1")
        if "traceparent" not in found.trace:
            found.trace.clear()
        if nominated:
            found.forwarded = [each for each in found.forwarded if each[0] not in nominated]
        self._take_keys(found)
        return found

    def _take_keys(self, found: CallHeaders) -> None:
        """Which credential is ours, and which the vendor's."""
        own = found.spend.pop(self._key_name, None)
        found.vendor_key = found.credentials.pop("x-vendor-key", None)
        if own:
            found.key = own
            return
        # Some clients send two: theirs and ours. The one that looks like ours is.
        texts = [found.credentials[name] for name in _KEY_ORDER if name in found.credentials]
        found.key = next((text for text in texts if is_key_text(text)), texts[0] if texts else None)
        found.credentials.clear()

    def _keep(self, spend: dict[str, str], name: str, value: str) -> None:
        if spend.setdefault(name, value) != value:
            message = f"{name} is there twice, with two values; send it once"
            raise RefusedError(400, "invalid_request", message, param=name)


def check_values(headers: Headers) -> None:
    """Raises `RefusedError` (400) naming a header whose value is too long or holds control characters."""
    everything = b"".join([value for _, value in headers])
    if len(everything) <= MAX_VALUE_BYTES and CONTROL.search(everything) is None:
        return
    for name, value in headers:
        text = name.decode("latin-1")
        if len(value) > MAX_VALUE_BYTES:
            message = f"header {text} has {len(value)} bytes; at most {MAX_VALUE_BYTES} are read"
            raise RefusedError(400, "invalid_request", message, param=text)
        if CONTROL.search(value) is not None:
            message = f"header {text} holds a control character; send printable characters only"
            raise RefusedError(400, "invalid_request", message, param=text)


def end_to_end(headers: Headers, dropped: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """The headers that may leave this connection, without those in `dropped`; names in lower case."""
    kept = [(name.lower(), value) for name, value in headers]
    nominated = frozenset().union(*(_nominated(value) for name, value in kept if name == b"connection"))
    return [each for each in kept if each[0] not in HOP_BY_HOP and each[0] not in dropped and each[0] not in nominated]


def _nominated(value: bytes) -> frozenset[bytes]:
    tokens = (token.strip().lower() for token in value.split(b","))
    return frozenset(token for token in tokens if token not in _PLAIN_CONNECTION)


def _credential(name: bytes, value: bytes) -> str | None:
    if name == b"authorization":
        if value[:7].lower() != b"bearer ":
            return None
        value = value[7:]
    return value.decode("latin-1").strip() or None


def last_value(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The value of a header (lower-case `name`), the last of several; None without one."""
    found = None
    for each, value in headers:
        if each == name:
            found = value
    return found
