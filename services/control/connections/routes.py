"""``/api/v1/connections``."""

from fastapi import APIRouter, Response

from services.control.auth import AdminDep
from services.control.connections import service
from services.control.fields import PathId

router = APIRouter(prefix="/connections", tags=["connections"])


@router.get("")
async def list_connections(admin: AdminDep) -> service.Connections:
    """Every vendor the org has a connection to. Keys are never shown."""
    return await service.list_connections(admin)


@router.put("/{vendor}", responses={201: {"model": service.ConnectionAnswer, "description": "The connection is new."}})
async def set_connection(
    admin: AdminDep, vendor: PathId, request: service.SetConnection, response: Response
) -> service.ConnectionAnswer:
    """Sets the connection to a vendor, or to any server that speaks a vendor's API. Its key is sealed when stored."""
    connection, is_new = await service.set_connection(admin, vendor, request)
    response.status_code = 201 if is_new else 200
    return connection


@router.delete("/{vendor}", status_code=204)
async def delete_connection(admin: AdminDep, vendor: PathId) -> None:
    """Removes a connection and its key."""
    await service.delete_connection(admin, vendor)
