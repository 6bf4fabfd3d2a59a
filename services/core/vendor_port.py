"""What the gateway needs of the vendors. Its errors are those of `core.ports`."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class VendorRequest:
    """A request to a vendor, body complete. `timeout_s` bounds connecting and each wait for bytes."""

    method: str
    url: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    timeout_s: float


class VendorResponse(Protocol):
    """A vendor's answer. Bytes are as sent on the wire: never decoded."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives. Raises `UnavailableError` when the vendor breaks off."""

    async def close(self) -> None:
        """Lets go of the connection, read to its end or not."""


class VendorTransport(Protocol):
    """How the gateway reaches vendors. Raises `UnavailableError` when no answer began: `NotSentError` when the request
    never left, as `TimedOutError` when the vendor took too long. A cancellation has a `NotSentError` as its cause where
    the request never left."""

    async def send(self, request: VendorRequest) -> VendorResponse:
        """The answer's head; its body follows by `chunks`."""

    async def close(self) -> None:
        """Lets go of all connections."""
