"""``farthing demo``: two teams spend until one budget is exhausted; then the books are compared, to the nano-dollar."""

import asyncio
import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import typer
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from services.commands.client import Api, connect
from services.commands.demo_load import Agent, Load
from services.commands.errors import CommandError
from services.commands.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from services.commands.output import console, dollars, print_json

_REFRESH_S: Final = 0.3
_QUIET_WITHIN_S: Final = 20.0
_BOOKS: Final = ("hot_state", "log", "ledger")
# Team, its daily limit, and its agents with their models and own limits. Only the first team's budget is too small.
_CAST: Final = (
    ("demo-research", "0.08", (("planner", "sandbox-large", "0.06"), ("reader", "sandbox-large", "0.06"))),
    ("demo-support", "0.50", (("triage", "sandbox-small", "0.10"), ("replies", "sandbox-small", "0.10"))),
)


@dataclass(frozen=True, slots=True)
class Stage:
    """What was made for one run: agents with their keys, and the ids of keys and budgets."""

    agents: tuple[Agent, ...]
    key_ids: tuple[str, ...]
    budget_ids: tuple[str, ...]


def demo(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Watch two teams of agents spend through the sandbox until one budget is exhausted, and check the books."""
    with connect(data_dir) as api:
        stage = _prepare(api)
        try:
            out = console()
            load = asyncio.run(_drive(api, stage, out if out.is_terminal and not as_json else None))
            budgets = _wait_until_quiet(api, stage)
            verdict = _compare(api)
        finally:
            _clear(api, stage)
    report = _report(load, budgets, verdict)
    if as_json:
        print_json(report)
    else:
        _show(out, load, budgets, report)
    if not report["agree"]:
        raise typer.Exit(1)


def _prepare(api: Api) -> Stage:
    """Teams and agents under fresh names, so that every run starts from unspent budgets."""
    suffix = secrets.token_hex(2)
    agents, key_ids, budget_ids = [], [], []
    for team_name, team_limit, members in _CAST:
        team = f"{team_name}-{suffix}"
        budget_ids.append(_set_budget(api, team_limit, team=team))
        for agent_name, model, limit in members:
            agent = f"{agent_name}-{suffix}"
            key = api.post("/api/v1/keys", {"team": team, "agent": agent})
            key_ids.append(key["key_id"])
            budget_ids.append(_set_budget(api, limit, team=team, agent=agent))
            agents.append(Agent(agent, team, model, key["key"]))
    return Stage(tuple(agents), tuple(key_ids), tuple(budget_ids))


def _set_budget(api: Api, limit_usd: str, **scope: str) -> str:
    return str(api.put("/api/v1/budgets", {"limit_usd": limit_usd, "window": "day", **scope})["budget_id"])


async def _drive(api: Api, stage: Stage, out: Console | None) -> Load:
    """Runs the calls; on a terminal, with a live table beside them."""
    await _wait_until_live(api)
    load = Load(api.target.base_url, stage.agents, random.Random())  # noqa: S311 - lengths and pauses, no secrets
    running = asyncio.create_task(load.run())
    try:
        if out is not None:
            with Live(console=out, auto_refresh=False, transient=True) as live:
                while not running.done():
                    live.update(_table(load.agents, await asyncio.to_thread(_budgets, api, stage)), refresh=True)
                    await asyncio.wait({running}, timeout=_REFRESH_S)
        await running
    except* CommandError as group:
        raise group.exceptions[0] from None
    return load


async def _wait_until_live(api: Api) -> None:
    """Waits until the gateways have the new budgets, so that no call passes before they hold."""
    ends_at = time.monotonic() + _QUIET_WITHIN_S
    while not (await asyncio.to_thread(api.get, "/api/v1/status"))["published"]:
        if time.monotonic() > ends_at:
            raise CommandError("the new budgets do not reach the gateways; see: farthing doctor")
        await asyncio.sleep(0.1)


def _budgets(api: Api, stage: Stage) -> dict[str, Any]:
    """The demo's budgets by the name of their team or agent."""
    found = api.get("/api/v1/budgets")["budgets"]
    return {each["scope"]["value"]: each for each in found if each["budget_id"] in stage.budget_ids}


def _wait_until_quiet(api: Api, stage: Stage) -> dict[str, Any]:
    """The demo's budgets once every hold has been settled and folded."""
    ends_at = time.monotonic() + _QUIET_WITHIN_S
    while True:
        budgets = _budgets(api, stage)
        held = [each["standing"]["held_usd"] for each in budgets.values()]
        if all(amount is not None and not amount.strip("0.") for amount in held):
            return budgets
        if time.monotonic() > ends_at:
            raise CommandError(f"holds are still open after {_QUIET_WITHIN_S:.0f} s; see: farthing doctor")
        time.sleep(0.2)


def _compare(api: Api) -> Any:
    """The reconciliation once it agrees, or as it is after a while: other callers may be at work at the same time."""
    ends_at = time.monotonic() + _QUIET_WITHIN_S
    while True:
        verdict = api.get("/v1/reconciliation")
        if (verdict["agree"] and not verdict["lagging"]) or time.monotonic() > ends_at:
            return verdict
        time.sleep(0.5)


def _clear(api: Api, stage: Stage) -> None:
    """Takes back keys and budgets. What was spent stays in the ledger."""
    for key_id in stage.key_ids:
        api.delete(f"/api/v1/keys/{key_id}")
    for budget_id in stage.budget_ids:
        api.delete(f"/api/v1/budgets/{budget_id}")


def _table(agents: Sequence[Agent], budgets: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("team / agent", "limit", "spent", "held", "calls", "refused"):
        table.add_column(name, justify="left" if name == "team / agent" else "right")
    for team in dict.fromkeys(agent.team for agent in agents):
        members = [agent for agent in agents if agent.team == team]
        _add_row(table, team, members, budgets.get(team), "bold")
        for agent in members:
            _add_row(table, f"  {agent.name}", [agent], budgets.get(agent.name), "")
    return table


def _add_row(table: Table, name: str, agents: Sequence[Agent], budget: Any, style: str) -> None:
    standing = budget["standing"] if budget else {}
    refused = sum(agent.refused for agent in agents)
    table.add_row(
        name,
        dollars(budget["limit_usd"] if budget else None),
        *(dollars(standing.get(figure)) for figure in ("spent_usd", "held_usd")),
        str(sum(agent.calls for agent in agents)),
        f"[red]{refused}[/]" if refused else "0",
        style=style,
    )


def _report(load: Load, budgets: dict[str, Any], verdict: Any) -> dict[str, Any]:
    def entry(name: str, agents: Sequence[Agent]) -> dict[str, Any]:
        return {
            "name": name,
            "limit_usd": budgets[name]["limit_usd"],
            "spent_usd": budgets[name]["standing"]["spent_usd"],
            "held_usd": budgets[name]["standing"]["held_usd"],
            "calls": sum(agent.calls for agent in agents),
            "refused": sum(agent.refused for agent in agents),
        }

    teams = []
    for team in dict.fromkeys(agent.team for agent in load.agents):
        members = [agent for agent in load.agents if agent.team == team]
        teams.append({**entry(team, members), "agents": [entry(agent.name, [agent]) for agent in members]})
    return {
        "exhausted": load.exhausted,
        "teams": teams,
        "refusal": next((agent.last_refusal for agent in load.agents if agent.last_refusal), None),
        "agree": bool(verdict["agree"]),
        "reconciliation": verdict,
    }


def _told(report: dict[str, Any]) -> tuple[str, str]:
    """What the comparison came to, and the style to say it in."""
    books = "Hot state, log and ledger" if report["reconciliation"]["log_compared"] else "Hot state and ledger"
    if not report["agree"]:
        return f"{books} DIFFER; see: farthing doctor", "bold red"
    rest = "" if report["reconciliation"]["log_compared"] else "; the log no longer reaches back to compare"
    return f"{books} agree to the nano-dollar{rest}.", "bold green"


def _show(out: Console, load: Load, budgets: dict[str, Any], report: dict[str, Any]) -> None:
    out.print(_table(load.agents, budgets))
    if load.exhausted is None:
        out.print("No budget was exhausted in the time the demo takes.")
    else:
        refused = sum(agent.refused for agent in load.agents if agent.team == load.exhausted)
        out.print(f"The budget of {load.exhausted} is exhausted; {refused} of its calls were refused:")
        out.print(f"  {report['refusal']}", style="yellow", soft_wrap=True, markup=False)
    books = Table("spent by", "hot state", "log", "ledger", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in report["reconciliation"]["budgets"]:
        if row["budget_id"] in {each["budget_id"] for each in budgets.values()}:
            books.add_row(row["scope"], *(row[book]["spent_usd"] if row[book] else "-" for book in _BOOKS))
    out.print(books)
    text, style = _told(report)
    out.print(text, style=style)
