"""What control and the commands need to know of API dialects and of well-known vendors; gateways have the dialects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class DialectFacts:
    """A vendor protocol. `base_has_version`: base URLs end with the version (``…/v1``), so paths go on without theirs.

    `default_base_url` is the address of the vendor itself, None where everyone has an address of their own.
    """

    name: str
    default_base_url: str | None
    base_has_version: bool


_ALL: Final = (
    DialectFacts("openai", "https://api.openai.com/v1", base_has_version=True),
    DialectFacts("azure", None, base_has_version=False),
    DialectFacts("anthropic", "https://api.anthropic.com", base_has_version=False),
    DialectFacts("google", "https://generativelanguage.googleapis.com", base_has_version=False),
    DialectFacts("mistral", "https://api.mistral.ai", base_has_version=False),
    DialectFacts("cohere", "https://api.cohere.com", base_has_version=False),
)

DIALECTS: Final[Mapping[str, DialectFacts]] = {each.name: each for each in _ALL}
DEFAULT_DIALECT: Final = "openai"

# Where vendors that speak OpenAI's dialect are, by the names that the price catalog gives them.
COMPATIBLE_BASE_URLS: Final[Mapping[str, str]] = {
    "cerebras": "https://api.cerebras.ai/v1",
    "deepseek": "https://api.deepseek.com/v1",
    "fireworks": "https://api.fireworks.ai/inference/v1",
    "groq": "https://api.groq.com/openai/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "perplexity": "https://api.perplexity.ai",
    "together": "https://api.together.xyz/v1",
    "x-ai": "https://api.x.ai/v1",
}

# Servers that people run themselves, which want no key unless they are told to; the address is their own.
KEYLESS: Final = frozenset({"ollama", "vllm"})


def default_dialect(vendor: str) -> str:
    """The dialect of a vendor of that name, unless its connection says otherwise."""
    return vendor if vendor in DIALECTS else DEFAULT_DIALECT


def default_base_url(vendor: str, dialect: str) -> str | None:
    """Where a vendor is when its connection does not say; None when only the connection can tell."""
    if vendor in DIALECTS:
        return DIALECTS[vendor].default_base_url if dialect == vendor else None
    return COMPATIBLE_BASE_URLS.get(vendor) if dialect == DEFAULT_DIALECT else None
