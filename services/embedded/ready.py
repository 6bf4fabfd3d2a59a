"""The ready block: what a person, or a script with ``--json``, needs to make the first call."""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from services import __version__

_BODY: Final = '{"model": "sandbox-small", "messages": [{"role": "user", "content": "Hello"}]}'


@dataclass(frozen=True, slots=True)
class Ready:
    """What to show. `keys` holds ``admin_key`` and ``agent_key`` at a first start and is None later."""

    base_url: str
    metrics_url: str
    keys: Mapping[str, str] | None
    data_dir: Path

    def as_json(self) -> str:
        """One JSON object on one line."""
        keys = self.keys or {}
        fields: dict[str, Any] = {
            "base_url": self.base_url,
            "metrics_url": self.metrics_url,
            "admin_key": keys.get("admin_key"),
            "agent_key": keys.get("agent_key"),
            "data_dir": str(self.data_dir),
        }
        return json.dumps(fields)

    def curl(self) -> str:
        """A call to the sandbox vendor, to be pasted into a shell."""
        key = self.keys["agent_key"] if self.keys else "$FARTHING_KEY"
        return (
            f'curl -s {self.base_url}/v1/chat/completions -H "Authorization: Bearer {key}" '
            f"-H 'Content-Type: application/json' -d '{_BODY}'"
        )

    def show(self, console: Console) -> None:
        """The block for people."""
        command = _farthing_command()
        is_default = self.data_dir == Path("farthing-data").absolute()
        where = "" if is_default else f" --data-dir {shlex.quote(str(self.data_dir))}"
        lines = [Text.assemble((f"Farthing {__version__} is ready at ", "bold"), (self.base_url, "bold green")), Text()]
        if self.keys:
            lines += [
                Text.assemble("  admin key  ", (self.keys["admin_key"], "yellow")),
                Text.assemble("  agent key  ", (self.keys["agent_key"], "yellow")),
                Text("             shown this once; keep them", "dim"),
            ]
        else:
            lines += [
                Text("  keys       those of the first start are still valid; for another one:"),
                Text(f"             {command} keys create --team TEAM --agent AGENT{where}"),
            ]
        lines += [
            Text(f"  metrics    {self.metrics_url}/metrics"),
            Text(f"  data       {self.data_dir} (logs are in {self.data_dir / 'logs'})"),
            Text(),
            Text("Make a call (the sandbox vendor needs no vendor key and costs nobody anything):", "bold"),
            Text(f"  {self.curl()}"),
            Text(),
            Text.assemble(("Then, in another terminal: ", "bold"), f"{command} demo{where}"),
            Text(f"API reference: {self.base_url}/docs   Stop: Ctrl-C"),
        ]
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False)


def _farthing_command() -> str:
    """How this terminal would start the same ``farthing``."""
    own = Path(sys.executable).with_name("farthing")
    found = shutil.which("farthing")
    if found is not None and Path(found).absolute() == own:
        return "farthing"
    try:
        return str(own.relative_to(Path.cwd()))
    except ValueError:
        return str(own)
