"""What control does once before it serves: the price catalog, the master key's fingerprint, and the first org."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from asyncpg import Connection

from services.control.agents.service import ensure_placed
from services.control.audit import queries as audit_queries
from services.control.budgets.forms import SetBudget
from services.control.budgets.service import put_budget
from services.control.catalogs import queries as catalog_queries
from services.control.catalogs.service import propose_shipped
from services.control.context import Change, Context
from services.control.keys import queries as key_queries
from services.control.keys.service import NewKey, make_key
from services.control.orgs import queries as org_queries
from services.control.orgs.service import org_fields
from services.core.identity import check_name, hash_key

_log = structlog.get_logger(__name__)

_DEFAULT_NAME: Final = "default"
_DEFAULT_LIMIT_USD: Final = "10.00"
FIRST_KEYS: Final = "first-keys.json"


class BootError(RuntimeError):
    """Control can't serve this database; the text says why and how to fix it."""


@dataclass(frozen=True, slots=True)
class BootSettings:
    """`bootstrap_org`: the org to make when there is none; `state_dir`: where its first keys are handed over."""

    bootstrap_org: str | None
    state_dir: Path
    hold_ms: int


async def boot(context: Context, settings: BootSettings) -> None:
    """Brings a migrated database up to what this version and these settings say. Repeating it changes nothing.

    Raises `BootError` and `UnavailableError`.
    """
    handover = Handover(settings.state_dir)
    async with context.database.transaction() as connection:
        # Control may run more than once; one boots at a time.
        await connection.execute("LOCK TABLE installation IN EXCLUSIVE MODE")
        await _check_master_key(connection, context.vault.fingerprint)
        await context.prices.keep_shipped(connection)
        await _settle_hold(connection, settings.hold_ms)
        await propose_shipped(connection, context.prices.shipped_version)
        if settings.bootstrap_org is not None and not await org_queries.list_versions(connection):
            handover.prepare(await _bootstrap(connection, context, settings.bootstrap_org, settings.hold_ms))
    async with context.database.snapshot() as connection:
        await handover.complete(connection, context.vault.pepper)


async def _check_master_key(connection: Connection, fingerprint: str) -> None:
    known = await connection.fetchval("SELECT master_key_fingerprint FROM installation")
    if known is None:
        await connection.execute("INSERT INTO installation (master_key_fingerprint) VALUES ($1)", fingerprint)
    elif known != fingerprint:
        raise BootError(
            "the master key file is not the one this database was made with, and no key stored in it would work; "
            "restore that file, or start with an empty database"
        )


async def _settle_hold(connection: Connection, hold_ms: int) -> None:
    for before, after in await org_queries.settle_hold(connection, hold_ms):
        await audit_queries.insert(
            connection,
            after.name,
            after.config_version,
            "control",
            "org.update",
            after.name,
            org_fields(before),
            org_fields(after),
        )


async def _bootstrap(connection: Connection, context: Context, org: str, hold_ms: int) -> dict[str, str]:
    """Makes the first org with a budget, an admin key and an agent key; the keys in clear."""
    await org_queries.insert(connection, check_name("bootstrap_org", org), context.prices.shipped_version, hold_ms)
    await catalog_queries.insert_accepted(connection, org, context.prices.shipped_version, "bootstrap")
    change = Change(connection, org, "bootstrap", 1)
    await change.audit("org.create", org, after=org_fields(await org_queries.find(connection, org)))
    await ensure_placed(change, _DEFAULT_NAME, _DEFAULT_NAME)
    await put_budget(change, SetBudget(limit_usd=_DEFAULT_LIMIT_USD, window="day"), context)
    admin = await make_key(change, context.vault, NewKey(role="org_admin"))
    agent = await make_key(change, context.vault, NewKey(team=_DEFAULT_NAME, agent=_DEFAULT_NAME))
    _log.info("org_made", org=org)
    return {"admin_key": admin.key, "agent_key": agent.key}


class Handover:
    """Hands the first keys over exactly once, in a file for the supervisor.

    The file is written under another name before the commit and gets its own after it, so that neither a kill before
    the commit shows keys that never worked, nor one after it loses keys that do.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FIRST_KEYS
        self._pending = state_dir / f"{FIRST_KEYS}.pending"

    def prepare(self, keys: dict[str, str]) -> None:
        """Writes the keys durably where nobody looks yet. Raises `BootError`."""
        try:
            self._pending.parent.mkdir(parents=True, exist_ok=True)
            self._pending.unlink(missing_ok=True)
            descriptor = os.open(self._pending, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(keys, file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise BootError(
                f"the first keys can't be written to {self._pending}: {error.strerror}; make it writable"
            ) from error

    async def complete(self, connection: Connection, pepper: bytes) -> None:
        """Shows pending keys when the database has them, else forgets them."""
        if not self._pending.exists():
            return
        try:
            admin_key = json.loads(self._pending.read_text())["admin_key"]
        except ValueError:  # a kill amid the writing: the commit waits for the whole file, so these keys never worked
            self._pending.unlink()
            return
        if await key_queries.find_live(connection, hash_key(admin_key, pepper)) is None:
            self._pending.unlink()
        else:
            self._pending.rename(self._path)
