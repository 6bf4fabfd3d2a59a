"""Beside `genai-prices`: which models cost more than it lists, prices that it lacks, and the sandbox's own."""

from typing import Any, Final

from services.core.catalog import rates_fields

_SEARCHES: Final = "it searches the web on every call, for a fee that its answers don't show"
_SPEAKS: Final = "it speaks, and its audio tokens have no listed price"
_DRAWS: Final = "it draws, and its image tokens have no listed price"
_BY_SIZE: Final = "its fee per request depends on how much it searches, and only the highest is listed"
_RESEARCHES: Final = "it searches the web by itself, for a fee that is not listed here"

# Why a name is left out, by the word that is in it and the vendors that it goes for.
_LEFT_OUT: Final = (
    (("openai", "azure", "openrouter"), "-search-preview", _SEARCHES),
    (("openai", "azure", "openrouter"), "-search-api", _SEARCHES),
    (("openai", "azure", "openrouter"), "audio-preview", _SPEAKS),
    (("openai",), "gpt-5-image", _DRAWS),
    (("openai",), "gpt-5.4-image", _DRAWS),
    (("openai",), "gpt-live-1", "the calls it delegates to are charged by themselves, and are not seen"),
    (("openrouter", "azure"), "deep-research", _RESEARCHES),
    (("perplexity",), "-online", _SEARCHES),
    (("perplexity",), "sonar-pro-search", _SEARCHES),
    (("openrouter",), "sonar", _SEARCHES),
    (("openrouter",), ":online", _SEARCHES),
)
_LEFT_OUT_BY_NAME: Final = {
    ("perplexity", "sonar"): _BY_SIZE,
    ("perplexity", "sonar-pro"): _BY_SIZE,
    ("perplexity", "sonar-reasoning"): _BY_SIZE,
    ("perplexity", "sonar-reasoning-pro"): _BY_SIZE,
}


def left_out(vendor: str, name: str) -> str | None:
    """Why a name is not in the catalog; None when it may be."""
    reason = _LEFT_OUT_BY_NAME.get((vendor, name))
    if reason is not None:
        return reason
    return next((reason for vendors, word, reason in _LEFT_OUT if vendor in vendors and word in name), None)


def _cohere(name: str, window: int, **usd: str) -> dict[str, Any]:
    return {"vendor": "cohere", "model": name, "prices": [{"usd": usd}], "context_window": window}


# Prices that vendors publish and genai-prices does not have, for a million units each. The last that cohere.com/pricing
# named are two dollars a thousand rerank searches and ten cents a million tokens of its third embedding models. Of its
# later reranking models, and of images for the third embedding models, there is no list price: they are not here.
PUBLISHED: Final = [
    _cohere("embed-english-light-v3.0", 512, input="0.100000000"),
    _cohere("embed-english-v3.0", 512, input="0.100000000"),
    _cohere("embed-multilingual-light-v3.0", 512, input="0.100000000"),
    _cohere("embed-multilingual-v3.0", 512, input="0.100000000"),
    _cohere("rerank-english-v3.0", 4_096, rerank_search="2000.000000000"),
    _cohere("rerank-multilingual-v3.0", 4_096, rerank_search="2000.000000000"),
    _cohere("rerank-v3.5", 4_096, rerank_search="2000.000000000"),
]


# Prices of what genai-prices has the rest of: Cohere's fourth embedding model charges images at a rate of their own
# (cohere.com/pricing).
PUBLISHED_RATES: Final = {("cohere", "embed-v4.0"): {"image_input": "0.470000000"}}


def _sandbox(name: str, most: int, **nano: int) -> dict[str, Any]:
    return {
        "vendor": "sandbox",
        "model": name,
        "prices": [{"usd": rates_fields(nano)}],
        "max_output_tokens": most,
        "context_window": 128_000,
    }


# The built-in test vendor: play money at the prices of two well-known models, so that figures look like real ones.
SANDBOX: Final = [
    _sandbox("sandbox-small", 4_096, input=150_000_000, output=600_000_000, cache_read=75_000_000),
    _sandbox("sandbox-large", 16_384, input=2_500_000_000, output=10_000_000_000, cache_read=1_250_000_000),
]
