"""Writes the descriptions of the HTTP APIs to ``schemas/openapi``: the management API's, the ledger's, the gateway's.

Run it after a change to one of them: ``python -m tools.dump_openapi``.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from services.control.api import build_api
from services.gateway.description import describe as describe_gateway
from services.ledger.description import describe as describe_ledger

_FOLDER: Final = Path(__file__).resolve().parents[1] / "schemas" / "openapi"
CONTROL: Final = _FOLDER / "control.json"
LEDGER: Final = _FOLDER / "ledger.json"
GATEWAY: Final = _FOLDER / "gateway.json"
_DESCRIPTIONS: Final[Mapping[Path, Callable[[], dict[str, Any]]]] = {
    CONTROL: lambda: build_api().openapi(),
    LEDGER: describe_ledger,
    GATEWAY: describe_gateway,
}


def describe(path: Path) -> str:
    """The description that the file at `path` holds, as it should be."""
    return json.dumps(_DESCRIPTIONS[path](), indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Writes the files."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    for path in _DESCRIPTIONS:
        path.write_text(describe(path))


if __name__ == "__main__":
    main()
