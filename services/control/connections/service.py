"""Vendor connections: where a vendor is and the org's key for it, sealed before it is stored and never shown again."""

import re
from typing import Final
from urllib.parse import urlsplit

from asyncpg import Record
from pydantic import BaseModel, Field, SecretStr

from services.control.auth import Admin
from services.control.connections import queries
from services.control.errors import invalid, not_found
from services.control.fields import Body, Instant
from services.control.orgs import queries as org_queries
from services.core.pricing import Catalog
from services.core.snapshot import Connection

_VENDOR: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
# The sandbox is built in; the others are first parts of Farthing's own paths, and a vendor's name is one, too.
_RESERVED: Final = frozenset({"sandbox", "api", "v1", "docs", "redoc", "internal", "healthz", "readyz", "metrics"})
_DEFAULT_BASE_URLS: Final = {"openai": "https://api.openai.com/v1"}
_DIALECT: Final = "openai"
_KEY: Final = re.compile(r"[\x21-\x7e]{1,1024}")
_HINT_CHARACTERS: Final = 4


class SetConnection(Body):
    """A connection as it shall be; it replaces the vendor's former one whole."""

    api_key: SecretStr | None = Field(description="The vendor's key; null for a server that wants none.")
    base_url: str | None = Field(
        default=None,
        max_length=2048,
        examples=["https://api.openai.com/v1"],
        description="Where the vendor's API begins, its version included. May be left out for openai.",
    )
    prices_as: str | None = Field(
        default=None,
        max_length=63,
        examples=["openai"],
        description="The vendor whose prices hold here. May be left out when the vendor has prices of its own.",
    )


class ConnectionAnswer(BaseModel):
    """A connection, without its key. `key_hint` is the last four characters of a key long enough to spare them."""

    vendor: str
    dialect: str
    base_url: str
    key_hint: str | None
    prices_as: str
    created_at: Instant
    updated_at: Instant


class Connections(BaseModel):
    """Every connection of the org, by vendor."""

    connections: list[ConnectionAnswer]


async def set_connection(admin: Admin, vendor: str, request: SetConnection) -> tuple[ConnectionAnswer, bool]:
    """Sets the connection to a vendor, and whether it is new."""
    _check_vendor(vendor)
    key = _key(request.api_key)
    base_url = _base_url(vendor, request.base_url)
    sealed_key = None if key is None else admin.context.vault.seal(admin.org, vendor, key)
    async with admin.change() as change:
        org = await org_queries.find(change.connection, admin.org)
        catalog = await admin.context.prices.catalog_of(change.connection, org.catalog_version)
        compiled = Connection(vendor, _DIALECT, base_url, sealed_key, _prices_as(catalog, vendor, request.prices_as))
        before = await queries.find(change.connection, admin.org, vendor)
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
        await queries.delete(change.connection, admin.org, vendor)
        await change.audit("connection.delete", vendor, before=_answer(before).model_dump(mode="json"))


def _check_vendor(vendor: str) -> None:
    if vendor in _RESERVED:
        raise invalid("vendor", f"vendor {vendor!r} is Farthing's own name; choose another")
    if _VENDOR.fullmatch(vendor) is None:
        raise invalid("vendor", "vendor must be 1 to 63 lower-case letters, digits or -, starting with a letter")


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


def _base_url(vendor: str, base_url: str | None) -> str:
    if base_url is None:
        if vendor not in _DEFAULT_BASE_URLS:
            raise invalid("base_url", f"base_url is required for vendor {vendor!r}, such as http://127.0.0.1:11434/v1")
        return _DEFAULT_BASE_URLS[vendor]
    problem = _url_problem(base_url)
    if problem is not None:
        raise invalid("base_url", f"base_url {problem}; write it like https://api.openai.com/v1")
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


def _prices_as(catalog: Catalog, vendor: str, prices_as: str | None) -> str:
    wanted = vendor if prices_as is None else prices_as
    if wanted in catalog.prices:
        return wanted
    known = ", ".join(sorted(catalog.prices))
    if prices_as is None:
        raise invalid("prices_as", f"vendor {vendor!r} has no prices of its own; set prices_as to one of: {known}")
    raise invalid("prices_as", f"there are no prices of a vendor of that name; prices_as can be one of: {known}")


def _answer(row: Record) -> ConnectionAnswer:
    return ConnectionAnswer(**row)
