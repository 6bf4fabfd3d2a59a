"""``farthing status``: whether Farthing runs and can decide."""

from services import __version__
from services.commands.client import connect
from services.commands.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from services.commands.output import console, print_json


def status(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Show whether Farthing runs, its org is live on the gateways, and nothing raises an alarm."""
    with connect(data_dir) as api:
        answer = {"base_url": api.target.base_url, **api.get("/api/v1/status")}
    if as_json:
        print_json(answer)
        return
    out = console()
    out.print(f"Farthing answers at {answer['base_url']} (org {answer['org']}).")
    out.print(f"Spend state: {answer['hot_state']}.")
    live = "live on the gateways" if answer["published"] else "not on the gateways yet"
    out.print(f"Configuration: version {answer['config_version']}, {live}.")
    for catalog in answer.get("pending_catalogs", ()):
        out.print(f"Price catalog {catalog} is proposed; see: farthing prices diff", soft_wrap=True)
    for name, reason in (answer["alarms"] or {}).items():
        out.print(f"ALARM {name}: {reason}", style="red", soft_wrap=True)


def version(as_json: JsonOption = False) -> None:
    """Show the version of this command."""
    if as_json:
        print_json({"version": __version__})
    else:
        console().print(__version__)
