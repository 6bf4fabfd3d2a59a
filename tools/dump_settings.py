"""Writes ``docs/settings.md`` from the settings themselves: python -m tools.dump_settings."""

from pathlib import Path

from pydantic import SecretStr

from services.adapters.config import Settings

TARGET = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
HEAD = """# Settings

Every service reads its settings from the environment; each needs only some of them. `farthing up` sets them all. On a
cluster start each service with `farthing service gateway` (or `control`, `ledger`, `aggregator`, `sandbox`).

What an org decides for itself (models and routes without a price, expired holds) it does with `farthing org set`.

This page is made by `python -m tools.dump_settings`.

| variable | default | what it is |
|---|---|---|
"""


def document() -> str:
    """The whole page."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
        shown = "unset" if default is None else f"`{default}`"
        rows.append(f"| `FARTHING_{name.upper()}` | {shown} | {field.description} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    TARGET.write_text(document())
