"""``farthing up``, and the hidden ``farthing service`` that it runs its services by."""

import gc
import importlib
from pathlib import Path
from typing import Annotated

import typer

from services.commands.errors import CommandError
from services.commands.options import DEFAULT_DATA_DIR, JsonOption

_SERVICES = ("gateway", "aggregator", "ledger", "control", "sandbox")


def up(
    data_dir: Annotated[Path, typer.Option(help="Where everything is kept.", show_default=True)] = DEFAULT_DATA_DIR,
    host: Annotated[
        str, typer.Option(help="Address to listen on; there is no TLS, so keep it on this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="The one address for everything; 0 picks a free one.", min=0, max=65535)
    ] = 8080,
    metrics_port: Annotated[int, typer.Option(help="Prometheus metrics; 0 picks a free one.", min=0, max=65535)] = 9090,
    kafka: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="An Apache Kafka instead of the embedded log.")
    ] = None,
    redis: Annotated[
        str | None, typer.Option(metavar="URL", help="A Valkey or Redis instead of the embedded one.")
    ] = None,
    postgres: Annotated[
        str | None, typer.Option(metavar="DSN", help="A PostgreSQL instead of the embedded one.")
    ] = None,
    clickhouse: Annotated[str | None, typer.Option(metavar="DSN", help="A ClickHouse instead of chDB.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every log line.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run Farthing on this machine: engines, services and one address. Ctrl-C ends it; data is kept."""
    try:
        from services.embedded.data_dir import UpError
        from services.embedded.stack import UpOptions
        from services.embedded.up import run_up
    except ModuleNotFoundError as error:
        message = f"{error.name} is missing; install it with: pip install 'farthing[embedded]'"
        raise CommandError(message, code="not_installed") from error
    options = UpOptions(data_dir, host, port, metrics_port, kafka, redis, postgres, clickhouse)
    try:
        run_up(options, as_json=as_json, verbose=verbose)
    except UpError as error:
        raise CommandError(str(error), code="cannot_start") from error


def service(name: Annotated[str, typer.Argument(help=f"One of {', '.join(_SERVICES)}.")]) -> None:
    """Run one service in this process, with the settings of its FARTHING_ variables."""
    if name not in _SERVICES:
        raise CommandError(f"there is no service {name[:40]!r}; there are {', '.join(_SERVICES)}", field="name")
    # What is loaded stays. To look for garbage in it would take a tenth of a start, and time of calls later.
    gc.disable()
    from services.adapters.config import Settings

    app = importlib.import_module(f"services.{name}.app")
    gc.freeze()
    gc.enable()
    app.run(Settings())
