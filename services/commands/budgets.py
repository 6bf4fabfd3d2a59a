"""``farthing budgets``: set, list and remove caps."""

from typing import Annotated, Any

import typer

from services.commands.client import connect
from services.commands.errors import CommandError
from services.commands.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from services.commands.output import console, dollars, moment, print_json, print_table

app = typer.Typer(help="Set, list and remove budgets.", no_args_is_help=True)


@app.command("list")
def list_budgets(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List every budget and where it stands."""
    with connect(data_dir) as api:
        answer = api.get("/api/v1/budgets")
    if as_json:
        print_json(answer)
        return
    print_table(
        ("id", "scope", "window", "estimate", "limit>", "spent>", "held>", "left>", "resets"),
        (
            (
                budget["budget_id"],
                scope_text(budget),
                _window_text(budget),
                budget["estimate"],
                dollars(budget["limit_usd"]),
                dollars(budget["standing"]["spent_usd"]),
                dollars(budget["standing"]["held_usd"]),
                dollars(budget["standing"]["remaining_usd"]),
                moment(budget["standing"]["resets_at"]),
            )
            for budget in answer["budgets"]
        ),
        "There are no budgets.",
    )


@app.command("set")
def set_budget(
    limit: Annotated[str, typer.Option(help="US dollars, such as 50.00; 0 blocks everything.")],
    window: Annotated[str, typer.Option(help="hour, day or month; or rolling: 90m, 1h, 30d.")],
    zone: Annotated[str | None, typer.Option(help="Time zone of hour, day and month, such as Europe/Berlin.")] = None,
    org: Annotated[bool, typer.Option("--org", help="Cap the whole org.")] = False,
    team: Annotated[str | None, typer.Option(help="Cap this team; with --agent: the agent's team.")] = None,
    agent: Annotated[str | None, typer.Option(help="Cap this agent.")] = None,
    estimate: Annotated[
        str | None,
        typer.Option(help="What it holds for a call: strict, the most it can cost, or calibrated, by past calls."),
    ] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Set a budget. One of the same scope and window gets the new limit and keeps what it has spent."""
    if org == (team is not None or agent is not None):
        raise CommandError("say what to cap: either --org, or --team or --agent", "invalid_request", "scope")
    wanted = {
        "limit_usd": limit, "window": window, "zone": zone, "team": team, "agent": agent, "estimate": estimate,
    }  # fmt: skip
    with connect(data_dir) as api:
        budget = api.put("/api/v1/budgets", {name: value for name, value in wanted.items() if value is not None})
    if as_json:
        print_json(budget)
        return
    made = [name for name in ("team", "agent") if budget["made"][name]]
    console().print(
        f"{scope_text(budget)} may spend {dollars(budget['limit_usd'])} per {_window_text(budget)}"
        + f" ({budget['budget_id']})."
        + (f" The {' and '.join(made)} did not exist and was made." if made else "")
    )


@app.command("rm")
def remove(
    budget_id: Annotated[str, typer.Argument(help="The budget's id, such as bud_01JD….")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Remove a budget; its cap is gone within a second."""
    with connect(data_dir) as api:
        api.delete(f"/api/v1/budgets/{budget_id}")
    if as_json:
        print_json({"budget_id": budget_id, "removed": True})
    else:
        console().print(f"Removed {budget_id}.")


def scope_text(budget: Any) -> str:
    """What a budget caps, for people: ``team ml``."""
    return f"{budget['scope']['kind']} {budget['scope']['value']}"


def _window_text(budget: Any) -> str:
    return str(budget["window"]) if budget["zone"] is None else f"{budget['window']} ({budget['zone']})"
