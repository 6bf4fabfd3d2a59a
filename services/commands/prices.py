"""``farthing prices``: what models cost, what a new catalog would change, and the org's own prices."""

import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from services.commands import price_tables
from services.commands.client import Api, connect, find_target
from services.commands.errors import CommandError
from services.commands.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from services.commands.output import console, print_json
from services.core.catalog import decode_catalog
from services.core.pricelist import PriceList

app = typer.Typer(help="Look up, override and update prices.", no_args_is_help=True)

_PAGE: Final = 1000

VersionArgument = Annotated[str, typer.Argument(help="The catalog's version, as prices catalogs shows it.")]


@app.command("list")
def list_prices(
    vendor: Annotated[str | None, typer.Option(help="Only this vendor's.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model, looked up as the gateway does.")] = None,
    limit: Annotated[int | None, typer.Option(help="How many to list; default: all.", min=1)] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """List prices that hold now."""
    with connect(data_dir) as api:
        answer = _pages(api, vendor, model, limit)
    if as_json:
        print_json(answer)
    else:
        price_tables.show_prices(answer)


@app.command("show")
def show(
    model: Annotated[str, typer.Argument(help="A model, as a client would name it.")],
    vendor: Annotated[str | None, typer.Option(help="With this vendor; default: the likeliest.")] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show all that is known of a model's price; where no Farthing runs, by the catalog that this command ships."""
    api = _running(data_dir)
    if api is None:
        answer = _shipped(model, vendor)
    else:
        with api:
            found = api.get(f"/api/v1/prices/{quote(model, safe='/:@')}", vendor=vendor)
        answer = {"prices_of": api.target.base_url, **found}
    if as_json:
        print_json(answer)
    else:
        price_tables.show_detail(answer)


@app.command("catalogs")
def catalogs(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List every catalog that was proposed, and what became of it."""
    with connect(data_dir) as api:
        answer = api.get("/api/v1/catalogs")
    if as_json:
        print_json(answer)
    else:
        price_tables.show_catalogs(answer)


@app.command("diff")
def diff(
    new: Annotated[str | None, typer.Argument(help="To this catalog; default: the newest that is proposed.")] = None,
    old: Annotated[str | None, typer.Option("--from", help="From this one; default: the one in use.")] = None,
    vendor: Annotated[str | None, typer.Option(help="Only this vendor's models.")] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show what a catalog changes, model by model."""
    with connect(data_dir) as api:
        answer = api.get("/api/v1/catalogs/diff", **{"from": old, "to": new, "vendor": vendor})
    if as_json:
        print_json(answer)
    else:
        price_tables.show_diff(answer)


@app.command("import")
def import_catalog(
    file: Annotated[Path, typer.Argument(help="A catalog as JSON; without a version it is given one.")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Import a price catalog. It holds once it is accepted."""
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise CommandError(f"{file} can't be read: {error.strerror}", field="file") from error
    except ValueError as error:
        raise CommandError(f"{file} is not JSON: {error}", "invalid_request", "file") from error
    if not isinstance(document, dict):
        raise CommandError(f"{file} holds no JSON object, so no price catalog", "invalid_request", "file")
    with connect(data_dir) as api:
        _tell_proposal(api.post("/api/v1/catalogs", document), as_json)


@app.command("propose")
def propose(
    version: Annotated[str | None, typer.Argument(help="An earlier catalog; default: the one of this release.")] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Propose the catalog of this release, or one the org had before. It holds once it is accepted."""
    with connect(data_dir) as api:
        _tell_proposal(api.post("/api/v1/catalogs/proposals", {"version": version}), as_json)


@app.command("accept")
def accept(version: VersionArgument, data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Accept a proposed catalog: its prices hold within a second."""
    with connect(data_dir) as api:
        answer = api.post(f"/api/v1/catalogs/{quote(version, safe='')}/accept", {})
    if as_json:
        print_json(answer)
    else:
        console().print(f"Catalog {answer['version']} holds from now on.")


@app.command("reject")
def reject(
    version: VersionArgument,
    reason: Annotated[str, typer.Option(help="Why; kept with the catalog.")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Reject a proposed catalog; the one in use stays."""
    with connect(data_dir) as api:
        answer = api.post(f"/api/v1/catalogs/{quote(version, safe='')}/reject", {"reason": reason})
    if as_json:
        print_json(answer)
    else:
        console().print(f"Rejected catalog {answer['version']}.")


@app.command("override")
def override(
    vendor: Annotated[str, typer.Argument(help="The vendor.")],
    model: Annotated[str, typer.Argument(help="The model, by this very name.")],
    usd: Annotated[
        list[str] | None,
        typer.Option(metavar="COMPONENT=USD", help="US dollars a million, such as input=2.50; repeat it."),
    ] = None,
    tier: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKENS:COMPONENT=USD", help="Of calls with more input: 200000:input=5.00; repeat it."),
    ] = None,
    since: Annotated[str | None, typer.Option("--from", help="A day in UTC, 2027-01-31; default: today.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="The most one answer can have.", min=1)] = None,
    context_window: Annotated[int | None, typer.Option(help="The most one call can read.", min=1)] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Let the catalog's price hold again.")] = False,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Set what a model costs this org, in place of the catalog's price; 0 is a price."""
    if withdraw:
        if usd or tier or max_output_tokens or context_window:
            raise CommandError("--withdraw goes with --from only; leave the others out", "invalid_request", "withdraw")
        with connect(data_dir) as api:
            api.delete("/api/v1/price-overrides", vendor=vendor, model=model, **{"from": since})
        if as_json:
            print_json({"vendor": vendor, "model": model, "from": since, "withdrawn": True})
        else:
            console().print(f"Withdrew the own price of {vendor} {model}.")
        return
    wanted = {
        "vendor": vendor,
        "model": model,
        "usd": _amounts("usd", usd or []),
        "tiers": _tiers(tier or []),
        "from": since,
        "max_output_tokens": max_output_tokens,
        "context_window": context_window,
    }
    with connect(data_dir) as api:
        answer = api.put("/api/v1/price-overrides", wanted)
    if as_json:
        print_json(answer)
    else:
        rates = price_tables.rates_text(answer["period"]["usd"])
        console().print(f"{answer['vendor']} {answer['model']} costs {rates} from {answer['from']} on.", soft_wrap=True)


@app.command("overrides")
def overrides(
    vendor: Annotated[str | None, typer.Option(help="Only this vendor's.")] = None,
    history: Annotated[bool, typer.Option("--history", help="Those that no longer hold, too.")] = False,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """List the org's own prices."""
    with connect(data_dir) as api:
        answer = api.get("/api/v1/price-overrides", vendor=vendor, history="true" if history else None)
    if as_json:
        print_json(answer)
    else:
        price_tables.show_overrides(answer)


def _pages(api: Api, vendor: str | None, model: str | None, limit: int | None) -> Any:
    """As many prices as were asked for, however many pages they are."""
    prices: list[Any] = []
    cursor: str | None = None
    while True:
        size = _PAGE if limit is None else min(_PAGE, limit - len(prices))
        answer = api.get("/api/v1/prices", vendor=vendor, model=model, limit=size, cursor=cursor)
        prices += answer["prices"]
        cursor = answer["next"]
        if cursor is None or len(prices) == limit:
            return {**answer, "prices": prices}


def _running(data_dir: Path) -> Api | None:
    try:
        return Api(find_target(data_dir))
    except CommandError as error:
        if error.code == "not_running":
            return None
        raise


def _shipped(model: str, vendor: str | None) -> dict[str, Any]:
    body = files("services.control.prices").joinpath("catalog.json").read_bytes()
    found = PriceList(decode_catalog(body)).detail(model, vendor, time.time_ns() // 1_000_000)
    if found is None:
        whose = "" if vendor is None else f" of vendor {vendor!r}"
        raise CommandError(f"there is no price of model {model!r}{whose} in the catalog of this release", "not_found")
    return {"prices_of": "shipped", **found}


def _amounts(field: str, pairs: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        component, separator, amount = pair.partition("=")
        if not separator or component in found:
            raise CommandError(
                f"--{field} must be COMPONENT=USD, each component once, such as input=2.50", "invalid_request", field
            )
        found[component] = amount
    return found


def _tiers(texts: list[str]) -> list[dict[str, Any]]:
    by_start: dict[int, list[str]] = {}
    for text in texts:
        start, separator, pair = text.partition(":")
        if not separator or not start.isdecimal():
            raise CommandError(
                "--tier must be TOKENS:COMPONENT=USD, such as 200000:input=5.00", "invalid_request", "tier"
            )
        by_start.setdefault(int(start), []).append(pair)
    return [{"above_input_tokens": start, "usd": _amounts("tier", by_start[start])} for start in sorted(by_start)]


def _tell_proposal(answer: Any, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        version = answer["version"]
        console().print(
            f"Catalog {version} is proposed. See what it changes: farthing prices diff; then: "
            f"farthing prices accept {version}",
            soft_wrap=True,
        )
