"""``farthing caps``: the cap matrix, what each auth mode of each vendor may spend."""

from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from services.commands.client import Api, connect
from services.commands.errors import CommandError
from services.commands.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from services.commands.output import console, dollars, print_json, print_table

app = typer.Typer(help="Cap what each way of paying for each vendor may spend.", no_args_is_help=True)

OFF: Final = "off"
_LIMIT: Final = f"US dollars, such as 10.00; 0 blocks everything, {OFF} is not enforced."
_PERIODS: Final = (("daily", "a day"), ("monthly", "a month"), ("perSession", "a session"))
CellArgument = Annotated[
    str, typer.Argument(metavar="CLASS", help="An auth mode, a dot and a vendor, such as metered.openai.")
]


@app.command("show")
def show(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Show every cell that has caps."""
    with connect(data_dir) as api:
        answer = api.get(_path(api))
    if as_json:
        print_json(answer)
    else:
        _print_matrix(answer)


@app.command("set")
def set_caps(
    billing_class: CellArgument,
    daily: Annotated[str | None, typer.Option(metavar="USD", help=f"For each UTC day. {_LIMIT}")] = None,
    monthly: Annotated[str | None, typer.Option(metavar="USD", help=f"For each UTC month. {_LIMIT}")] = None,
    per_session: Annotated[str | None, typer.Option(metavar="USD", help=f"For each session. {_LIMIT}")] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Set caps of a cell; those left out stay as they are."""
    wanted = {"daily": daily, "monthly": monthly, "perSession": per_session}
    cell = {name: None if limit == OFF else limit for name, limit in wanted.items() if limit is not None}
    if not cell:
        raise CommandError("name a cap: --daily, --monthly or --per-session", "invalid_request", "daily")
    _change(data_dir, as_json, billing_class, cell)


@app.command("unset")
def unset(
    billing_class: CellArgument,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Remove every cap of a cell. To turn one of them off: farthing caps set CLASS --daily off."""
    _change(data_dir, as_json, billing_class, None)


def _change(data_dir: Path, as_json: bool, billing_class: str, cell: dict[str, str | None] | None) -> None:
    with connect(data_dir) as api:
        answer = api.patch(_path(api), {"caps": {billing_class: cell}})
    if as_json:
        print_json(answer)
        return
    caps = answer["caps"].get(billing_class)
    if caps is None:
        console().print(f"{billing_class} has no caps.")
        return
    told = (
        f"anything {text} (not enforced)" if caps[name] is None else f"{dollars(caps[name])} {text}"
        for name, text in _PERIODS
        if name in caps
    )
    console().print(f"{billing_class} may spend {', '.join(told)}.")


def _print_matrix(answer: Any) -> None:
    print_table(
        ("class", "a day>", "left>", "a month>", "left>", "a session>"),
        (
            (
                name,
                _limit(cell, "daily"),
                _left(answer, name, "daily"),
                _limit(cell, "monthly"),
                _left(answer, name, "monthly"),
                _limit(cell, "perSession"),
            )
            for name, cell in sorted(answer["caps"].items())
        ),
        "There are no caps.",
    )


def _limit(cell: Any, period: str) -> str:
    if period not in cell:
        return "-"
    return "not enforced" if cell[period] is None else dollars(cell[period])


def _left(answer: Any, name: str, period: str) -> str:
    """What is left of a cap; of one that is not enforced, or while the spend state is away, nothing is said."""
    standing = ((answer.get("standings") or {}).get(name) or {}).get(period)
    return "-" if standing is None else dollars(standing["remainingUsd"])


def _path(api: Api) -> str:
    return f"/api/admin/billing/cap-policy/{quote(api.get('/api/v1/org')['name'], safe='')}"
