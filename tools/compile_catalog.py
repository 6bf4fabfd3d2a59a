"""Compiles the shipped price catalog from the `genai-prices` package, a few published prices, and the sandbox's own.

``python -m tools.compile_catalog`` writes ``services/control/prices/catalog.json``; with ``--check`` it only says
whether that file is what it would write. The same package and `AS_OF` always make the same bytes.

A model or name is left out, and listed in the file's notes with the reason, when a call of it could cost something that
Farthing can't see or that is not listed. Nothing is rounded and nothing is guessed.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from genai_prices.data import providers
from genai_prices.types import ModelInfo, Provider

from services.core.catalog import FORMAT, catalog_version, plainer_names
from tools.catalog.limits import limits_of, listed, source
from tools.catalog.names import Names, names_of
from tools.catalog.prices import LeftOutError, base_dollars, periods_of, variants_of
from tools.catalog.published import PUBLISHED, PUBLISHED_RATES, SANDBOX, left_out

CATALOG: Final = Path(__file__).resolve().parent.parent / "services" / "control" / "prices" / "catalog.json"

# When this catalog was compiled. Move it when `genai-prices` moves.
AS_OF: Final = date(2026, 11, 27)

VENDORS: Final = (
    "anthropic",
    "aws",
    "azure",
    "cerebras",
    "cohere",
    "deepseek",
    "fireworks",
    "google",
    "groq",
    "mistral",
    "openai",
    "openrouter",
    "perplexity",
    "together",
    "x-ai",
)

# Groq charges at least ten seconds of audio (console.groq.com/docs/speech-to-text).
_MINIMUMS: Final = {
    ("groq", "whisper-large-v3"): {"audio_ms": 10_000},
    ("groq", "whisper-large-v3-turbo"): {"audio_ms": 10_000},
}

Entry = dict[str, Any]


@dataclass
class Compiled:
    """A model on its way into the catalog."""

    provider: Provider
    model: ModelInfo
    names: Names


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
    """The file's bytes: one model or note a line, so that differences read well."""
    lines = []
    for name, value in sorted(document.items()):
        text = json.dumps(value, sort_keys=True, ensure_ascii=False)
        if name in ("models", "notes"):
            rows = [json.dumps(each, sort_keys=True, ensure_ascii=False) for each in value]
            text = "[\n  " + ",\n  ".join(rows) + "\n ]"
        lines.append(f" {json.dumps(name)}: {text}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def compile_catalog() -> dict[str, Any]:
    """The catalog document, in the form that `services.core.catalog.decode_catalog` reads."""
    entries: list[Entry] = []
    notes: list[str] = []
    for provider in (each for each in providers if each.id in VENDORS):
        kept = []
        for model in provider.models:
            try:
                kept.append(_kept(provider, model, notes))
            except LeftOutError as reason:
                notes.append(f"{provider.id}/{model.id} is left out: {reason}")
        _take_listed_names(provider, kept, notes)
        for each in kept:
            try:
                entries.append(_entry(each))
            except LeftOutError as reason:
                notes.append(f"{provider.id}/{each.model.id} is left out: {reason}")
    entries += PUBLISHED
    entries += SANDBOX
    document: dict[str, Any] = {
        "format": FORMAT,
        "as_of": AS_OF.isoformat(),
        "source": f"genai-prices {version('genai-prices')}; lengths: {source()}",
        "also": _resold(),
        "models": sorted(entries, key=lambda entry: (entry["vendor"], entry["model"])),
        "notes": sorted(set(notes)),
    }
    return {"version": catalog_version(document), **document}


def _kept(provider: Provider, model: ModelInfo, notes: list[str]) -> Compiled:
    reason = left_out(provider.id, model.id)
    if reason is not None:
        raise LeftOutError(reason)
    names = names_of(provider, model)
    for name in names.exact:
        reason = left_out(provider.id, name)
        if reason is not None:
            notes.append(f"{provider.id}/{name} is left out: {reason}")
    names.exact = [name for name in names.exact if left_out(provider.id, name) is None]
    if not names.exact and not names.prefixes:
        raise LeftOutError("it has no exact name, only a pattern")
    if names.not_taken:
        patterns = " or ".join(names.not_taken)
        notes.append(
            f"{provider.id}/{model.id}: a name that only {patterns} is not taken for it, "
            "unless it is one of its names or a release of one"
        )
    return Compiled(provider, model, names)


def _take_listed_names(provider: Provider, kept: list[Compiled], notes: list[str]) -> None:
    """Gives models the names they are listed under elsewhere, where pattern and price both say so."""
    known = {name for each in kept for name in each.names.exact}
    by_id = {id(each.model): each for each in kept}
    for name, dollars in sorted(listed(provider.id).items()):
        if known.intersection((name, *plainer_names(provider.id, name))) or left_out(provider.id, name) is not None:
            continue
        model = provider.find_model(name)
        compiled = by_id.get(id(model))
        if model is None or compiled is None:
            continue
        if _same_price(provider, model, dollars):
            compiled.names.exact.append(name)
        else:
            notes.append(f"{provider.id}/{name} is left out: a pattern of {model.id} matches it, its price is another")


def _same_price(provider: Provider, model: ModelInfo, dollars: tuple[Decimal, Decimal]) -> bool:
    known = set(base_dollars(model))
    # The collection lists what Bedrock charges for a call that may be routed anywhere; to keep to a region is a tenth
    # more.
    regional = tuple(each * 11 / 10 for each in dollars)
    return dollars in known or (provider.id == "aws" and regional in known)


def _entry(compiled: Compiled) -> Entry:
    vendor, model, names = compiled.provider.id, compiled.model, compiled.names
    proper = [each for each in (model.id, model.id.removeprefix("regional.")) if each in names.exact]
    name = [*proper, *names.exact, *names.prefixes][0]
    entry: Entry = {"vendor": vendor, "model": name, "prices": periods_of(model)}
    _check_output(vendor, entry)
    for period in entry["prices"]:
        period["usd"] |= PUBLISHED_RATES.get((vendor, name), {})
    for field, found in (
        ("aliases", sorted(set(names.exact) - {name})),
        ("prefixes", sorted(names.prefixes)),
        ("variants", variants_of(model)),
        ("minimums", _MINIMUMS.get((vendor, name))),
    ):
        if found:
            entry[field] = found
    window, most = limits_of(vendor, [name, *entry.get("aliases", ()), model.id])
    # Of what is said of its context, the larger: it is a bound.
    window = max((each for each in (model.context_window, window) if each), default=None)
    for field, limit in (("context_window", window), ("max_output_tokens", most)):
        if limit:
            entry[field] = limit
    return entry


def _check_output(vendor: str, entry: Entry) -> None:
    draws = vendor == "openrouter" and "image" in entry["model"].rpartition("/")[2]
    if draws and any("image_output" not in period["usd"] for period in entry["prices"]):
        raise LeftOutError("it draws, and its image tokens have no listed price")


def _resold() -> dict[str, list[str]]:
    """Whose prices hold where a vendor resells another's models, as far as those are in the catalog."""
    found: Iterator[tuple[str, list[str]]] = (
        (each.id, [other for other in each.fallback_model_providers or () if other in VENDORS])
        for each in providers
        if each.id in VENDORS
    )
    return {vendor: others for vendor, others in found if others}


if __name__ == "__main__":
    sys.exit(main())
