"""Compiles the shipped price catalog from the `genai-prices` package and the sandbox's own models.

``python -m tools.compile_catalog`` writes ``services/control/prices/catalog.json``; with ``--check`` it only says
whether that file is what it would write. The same package and `AS_OF` always make the same bytes.

A model is left out, and listed in the file's notes with the reason, when a call of it could cost something that
Farthing can't see or price yet. Nothing is rounded and nothing is guessed.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from genai_prices.data import providers
from genai_prices.types import (
    ClauseEquals,
    ClauseOr,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
)

from services.core.money import NANO_PER_USD
from services.core.pricing import Rates, catalog_version, rates_fields

CATALOG: Final = Path(__file__).resolve().parent.parent / "services" / "control" / "prices" / "catalog.json"

# Prices are those in force on this day. Move it when `genai-prices` moves.
AS_OF: Final = date(2026, 11, 21)

VENDORS: Final = ("openai",)

# Our components by the price keys of genai-prices.
_COMPONENTS: Final = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "input_audio_mtok": "audio_input",
    "output_audio_mtok": "audio_output",
}

# Charges that a request has to ask for, which the gateway refuses for now: they don't stand in a model's way.
_ON_REQUEST: Final = frozenset({"web_searches_kcount", "storage_searches_kcount"})

# Models whose calls cost more than their tokens, or are not chats, although their entries do not show it.
_LEFT_OUT: Final = {
    "-search": "searches the web on every call, for a fee that no token price covers",
    "deep-research": "searches the web by itself, for a fee that no token price covers",
    "audio-preview": "speaks, and its audio tokens have no listed price",
    "realtime": "not reached by chat completions",
    "transcribe": "not reached by chat completions",
    "tts": "not reached by chat completions",
    "image": "makes images, which no token price covers",
    "embedding": "not reached by chat completions",
}

# The most one answer can have, as OpenAI's page of each model states it (developers.openai.com/api/docs/models). For
# other models the context window stands in: looser, but as true.
_MAX_OUTPUT_TOKENS: Final = {
    "gpt-3.5-turbo": 4_096,
    "gpt-4-32k": 32_768,
    "gpt-4-turbo": 4_096,
    "gpt-4o": 16_384,
    "gpt-4o-mini": 16_384,
    "gpt-4.1": 32_768,
    "gpt-4.1-mini": 32_768,
    "gpt-4.1-nano": 32_768,
    "gpt-5": 128_000,
    "gpt-5-mini": 128_000,
    "gpt-5-nano": 128_000,
    "gpt-5.1": 128_000,
    "gpt-5.2": 128_000,
    "gpt-5.4": 128_000,
    "gpt-5.4-mini": 128_000,
    "gpt-5.4-nano": 128_000,
    "gpt-5.5": 128_000,
    "gpt-5.6-luna": 128_000,
    "gpt-5.6-sol": 128_000,
    "gpt-5.6-terra": 128_000,
    "gpt-6-astra": 128_000,
    "gpt-6-luna": 128_000,
    "gpt-6-sol": 128_000,
    "gpt-6.1-sol": 128_000,
    "gpt-6.1-terra": 128_000,
    "gpt-audio": 16_384,
    "gpt-audio-mini": 16_384,
    "o1": 100_000,
    "o3": 100_000,
    "o3-mini": 100_000,
    "o4-mini": 100_000,
}

# The built-in test vendor: play money at the prices of two well-known models, so that figures look like real ones.
_SANDBOX: Final = (
    ("sandbox-small", Rates(input=150_000_000, output=600_000_000, cache_read=75_000_000), 4_096),
    ("sandbox-large", Rates(input=2_500_000_000, output=10_000_000_000, cache_read=1_250_000_000), 16_384),
)
_SANDBOX_CONTEXT_WINDOW: Final = 128_000


class LeftOutError(ValueError):
    """A model that can't be priced; the text says why."""


def main() -> int:
    """The command; 1 when ``--check`` finds another file."""
    parser = argparse.ArgumentParser(description="Compile the shipped price catalog.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the file is not up to date")
    check = parser.parse_args().check
    compiled = render(compile_catalog())
    if check and CATALOG.read_bytes() != compiled:
        print("the price catalog is not up to date: run python -m tools.compile_catalog", file=sys.stderr)
        return 1
    if not check:
        CATALOG.write_bytes(compiled)
    return 0


