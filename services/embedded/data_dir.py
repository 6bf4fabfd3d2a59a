"""The data directory of one instance: its lock, its format, its secrets, and what tells the CLI where it runs."""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

FORMAT: Final = "1"
_FORMAT_FILE: Final = "VERSION"
_LOCK_FILE: Final = "lock"
_BEFORE_FORMAT: Final = (_LOCK_FILE, "VERSION.partial")  # what a start that was killed early may leave
_INSTANCE_FILE: Final = "instance.json"
_ADMIN_KEY_FILE: Final = Path("secrets", "admin.key")
_LOCK_PATIENCE_S: Final = 0.1  # a CLI that looks whether an instance runs has the lock for a moment
_ENGINE_NAMES: Final = ("hotstate", "log", "postgres")


class UpError(Exception):
    """Farthing can't start. The text is one sentence or two: what is wrong, and how to fix it."""


@dataclass(frozen=True, slots=True)
class Instance:
    """Where a running instance answers; `services` maps each service to its own address on loopback."""

    base_url: str
    metrics_url: str
    pid: int
    version: str
    services: Mapping[str, str]


class DataDir:
    """A data directory, locked for this process until `close`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> "DataDir":
        """Makes (mode 0700) or opens the directory at `path` and locks it.

        Raises `UpError` when it can't be written, holds something else, has another format, or is in use.
        """
        path = path.expanduser().absolute()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_contents(path)
            lock = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
            data = cls(path, lock)
            data._take_lock()
            # What an instance that was killed has left would lead the CLI, and its key, to an address it has lost.
            (path / _INSTANCE_FILE).unlink(missing_ok=True)
            data._lay_out()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UpError(f"Can't use the data directory {path}: {reason}. Pick another with --data-dir.") from error
        return data

    def close(self) -> None:
        """Forgets the instance and lets go of the lock."""
        (self.path / _INSTANCE_FILE).unlink(missing_ok=True)
        os.close(self._lock)

    def folder(self, name: str) -> Path:
        """A folder of the data directory, made when it is missing, closed to other users."""
        folder = self.path / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @property
    def master_key_file(self) -> Path:
        """Where control keeps the master key."""
        return self.path / "secrets" / "master.key"

    @property
    def first_keys_file(self) -> Path:
        """Where control leaves the keys of a first start, to be shown once."""
        return self.path / "first-keys.json"

    def engine_passwords(self) -> Mapping[str, str]:
        """A random password for each embedded engine, made once."""
        path = self.path / "secrets" / "engines.json"
        if not path.exists():
            write_private(path, json.dumps({name: secrets.token_hex(24) for name in _ENGINE_NAMES}))
        passwords: dict[str, str] = json.loads(path.read_text())
        return passwords

    def require_same_engines(self, is_outside: Mapping[str, bool]) -> None:
        """Keeps, by option, which engines are outside ones; raises `UpError` when that has changed.

        Log, control data and ledger refer to each other: one of them swapped for another's would be taken for damage.
        The hot state is a cache of the log and may be swapped.
        """
        path = self.path / "engines.json"
        if not path.exists():
            write_private(path, json.dumps(is_outside))
            return
        kept: dict[str, bool] = json.loads(path.read_text())
        for option, was_outside in kept.items():
            if is_outside[option] != was_outside:
                made, remedy = ("with", "Give") if was_outside else ("without", "Leave out")
                raise UpError(
                    f"The data directory {self.path} was made {made} {option}, and its parts belong together. "
                    f"{remedy} {option}, or pick another with --data-dir."
                )

    def first_keys(self) -> Mapping[str, str] | None:
        """``admin_key`` and ``agent_key`` of a first start that have not been shown yet."""
        if not self.first_keys_file.exists():
            return None
        keys: dict[str, str] = json.loads(self.first_keys_file.read_text())
        write_private(self.path / _ADMIN_KEY_FILE, keys["admin_key"] + "\n")
        return keys

    def forget_first_keys(self) -> None:
        """To be called once they have been shown."""
        self.first_keys_file.unlink(missing_ok=True)

    def announce(self, instance: Instance) -> None:
        """Lets the CLI find this instance by the data directory."""
        write_private(self.path / _INSTANCE_FILE, json.dumps(asdict(instance), indent=2) + "\n")

    def _take_lock(self) -> None:
        give_up_s = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > give_up_s:
                    os.close(self._lock)
                    raise UpError(_in_use(self.path)) from error
            time.sleep(0.01)

    def _lay_out(self) -> None:
        version = self.path / _FORMAT_FILE
        if not version.exists():
            self.path.chmod(0o700)
            write_private(version, FORMAT + "\n")
            # It holds secrets, and may lie in somebody's checkout under any name.
            write_private(self.path / ".gitignore", "*\n")
        for name in ("secrets", "logs", "run"):
            self.folder(name)


def read_instance(path: Path) -> Instance | None:
    """The instance that runs on the data directory at `path`; None when none does.

    It runs as long as its lock is held: its process id may be another process's by now.
    """
    if not _is_locked(path):
        return None
    try:
        fields: dict[str, Any] = json.loads((path / _INSTANCE_FILE).read_text())
    except FileNotFoundError:
        return None
    return Instance(**fields)


def read_admin_key(path: Path) -> str | None:
    """The admin key kept for the CLI of this machine; None when there is none."""
    try:
        return (path / _ADMIN_KEY_FILE).read_text().strip()
    except FileNotFoundError:
        return None


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    partial.replace(path)


def _check_contents(path: Path) -> None:
    version = path / _FORMAT_FILE
    if version.exists():
        found = version.read_text().strip()
        if found != FORMAT:
            raise UpError(
                f"The data directory {path} has format {found[:20]!r}, and this Farthing reads format {FORMAT!r}. "
                "Use the Farthing that made it, or pick another with --data-dir."
            )
    elif any(entry.name not in _BEFORE_FORMAT for entry in path.iterdir()):
        raise UpError(f"{path} is not empty and not a Farthing data directory. Pick another with --data-dir.")


def _in_use(path: Path) -> str:
    try:
        pid = f" (process {json.loads((path / _INSTANCE_FILE).read_text())['pid']})"
    except (OSError, ValueError, KeyError):
        pid = ""  # It is still starting, and says no more than that it is there.
    return f"Farthing already runs on the data directory {path}{pid}. Stop it first, or pick another with --data-dir."


def _is_locked(path: Path) -> bool:
    try:
        lock = os.open(path / _LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
