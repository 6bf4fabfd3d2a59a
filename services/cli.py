"""The `farthing` command."""

import sys

import typer

from services.commands import budgets, caps, connections, keys, orgs, prices, routes
from services.commands.demo import demo
from services.commands.doctor import doctor
from services.commands.errors import CommandError
from services.commands.output import print_json
from services.commands.price import price
from services.commands.reports import estimates, spend, transactions
from services.commands.status import status, version
from services.commands.up import service, up

app = typer.Typer(
    name="farthing",
    help="A self-hosted spend ledger and gateway for AI agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (up, demo, status, doctor, spend, estimates, transactions, price, version):
    app.command()(command)
app.command(hidden=True)(service)
app.add_typer(keys.app, name="keys")
app.add_typer(budgets.app, name="budgets")
app.add_typer(caps.app, name="caps")
app.add_typer(connections.app, name="connections")
app.add_typer(prices.app, name="prices")
app.add_typer(routes.app, name="routes")
app.add_typer(orgs.app, name="org")


def main() -> None:
    """Runs the command line. What can't be done is one sentence on standard error, and exit code 1."""
    try:
        app()
    except CommandError as error:
        field = f" ({error.field})" if error.field else ""
        sys.stderr.write(f"farthing: {error}{field}\n")
        if "--json" in sys.argv and "up" not in sys.argv:
            print_json({"error": error.code, "message": str(error), "field": error.field})
        sys.exit(1)


if __name__ == "__main__":
    main()
