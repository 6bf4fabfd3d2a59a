"""``/api/v1/catalogs``."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from services.control.auth import AdminDep
from services.control.catalogs import service
from services.control.fields import Version

router = APIRouter(prefix="/catalogs", tags=["prices"])

_DOCUMENT = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "title": "CatalogDocument",
                    "description": "A price catalog, of the form that the shipped one has.",
                    "required": ["format", "models"],
                    "properties": {
                        "version": {"type": "string", "description": "A hash of the rest; may be left out."},
                        "format": {"type": "integer", "enum": [2]},
                        "models": {"type": "array", "items": {"type": "object"}},
                    },
                }
            }
        },
    }
}
_OldVersion = Annotated[
    str | None, Query(alias="from", pattern=r"^[0-9a-f]{1,64}$", description="Default: the catalog the org uses.")
]
_NewVersion = Annotated[
    str | None, Query(alias="to", pattern=r"^[0-9a-f]{1,64}$", description="Default: the newest that is pending.")
]


@router.get("")
async def list_catalogs(admin: AdminDep) -> service.CatalogHistory:
    """Every price catalog that was proposed to the org, newest first, and what became of it."""
    return await service.list_catalogs(admin)


@router.post("", status_code=201, openapi_extra=_DOCUMENT)
async def import_catalog(admin: AdminDep, request: Request) -> service.Proposal:
    """Imports a price catalog. It holds once somebody accepts it."""
    return await service.import_catalog(admin, await request.body())


@router.post("/proposals", status_code=201)
async def propose_catalog(admin: AdminDep, request: service.Propose) -> service.Proposal:
    """Proposes the catalog of this release, or one that the org had before."""
    return await service.propose(admin, request.version)


@router.get("/diff")
async def diff_catalogs(
    admin: AdminDep,
    old: _OldVersion = None,
    new: _NewVersion = None,
    vendor: Annotated[str | None, Query(description="Only this vendor's models.")] = None,
) -> service.CatalogDiff:
    """What changes from one catalog to another, model by model."""
    return await service.diff(admin, old, new, vendor)


@router.get("/{version}")
async def get_catalog(admin: AdminDep, version: Version) -> service.CatalogSummary:
    """One price catalog."""
    return await service.get_catalog(admin, version)


@router.post("/{version}/accept")
async def accept_catalog(admin: AdminDep, version: Version) -> service.Proposal:
    """Accepts a proposed catalog: its prices hold on every gateway within a second."""
    return await service.accept(admin, version)


@router.post("/{version}/reject")
async def reject_catalog(admin: AdminDep, version: Version, request: service.Reject) -> service.Proposal:
    """Rejects a proposed catalog, with a reason."""
    return await service.reject(admin, version, request.reason)
