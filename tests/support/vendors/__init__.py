"""Stand-ins for the vendors: servers that record what they got and answer as documented, or as they are told.

README.md says how to use them. The answer builders are in `openai`, `anthropic`, `google`, `mistral` and `cohere`.
"""

from collections.abc import Iterator
from typing import Literal

import pytest

from tests.support.vendors.anthropic.default import AnthropicResponder
from tests.support.vendors.cohere.default import CohereResponder
from tests.support.vendors.google.default import GoogleResponder
from tests.support.vendors.mistral.default import MistralResponder
from tests.support.vendors.openai.default import OpenAIResponder
from tests.support.vendors.responder import Responder
from tests.support.vendors.server import (
    Answer,
    Framing,
    Received,
    Server,
    bytes_answer,
    error_answer,
    json_answer,
    stream_answer,
)

VendorName = Literal["openai", "anthropic", "google", "mistral", "cohere"]

RESPONDERS: dict[str, type[Responder]] = {
    "openai": OpenAIResponder,
    "anthropic": AnthropicResponder,
    "google": GoogleResponder,
    "mistral": MistralResponder,
    "cohere": CohereResponder,
}

__all__ = [
    "RESPONDERS",
    "Answer",
    "Framing",
    "Received",
    "StandInVendor",
    "VendorName",
    "bytes_answer",
    "error_answer",
    "json_answer",
    "stream_answer",
]


class StandInVendor(Server):
    """A stand-in for one vendor. `url` is the base URL as its official clients take it: with ``/v1`` for OpenAI only.

    `accepts` is the only credential it takes when no answer is scripted, or None for any but an empty one.
    """

    def __init__(self, name: VendorName = "openai", port: int = 0, accepts: str | None = None) -> None:
        self.name = name
        self.responder = RESPONDERS[name]()
        self.responder.accepts = accepts
        super().__init__(self.responder, self.responder.credential, port=port)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{self.root}/v1" if self.name == "openai" else self.root

    @property
    def credentials(self) -> list[str | None]:
        """What each request carried where this vendor looks for a key, in order."""
        return [request.credential for request in self.requests]


def serving(name: VendorName) -> Iterator[StandInVendor]:
    """A started stand-in, stopped afterwards."""
    vendor = StandInVendor(name)
    vendor.start()
    try:
        yield vendor
    finally:
        vendor.stop()


@pytest.fixture
def openai_vendor() -> Iterator[StandInVendor]:
    """A stand-in for OpenAI, listening on a free port."""
    yield from serving("openai")


@pytest.fixture
def anthropic_vendor() -> Iterator[StandInVendor]:
    """A stand-in for Anthropic."""
    yield from serving("anthropic")


@pytest.fixture
def google_vendor() -> Iterator[StandInVendor]:
    """A stand-in for Gemini."""
    yield from serving("google")


@pytest.fixture
def mistral_vendor() -> Iterator[StandInVendor]:
    """A stand-in for Mistral."""
    yield from serving("mistral")


@pytest.fixture
def cohere_vendor() -> Iterator[StandInVendor]:
    """A stand-in for Cohere."""
    yield from serving("cohere")