def render(document: dict[str, Any]) -> bytes:
    """The file's bytes."""
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def compile_catalog() -> dict[str, Any]:
    """The catalog document, in the form that `services.core.pricing.decode_catalog` reads."""
    models, notes = [], []
    for provider in (each for each in providers if each.id in VENDORS):
        for model in provider.models:
            for name in _names(model):
                if name != model.id and _left_out(name) and not _left_out(model.id):
                    notes.append(f"{provider.id}/{name} is left out: {_left_out(name)}")
            try:
                models.append(_entry(provider, model))
            except LeftOutError as reason:
                notes.append(f"{provider.id}/{model.id} is left out: {reason}")
    for name, rates, max_output_tokens in _SANDBOX:
        models.append(_fields("sandbox", name, [], rates, [], max_output_tokens, _SANDBOX_CONTEXT_WINDOW))
    notes.append("Standard service tier only: batch, flex and priority prices are not in this catalog.")
    document: dict[str, Any] = {
        "as_of": AS_OF.isoformat(),
        "source": f"genai-prices {version('genai-prices')}",
        "models": sorted(models, key=lambda entry: (entry["vendor"], entry["model"])),
        "notes": sorted(notes),
    }
    return {"version": catalog_version(document), **document}


def _entry(provider: Provider, model: ModelInfo) -> dict[str, Any]:
    reason = _left_out(model.id)
    if reason is not None:
        raise LeftOutError(reason)
    # An earlier entry may match the same name; genai-prices gives the price of the first.
    names = [name for name in _names(model) if _left_out(name) is None and provider.find_model(name) is model]
    if not names:
        raise LeftOutError("it has no exact name, only a pattern")
    prices = _prices_in_force(model)
    rates = _rates(prices, above_input_tokens=None)
    tiers = [(start, _rates(prices, above_input_tokens=start)) for start in _tier_starts(prices)]
    name = model.id if model.id in names else names[0]
    aliases = sorted(set(names) - {name})
    most = _MAX_OUTPUT_TOKENS.get(model.id)
    return _fields(provider.id, name, aliases, rates, tiers, most, model.context_window)


def _left_out(name: str) -> str | None:
    return next((reason for word, reason in _LEFT_OUT.items() if word in name), None)


def _fields(
    vendor: str,
    name: str,
    aliases: list[str],
    rates: Rates,
    tiers: list[tuple[int, Rates]],
    max_output_tokens: int | None,
    context_window: int | None,
) -> dict[str, Any]:
    return {
        "vendor": vendor,
        "model": name,
        "aliases": aliases,
        "usd_per_million": rates_fields(rates),
        "tiers": [{"above_input_tokens": start, "usd_per_million": rates_fields(each)} for start, each in tiers],
        "max_output_tokens": max_output_tokens,
        "context_window": context_window,
    }


def _names(model: ModelInfo) -> Iterator[str]:
    """The names that genai-prices lists one by one; prefixes and patterns would catch models it does not know."""
    clauses = model.match.or_ if isinstance(model.match, ClauseOr) else [model.match]
    for clause in clauses:
        if isinstance(clause, ClauseEquals):
            yield clause.equals


def _prices_in_force(model: ModelInfo) -> ModelPrice:
    conditions = model.prices if isinstance(model.prices, list) else [ConditionalPrice(prices=model.prices)]
    for condition in conditions:
        constraint = condition.constraint
        if isinstance(constraint, StartDateConstraint):
            if constraint.start_date > AS_OF:
                raise LeftOutError(f"its price changes on {constraint.start_date}, after this catalog's day")
        elif constraint is not None:
            raise LeftOutError("its price depends on the time of day")
    return model.get_prices(datetime.combine(AS_OF, time(12), UTC))


def _amounts(prices: ModelPrice) -> dict[str, Decimal | TieredPrices]:
    return {key: amount for key, amount in vars(prices).items() if amount is not None and key not in _ON_REQUEST}


def _tier_starts(prices: ModelPrice) -> list[int]:
    tiered = [amount for amount in _amounts(prices).values() if isinstance(amount, TieredPrices)]
    return sorted({tier.start for amount in tiered for tier in amount.tiers})


def _rates(prices: ModelPrice, above_input_tokens: int | None) -> Rates:
    """The rates without a tier, or those of a call with more input than a tier's start."""
    amounts = _amounts(prices)
    unknown = sorted(amounts.keys() - _COMPONENTS.keys())
    if unknown:
        raise LeftOutError(f"it is priced by {', '.join(unknown)}, which Farthing does not meter yet")
    rates = {}
    for key, amount in amounts.items():
        if isinstance(amount, TieredPrices):
            start = -1 if above_input_tokens is None else above_input_tokens
            reached = [tier.price for tier in amount.tiers if tier.start <= start]
            amount = reached[-1] if reached else amount.base
        nano = amount * NANO_PER_USD
        if nano != int(nano):
            raise LeftOutError(f"its {key} price has more than nine decimals")
        rates[_COMPONENTS[key]] = int(nano)
    missing = sorted({"input", "output"} - rates.keys())
    if missing:
        raise LeftOutError(f"it has no {' and no '.join(missing)} price per token")
    return Rates(**rates)


if __name__ == "__main__":
    sys.exit(main())
