"""The shipped prices, but of a few models alone."""

import json
from functools import cache
from pathlib import Path

from services.core.catalog import catalog_version

MODELS = ("gpt-4o-mini", "sandbox-small", "sandbox-large")


@cache
def small_catalog(models: tuple[str, ...] = MODELS) -> tuple[str, bytes]:
    """The shipped prices of `models` as a catalog of their own, which is quick to decode: its version and its bytes."""
    shipped = Path(__file__).resolve().parents[2] / "services" / "control" / "prices" / "catalog.json"
    document = json.loads(shipped.read_bytes())
    document["models"] = [each for each in document["models"] if each["model"] in models]
    document["version"] = catalog_version(document)
    return document["version"], json.dumps(document).encode()
