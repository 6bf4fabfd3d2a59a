"""``farthing budgets``: set, change, list, show and remove caps, and hand on parts of them."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from services.commands.budget_lines import (
    WEEKDAYS,
    full_line,
    past_line,
    resets_line,
    scope_text,
    spends_line,
    window_line,
)
from services.commands.client import Api, connect
from services.commands.errors import CommandError
from services.commands.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from services.commands.output import console, dollars, moment, print_json, print_table, text
from services.commands.parts import delegate, end, is_part, show_part

app = typer.Typer(help="Set, change, list, show and remove budgets, and hand on parts of them.", no_args_is_help=True)
app.command()(delegate)
app.command()(end)

_PAGE: Final = 500
_LIMIT: Final = "US dollars, such as 50.00; 0 blocks everything."
_WINDOW: Final = "hour, day, week, month, quarter, year; rolling: 90m, 1h, 30d, 2w; 'every 14d'; session; lifetime."
BudgetArgument = Annotated[str, typer.Argument(help="The budget's id, such as bud_01JD….")]
ZoneOption = Annotated[str | None, typer.Option(help="Time zone of hour to year, such as Europe/Berlin.")]
WeekStartOption = Annotated[str | None, typer.Option(metavar="DAY", help="The day a week begins on, such as sunday.")]
AnchorDayOption = Annotated[
    int | None, typer.Option(help="The day of the month that months, quarters and years begin on; 31: the last.")
]
AnchorMonthOption = Annotated[int | None, typer.Option(help="The month that years begin in, or a quarter, 1 to 12.")]
AnchorOption = Annotated[str | None, typer.Option(help="When one of 'every …' begins, such as 2026-01-05T09:00:00Z.")]
EstimateOption = Annotated[
    str | None,
    typer.Option(help="What it holds for a call: strict, the most it can cost, or calibrated, by past calls."),
]
ExtendOption = Annotated[
    bool | None,
    typer.Option("--extend/--no-extend", help="Hold streams without an output limit a step at a time, or whole."),
]
ParentOption = Annotated[str | None, typer.Option(help="A budget that is charged along with this one; '' for none.")]
ChildModeOption = Annotated[
    str | None, typer.Option(help="When a child is full: isolated, it blocks, or fallback, its parent pays.")
]
EnforcementOption = Annotated[str | None, typer.Option(help="enforce, or monitor: record everything, block nothing.")]
WhenFullOption = Annotated[str | None, typer.Option(help="block, downgrade (see --downgrade-to), or alert only.")]
DowngradeOption = Annotated[
    str | None, typer.Option(help="The cheaper model of the same vendor for --when-full downgrade; '' for none.")
]
ThresholdOption = Annotated[
    list[int] | None, typer.Option(help="Tell at this percent of the limit; repeat it, ascending.")
]
NoThresholdsOption = Annotated[bool, typer.Option("--no-thresholds", help="Tell at no percent.")]


@app.command("list")
def list_budgets(
    scope: Annotated[
        str | None, typer.Option(metavar="KIND[:VALUE]", help="Only those that cap this, such as user or user:alice.")
    ] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """List budgets and where they stand."""
    kind, _, value = (scope or "").partition(":")
    with connect(data_dir) as api:
        answer = _pages(api, kind or None, value or None)
    if as_json:
        print_json(answer)
        return
    print_table(
        ("id", "scope", "window", "estimate", "when full", "limit>", "spent>", "held>", "left>", "resets"),
        (
            (
                budget["budget_id"],
                scope_text(budget),
                window_line(budget),
                budget["estimate"],
                full_line(budget),
                dollars(budget["limit_usd"]),
                dollars(budget["standing"]["spent_usd"]),
                dollars(budget["standing"]["held_usd"]),
                dollars(budget["standing"]["remaining_usd"]),
                resets_line(budget),
            )
            for budget in answer["budgets"]
        ),
        "There are no budgets.",
    )


@app.command()
def show(
    budget_id: BudgetArgument,
    value: Annotated[str | None, typer.Option(help="Of a budget of each value: where this one stands.")] = None,
    session: Annotated[str | None, typer.Option(help="Of a budget of each session: where this one stands.")] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Show one budget, or a part of one, and where it stands."""
    if is_part(budget_id):
        show_part(budget_id, data_dir, as_json)
        return
    with connect(data_dir) as api:
        budget = api.get(f"/api/v1/budgets/{budget_id}", value=value, session=session)
    if as_json:
        print_json(budget)
        return
    standing = budget["standing"]
    print_table(
        ("budget", budget["budget_id"]),
        (
            ("caps", scope_text(budget)),
            ("limit", spends_line(budget)),
            ("spent", dollars(standing["spent_usd"])),
            ("held", dollars(standing["held_usd"])),
            ("left", dollars(standing["remaining_usd"])),
            ("resets", resets_line(budget)),
            ("past spend", past_line(budget)),
            ("when full", full_line(budget)),
            ("parent", text(budget["parent_id"])),
            ("tells at", ", ".join(f"{each} %" for each in budget["thresholds"]) or "-"),
            ("estimate", budget["estimate"] + (", streams step by step" if budget["extend"] else "")),
            ("changed", moment(budget["updated_at"])),
        ),
        "",
    )


