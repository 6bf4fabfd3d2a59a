"""What the gateway tells of itself: two small ports, which app.py fills in, and what stands in for them when off."""

from collections.abc import Mapping
from typing import Protocol

AttributeValue = str | int | float | bool
EventHeaders = tuple[tuple[str, bytes], ...]


class Observer(Protocol):
    """Counts and measures (Prometheus in production)."""

    def denied(self, code: str) -> None:
        """A call was refused."""

    def forwarded(self, overhead_s: float) -> None:
        """A call goes to its vendor after Farthing has taken so long over it."""

    def answered(self, vendor: str, wait_s: float) -> None:
        """A vendor's response head came after so long."""

    def settled(self, vendor: str, outcome: str, cost_nano: int) -> None:
        """A call was settled."""

    def underestimated(self, vendor: str, estimate_mode: str) -> None:
        """A call has cost more than was held for it."""


class CallSpan(Protocol):
    """The trace of one call. `headers` continue it: in the call's events and towards the vendor."""

    headers: Mapping[str, str]

    def end(self, attributes: Mapping[str, AttributeValue], error: str | None = None) -> None:
        """Closes the span; `error` names what went wrong."""


class Tracing(Protocol):
    """Opens a span a call (OpenTelemetry in production, when an endpoint is set)."""

    def begin(self, model: str, vendor: str, caller: Mapping[str, str], started_ns: int) -> CallSpan:
        """The server span of a call that came in with the trace headers `caller`, at Unix nanoseconds `started_ns`."""


class NoObserver:
    """Counts nothing."""

    def denied(self, code: str) -> None:
        """Nothing."""

    def forwarded(self, overhead_s: float) -> None:
        """Nothing."""

    def answered(self, vendor: str, wait_s: float) -> None:
        """Nothing."""

    def settled(self, vendor: str, outcome: str, cost_nano: int) -> None:
        """Nothing."""

    def underestimated(self, vendor: str, estimate_mode: str) -> None:
        """Nothing."""


class PassedOnSpan:
    """No span of our own: the caller's trace goes on as it came."""

    __slots__ = ("headers",)

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers

    def end(self, attributes: Mapping[str, AttributeValue], error: str | None = None) -> None:
        """Nothing."""


class PassOn:
    """Tracing that is off."""

    def begin(self, model: str, vendor: str, caller: Mapping[str, str], started_ns: int) -> CallSpan:
        """The caller's own trace."""
        return PassedOnSpan(caller)


def event_headers(span: CallSpan) -> EventHeaders:
    """The trace headers of an event."""
    return tuple((name, value.encode("latin-1")) for name, value in span.headers.items())
