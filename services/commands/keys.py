"""``farthing keys``: make, list and revoke API keys."""

from typing import Annotated

import typer

from services.commands.client import connect
from services.commands.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from services.commands.output import console, moment, print_json, print_table, text

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


@app.command()
def create(
    team: Annotated[str | None, typer.Option(help="Pin the key to this team.")] = None,
    agent: Annotated[str | None, typer.Option(help="Pin the key to this agent.")] = None,
    user: Annotated[str | None, typer.Option(help="Pin the key to this user.")] = None,
    project: Annotated[str | None, typer.Option(help="Pin the key to this project.")] = None,
    environment: Annotated[str | None, typer.Option(help="Pin the key to this environment.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="A key that manages the org, too.")] = False,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once."""
    pins = {"team": team, "agent": agent, "user": user, "project": project, "environment": environment}
    body = {name: value for name, value in pins.items() if value is not None} | ({"role": "org_admin"} if admin else {})
    with connect(data_dir) as api:
        made = api.post("/api/v1/keys", body)
    if as_json:
        print_json(made)
        return
    console().print(made["key"], soft_wrap=True)
    console().print(f"This is {made['key_id']}; the key is shown this once.", style="dim")


@app.command("list")
def list_keys(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List every key, without the keys themselves."""
    with connect(data_dir) as api:
        answer = api.get("/api/v1/keys")
    if as_json:
        print_json(answer)
        return
    print_table(
        ("id", "ends in", "role", "team", "agent", "made", "revoked"),
        (
            (
                key["key_id"],
                key["hint"],
                key["role"],
                text(key["team"]),
                text(key["agent"]),
                moment(key["created_at"]),
                moment(key["revoked_at"]),
            )
            for key in answer["keys"]
        ),
        "There are no keys.",
    )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, such as key_01JD….")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key; it stops working within a second."""
    with connect(data_dir) as api:
        answer = api.delete(f"/api/v1/keys/{key_id}")
    if as_json:
        print_json(answer)
    else:
        console().print(f"Revoked {key_id}.")
