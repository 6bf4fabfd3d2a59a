"""Options that many commands share."""

from pathlib import Path
from typing import Annotated, Final

import typer

DEFAULT_DATA_DIR: Final = Path("farthing-data")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")]
DataDirOption = Annotated[
    Path, typer.Option("--data-dir", help="Data directory of a Farthing on this machine, unless FARTHING_URL is set.")
]
