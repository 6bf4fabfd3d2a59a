"""``farthing connections``: where vendors are, and the org's keys for them."""

import sys
from typing import Annotated

import typer

from services.adapters.config import variable
from services.commands.client import connect
from services.commands.errors import CommandError
from services.commands.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from services.commands.output import console, moment, print_json, print_table, text
from services.core.billing import CONNECTION_AUTH_MODES
from services.core.dialects import DIALECTS, KEYLESS

app = typer.Typer(help="Connect vendors.", no_args_is_help=True)


@app.command("set")
def set_connection(
    vendor: Annotated[
        str, typer.Argument(help="openai, anthropic, groq, …, or a name of your own for a compatible server.")
    ],
    key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Take the vendor's key from this environment variable.")
    ] = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="The server wants no key.")] = False,
    base_url: Annotated[str | None, typer.Option(metavar="URL", help="Where its API begins.")] = None,
    dialect: Annotated[
        str | None, typer.Option(help=f"The API it speaks: {', '.join(DIALECTS)}; default: by its name, else openai.")
    ] = None,
    prices_as: Annotated[str | None, typer.Option(metavar="VENDOR", help="Price its models as this vendor's.")] = None,
    auth_mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help=f"How its calls are paid for: {', '.join(CONNECTION_AUTH_MODES)}; default: as it is, else metered.",
        ),
    ] = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Connect a vendor. Its key comes from --key-env, else it is asked for (or read from standard input).

    ollama and vllm have no key unless --key-env names one.
    """
    needs_key = not no_key and (key_env is not None or vendor not in KEYLESS)
    body = {
        "api_key": _read_key(vendor, key_env) if needs_key else None,
        "dialect": dialect,
        "base_url": base_url,
        "prices_as": prices_as,
        "auth_mode": auth_mode,
    }
    with connect(data_dir) as api:
        answer = api.put(f"/api/v1/connections/{vendor}", body)
    if as_json:
        print_json(answer)
    else:
        console().print(
            f"Connected {answer['vendor']} at {answer['base_url']}, with prices of {answer['prices_as']}."
            f" Its calls are {answer['auth_mode']}.{answer['vendor']}."
        )


@app.command("list")
def list_connections(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """List every connection, without its key."""
    with connect(data_dir) as api:
        answer = api.get("/api/v1/connections")
    if as_json:
        print_json(answer)
        return
    print_table(
        ("vendor", "dialect", "base URL", "key ends in", "prices of", "paid", "changed"),
        (
            (
                each["vendor"],
                each["dialect"],
                each["base_url"],
                text(each["key_hint"]),
                each["prices_as"],
                each["auth_mode"],
                moment(each["updated_at"]),
            )
            for each in answer["connections"]
        ),
        "No vendor is connected; the sandbox needs no connection.",
    )


@app.command("rm")
def remove(
    vendor: Annotated[str, typer.Argument(help="The vendor to disconnect.")],
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    as_json: JsonOption = False,
) -> None:
    """Remove a connection and its key."""
    with connect(data_dir) as api:
        api.delete(f"/api/v1/connections/{vendor}")
    if as_json:
        print_json({"vendor": vendor, "removed": True})
    else:
        console().print(f"Disconnected {vendor}.")


def _read_key(vendor: str, key_env: str | None) -> str:
    """The vendor's key, never from an argument: those are seen by every user of the machine."""
    if key_env is not None:
        found = variable(key_env)
        if found is None or not found.get_secret_value().strip():
            raise CommandError(
                f"the environment variable {key_env} is not set; set it, or leave --key-env out", field="key-env"
            )
        return found.get_secret_value().strip()
    if sys.stdin.isatty():
        return str(typer.prompt(f"Key for {vendor}", hide_input=True, err=True)).strip()
    key = sys.stdin.readline().strip()
    if not key:
        raise CommandError(
            "no key on standard input; pipe it in, name a variable with --key-env, or use --no-key", field="key"
        )
    return key
