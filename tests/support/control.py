"""Control in the test's own process: the real application on a real PostgreSQL, spoken to over ASGI."""

import contextlib
import functools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from services.adapters.cel import Cel
from services.adapters.postgres import Postgres, migrate, read_migrations
from services.adapters.schemas import schemas_folder
from services.adapters.secrets import Secrets
from services.control.api import build_api
from services.control.boot import BootSettings, boot
from services.control.context import Context
from services.control.prices.book import SHIPPED_CATALOG, Catalogs
from services.control.publish import Publisher
from services.core.ports import Directory, HotState, UnavailableError

MASTER_KEY = bytes(range(32))
HOLD_MS = 900_000


class Away:
    """Any port, while the system behind it is away."""

    def __getattr__(self, name: str) -> Any:
        async def refuse(*_arguments: object, **_named: object) -> None:
            raise UnavailableError("away, for this test")

        return refuse


_api = functools.cache(build_api)  # the same routes for every test; what they work on is handed in anew


@dataclass
class Control:
    """A running control. `call` speaks as the bootstrap admin unless told a key."""

    context: Context
    client: httpx.AsyncClient
    postgres: Postgres
    secrets: Secrets
    directory: Directory
    boot_settings: BootSettings
    admin_key: str = ""
    agent_key: str = ""

    async def call(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> httpx.Response:
        """A management call; a path that does not begin with a slash is below ``/api/v1/``."""
        headers = {"authorization": f"Bearer {self.admin_key if key is None else key}"}
        target = path if path.startswith("/") else f"/api/v1/{path}"
        return await self.client.request(method, target, json=body, headers=headers)

    async def ask(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> Any:
        """The answer of a call that has to succeed."""
        response = await self.call(method, path, body, key=key)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    async def boot(self) -> None:
        """Boots again, as a restart does."""
        await boot(self.context, self.boot_settings)

    def take_first_keys(self) -> None:
        """Reads and removes the hand-over file, as the supervisor does."""
        path = self.boot_settings.state_dir / "first-keys.json"
        keys = json.loads(path.read_text())
        path.unlink()
        self.admin_key, self.agent_key = keys["admin_key"], keys["agent_key"]


@contextlib.asynccontextmanager
async def running_control(
    dsn: str,
    state_dir: Path,
    hot: HotState,
    directory: Directory,
    *,
    master_key: bytes = MASTER_KEY,
    shipped: bytes | None = None,
) -> AsyncIterator[Control]:
    """A migrated, booted control; its publisher's loop is not running. `shipped` stands in for the shipped catalog."""
    await migrate(dsn, read_migrations(schemas_folder("postgres")))
    postgres = Postgres(dsn)
    secrets = Secrets(master_key)
    catalogs = Catalogs(SHIPPED_CATALOG.read_bytes() if shipped is None else shipped)
    publisher = Publisher(postgres, catalogs, directory)
    context = Context(postgres, hot, secrets, catalogs, publisher, Cel())
    api = _api()
    api.state.context = context
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
        settings = BootSettings("default", state_dir, HOLD_MS)
        control = Control(context, client, postgres, secrets, directory, settings)
        try:
            await control.boot()
            context.started.set()
            if (state_dir / "first-keys.json").exists():
                control.take_first_keys()
            yield control
        finally:
            await postgres.close()
