"""``farthing price``: what a vendor's answer costs, by the gateway's own code, without a server."""

import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from services.commands.errors import CommandError
from services.commands.options import JsonOption
from services.commands.output import console, print_table
from services.core.catalog import Catalog, CatalogError, decode_catalog


def price(
    vendor: Annotated[str | None, typer.Option(help="Whose answer it is.")] = None,
    route: Annotated[str | None, typer.Option(help="Which route answered, such as chat.completions.")] = None,
    model: Annotated[str | None, typer.Option(help="The model asked for; default: the one that answered.")] = None,
    at: Annotated[str | None, typer.Option(help="When, in ISO 8601; default: the answer's own time, or now.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="The answer is a stream's transcript.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Read an answer a line, and print a price a line.")] = False,
    service_tier: Annotated[str | None, typer.Option(help="The tier that served it, over what it says.")] = None,
    batch: Annotated[bool, typer.Option("--batch", help="It was part of a batch.")] = False,
    catalog: Annotated[Path | None, typer.Option(help="Another price catalog than the one shipped.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Price a vendor's answer, read from standard input.

    With --jsonl each line is an object with id, vendor, and body (the JSON answer) or stream (a transcript's text);
    route, model, at, service_tier and batch may be left out where the options here or the answer itself say them.
    The exit code is 1 when any answer has no price.
    """
    defaults = {
        "vendor": vendor,
        "route": route,
        "model": model,
        "at": at,
        "service_tier": service_tier,
        "batch": batch,
    }
    # The readers of every vendor take a while to load, which no other command should wait for.
    from services.commands.price_answer import NoPriceError, priced
    from services.commands.price_lines import FAILED, now_ms, price_lines, read_answer

    prices = _catalog(catalog)
    if jsonl:
        failed = False
        for line in price_lines(prices, sys.stdin.buffer, defaults):
            failed = failed or line.startswith(FAILED)
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        raise typer.Exit(1 if failed else 0)
    given = sys.stdin.buffer.read()
    fields = {**defaults, ("stream" if stream else "body"): given}
    try:
        answer = read_answer(fields)
        found = priced(prices, answer, now_ms())
    except NoPriceError as error:
        raise CommandError(str(error), error.code) from error
    if as_json:
        sys.stdout.write(orjson.dumps(found).decode() + "\n")
    else:
        _show(found)


def _catalog(path: Path | None) -> Catalog:
    try:
        value = (files("services.control.prices") / "catalog.json").read_bytes() if path is None else path.read_bytes()
        return decode_catalog(value)
    except OSError as error:
        raise CommandError(f"the catalog can't be read: {error}", "unreadable_catalog", "catalog") from error
    except CatalogError as error:
        raise CommandError(f"{path}: {error}", "unreadable_catalog", "catalog") from error


def _show(found: Mapping[str, Any]) -> None:
    print_table(
        ("component", "units>", "price (US$)>", "per>", "cost (US$)>"),
        (
            (
                each["component"].replace("_", " "),
                f"{each['quantity']:,}",
                each["price_usd"],
                f"{each['per']:,}",
                each["cost_usd"],
            )
            for each in found["components"]
        ),
        "Nothing of what it used costs anything.",
    )
    out = console()
    out.print(f"Total US$ {found['cost_usd']}" + ("" if found["complete"] else ", of an answer that broke off"))
    out.print("Reported: " + ", ".join(f"{name} {count:,}" for name, count in found["usage"].items()))
    context = ", ".join(f"{name} {value}" for name, value in found["context"].items())
    out.print(
        f"{found['vendor']} {found['route']}, {found['model']} priced as {found['model_priced']} ({found['match']}) "
        f"at {found['at']}" + (f", {context}" if context else "")
    )
    out.print(f"Catalog {found['catalog_version']}")
