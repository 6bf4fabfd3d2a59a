"""``farthing org``: the org's settings."""

from typing import Annotated, Any

import typer

from services.commands.client import connect
from services.commands.errors import CommandError
from services.commands.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from services.commands.output import console, print_json

app = typer.Typer(help="Show and change the org's settings.", no_args_is_help=True)


@app.command("show")
def show(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Show the org's settings."""
    with connect(data_dir) as api:
        answer = api.get("/api/v1/org")
    _tell(answer, as_json)


@app.command("set")
def set_org(
    unknown_models: Annotated[
        str | None,
        typer.Option(metavar="POLICY", help="Models without a price: reject, fallback_price or allow_unpriced."),
    ] = None,
    priced_as: Annotated[
        str | None, typer.Option(metavar="VENDOR/MODEL", help="With fallback_price: the model whose price is taken.")
    ] = None,
    allow_unpriced_routes: Annotated[
        bool | None,
        typer.Option(
            "--allow-unpriced-routes/--refuse-unpriced-routes", help="Routes whose cost can't be known: let through."
        ),
    ] = None,
    expired_holds: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="Until a late settlement: booked, they count what was held; released, they count nothing.",
        ),
    ] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Change what becomes of models and routes without a price, and of expired holds; what is left out stays."""
    body: dict[str, Any] = {}
    if unknown_models is not None:
        body["unknown_models"] = {"policy": unknown_models, "priced_as": _target(priced_as)}
    elif priced_as is not None:
        raise CommandError("--priced-as goes with --unknown-models fallback_price", "invalid_request", "priced_as")
    if allow_unpriced_routes is not None:
        body["allow_unpriced_routes"] = allow_unpriced_routes
    if expired_holds is not None:
        body["expired_holds"] = expired_holds
    with connect(data_dir) as api:
        answer = api.patch("/api/v1/org", body)
    _tell(answer, as_json)


def _tell(answer: Any, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    out = console()
    unknown = answer["unknown_models"]
    target = unknown["priced_as"]
    priced_as = "" if target is None else f" of {target['vendor']}/{target['model']}"
    out.print(f"Org {answer['name']}, version {answer['config_version']}.")
    out.print(f"Price catalog: {answer['catalog_version']}.")
    out.print(f"Models without a price: {unknown['policy']}{priced_as}.")
    out.print(f"Routes without a price: {'let through' if answer['allow_unpriced_routes'] else 'refused'}.")
    out.print(f"A hold lives {answer['hold_ms'] / 1000:g} s; one that expires is {answer['expired_holds']}.")


def _target(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    vendor, _, model = text.partition("/")
    if not vendor or not model:
        raise CommandError("--priced-as must be VENDOR/MODEL, such as openai/gpt-4o", "invalid_request", "priced_as")
    return {"vendor": vendor, "model": model}
