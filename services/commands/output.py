"""How commands print: a table for people, JSON for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

_PIPED_WIDTH: Final = 200


def console() -> Console:
    """Standard output. Wide when it is no terminal, so that nothing a script reads is cut."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def print_json(value: Any) -> None:
    """One JSON value on one line of standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """A table whose column names ending in ``>`` are aligned right; `empty` when there are no rows."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        console().print(table)
    else:
        console().print(empty)


def dollars(amount: str | None) -> str:
    """A decimal string of the API for people: at least two decimals, no zeros past those."""
    if amount is None:
        return "-"
    sign, digits = ("-", amount[1:]) if amount.startswith("-") else ("", amount)
    whole, _, fraction = digits.partition(".")
    return f"{sign}${int(whole):,}.{fraction.rstrip('0').ljust(2, '0')}"


def text(value: object) -> str:
    """A value that may be missing."""
    return "-" if value is None else str(value)


def moment(value: str | None) -> str:
    """An instant of the API, to the second."""
    return "-" if value is None else value[:19].replace("T", " ")
