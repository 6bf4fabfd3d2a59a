"""Route rules: the status of a budget's refusal, the vendor's time, what is done when it or the spend state fails."""

import re
from collections.abc import Mapping
from typing import Final

from asyncpg import Record
from pydantic import BaseModel, Field

from services.control.auth import Admin
from services.control.connections import queries as connection_queries
from services.control.connections.names import SANDBOX, check_vendor_name
from services.control.errors import invalid, not_found
from services.control.fields import Body, Instant, ModelName, VendorName
from services.control.prices.org_prices import now_ms, read_prices
from services.control.route_rules import queries
from services.core.dialects import DEFAULT_DIALECT, default_dialect
from services.core.pricelist import PriceList
from services.core.snapshot import ANY, Connection, RouteRule, Target

BUDGET_STATUSES: Final = (402, 403, 429)
MIN_TIMEOUT_MS: Final = 1_000
MAX_FALLBACKS: Final = 5

_ROUTE: Final = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_SANDBOX: Final = Connection(SANDBOX, DEFAULT_DIALECT, "", None, SANDBOX)


class TargetBody(Body):
    """A vendor's model to try."""

    vendor: VendorName
    model: ModelName


class SetRule(Body):
    """A rule as it shall be; it replaces the former one of its vendor and route. What is left out is not ruled."""

    vendor: VendorName = Field(default=ANY, description="A vendor, or * for all.")
    route: str = Field(default=ANY, max_length=63, examples=["chat.completions"], description="A route, or * for all.")
    budget_status: int | None = Field(default=None, description="The HTTP status of a budget's refusal: 402, 403, 429.")
    timeout_ms: int | None = Field(default=None, description="How long the vendor may take: 1000 up to the hold time.")
    fallbacks: list[TargetBody] | None = Field(
        default=None, max_length=MAX_FALLBACKS, description="Tried in order when the vendor fails; [] means none."
    )
    fail_open: bool | None = Field(
        default=None,
        description="Whether calls pass without a hold, flagged, while the spend state can't be reached or is being "
        "rebuilt; budgets can be overspent then. Not ruled anywhere, they do not.",
    )


class TargetAnswer(BaseModel):
    """A vendor's model to try."""

    vendor: str
    model: str


class Rule(BaseModel):
    """A rule. What is null is left to wider rules."""

    vendor: str
    route: str
    budget_status: int | None
    timeout_ms: int | None
    fallbacks: list[TargetAnswer] | None
    fail_open: bool | None
    created_at: Instant
    updated_at: Instant


class Rules(BaseModel):
    """Every rule of the org. Of each setting, the most particular rule that has it counts."""

    rules: list[Rule]


async def list_rules(admin: Admin) -> Rules:
    """The org's rules."""
    async with admin.context.database.snapshot() as connection:
        rows = await queries.list_rows(connection, admin.org)
    return Rules(rules=[_answer(row) for row in rows])


async def set_rule(admin: Admin, request: SetRule) -> tuple[Rule, bool]:
    """Sets the rule of a vendor and route, and whether it is new."""
    if request.vendor not in (ANY, SANDBOX):
        check_vendor_name(request.vendor)
    if request.route != ANY and _ROUTE.fullmatch(request.route) is None:
        raise invalid("route", "route must be a route's name, such as chat.completions, or * for all")
    if request.budget_status not in (None, *BUDGET_STATUSES):
        raise invalid("budget_status", f"budget_status must be one of {', '.join(map(str, BUDGET_STATUSES))}")
    if all(each is None for each in (request.budget_status, request.timeout_ms, request.fallbacks, request.fail_open)):
        raise invalid("budget_status", "name what to rule: budget_status, timeout_ms, fallbacks or fail_open")
    async with admin.change() as change:
        org, prices = await read_prices(admin.context.prices, change.connection, admin.org)
        longest = org.hold_ms
        if request.timeout_ms is not None and not MIN_TIMEOUT_MS <= request.timeout_ms <= longest:
            raise invalid("timeout_ms", f"timeout_ms must be from {MIN_TIMEOUT_MS} to {longest}, the hold time")
        compiled = await connection_queries.list_compiled(change.connection, admin.org)
        known = {SANDBOX: _SANDBOX, **{each.vendor: each for each in compiled}}
        rule = RouteRule(
            request.vendor,
            request.route,
            request.budget_status,
            request.timeout_ms,
            None if request.fallbacks is None else _fallbacks(request.vendor, request.fallbacks, known, prices),
            request.fail_open,
        )
        before = await queries.find(change.connection, admin.org, rule.vendor, rule.route)
        answer = _answer(await queries.upsert(change.connection, admin.org, rule))
        await change.audit(
            "route.create" if before is None else "route.update",
            f"{rule.vendor} {rule.route}",
            before=None if before is None else _answer(before).model_dump(mode="json"),
            after=answer.model_dump(mode="json"),
        )
    return answer, before is None


async def delete_rule(admin: Admin, vendor: str, route: str) -> None:
    """Removes a rule."""
    async with admin.change() as change:
        before = await queries.find(change.connection, admin.org, vendor, route)
        if before is None:
            raise not_found(f"rule of vendor {vendor[:63]!r} and route {route[:63]!r}")
        await queries.delete(change.connection, admin.org, vendor, route)
        await change.audit("route.delete", f"{vendor} {route}", before=_answer(before).model_dump(mode="json"))


def _fallbacks(
    vendor: str, wanted: list[TargetBody], known: Mapping[str, Connection], prices: PriceList
) -> tuple[Target, ...]:
    if wanted and vendor == ANY:
        raise invalid("fallbacks", "fallbacks need a vendor: they must speak what it speaks; name one in vendor")
    dialect = known[vendor].dialect if vendor in known else default_dialect(vendor)
    found: list[Target] = []
    for number, each in enumerate(wanted):
        where = f"fallbacks.{number}"
        connection = known.get(each.vendor)
        if connection is None:
            message = f"{where}.vendor {each.vendor!r} is not connected; connect it first"
            raise invalid(f"{where}.vendor", message)
        if connection.dialect != dialect:
            message = f"{where}.vendor {each.vendor!r} speaks {connection.dialect}, and {vendor!r} speaks {dialect}"
            raise invalid(f"{where}.vendor", f"{message}; name a vendor that speaks {dialect}")
        if prices.find(connection.prices_as, each.model, now_ms()) is None:
            message = f"{where}.model {each.model!r} has no price with vendor {connection.prices_as!r}"
            raise invalid(f"{where}.model", f"{message}; name one that has, or set a price override")
        target = Target(each.vendor, each.model)
        if target in found:
            raise invalid(where, f"{where} is named twice; leave one out")
        found.append(target)
    return tuple(found)


def _answer(row: Record) -> Rule:
    rule = queries.rule_of(row)
    targets = rule.fallbacks
    return Rule(
        vendor=rule.vendor,
        route=rule.route,
        budget_status=rule.budget_status,
        timeout_ms=rule.timeout_ms,
        fallbacks=None if targets is None else [TargetAnswer(vendor=each.vendor, model=each.model) for each in targets],
        fail_open=rule.fail_open,
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
