"""Every dialect by name, and every answer shape by vendor and route: for the gateway, the price check and the docs."""

from collections.abc import Iterator, Mapping
from typing import Final

from services.core.usage.reading import AnswerShape, Framing
from services.gateway.vendors import Dialect, Route
from services.gateway.vendors.anthropic import AnthropicDialect
from services.gateway.vendors.azure import AzureDialect
from services.gateway.vendors.cohere import CohereDialect
from services.gateway.vendors.google import GoogleDialect
from services.gateway.vendors.mistral import MistralDialect
from services.gateway.vendors.openai import OpenAIDialect

# In the order in which a path that several dialects have is given to them.
_ALL: Final[tuple[Dialect, ...]] = (
    OpenAIDialect(),
    AnthropicDialect(),
    GoogleDialect(),
    MistralDialect(),
    CohereDialect(),
    AzureDialect(),
)
DIALECTS: Final[Mapping[str, Dialect]] = {each.name: each for each in _ALL}

# The vendors that are a dialect of their own by the same name; any other vendor's connection says what it speaks.
DEFAULT_DIALECT: Final = "openai"


def dialect_of(vendor: str) -> Dialect:
    """The dialect that a vendor of that name speaks unless its connection says otherwise."""
    return DIALECTS.get(vendor, DIALECTS[DEFAULT_DIALECT])


def routes_of(vendor: str) -> tuple[str, ...]:
    """The names of a vendor's routes whose answers say what they cost."""
    return tuple(dialect_of(vendor).shapes)


def shape_of(vendor: str, route: str) -> AnswerShape:
    """How the answers of a vendor's route are read; raises `KeyError` when no answer of that route costs anything."""
    return dialect_of(vendor).shapes[route].shape


def framing_of(vendor: str, route: str) -> Framing:
    """How a stream of a vendor's route comes when its content type does not say; raises `KeyError`, too."""
    return dialect_of(vendor).shapes[route].framing


def all_routes() -> Iterator[tuple[Dialect, Route]]:
    """Every route of every dialect."""
    for dialect in DIALECTS.values():
        for route in dialect.routes:
            yield dialect, route
