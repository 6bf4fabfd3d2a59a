"""Vendor connections: where a vendor is and the org's key for it, sealed before it is stored and never shown again."""

import re
from typing import Final
from urllib.parse import urlsplit

from asyncpg import Record
from pydantic import BaseModel, Field, SecretStr

from services.control.auth import Admin
from services.control.connections import queries
from services.control.connections.names import check_vendor_name
from services.control.context import Change
from services.control.errors import conflict, invalid, not_found
from services.control.fields import Body, Instant
from services.control.prices.org_prices import read_prices
from services.control.route_rules import queries as rule_queries
from services.core.billing import BYOK, CONNECTION_AUTH_MODES, METERED, ConnectionAuthMode
from services.core.dialects import DIALECTS, KEYLESS, default_base_url, default_dialect
from services.core.pricelist import PriceList
from services.core.snapshot import Connection

_KEY: Final = re.compile(r"[\x21-\x7e]{1,1024}")
_HINT_CHARACTERS: Final = 4
_ENDS_WITH_VERSION: Final = re.compile(r"/v\d+(?:alpha|beta)?\d*/*")


class SetConnection(Body):
    """A connection as it shall be; it replaces the vendor's former one whole, but for an auth mode left out.

    A key that is renewed must not slip its calls past the caps of the auth mode they had.
    """

    api_key: SecretStr | None = Field(
        default=None,
        description="The vendor's key; null for a server that wants none. May be left out for ollama and vllm only.",
    )
    dialect: str | None = Field(
        default=None,
        max_length=63,
        examples=["openai"],
        description=f"The API it speaks: {', '.join(DIALECTS)}. Default: the vendor's own, else openai.",
    )
    base_url: str | None = Field(
        default=None,
        max_length=2048,
        examples=["https://api.openai.com/v1"],
        description="Where the vendor's API begins: in OpenAI's dialect with its version, in others without it."
        " May be left out for well-known vendors.",
    )
    prices_as: str | None = Field(
        default=None,
        max_length=63,
        examples=["openai"],
        description="The vendor whose prices hold here. May be left out when the vendor has prices of its own.",
    )
    auth_mode: str | None = Field(
        default=None,
        max_length=63,
        examples=["metered"],
        description=f"How its calls are paid for: {', '.join(CONNECTION_AUTH_MODES)}."
        " Default: as it is, metered for a new connection.",
    )


class ConnectionAnswer(BaseModel):
    """A connection, without its key. `key_hint` is the last four characters of a key long enough to spare them."""

    vendor: str
    dialect: str
    base_url: str
    key_hint: str | None
    prices_as: str
    auth_mode: ConnectionAuthMode
    created_at: Instant
    updated_at: Instant


class Connections(BaseModel):
    """Every connection of the org, by vendor."""

    connections: list[ConnectionAnswer]


async def set_connection(admin: Admin, vendor: str, request: SetConnection) -> tuple[ConnectionAnswer, bool]:
    """Sets the connection to a vendor, and whether it is new."""
    check_vendor_name(vendor)
    dialect = _dialect(vendor, request.dialect)
    if "api_key" not in request.model_fields_set and vendor not in KEYLESS:
        raise invalid("api_key", "api_key is required; null means that the server wants none")
    key = _key(request.api_key)
    base_url = _base_url(vendor, dialect, request.base_url)
    auth_mode = None if request.auth_mode is None else _auth_mode(request.auth_mode)
    sealed_key = None if key is None else admin.context.vault.seal(admin.org, vendor, key)
    async with admin.change() as change:
        org, prices = await read_prices(admin.context.prices, change.connection, admin.org)
        # An org that takes models without a price needs none here.
        may_lack = org.unknown_models.policy != "reject"
        prices_as = _prices_as(prices, vendor, request.prices_as, may_lack=may_lack)
        before = await queries.find(change.connection, admin.org, vendor)
        if auth_mode is None:
            auth_mode = METERED if before is None else before["auth_mode"]
        compiled = Connection(vendor, dialect, base_url, sealed_key, prices_as, auth_mode)
        if before is not None and before["dialect"] != dialect:
            await _check_rules(change, vendor, as_their_own=True)
        answer = _answer(await queries.upsert(change.connection, admin.org, compiled, _hint(key)))
        await change.audit(
            "connection.create" if before is None else "connection.update",
            vendor,
            before=None if before is None else _answer(before).model_dump(mode="json"),
            after=answer.model_dump(mode="json"),
        )
    return answer, before is None


