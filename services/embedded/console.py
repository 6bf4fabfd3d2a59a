"""What the children of ``farthing up`` say: everything into files, warnings and errors to the console as well."""

import json
import logging
from collections import deque
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

_FILE_BYTES: Final = 10 * 1024 * 1024
_FILES_KEPT: Final = 3
_LAST_LINES: Final = 12
_LOUD: Final = ("warning", "error", "critical")
_COLOURS: Final = ("cyan", "green", "magenta", "blue", "yellow", "bright_cyan", "bright_green", "bright_magenta")
_NOT_DETAILS: Final = ("event", "level", "timestamp", "service", "exception")


class Lines:
    """The lines of one child: appended to its own log file, which is rotated by size, and shown where they matter."""

    def __init__(self, name: str, folder: Path, console: Console | None, *, verbose: bool = False) -> None:
        self.path = folder / f"{name}.log"
        self.last: deque[str] = deque(maxlen=_LAST_LINES)
        self.is_settled = False
        self._name = name
        self._console = console
        self._verbose = verbose
        self._file = RotatingFileHandler(self.path, maxBytes=_FILE_BYTES, backupCount=_FILES_KEPT, encoding="utf-8")
        self._file.setFormatter(logging.Formatter("%(message)s"))

    def write(self, line: str, *, shown: bool = False) -> None:
        """Takes one line. It is shown when it has to be, is a warning or an error, or everything is.

        Until everything is settled a warning only says that one process is up before another, and stays in the file.
        """
        self._file.emit(logging.LogRecord(self._name, logging.INFO, "", 0, line, None, None))
        level, text = _read(line)
        self.last.append(text)
        if self._console is None:
            return
        if self._verbose or shown or (self.is_settled and level in _LOUD):
            self._console.print(self._prefixed(level, text), soft_wrap=True)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _prefixed(self, level: str, text: str) -> Text:
        colour = _COLOURS[sum(self._name.encode()) % len(_COLOURS)]
        style = {"warning": "yellow", "error": "red", "critical": "red"}.get(level, "")
        return Text.assemble((f"{self._name:<10} | ", colour), (text, style))


def _read(line: str) -> tuple[str, str]:
    """The level of a structured line and its text for people; anything else is level ``""`` as it stands."""
    try:
        fields: dict[str, Any] = json.loads(line)
        level, event = str(fields["level"]), fields["event"]
    except (ValueError, TypeError, KeyError):
        return "", line
    details = " ".join(f"{name}={value}" for name, value in fields.items() if name not in _NOT_DETAILS)
    return level, f"{level}: {event}" + (f" ({details})" if details else "")
