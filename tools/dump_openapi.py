"""Writes the description of the management API to ``schemas/openapi/control.json``.

Run it after a change to the API: ``python -m tools.dump_openapi``.
"""

import json
from pathlib import Path
from typing import Final

from services.control.api import build_api

DESCRIPTION: Final = Path(__file__).resolve().parents[1] / "schemas" / "openapi" / "control.json"


def describe() -> str:
    """The description as the file holds it."""
    return json.dumps(build_api().openapi(), indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Writes the file."""
    DESCRIPTION.parent.mkdir(parents=True, exist_ok=True)
    DESCRIPTION.write_text(describe())


if __name__ == "__main__":
    main()
