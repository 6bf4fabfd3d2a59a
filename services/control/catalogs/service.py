"""Price catalogs: proposed, looked at, accepted or rejected by a person; an org uses the one it accepted last."""

import asyncio
import json
from collections import Counter
from typing import Any, Final, Literal

import structlog
from asyncpg import Connection, Record
from pydantic import BaseModel, Field

from services.control.auth import Admin
from services.control.catalogs import queries
from services.control.context import Change
from services.control.errors import ApiError, conflict, invalid, not_found
from services.control.fields import Body, Instant
from services.control.orgs import queries as org_queries
from services.core.catalog import (
    FORMAT,
    Catalog,
    CatalogError,
    Model,
    catalog_version,
    decode_catalog,
    read_model,
)
from services.core.catalog_fields import diff_catalogs, models_of

_log = structlog.get_logger(__name__)

# Who proposes what a release ships.
CONTROL: Final = "control"


class Proposal(BaseModel):
    """A catalog as proposed to the org; `base_version` is what the org used then. `in_use`: the org uses it now."""

    proposal_id: int
    version: str
    base_version: str | None
    state: Literal["pending", "accepted", "rejected"]
    proposed_by: str
    proposed_at: Instant
    decided_by: str | None
    decided_at: Instant | None
    reason: str | None
    in_use: bool


class CatalogHistory(BaseModel):
    """Every proposal to the org, newest first. `shipped` is the catalog of this release."""

    in_use: str
    shipped: str
    proposals: list[Proposal]


class CatalogSummary(BaseModel):
    """One catalog: where it is from, and how many models it has prices of, by vendor."""

    version: str
    in_use: bool
    loaded_at: Instant
    as_of: str | None
    source: str | None
    models: int
    vendors: dict[str, int]
    notes: list[str]
    proposals: list[Proposal]


class ModelDiff(BaseModel):
    """A model that two catalogs have differently, in `fields`. An entry is null where the model is missing."""

    vendor: str
    model: str
    kind: Literal["added", "removed", "changed"]
    fields: list[str]
    old: dict[str, Any] | None
    new: dict[str, Any] | None


class CatalogDiff(BaseModel):
    """What changes from one catalog to another."""

    old_version: str
    new_version: str
    added: int
    removed: int
    changed: int
    models: list[ModelDiff]


class Propose(Body):
    """The catalog to propose to the org again, by version; without one, the catalog of this release."""

    version: str | None = Field(default=None, pattern=r"^[0-9a-f]{1,64}$", examples=["29eb0351dee3fddf"])


class Reject(Body):
    """Why a catalog is rejected."""

    reason: str = Field(min_length=1, max_length=500, examples=["the prices of gpt-4o are not our contract's"])


async def list_catalogs(admin: Admin) -> CatalogHistory:
    """The org's catalogs, past, present and proposed."""
    async with admin.context.database.snapshot() as connection:
        org = await org_queries.find(connection, admin.org)
        rows = await queries.list_proposals(connection, admin.org)
    return CatalogHistory(
        in_use=org.catalog_version,
        shipped=admin.context.prices.shipped_version,
        proposals=[_proposal(row, org.catalog_version) for row in rows],
    )


async def get_catalog(admin: Admin, version: str) -> CatalogSummary:
    """One catalog of the org."""
    async with admin.context.database.snapshot() as connection:
        org = await org_queries.find(connection, admin.org)
        catalog = await _catalog(admin, connection, version)
        rows = await queries.list_proposals(connection, admin.org, version)
        loaded_at = await queries.loaded_at(connection, version)
        document = await asyncio.to_thread(json.loads, await queries.read_body(connection, version))
    models = {vendor: len(models_of(catalog, vendor)) for vendor in sorted(catalog.models)}
    return CatalogSummary(
        version=version,
        in_use=version == org.catalog_version,
        loaded_at=loaded_at,
        as_of=_text(document.get("as_of")),
        source=_text(document.get("source")),
        models=sum(models.values()),
        vendors=models,
        notes=[str(each) for each in document.get("notes", [])],
        proposals=[_proposal(row, org.catalog_version) for row in rows],
    )


async def diff(admin: Admin, old_version: str | None, new_version: str | None, vendor: str | None) -> CatalogDiff:
    """What changes between two catalogs of the org, by default from the one it uses to the newest that is pending."""
    async with admin.context.database.snapshot() as connection:
        org = await org_queries.find(connection, admin.org)
        if new_version is None:
            pending = await queries.list_pending_versions(connection, admin.org)
            if not pending:
                raise not_found("proposed catalog that waits for a decision; name a version in `to`")
            new_version = pending[0]
        old = await _catalog(admin, connection, old_version or org.catalog_version)
        new = await _catalog(admin, connection, new_version)
    changes = await asyncio.to_thread(lambda: list(diff_catalogs(old, new)))
    models = [
        ModelDiff(
            vendor=each.vendor,
            model=each.model,
            kind="added" if each.old is None else "removed" if each.new is None else "changed",
            fields=list(each.fields),
            old=None if each.old is None else dict(each.old),
            new=None if each.new is None else dict(each.new),
        )
        for each in changes
        if vendor in (None, each.vendor)
    ]
    counts = Counter(each.kind for each in models)
    return CatalogDiff(
        old_version=old.version,
        new_version=new.version,
        added=counts["added"],
        removed=counts["removed"],
        changed=counts["changed"],
        models=models,
    )


async def import_catalog(admin: Admin, body: bytes) -> Proposal:
    """Keeps a catalog document and proposes it to the caller's org. Without a version it is given its own."""
    version, stored = await asyncio.to_thread(_checked, body)
    async with admin.change() as change:
        await queries.insert_body(change.connection, version, stored)
        return await _propose(change, version)


