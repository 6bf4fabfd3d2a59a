"""Where the ``schemas`` folder is: beside the code in a checkout, inside the package once installed."""

from pathlib import Path
from typing import Final

_SERVICES: Final = Path(__file__).resolve().parents[1]


def schemas_folder(name: str) -> Path:
    """The folder ``schemas/<name>``; raises `FileNotFoundError` when this installation has none."""
    for root in (_SERVICES / "_schemas", _SERVICES.parent / "schemas"):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"this installation has no schemas/{name} folder; install Farthing again")
