"""``farthing budgets delegate`` and ``end``: parts of budgets, handed on to runs and sub-agents."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from services.commands.client import Api, connect_as_caller
from services.commands.errors import CommandError
from services.commands.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from services.commands.output import console, dollars, moment, print_json, print_table
from services.core.parts import BUDGET_PREFIX

_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_TIME: Final = re.compile(r"([0-9]{1,9})([smhd])", re.ASCII)
PartArgument = Annotated[str, typer.Argument(metavar="PART", help="The part's id, such as sub_01JD….")]


def delegate(
    budget_id: Annotated[str, typer.Argument(help="The budget to take from, such as bud_01JD… or a part, sub_01JD….")],
    amount: Annotated[str, typer.Option(help="US dollars, such as 5.00.")],
    expires: Annotated[
        str, typer.Option(help="When it ends by itself: 90s, 30m, 1h, 7d, from a minute to 30d.")
    ] = "1h",
    agent: Annotated[str | None, typer.Option(help="Pin its key to this agent.")] = None,
    user: Annotated[str | None, typer.Option(help="Pin its key to this user.")] = None,
    project: Annotated[str | None, typer.Option(help="Pin its key to this project.")] = None,
    session: Annotated[str | None, typer.Option(help="Pin its key to this session.")] = None,
    environment: Annotated[str | None, typer.Option(help="Pin its key to this environment.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same part, however often it is asked for with this key.")
    ] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Hand on a part of a budget, with a key of its own, as the holder of FARTHING_KEY (else as the admin)."""
    pins = {"agent": agent, "user": user, "project": project, "session": session, "environment": environment}
    body: dict[str, object] = {"amount_usd": amount, "expires_in_seconds": _seconds(expires)}
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    body |= {name: value for name, value in pins.items() if value is not None}
    with connect_as_caller(data_dir) as api:
        part = _post(api, f"/v1/budgets/{budget_id}/delegate", body, headers)
    if as_json:
        print_json(part)
        return
    console().print(part["key"], soft_wrap=True)
    told = f"{dollars(part['limit_usd'])} of {part['parent_budget_id']} until {moment(part['expires_at'])}"
    once = "" if headers else "; the key is shown this once"
    console().print(f"This spends {part['budget_id']}, {told}{once}.", style="dim")


def end(
    part_id: PartArgument,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """End a part before its time; what is left of it returns when its open calls have ended."""
    if not is_part(part_id):
        raise CommandError(
            f"{part_id} is no part of a budget, whose ids begin with {BUDGET_PREFIX}; to remove a budget: "
            f"farthing budgets rm {part_id}",
            "invalid_request",
            "budget_id",
        )
    with connect_as_caller(data_dir) as api:
        ended = _post(api, f"/v1/budgets/{part_id}/end", {}, {})
    if as_json:
        print_json(ended)
    else:
        console().print(f"Ended {part_id}.")


def is_part(budget_id: str) -> bool:
    """Whether an id is that of a part of a budget."""
    return budget_id.startswith(BUDGET_PREFIX)


def show_part(part_id: str, data_dir: DataDirOption, as_json: bool) -> None:
    """Shows a part and where it stands."""
    with connect_as_caller(data_dir) as api:
        part = api.get(f"/v1/budgets/{part_id}")
    if as_json:
        print_json(part)
        return
    print_table(
        ("part", part["budget_id"]),
        (
            ("of", part["parent_budget_id"]),
            ("limit", dollars(part["limit_usd"])),
            ("spent", dollars(part.get("spent_usd"))),
            ("held", dollars(part.get("held_usd"))),
            ("left", dollars(part.get("remaining_usd"))),
            ("ends", moment(part["expires_at"])),
            ("is", part["state"]),
        ),
        "",
    )


def _post(api: Api, path: str, body: Mapping[str, object], headers: Mapping[str, str]) -> Any:
    try:
        return api.post(path, body, headers)
    except CommandError as error:
        if error.code != "not_found":
            raise
        # Whose calls a budget caps depends on who calls.
        message = f"{error} (asked by the key in FARTHING_KEY, or else the admin's; set it to that of the part's maker)"
        raise CommandError(message, error.code, error.field) from error


def _seconds(text: str) -> int:
    found = _TIME.fullmatch(text)
    if found is None:
        raise CommandError(
            "--expires must be a number and s, m, h or d, such as 90m", "invalid_request", "expires_in_seconds"
        )
    return int(found[1]) * _SECONDS[found[2]]