async def propose(admin: Admin, version: str | None) -> Proposal:
    """Proposes a catalog of the org (by default the shipped one) to it once more."""
    wanted = admin.context.prices.shipped_version if version is None else version
    async with admin.change() as change:
        if wanted != admin.context.prices.shipped_version:
            await _check_known(change.connection, admin.org, wanted, "version")
        return await _propose(change, wanted)


async def accept(admin: Admin, version: str) -> Proposal:
    """Makes a pending catalog the one that holds for the org."""
    async with admin.change() as change:
        pending = await _pending(change, version)
        before = await org_queries.find(change.connection, admin.org)
        row = await queries.decide(change.connection, pending["proposal_id"], "accepted", change.actor, None)
        await org_queries.set_catalog(change.connection, admin.org, version)
        await change.audit(
            "catalog.accept",
            version,
            before={"catalog_version": before.catalog_version},
            after={"catalog_version": version},
        )
    return _proposal(row, version)


async def reject(admin: Admin, version: str, reason: str) -> Proposal:
    """Turns a pending catalog down."""
    if not reason.strip() or not reason.isprintable():
        raise invalid("reason", "reason must be one line of text that says why")
    async with admin.change() as change:
        pending = await _pending(change, version)
        org = await org_queries.find(change.connection, admin.org)
        row = await queries.decide(change.connection, pending["proposal_id"], "rejected", change.actor, reason)
        await change.audit("catalog.reject", version, before={"state": "pending"}, after={"reason": reason})
    return _proposal(row, org.catalog_version)


async def propose_shipped(connection: Connection, version: str) -> None:
    """Proposes the catalog of this release to every org that uses another, once: a rejection is not asked about again.

    What an earlier release proposed and nobody decided is superseded.
    """
    for row in await queries.list_never_proposed(connection, version):
        org = row["name"]
        config_version = await org_queries.bump(connection, org)
        await queries.reject_older(connection, org, version, CONTROL, f"superseded by {version}")
        await _propose(Change(connection, org, CONTROL, config_version), version)
        _log.info("catalog_proposed", org=org, version=version, in_use=row["catalog_version"])


async def _propose(change: Change, version: str) -> Proposal:
    org = await org_queries.find(change.connection, change.org)
    if version == org.catalog_version:
        raise conflict("already_in_use", f"the org uses catalog {version} already", "version")
    if version in await queries.list_pending_versions(change.connection, change.org):
        raise conflict("already_proposed", f"catalog {version} waits for a decision already; accept or reject it")
    row = await queries.insert_pending(change.connection, change.org, version, org.catalog_version, change.actor)
    await change.audit("catalog.propose", version, after={"version": version, "base_version": org.catalog_version})
    return _proposal(row, org.catalog_version)


async def _pending(change: Change, version: str) -> Record:
    rows = await queries.list_proposals(change.connection, change.org, version)
    if not rows:
        raise not_found(f"catalog {version!r} among those proposed to this org; GET /api/v1/catalogs lists them")
    if rows[0]["state"] != "pending":
        message = f"catalog {version} has been {rows[0]['state']} already; to decide anew, propose it again"
        raise conflict("already_decided", message)
    return rows[0]


async def _catalog(admin: Admin, connection: Connection, version: str) -> Catalog:
    await _check_known(connection, admin.org, version, None)
    return await admin.context.prices.catalog_of(connection, version)


async def _check_known(connection: Connection, org: str, version: str, field: str | None) -> None:
    """A catalog that was proposed to another org only is no other org's business."""
    in_use = (await org_queries.find(connection, org)).catalog_version
    if version != in_use and not await queries.list_proposals(connection, org, version):
        error = not_found(f"catalog {version[:64]!r} of this org; GET /api/v1/catalogs lists them")
        error.field = field
        raise error


def _checked(body: bytes) -> tuple[str, bytes]:
    """Version and canonical bytes of a catalog document. Raises `ApiError` naming what can't be taken."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_request", "the body is not JSON") from error
    if not isinstance(document, dict):
        raise ApiError(400, "invalid_request", "the body must be a JSON object: a price catalog")
    if document.get("format") != FORMAT:
        raise invalid("format", f"format must be {FORMAT}, the form of the shipped catalog")
    if not isinstance(document.get("models"), list) or not document["models"]:
        raise invalid("models", "models must be a list of at least one model, in the form of the shipped catalog")
    try:
        document.setdefault("version", catalog_version(document))
        stored = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
        catalog = decode_catalog(stored)
    except (CatalogError, ValueError, RecursionError) as error:
        field = _wrong_entry(document["models"])
        where = "" if field is None else f"{field}: "
        message = (
            f"{where}{error}; the form is that of the shipped catalog, and a document without version gets its own"
        )
        raise invalid(field or "version", message) from error
    for vendor, models in catalog.models.items():
        if not isinstance(vendor, str) or not all(_has_texts(model) for model in models.values()):
            raise invalid("models", f"vendors and the contexts of variants must be texts; those of {vendor!r} are not")
    return catalog.version, stored


def _has_texts(model: Model) -> bool:
    return all(isinstance(text, str) for each in model.variants for pair in each.when.items() for text in pair)


def _wrong_entry(models: list[Any]) -> str | None:
    """The first model that can't be read, as a path into the document."""
    for number, entry in enumerate(models):
        try:
            read_model(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"models.{number}"
    return None


def _proposal(row: Record, in_use: str) -> Proposal:
    return Proposal(**row, in_use=row["version"] == in_use)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
