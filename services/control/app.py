"""Control's composition root: builds the adapters, starts the loops, serves until told to end."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

import structlog
import uvloop

from services.adapters import http_server, telemetry
from services.adapters.cel import Cel
from services.adapters.config import Settings
from services.adapters.postgres import Migration, MigrationError, Postgres, migrate, read_migrations
from services.adapters.schemas import schemas_folder
from services.adapters.secrets import MasterKeyError, Secrets, load_or_create_master_key
from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connect import connect
from services.control.api import build_api
from services.control.boot import BootError, BootSettings, boot
from services.control.context import Context
from services.control.delegations.service import end_due_for_ever
from services.control.prices.book import SHIPPED_CATALOG, Catalogs
from services.control.publish import Publisher
from services.core.catalog import CatalogError
from services.core.identity import IdentityError
from services.core.ports import UnavailableError

_log = structlog.get_logger(__name__)

_FATAL_EXIT: Final = 70
_RETRY_INTERVAL_S: Final = 0.25


def run(settings: Settings) -> None:
    """Runs control until SIGTERM or SIGINT. What can't mend itself ends the process: one line of log, exit code 70."""
    telemetry.setup("control", settings)
    try:
        secrets = Secrets(load_or_create_master_key(settings.master_key_file))
        migrations = read_migrations(schemas_folder("postgres"))
        prices = Catalogs(SHIPPED_CATALOG.read_bytes())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, secrets, migrations, prices))
    except (MasterKeyError, MigrationError, BootError, CatalogError, IdentityError, OSError) as error:
        _log.critical("control_can_not_run", reason=str(error))
        sys.exit(_FATAL_EXIT)
    except Exception:  # a fault of ours: whoever supervises this process starts it again
        _log.critical("control_failed", exc_info=True)
        sys.exit(_FATAL_EXIT)
    finally:
        telemetry.shutdown()


async def _serve(settings: Settings, secrets: Secrets, migrations: Sequence[Migration], prices: Catalogs) -> None:
    postgres = Postgres(settings.postgres_dsn.get_secret_value())
    valkey = connect(settings.redis_url)
    hot = ValkeyHotState(valkey)
    context = Context(postgres, hot, secrets, prices, Publisher(postgres, prices, ValkeyDirectory(valkey)), Cel())
    api = build_api()
    api.state.context = context
    work = asyncio.create_task(_work(settings, context, migrations))
    server = asyncio.create_task(http_server.serve(api, settings.host, settings.port))
    try:
        await asyncio.wait((work, server), return_when=asyncio.FIRST_COMPLETED)
        for task in (work, server):
            if task.done():
                task.result()
    finally:
        for task in (work, server):
            task.cancel()
        await asyncio.gather(work, server, return_exceptions=True)
        await hot.close()
        await postgres.close()


async def _work(settings: Settings, context: Context, migrations: Sequence[Migration]) -> None:
    """Migrates and fills the database as soon as it is there, then keeps the gateways up to date for ever."""
    is_waiting = False
    while not context.started.is_set():
        try:
            await _start(settings, context, migrations)
        except UnavailableError as error:
            if not is_waiting:
                _log.warning("start_waits", reason=str(error))
            is_waiting = True
            await asyncio.sleep(_RETRY_INTERVAL_S)
    async with asyncio.TaskGroup() as loops:
        loops.create_task(context.publisher.run())
        loops.create_task(end_due_for_ever(context))


async def _start(settings: Settings, context: Context, migrations: Sequence[Migration]) -> None:
    applied = await migrate(settings.postgres_dsn.get_secret_value(), migrations)
    if applied:
        _log.info("migrated", applied=applied)
    await boot(context, BootSettings(settings.bootstrap_org, settings.state_dir, settings.hold_seconds * 1000))
    # A hot state that is away does not keep control from being managed, but one that is there has all when it is ready.
    await context.publisher.catch_up()
    context.started.set()
