"""API dialects: what the gateway must know of a vendor's protocol, one file each, all behind `Dialect`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from services.core.events import UsageSource


class RequestRefusedError(ValueError):
    """A request body the gateway can't bound or read. `code` is ours, `param` the vendor's name of the field."""

    def __init__(self, code: str, param: str | None, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What the gateway needs of a request body, and the body as it goes to the vendor.

    `input_tokens_bound` is a true upper bound of what the vendor can count as input. `output_tokens_limit` is what the
    request allows for one choice, or None when it names no limit; `choices` is how many answers it asks for.
    `hide_usage_chunk`: the gateway asked the vendor for streaming usage and the client had not (GW-6). `components` are
    the priced components (`core.pricing`) the call uses beyond plain input and output: its model must have each.
    """

    model: str
    stream: bool
    input_tokens_bound: int
    output_tokens_limit: int | None
    choices: int
    body: bytes
    hide_usage_chunk: bool
    components: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metered:
    """What a response used. `usage` counts: input_tokens, output_tokens (totals) and their parts cache_read_tokens,
    cache_write_tokens, audio_input_tokens, audio_output_tokens, reasoning_tokens where the vendor reports them.
    `complete` is false when the response broke off before its own end."""

    usage: Mapping[str, int]
    source: UsageSource
    complete: bool


class Meter(Protocol):
    """Reads usage off one response as its bytes pass. `feed` returns the bytes for the client, at once."""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to hand on: the chunk itself, but for a usage chunk that is hidden."""

    def finish(self) -> tuple[bytes, Metered]:
        """Bytes still held back, and what was used. Call once, at the end or where the response broke off."""


class Dialect(Protocol):
    """One vendor protocol."""

    name: str

    def read_request(self, route: str, body: bytes) -> RequestFacts:
        """Scans a request body; raises `RequestRefusedError`."""

    def meter(self, facts: RequestFacts, status: int, headers: Mapping[bytes, bytes]) -> Meter:
        """A meter for a response with this head (names in lower case); decodes content encodings for itself only."""

    def credential_headers(self, vendor_key: str | None) -> tuple[tuple[bytes, bytes], ...]:
        """The headers that carry the vendor's key."""

    def error_body(
        self, status: int, code: str, message: str, param: str | None, fields: Mapping[str, object]
    ) -> bytes:
        """An error in the vendor's own envelope, all our fields inside it (GW-8)."""

    def stream_error(self, code: str, message: str, fields: Mapping[str, object]) -> bytes:
        """A terminal error event for a stream that has begun."""
