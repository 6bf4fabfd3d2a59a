"""``farthing spend``, ``farthing estimates`` and ``farthing transactions``: what the ledger knows."""

from typing import Annotated, Any

import typer

from services.commands.client import connect
from services.commands.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from services.commands.output import console, dollars, moment, print_json, print_table, text


def spend(
    by: Annotated[
        str,
        typer.Option(
            help="team, agent, user, project, session, environment, key, vendor, model, billing_class or org."
        ),
    ] = "team",
    window: Annotated[str, typer.Option(help="How far back, such as 24h or 30d.")] = "30d",
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show what was spent, by one dimension."""
    with connect(data_dir) as api:
        answer = api.get("/v1/spend", by=by, window=window)
    if as_json:
        print_json(answer)
        return
    print_table(
        (by, "calls>", "expired>", "tokens in>", "tokens out>", "spent>"),
        (
            (
                text(row["value"]),
                *(f"{row[name]:,}" for name in ("settled", "expired", "input_tokens", "output_tokens")),
                dollars(row["cost_usd"]),
            )
            for row in answer["rows"]
        ),
        f"Nothing was spent in the last {window}.",
    )
    if answer["rows_left_off"]:
        console().print(f"{answer['rows_left_off']:,} more are in the total only.", style="dim")
    total = answer["total"]
    console().print(f"Total {dollars(total['cost_usd'])}; {total['denied']:,} calls were refused.")


def estimates(
    window: Annotated[str, typer.Option(help="How far back, such as 24h or 30d.")] = "30d",
    vendor: Annotated[str | None, typer.Option(help="Only this vendor's.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show what was held for calls against what they cost: how often an estimate was too low."""
    with connect(data_dir) as api:
        answer = api.get("/v1/estimates", window=window, vendor=vendor, model=model)
    if as_json:
        print_json(answer)
        return
    print_table(
        ("vendor", "model", "route", "estimate", "calls>", "too low>", "of a million>", "held>", "cost>"),
        (
            (
                row["vendor"],
                row["model"],
                row["route"],
                row["estimate_mode"],
                *(f"{row[name]:,}" for name in ("settled", "underestimated", "underestimated_ppm")),
                dollars(row["held_usd"]),
                dollars(row["cost_usd"]),
            )
            for row in answer["rows"]
        ),
        f"No call was settled in the last {window}.",
    )


def transactions(
    transaction_id: Annotated[str | None, typer.Argument(help="One transaction; without it, the latest ones.")] = None,
    limit: Annotated[int, typer.Option(help="How many to list.", min=1, max=500)] = 20,
    cursor: Annotated[str | None, typer.Option(help="Continue after an earlier list (its next_cursor).")] = None,
    team: Annotated[str | None, typer.Option(help="Only this team's.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only this agent's.")] = None,
    state: Annotated[str | None, typer.Option(help="Only those held, settled, denied or expired.")] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """List transactions, latest first, or show one with all that is known of it."""
    with connect(data_dir) as api:
        if transaction_id is not None:
            answer = api.get(f"/v1/transactions/{transaction_id}")
        else:
            answer = api.get("/v1/transactions", limit=limit, cursor=cursor, team=team, agent=agent, state=state)
    if as_json:
        print_json(answer)
    elif transaction_id is not None:
        console().print_json(data=answer)
    else:
        _print_list(answer)


def _print_list(answer: Any) -> None:
    print_table(
        ("id", "time", "team", "agent", "model", "state", "held>", "cost>"),
        (
            (
                row["transaction_id"],
                moment(row["created_at"]),
                text(row["identity"]["team"]),
                text(row["identity"]["agent"]),
                row["model_requested"],
                row["state"],
                dollars(row["held_usd"]),
                dollars(row["cost_usd"]),
            )
            for row in answer["transactions"]
        ),
        "There are no transactions.",
    )
    if answer["next_cursor"]:
        console().print(f"More: --cursor {answer['next_cursor']}", style="dim", soft_wrap=True)
