"""API keys: shown once, kept as an HMAC, revoked for good."""

import json
import secrets
import string
from typing import Final

from asyncpg import Record
from pydantic import BaseModel, Field
from ulid import ULID

from services.control.agents.service import ensure_placed
from services.control.auth import Admin
from services.control.context import Change, Vault
from services.control.errors import conflict, not_found
from services.control.fields import Body, Instant, Made, Name
from services.control.keys import queries
from services.core.identity import KEY_PREFIX, Role, check_name, hash_key

_ALPHABET: Final = string.ascii_letters + string.digits
_RANDOM_CHARACTERS: Final = 40
_PINNABLE: Final = ("team", "agent", "user", "project", "environment")


class NewKey(Body):
    """A key to make. Each name pins the key to it; what is left out stays open to the request's ``X-Spend-*`` headers.

    A key for an agent is pinned to the agent's team as well.
    """

    team: Name | None = None
    agent: Name | None = None
    user: Name | None = None
    project: Name | None = None
    environment: Name | None = None
    role: Role = "agent"


class Key(BaseModel):
    """A key, without the key itself. `hint` is its last four characters."""

    key_id: str = Field(examples=["key_01JD9Z0V9VJ3C2Q4M8K3J5H7RT"])
    role: Role
    team: str | None
    agent: str | None
    user: str | None
    project: str | None
    environment: str | None
    hint: str
    created_at: Instant
    revoked_at: Instant | None


class NewKeyAnswer(Key):
    """The key in clear (it can't be shown again), and what was made on the way."""

    key: str = Field(examples=["fk_live_" + "x" * _RANDOM_CHARACTERS])
    made: Made


class Keys(BaseModel):
    """Every key of the org, oldest first, revoked ones too."""

    keys: list[Key]


async def make_key(change: Change, vault: Vault, request: NewKey) -> NewKeyAnswer:
    """Makes a key as part of a change."""
    wanted = {name: value for name in _PINNABLE if (value := getattr(request, name)) is not None}
    for name, value in wanted.items():
        check_name(name, value)
    team, made = await ensure_placed(change, request.team, request.agent)
    pins = wanted if team is None else {"team": team, **wanted}
    text = KEY_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))
    row = await queries.insert(
        change.connection, f"key_{ULID()}", change.org, hash_key(text, vault.pepper), text[-4:], request.role, pins
    )
    key = _key(row)
    await change.audit("key.create", key.key_id, after=key.model_dump(mode="json"))
    return NewKeyAnswer(**key.model_dump(), key=text, made=made)


async def create_key(admin: Admin, request: NewKey) -> NewKeyAnswer:
    """Makes a key of the caller's org."""
    async with admin.change() as change:
        return await make_key(change, admin.context.vault, request)


async def list_keys(admin: Admin) -> Keys:
    """The org's keys."""
    async with admin.context.database.snapshot() as connection:
        rows = await queries.list_keys(connection, admin.org)
    return Keys(keys=[_key(row) for row in rows])


async def revoke_key(admin: Admin, key_id: str) -> Key:
    """Revokes a key; one that is revoked already stays as it is. 409 for the org's last admin key."""
    async with admin.change() as change:
        row = await queries.find(change.connection, admin.org, key_id)
        if row is None:
            raise not_found(f"key {key_id[:60]!r}")
        before = _key(row)
        if before.revoked_at is not None:
            return before
        if before.role == "org_admin" and await queries.count_live_admins(change.connection, admin.org) == 1:
            message = "this is the org's last admin key; without it nobody could manage the org: make another one first"
            raise conflict("last_admin_key", message)
        after = _key(await queries.revoke(change.connection, key_id))
        await change.audit(
            "key.revoke", key_id, before=before.model_dump(mode="json"), after=after.model_dump(mode="json")
        )
    return after


def _key(row: Record) -> Key:
    pins = json.loads(row["pins"])
    return Key(
        **{name: row[name] for name in ("key_id", "role", "hint", "created_at", "revoked_at")},
        **{name: pins.get(name) for name in _PINNABLE},
    )