@app.command("set")
def set_budget(
    limit: Annotated[str, typer.Option(help=_LIMIT)],
    window: Annotated[str, typer.Option(help=_WINDOW)],
    zone: ZoneOption = None,
    week_start: WeekStartOption = None,
    anchor_day: AnchorDayOption = None,
    anchor_month: AnchorMonthOption = None,
    anchor: AnchorOption = None,
    org: Annotated[bool, typer.Option("--org", help="Cap the whole org.")] = False,
    team: Annotated[str | None, typer.Option(help="Cap this team; with --agent: the agent's team.")] = None,
    agent: Annotated[str | None, typer.Option(help="Cap this agent.")] = None,
    scope: Annotated[
        str | None,
        typer.Option(metavar="KIND:VALUE", help="Cap this, such as user:alice, 'user:*' (each one), or cel:NAME."),
    ] = None,
    expression: Annotated[
        str | None, typer.Option(help="Of --scope cel:NAME: what must be true of a call (https://cel.dev).")
    ] = None,
    estimate: EstimateOption = None,
    extend: ExtendOption = None,
    parent: ParentOption = None,
    child_mode: ChildModeOption = None,
    enforcement: EnforcementOption = None,
    when_full: WhenFullOption = None,
    downgrade_to: DowngradeOption = None,
    threshold: ThresholdOption = None,
    no_thresholds: NoThresholdsOption = False,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Set a budget. One of the same scope and window is changed and keeps what it has spent."""
    if [org, team is not None or agent is not None, scope is not None].count(True) != 1:
        raise CommandError("say what to cap: --org, --scope, or --team or --agent", "invalid_request", "scope")
    wanted = _given(
        limit_usd=limit, window=window, zone=zone, week_start=_weekday(week_start), anchor_day=anchor_day,
        anchor_month=anchor_month, anchor=anchor, team=team, agent=agent, scope=_scope(scope, expression),
        estimate=estimate, extend=extend, parent_id=parent, child_mode=child_mode, enforcement=enforcement,
        when_full=when_full, downgrade_to=downgrade_to, thresholds=_thresholds(threshold, no_thresholds),
    )  # fmt: skip
    with connect(data_dir) as api:
        budget = api.put("/api/v1/budgets", wanted)
    if as_json:
        print_json(budget)
        return
    made = [name for name in ("team", "agent") if budget["made"][name]]
    console().print(
        f"{scope_text(budget)} may spend {spends_line(budget)} ({budget['budget_id']})."
        + (f" The {' and '.join(made)} did not exist and was made." if made else "")
    )


@app.command()
def change(
    budget_id: BudgetArgument,
    limit: Annotated[str | None, typer.Option(help=_LIMIT)] = None,
    window: Annotated[str | None, typer.Option(help=_WINDOW)] = None,
    zone: ZoneOption = None,
    week_start: WeekStartOption = None,
    anchor_day: AnchorDayOption = None,
    anchor_month: AnchorMonthOption = None,
    anchor: AnchorOption = None,
    estimate: EstimateOption = None,
    extend: ExtendOption = None,
    parent: ParentOption = None,
    child_mode: ChildModeOption = None,
    enforcement: EnforcementOption = None,
    when_full: WhenFullOption = None,
    downgrade_to: DowngradeOption = None,
    threshold: ThresholdOption = None,
    no_thresholds: NoThresholdsOption = False,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Change a budget in all but what it caps, its window included; the rest stays as it is."""
    wanted = _given(
        limit_usd=limit, window=window, zone=zone, week_start=_weekday(week_start), anchor_day=anchor_day,
        anchor_month=anchor_month, anchor=anchor, estimate=estimate, extend=extend, parent_id=parent,
        child_mode=child_mode, enforcement=enforcement, when_full=when_full, downgrade_to=downgrade_to,
        thresholds=_thresholds(threshold, no_thresholds),
    )  # fmt: skip
    if not wanted:
        raise CommandError("say what to change, such as --limit or --window", "invalid_request", "limit_usd")
    with connect(data_dir) as api:
        budget = api.patch(f"/api/v1/budgets/{budget_id}", wanted)
    if as_json:
        print_json(budget)
    else:
        console().print(f"{scope_text(budget)} may spend {spends_line(budget)} ({budget['budget_id']}).")


@app.command("rm")
@app.command("delete", hidden=True)
def remove(
    budget_id: BudgetArgument,
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


def _pages(api: Api, kind: str | None, value: str | None) -> dict[str, Any]:
    """Every budget asked for, over as many answers as there are."""
    budgets: list[Any] = []
    cursor = None
    while True:
        answer = api.get("/api/v1/budgets", kind=kind, value=value, limit=_PAGE, cursor=cursor)
        budgets.extend(answer["budgets"])
        cursor = answer["next"]
        if cursor is None:
            return {"budgets": budgets}


def _given(**options: Any) -> Mapping[str, Any]:
    """The options that were given; an empty text takes away what may be none."""
    emptied = {name: None for name in ("parent_id", "downgrade_to") if options[name] == ""}
    return {name: value for name, value in options.items() if value is not None and name not in emptied} | emptied


def _scope(text: str | None, expression: str | None) -> dict[str, str] | None:
    if text is None:
        if expression is not None:
            raise CommandError("--expression goes with --scope cel:NAME", "invalid_request", "scope.expression")
        return None
    kind, colon, value = text.partition(":")
    if not colon:
        raise CommandError("--scope must be KIND:VALUE, such as user:alice or 'user:*'", "invalid_request", "scope")
    return {"kind": kind, "value": value} | ({} if expression is None else {"expression": expression})


def _weekday(text: str | None) -> int | None:
    if text is None:
        return None
    name = text.lower()
    if name not in WEEKDAYS:
        message = f"--week-start must be a day of the week, one of {', '.join(WEEKDAYS)}"
        raise CommandError(message, "invalid_request", "week_start")
    return WEEKDAYS.index(name)


def _thresholds(percents: list[int] | None, none: bool) -> list[int] | None:
    if percents and none:
        raise CommandError("--threshold and --no-thresholds exclude each other", "invalid_request", "thresholds")
    return [] if none else percents or None
