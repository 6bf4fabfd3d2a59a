"""``/api/v1/keys``."""

from fastapi import APIRouter

from services.control.auth import AdminDep
from services.control.fields import PathId
from services.control.keys import service

router = APIRouter(prefix="/keys", tags=["keys"])


@router.get("")
async def list_keys(admin: AdminDep) -> service.Keys:
    """Every key of the org, without the keys themselves."""
    return await service.list_keys(admin)


@router.post("", status_code=201)
async def create_key(admin: AdminDep, request: service.NewKey) -> service.NewKeyAnswer:
    """Makes a key and shows it, this once. A team or agent it names is made when it does not exist."""
    return await service.create_key(admin, request)


@router.delete("/{key_id}")
async def revoke_key(admin: AdminDep, key_id: PathId) -> service.Key:
    """Revokes a key. It stops working on every gateway within a second."""
    return await service.revoke_key(admin, key_id)
