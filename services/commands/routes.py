"""``farthing routes``: how calls of a vendor's route are treated."""

from typing import Annotated

import typer

from services.commands.client import connect
from services.commands.errors import CommandError
from services.commands.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from services.commands.output import console, print_json, print_table, text

app = typer.Typer(help="Set, list and remove rules of how calls are treated.", no_args_is_help=True)

VendorOption = Annotated[str, typer.Option(help="Of this vendor; * for all.")]
RouteOption = Annotated[str, typer.Option(help="Of this route, such as chat.completions; * for all.")]


@app.command("set")
def set_rule(
    vendor: VendorOption = "*",
    route: RouteOption = "*",
    budget_status: Annotated[
        int | None, typer.Option(help="The HTTP status of a budget's refusal: 402, 403 or 429.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="How long the vendor may take.")] = None,
    fallback: Annotated[
        list[str] | None,
        typer.Option(metavar="VENDOR/MODEL", help="Try this when the vendor fails; repeat it, in order."),
    ] = None,
    no_fallback: Annotated[bool, typer.Option("--no-fallback", help="Try nothing, whatever wider rules say.")] = False,
    fail_open: Annotated[
        bool | None,
        typer.Option(
            "--fail-open/--fail-closed",
            help="Let calls pass without a hold while the spend state is away: budgets can be overspent then.",
        ),
    ] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Set the rule of a vendor and route, in place of the one it had. What is left out is left to wider rules."""
    if fallback and no_fallback:
        raise CommandError("--fallback and --no-fallback exclude each other", "invalid_request", "fallbacks")
    body = {
        "vendor": vendor,
        "route": route,
        "budget_status": budget_status,
        "timeout_ms": None if timeout is None else round(timeout * 1000),
        "fallbacks": [_target(each) for each in fallback] if fallback else [] if no_fallback else None,
        "fail_open": fail_open,
    }
    with connect(data_dir) as api:
        answer = api.put("/api/v1/routes", body)
    if as_json:
        print_json(answer)
    else:
        console().print(f"The rule of vendor {answer['vendor']}, route {answer['route']} is set.")


@app.command("list")
def list_rules(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List every rule."""
    with connect(data_dir) as api:
        answer = api.get("/api/v1/routes")
    if as_json:
        print_json(answer)
        return
    print_table(
        ("vendor", "route", "budget status>", "timeout>", "spend state away", "fallbacks"),
        (
            (
                each["vendor"],
                each["route"],
                text(each["budget_status"]),
                "-" if each["timeout_ms"] is None else f"{each['timeout_ms'] / 1000:g} s",
                {None: "-", True: "pass", False: "refuse"}[each["fail_open"]],
                "-"
                if each["fallbacks"] is None
                else ", ".join(f"{target['vendor']}/{target['model']}" for target in each["fallbacks"]) or "none",
            )
            for each in answer["rules"]
        ),
        "There are no rules.",
    )


@app.command("rm")
def remove(
    vendor: VendorOption = "*",
    route: RouteOption = "*",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Remove the rule of a vendor and route."""
    with connect(data_dir) as api:
        api.delete("/api/v1/routes", vendor=vendor, route=route)
    if as_json:
        print_json({"vendor": vendor, "route": route, "removed": True})
    else:
        console().print(f"Removed the rule of vendor {vendor}, route {route}.")


def _target(text: str) -> dict[str, str]:
    vendor, _, model = text.partition("/")
    if not vendor or not model:
        raise CommandError(
            "--fallback must be VENDOR/MODEL, such as openai/gpt-4o-mini", "invalid_request", "fallbacks"
        )
    return {"vendor": vendor, "model": model}
