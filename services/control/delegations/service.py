"""Delegations (BU-9): the key and budget of a part that was carved from others. The gateway held the money before."""

import asyncio
import secrets
import string
from typing import Annotated, Final

import structlog
from asyncpg import Record
from pydantic import BaseModel, Field, SecretStr

from services.control.context import Change, Context
from services.control.delegations import queries
from services.control.errors import conflict, invalid, not_found
from services.control.fields import Body, Name
from services.control.keys import queries as key_queries
from services.core.identity import DIMENSIONS, KEY_PREFIX, check_name, hash_key, is_key_text
from services.core.parts import key_of
from services.core.ports import UnavailableError

_log = structlog.get_logger(__name__)

# Each is a key and a budget that every gateway of the org's loads with each change.
MAX_LIVE_PER_KEY: Final = 200
MAX_LIVE_PER_ORG: Final = 2_000
# What is ended in one go; the next look is a second later.
_DUE_AT_ONCE: Final = 200
_LOOK_S: Final = 1.0
_ALPHABET: Final = string.ascii_letters + string.digits
_RANDOM_CHARACTERS: Final = 40

Nano = Annotated[int, Field(gt=0, lt=2**63)]


class NewDelegation(Body):
    """A part that the gateway has carved. `covers` are the budgets that the part is held against already.

    `config_version` is the configuration by whose budgets it was carved.
    `request_hash` and `key` come with the request of a caller who named an Idempotency-Key: what tells it from others,
    and the part's key in clear. Else control makes the key.
    """

    reservation_id: Name
    budget_id: Name
    parent_budget_id: Name
    limit_nano: Nano
    covers: list[Name] = Field(max_length=256)
    starts_ms: Nano
    ends_ms: Nano
    pins: dict[str, Name]
    made_by: Name
    config_version: int = Field(ge=0, lt=2**63)
    request_hash: str = Field(default="", max_length=64)
    key: SecretStr = SecretStr("")


class NewDelegationAnswer(BaseModel):
    """The part's key in clear (it can't be shown again)."""

    budget_id: str
    key_id: str
    key: str


class DelegationAnswer(BaseModel):
    """A delegation as it is kept. `has_lapsed`: it has ended because nothing was held for it any more (`lapse`)."""

    budget_id: str
    reservation_id: str
    parent_budget_id: str
    key_id: str
    limit_nano: int
    starts_ms: int
    ends_ms: int
    made_by: str
    request_hash: str
    has_ended: bool
    has_lapsed: bool


class EndedAnswer(BaseModel):
    """Which reservations hold the parts that have ended: of the one that was named, then of those carved from it."""

    reservation_ids: list[str]


async def delegate(context: Context, org: str, request: NewDelegation) -> NewDelegationAnswer:
    """Makes the key and budget of a part. 409 when there is one of this id: its key was shown once.

    409, too, when the maker's key or the org has as many live parts as they may, and (`budget_changed`) when a budget
    has changed since the part was carved from it.
    """
    for name, value in request.pins.items():
        check_name(f"pins.{name}", value)
    pins = {name: value for name, value in request.pins.items() if name in DIMENSIONS}
    text = request.key.get_secret_value() or _random_key()
    if not is_key_text(text):
        raise invalid("key", "key must have the form of a key")
    key_id = key_of(request.budget_id)
    async with context.change(org, request.made_by) as change:
        if await queries.find(change.connection, org, request.budget_id) is not None:
            raise conflict("already_delegated", f"{request.budget_id} was delegated already, and its key shown then")
        await _check_budgets(change, request)
        await _check_room(change, request.made_by)
        await key_queries.insert(
            change.connection, key_id, org, hash_key(text, context.vault.pepper), text[-4:], "agent", pins
        )
        await queries.insert(
            change.connection,
            org,
            queries.NewDelegation(
                budget_id=request.budget_id,
                reservation_id=request.reservation_id,
                parent_budget_id=request.parent_budget_id,
                key_id=key_id,
                limit_nano=request.limit_nano,
                covers=request.covers,
                starts_ms=request.starts_ms,
                ends_ms=request.ends_ms,
                made_by=request.made_by,
                request_hash=request.request_hash,
            ),
        )
        after = {**request.model_dump(mode="json", exclude={"request_hash", "key"}), "key_id": key_id}
        await change.audit("budget.delegate", request.budget_id, after=after)
    return NewDelegationAnswer(budget_id=request.budget_id, key_id=key_id, key=text)


