"""API dialects: what the gateway must know of a vendor's protocol, one file each, all behind `Dialect`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

from services.core.estimate import Demand
from services.core.usage.reading import AnswerShape, Framing

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

# held: bounded, held before it leaves, settled by its answer. submitted: held when it is submitted, settled when its
# job has ended. watched: free, and tells how a submitted job stands. free: costs nothing, so it passes unheld.
# unpriced: not a route of the dialect; its org lets such pass, with a hold and a settlement of nothing.
Billing = Literal["held", "submitted", "watched", "free", "unpriced"]


class RequestRefusedError(ValueError):
    """A request body the gateway can't bound or read. `code` is ours, `param` the vendor's name of the field."""

    def __init__(self, code: str, param: str | None, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class Route:
    """A route of a dialect. `name` is what events call it.

    `path` is the vendor's own, its version included; ``{model}`` stands for one segment or a part of one, and ``{id}``
    too. `known_by` says in a few words, for docs/vendors.md, how the cost of a call is known.
    """

    name: str
    method: str
    path: str
    billing: Billing
    known_by: str


@dataclass(frozen=True, slots=True)
class Answers:
    """How the answers of a route are read, and how a stream of them comes when its content type does not say."""

    shape: AnswerShape
    framing: Framing = "sse"


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What a dialect reads: a request as it came in. `params` are what the path's braces stand for, decoded."""

    route: Route
    body: bytes = field(repr=False)
    params: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    query: str = ""
    content_type: str = "application/json"
    headers: Sequence[tuple[bytes, bytes]] = ()


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What the gateway needs of a request, and the body as it goes to the vendor.

    `demand` bounds what the vendor can count. `shape` reads the answer; `framing` is how a stream of it comes.
    `hide_usage_chunk`: the gateway asked the vendor for streaming usage and the client had not (GW-6). `counted` are
    counts that are exact already, because the vendor charges by the request itself (characters to be spoken).
    `context` picks the rates besides the model where the request alone decides it (``{"processing": "batch"}``).
    `lines` are the requests of a batch, each bounded by itself; then `demand` is nothing. `endpoint` is the path that
    all of them are for, when they are in a file. `in_background`: the request asks for its work to go on after the
    answer. `is_unpriced`: nothing is known of what it costs.
    """

    model: str
    stream: bool
    demand: Demand
    shape: AnswerShape
    body: bytes = field(repr=False)
    framing: Framing = "sse"
    hide_usage_chunk: bool = False
    counted: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    context: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    lines: tuple["RequestFacts", ...] = ()
    endpoint: str = ""
    is_unpriced: bool = False
    in_background: bool = False


class Dialect(Protocol):
    """One vendor protocol.

    `versions` are the first segments of its paths (``("v1",)``). `base_has_version`: a connection's base URL ends with
    the version (OpenAI's way), so a path goes on without its own. `default_base_url` is the vendor's own, None for a
    protocol that is spoken by others only. `key_headers` are where a caller's own vendor key may come in, lower case.
    `shapes` has, by route name, how the answers of every route that costs money are read.
    """

    @property
    def name(self) -> str: ...

    @property
    def routes(self) -> Sequence[Route]: ...

    @property
    def shapes(self) -> Mapping[str, Answers]: ...

    @property
    def versions(self) -> Sequence[str]: ...

    @property
    def base_has_version(self) -> bool: ...

    @property
    def default_base_url(self) -> str | None: ...

    @property
    def key_headers(self) -> Sequence[str]: ...

    def read_request(self, request: RouteRequest) -> RequestFacts:
        """Scans a request of a held or submitted route; raises `RequestRefusedError`."""

    def renamed(self, request: RouteRequest, model: str) -> RouteRequest:
        """The same request for another model, every other byte as it was (fallback). Raises `RequestRefusedError`."""

    def credential_headers(self, vendor_key: str | None) -> tuple[tuple[bytes, bytes], ...]:
        """The headers that carry the vendor's key."""

    def error_body(
        self, status: int, code: str, message: str, param: str | None, fields: Mapping[str, object]
    ) -> bytes:
        """An error in the vendor's own envelope, all our fields inside it (GW-8)."""

    def stream_error(self, code: str, message: str, fields: Mapping[str, object]) -> bytes:
        """A terminal error event for a stream that has begun."""