async def list_connections(admin: Admin) -> Connections:
    """The org's connections."""
    async with admin.context.database.snapshot() as connection:
        rows = await queries.list_connections(connection, admin.org)
    return Connections(connections=[_answer(row) for row in rows])


async def delete_connection(admin: Admin, vendor: str) -> None:
    """Removes a connection and its key."""
    async with admin.change() as change:
        before = await queries.find(change.connection, admin.org, vendor)
        if before is None:
            raise not_found(f"connection to vendor {vendor[:60]!r}")
        await _check_rules(change, vendor, as_their_own=False)
        await queries.delete(change.connection, admin.org, vendor)
        await change.audit("connection.delete", vendor, before=_answer(before).model_dump(mode="json"))


async def _check_rules(change: Change, vendor: str, *, as_their_own: bool) -> None:
    """Raises a 409 when a rule falls back to this vendor, or (`as_their_own`) from it: both must speak one dialect."""
    for rule in await rule_queries.list_rules(change.connection, change.org):
        targets = {each.vendor for each in rule.fallbacks or ()}
        if vendor in targets or (as_their_own and targets and rule.vendor == vendor):
            message = f"fallbacks of the rule of vendor {rule.vendor!r} and route {rule.route!r} need this connection"
            raise conflict("connection_in_use", f"{message} as it is; change that rule first")


def _dialect(vendor: str, dialect: str | None) -> str:
    if dialect is None:
        return default_dialect(vendor)
    if dialect not in DIALECTS:
        raise invalid("dialect", f"dialect must be one of: {', '.join(DIALECTS)}")
    return dialect


def _auth_mode(text: str) -> ConnectionAuthMode:
    for mode in CONNECTION_AUTH_MODES:
        if text == mode:
            return mode
    message = f"auth_mode must be one of: {', '.join(CONNECTION_AUTH_MODES)}"
    if text == BYOK:
        message += f"; a call is {BYOK} when it brings a key of its own, with any connection"
    raise invalid("auth_mode", message)


def _key(api_key: SecretStr | None) -> str | None:
    if api_key is None:
        return None
    text = api_key.get_secret_value()
    if _KEY.fullmatch(text) is None:
        raise invalid(
            "api_key", "api_key must be 1 to 1024 printable ASCII characters without blanks; null means no key"
        )
    return text


def _hint(key: str | None) -> str | None:
    return None if key is None or len(key) < 4 * _HINT_CHARACTERS else key[-_HINT_CHARACTERS:]


def _base_url(vendor: str, dialect: str, base_url: str | None) -> str:
    facts = DIALECTS[dialect]
    if base_url is None:
        known = default_base_url(vendor, dialect)
        if known is None:
            example = "http://127.0.0.1:11434/v1" if facts.base_has_version else "https://models.example.com"
            raise invalid("base_url", f"base_url is required for vendor {vendor!r}, such as {example}")
        return known
    problem = _url_problem(base_url)
    if problem is not None:
        raise invalid("base_url", f"base_url {problem}; write it like https://api.openai.com/v1")
    if not facts.base_has_version and _ENDS_WITH_VERSION.search(base_url) is not None:
        message = f"base_url must not hold the version: paths of dialect {dialect} begin with it; leave it out"
        raise invalid("base_url", message)
    return base_url.rstrip("/")


def _url_problem(text: str) -> str | None:
    """What is wrong with a base URL, if anything. The text itself is not repeated: it may hold a password."""
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        return "must be printable ASCII without blanks or backslashes"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "must begin with http:// or https:// and a host"
    if "@" in parts.netloc:
        return "must not hold a user or password; the key goes into api_key"
    if "?" in text or "#" in text:
        return "must not hold a query or fragment"
    if port == 0:
        return "must not have port 0"
    return None


def _prices_as(prices: PriceList, vendor: str, prices_as: str | None, *, may_lack: bool) -> str:
    wanted = vendor if prices_as is None else prices_as
    if prices.has_vendor(wanted) or (wanted == vendor and may_lack):
        return wanted
    known = ", ".join(prices.vendors())
    if prices_as is None:
        message = f"vendor {vendor!r} has no prices; give its models some (farthing prices override), or set prices_as"
        raise invalid("prices_as", f"{message} to one of: {known}")
    raise invalid("prices_as", f"there are no prices of a vendor of that name; prices_as can be one of: {known}")


def _answer(row: Record) -> ConnectionAnswer:
    return ConnectionAnswer(**row)