def _random_key() -> str:
    return KEY_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))


async def _check_budgets(change: Change, request: NewDelegation) -> None:
    """Raises a 409 for a part that a gateway has carved from budgets of which it had not heard yet what they are now.

    It would be held in a window that its calls are not counted in. From here on, windows stay (`has_parts`).
    """
    overtaken = await queries.find_overtaken(change.connection, change.org, request.covers, request.config_version)
    if overtaken is not None:
        raise conflict("budget_changed", f"budget {overtaken} has changed while a part was carved from it")


async def _check_room(change: Change, made_by: str) -> None:
    in_all, made = await queries.count_live(change.connection, change.org, made_by)
    for live, most, whose in ((made, MAX_LIVE_PER_KEY, "this key"), (in_all, MAX_LIVE_PER_ORG, "this org")):
        if live >= most:
            message = f"{whose} has {live} live parts, and no more fit; end some, or let them end at their time"
            raise conflict("too_many_parts", message)


async def find(context: Context, org: str, budget_id: str) -> DelegationAnswer:
    """A delegation of an org; 404 when there is none."""
    async with context.database.snapshot() as connection:
        row = await queries.find(connection, org, budget_id)
    if row is None:
        raise not_found(f"delegated budget {budget_id[:60]!r}")
    return _answer(row)


async def end(context: Context, org: str, budget_id: str, actor: str) -> EndedAnswer:
    """Ends a delegation and all that its key has handed on in turn: their keys are revoked.

    What is left returns as soon as their open calls have ended. To end what has ended tells the same again.
    """
    async with context.change(org, actor) as change:
        below = await queries.list_below(change.connection, org, budget_id)
        if not below:
            raise not_found(f"delegated budget {budget_id[:60]!r}")
        for ended in await queries.end(change.connection, org, [row["budget_id"] for row in below]):
            await change.audit("budget.delegation_end", ended)
    return EndedAnswer(reservation_ids=[row["reservation_id"] for row in below])


async def lapse(context: Context, org: str, budget_id: str, actor: str) -> DelegationAnswer:
    """Ends a delegation whose key nobody was told, and that nothing is held for any more; what it is then.

    That is noted, for whoever asks for the same part again. One that has ended before stays as it is.
    """
    async with context.change(org, actor) as change:
        if await queries.find(change.connection, org, budget_id) is None:
            raise not_found(f"delegated budget {budget_id[:60]!r}")
        for ended in await queries.end(change.connection, org, [budget_id]):
            await queries.mark_lapsed(change.connection, org, ended)
            await change.audit("budget.delegation_end", ended, after={"has_lapsed": True})
    return await find(context, org, budget_id)


async def end_due(context: Context, now_ms: int) -> int:
    """Ends the delegations whose time is over, and those of revoked keys; how many. Raises `UnavailableError`.

    A key that is revoked takes with it what it has handed on. One that can't be ended holds up no other.
    """
    async with context.database.snapshot() as connection:
        due = await queries.list_due(connection, now_ms, _DUE_AT_ONCE)
    ended = 0
    for org, budget_id in due:
        try:
            await end(context, org, budget_id, "control")
        except UnavailableError:
            raise
        except Exception:  # whatever it is, it is this part's own
            _log.exception("part_not_ended", org=org, budget_id=budget_id)
        else:
            ended += 1
    return ended


async def end_due_for_ever(context: Context) -> None:
    """Ends delegations at their time, by the hot state's clock. Engines that are away are waited for."""
    while True:
        try:
            await end_due(context, await context.hot.now_ms())
        except UnavailableError:
            pass
        except Exception:  # control does more than this, and goes on
            _log.exception("parts_not_ended")
        await asyncio.sleep(_LOOK_S)


def _answer(row: Record) -> DelegationAnswer:
    fields = {name: row[name] for name in DelegationAnswer.model_fields if name != "has_ended"}
    return DelegationAnswer(**fields, has_ended=row["ended_at"] is not None)
