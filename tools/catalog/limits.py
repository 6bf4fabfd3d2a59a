"""What vendors publish of their models' lengths, beside prices: `limits.json`.

The facts are those that the public models.dev collection (github.com/anomalyco/models.dev, commit in the file) gathers
from each vendor's own pages. ``python -m tools.catalog.limits CHECKOUT`` reads a checkout of it anew. Its prices are
kept too, but only to tell whether a name it lists is the model that `genai-prices` means.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final

from services.core.catalog import plainer_names

LIMITS: Final = Path(__file__).with_name("limits.json")

# The collection's name of each vendor that has another one here.
_THEIR_NAMES: Final = {
    "aws": "amazon-bedrock",
    "fireworks": "fireworks-ai",
    "together": "togetherai",
    "x-ai": "xai",
}

# Who publishes the most that one answer can have. Of the others the collection says what a client should ask for, or
# what some model card says; the context window stands in for them: looser, but true.
_PUBLISH_OUTPUT: Final = frozenset({"anthropic", "aws", "cerebras", "cohere", "deepseek", "google", "groq", "openai"})

# The most one answer can have, as vendors' own pages of each model state it (developers.openai.com/api/docs/models,
# platform.claude.com/docs/models, ai.google.dev/gemini-api/docs/models).
_MAX_OUTPUT_TOKENS: Final = {
    "anthropic": {
        "claude-fable-5-1": 128_000,
        "claude-haiku-5-5": 128_000,
        "claude-opus-5": 128_000,
        "claude-opus-5-5": 128_000,
        "claude-sonnet-5-5": 128_000,
    },
    "google": {
        "gemini-3.7-flash": 65_536,
        "gemini-3.8-flash": 65_536,
    },
    "openai": {
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
    },
}

# Lengths that a vendor grants on request, above what it lists (platform.claude.com/docs, context windows).
_WINDOWS_ON_REQUEST: Final = {
    ("anthropic", "claude-sonnet-4-0"): 1_000_000,
    ("anthropic", "claude-sonnet-4-5"): 1_000_000,
    ("google", "claude-4-sonnet"): 1_000_000,
    ("google", "claude-sonnet-4-5"): 1_000_000,
}

Facts = dict[str, Any]


@cache
def _read() -> dict[str, dict[str, Facts]]:
    facts: dict[str, dict[str, Facts]] = json.loads(LIMITS.read_text())["vendors"]
    return facts


def source() -> str:
    """What the facts were read from."""
    return str(json.loads(LIMITS.read_text())["source"])


def listed(vendor: str) -> dict[str, tuple[Decimal, Decimal]]:
    """The collection's names of a vendor's models, with the dollars a million tokens of input and output cost."""
    return {
        name: (Decimal(each["usd"][0]), Decimal(each["usd"][1]))
        for name, each in _read().get(vendor, {}).items()
        if "usd" in each
    }


def limits_of(vendor: str, names: list[str]) -> tuple[int | None, int | None]:
    """Context window and most tokens of one answer of a model under any of its names; None where nobody says.

    Where its names are said to differ, the larger: it is a bound.
    """
    facts = [each for name in names for each in _by_plain_name(vendor).get(name, ())]
    windows = [each["context_window"] for each in facts if each["context_window"]]
    windows += [_WINDOWS_ON_REQUEST[vendor, name] for name in names if (vendor, name) in _WINDOWS_ON_REQUEST]
    answers = [each["max_output_tokens"] for each in facts if each["max_output_tokens"]]
    stated = _MAX_OUTPUT_TOKENS.get(vendor, {})
    answers = [stated[name] for name in names if name in stated] or answers
    most = max(answers, default=None) if vendor in _PUBLISH_OUTPUT else None
    return max(windows, default=None), most


@cache
def _by_plain_name(vendor: str) -> dict[str, list[Facts]]:
    """The facts of each listed name, and of the releases of each."""
    found: dict[str, list[Facts]] = {}
    for name, facts in _read().get(vendor, {}).items():
        for each in {name, *plainer_names(vendor, name)}:
            found.setdefault(each, []).append(facts)
    return found


def main() -> int:
    """Writes `limits.json` from a checkout."""
    parser = argparse.ArgumentParser(description="Read models' lengths from a checkout of models.dev.")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--commit", help="what the checkout is of; asked of git without it")
    parser.add_argument("vendors", nargs="+")
    arguments = parser.parse_args()
    commit = arguments.commit or _commit_of(arguments.checkout)
    vendors = {vendor: _read_vendor(arguments.checkout, vendor) for vendor in sorted(arguments.vendors)}
    lines = ["{", f' "source": {json.dumps("github.com/anomalyco/models.dev " + commit)},', ' "vendors": {']
    for vendor, models in vendors.items():
        rows = [f"   {json.dumps(name)}: {json.dumps(facts)}" for name, facts in sorted(models.items())]
        comma = "," if vendor != max(vendors) else ""
        lines += [f"  {json.dumps(vendor)}: {{", ",\n".join(rows), f"  }}{comma}"]
    LIMITS.write_text("\n".join([*lines, " }", "}"]) + "\n")
    return 0


def _commit_of(checkout: Path) -> str:
    asked = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], check=True, capture_output=True)  # noqa: S603, S607
    return asked.stdout.decode().strip()


def _read_vendor(checkout: Path, vendor: str) -> dict[str, Facts]:
    folder = checkout / "providers" / _THEIR_NAMES.get(vendor, vendor) / "models"
    found = {}
    for path in sorted(folder.rglob("*.toml")):
        fields = tomllib.loads(path.read_text(), parse_float=Decimal)
        base = fields.get("base_model")
        known = tomllib.loads((checkout / "models" / f"{base}.toml").read_text()) if base else {}
        limit = {**known.get("limit", {}), **fields.get("limit", {})}
        facts = {"context_window": limit.get("context"), "max_output_tokens": limit.get("output")}
        cost = fields.get("cost", {})
        if "input" in cost and "output" in cost:
            facts["usd"] = [str(cost["input"]), str(cost["output"])]
        found[str(path.relative_to(folder).with_suffix(""))] = facts
    return found


if __name__ == "__main__":
    sys.exit(main())
