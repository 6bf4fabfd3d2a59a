"""The cap matrix: what each auth mode of each vendor may spend a day, a month and a session (BU-7)."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from services.control.auth import Admin
from services.control.budgets.standings import peek_single
from services.control.cap_policies import queries
from services.control.cap_policies.compiled import compile_caps
from services.control.connections.names import SANDBOX, is_vendor_name
from services.control.errors import ApiError, conflict, invalid, not_found
from services.control.fields import Body, Usd
from services.control.orgs import queries as org_queries
from services.core.billing import AUTH_MODES, Cap, CapPeriod
from services.core.budgets import Standing
from services.core.codec_fields import format_time
from services.core.money import MAX_LIMIT_NANO, MoneyError, format_usd, parse_usd

MAX_CELLS: Final = 500

_FIELDS: Final[Mapping[CapPeriod, str]] = {"daily": "daily", "monthly": "monthly", "per_session": "perSession"}
_AMOUNT: Final = {
    "anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}],
    "examples": ["10.00"],
    "description": "US dollars, as a decimal string or a whole number; 0 blocks everything, null is not enforced.",
}
# Checked here and not by a type: what a type says of a number with a fraction would not tell how to write it.
Amount = Annotated[Any, WithJsonSchema(_AMOUNT)]


class ChangeCell(Body):
    """Caps of one cell as they shall be; what is left out stays as it is."""

    daily: Amount = None
    monthly: Amount = None
    per_session: Amount = Field(default=None, alias="perSession")


class ChangeCapPolicy(Body):
    """Cells as they shall be, by billing class; null removes a cell."""

    caps: dict[str, ChangeCell | None] = Field(max_length=MAX_CELLS, examples=[{"metered.openai": {"daily": "10.00"}}])


class Cell(BaseModel):
    """Caps of one billing class: what is null is not enforced, and what is not there has no cap."""

    model_config = ConfigDict(serialize_by_alias=True)

    daily: Usd | None = None
    monthly: Usd | None = None
    per_session: Usd | None = Field(default=None, alias="perSession")


class CapStanding(BaseModel):
    """What a cap's present day or month has spent and holds."""

    model_config = ConfigDict(serialize_by_alias=True)

    spent_usd: Usd = Field(alias="spentUsd")
    held_usd: Usd = Field(alias="heldUsd")
    remaining_usd: Usd = Field(alias="remainingUsd")
    resets_at: str = Field(alias="resetsAt")

    @classmethod
    def of(cls, standing: Standing) -> Self:
        """The answer for known figures of a window that has an end."""
        assert standing.resets_at_ms is not None, "a day and a month end"
        return cls(
            spentUsd=format_usd(standing.spent_nano),
            heldUsd=format_usd(standing.held_nano),
            remainingUsd=format_usd(standing.remaining_nano),
            resetsAt=format_time(standing.resets_at_ms),
        )


class CellStandings(BaseModel):
    """Where the caps of a cell stand that are enforced and no session's."""

    daily: CapStanding | None = None
    monthly: CapStanding | None = None


class CapPolicy(BaseModel):
    """The cap matrix of an org, by billing class: an auth mode, a dot and a vendor. `configVersion` is the org's.

    `standings` is there in the answer to a GET: null while the spend state is away or being rebuilt.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    org_id: str = Field(alias="orgId")
    config_version: int = Field(alias="configVersion")
    caps: dict[str, Cell] = Field(examples=[{"metered.openai": {"daily": "10.000000000", "perSession": None}}])
    standings: dict[str, CellStandings] | None = None


async def get_policy(admin: Admin, org_id: str) -> CapPolicy:
    """The cap matrix of the admin's own org, and where it stands; 403 for another's, 404 for one that is not there."""
    await _check_org(admin, org_id)
    async with admin.context.database.snapshot() as connection:
        caps = await queries.list_caps(connection, admin.org)
        record = await org_queries.find(connection, admin.org)
    return CapPolicy(
        orgId=admin.org,
        configVersion=record.config_version,
        caps=_policy_cells(caps),
        standings=await _standings(admin, caps),
    )


async def change_policy(admin: Admin, org_id: str, request: ChangeCapPolicy) -> CapPolicy:
    """Changes cells of the admin's own org in one version, or in none where all is so already; 403 and 404 as for
    `get_policy`.
    """
    await _check_org(admin, org_id)
    if not request.caps:
        raise invalid("caps", 'caps is empty; name a cell to change, such as {"metered.openai": {"daily": "10.00"}}')
    wanted = {name: _limits(name, cell) for name, cell in request.caps.items()}
    async with admin.change() as change:
        before = await queries.list_caps(change.connection, admin.org)
        known = {(each.billing_class, each.period): each for each in before}
        for billing_class, limits in wanted.items():
            if limits is None:
                await queries.delete_cell(change.connection, admin.org, billing_class)
                continue
            for period, limit_nano in limits.items():
                there = known.get((billing_class, period))
                cap = _changed(there, billing_class, period, limit_nano, change.config_version)
                if cap != there:
                    await queries.upsert(change.connection, admin.org, cap)
        after = await queries.list_caps(change.connection, admin.org)
        if after == before:
            return _policy(admin.org, await change.take_back(), before)
        cells = len({each.billing_class for each in after})
        if cells > MAX_CELLS:
            raise conflict("too_many_caps", f"the cap matrix would have {cells} cells, and {MAX_CELLS} are the most")
        await change.audit("cap_policy.update", admin.org, before=_told(before, wanted), after=_told(after, wanted))
    return _policy(admin.org, change.config_version, after)


def _changed(known: Cap | None, billing_class: str, period: CapPeriod, limit_nano: int | None, version: int) -> Cap:
    """The cap with its new limit. While it is enforced without a break it stays the same budget."""
    if known is None or (known.limit_nano is None) != (limit_nano is None):
        return Cap(billing_class, period, limit_nano, version)
    return Cap(billing_class, period, limit_nano, known.since_version)


async def _check_org(admin: Admin, org_id: str) -> None:
    if org_id == admin.org:
        return
    async with admin.context.database.snapshot() as connection:
        is_there = await queries.is_org(connection, org_id)
    if not is_there:
        raise not_found(f"org {org_id[:60]!r}")
    raise ApiError(403, "forbidden", f"this key manages org {admin.org!r} only; use a key of org {org_id[:60]!r}")


def _limits(billing_class: str, cell: ChangeCell | None) -> dict[CapPeriod, int | None] | None:
    """The limits that a cell shall have, by period; None removes it. Raises a 400 naming what is wrong."""
    where = "caps." + billing_class[:64].encode("ascii", "backslashreplace").decode()
    _check_class(where, billing_class)
    if cell is None:
        return None
    named = [period for period in _FIELDS if period in cell.model_fields_set]
    if not named:
        raise invalid(where, f"{where} is empty; name daily, monthly or perSession, or remove the cell with null")
    return {period: _limit(f"{where}.{_FIELDS[period]}", getattr(cell, period)) for period in named}


def _check_class(where: str, billing_class: str) -> None:
    auth_mode, _, vendor = billing_class.partition(".")
    if auth_mode not in AUTH_MODES:
        message = f"{where} must be an auth mode, a dot and a vendor, such as metered.openai; auth modes are"
        raise invalid(where, f"{message} {', '.join(AUTH_MODES)}")
    if vendor == "*":
        raise invalid(where, f"{where}: a cell is of one vendor; name each of them, or set a budget for them all")
    if vendor != SANDBOX and not is_vendor_name(vendor):
        raise invalid(where, f"{where}: after the dot goes a vendor's name as in its connection, such as openai")


def _limit(where: str, amount: object) -> int | None:
    """Nano-dollars of an amount; None, not enforced, for null. Raises a 400."""
    if amount is None:
        return None
    if isinstance(amount, float):
        raise invalid(where, f'{where} must not be a number with a fraction, which is not exact; write it like "12.50"')
    if isinstance(amount, bool) or not isinstance(amount, str | int):
        raise invalid(where, f'{where} must be US dollars as a string, such as "12.50", a whole number, or null')
    try:
        limit_nano = parse_usd(str(amount))
    except MoneyError as error:
        raise invalid(where, f"{where}: {error}") from error
    if limit_nano < 0:
        raise invalid(where, f"{where} must not be negative; 0 blocks everything, null is not enforced")
    if limit_nano > MAX_LIMIT_NANO:
        raise invalid(where, f"{where} must be at most {format_usd(MAX_LIMIT_NANO)}")
    return limit_nano


def _cells(caps: Iterable[Cap]) -> dict[str, dict[str, str | None]]:
    cells: dict[str, dict[str, str | None]] = {}
    for cap in caps:
        limit = None if cap.limit_nano is None else format_usd(cap.limit_nano)
        cells.setdefault(cap.billing_class, {})[_FIELDS[cap.period]] = limit
    return cells


def _told(caps: Iterable[Cap], wanted: Iterable[str]) -> dict[str, Any]:
    """The cells that a change is about, for the audit trail."""
    cells = _cells(caps)
    return {"caps": {name: cells[name] for name in sorted(wanted) if name in cells}}


def _policy(org: str, config_version: int, caps: Iterable[Cap]) -> CapPolicy:
    return CapPolicy(orgId=org, configVersion=config_version, caps=_policy_cells(caps))


def _policy_cells(caps: Iterable[Cap]) -> dict[str, Cell]:
    return {name: Cell(**cell) for name, cell in _cells(caps).items()}


async def _standings(admin: Admin, caps: Iterable[Cap]) -> dict[str, CellStandings] | None:
    """Where the caps stand; each session has a standing of its own, which is not told here."""
    single = {each.budget_id: each for each in caps if each.period != "per_session"}
    known, reason = await peek_single(admin.context.hot, admin.org, compile_caps(single.values()))
    if reason is not None:
        return None
    found: dict[str, dict[str, CapStanding]] = {}
    for budget_id, told in known.items():
        cap = single[budget_id]
        found.setdefault(cap.billing_class, {})[_FIELDS[cap.period]] = CapStanding.of(told)
    return {name: CellStandings(**cell) for name, cell in found.items()}
