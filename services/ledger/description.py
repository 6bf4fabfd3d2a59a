"""The description of the ledger's API: what ``schemas/openapi/ledger.json`` holds."""

from typing import Any

from fastapi.openapi.utils import get_openapi

from services import __version__
from services.ledger.routes import router

_ABOUT = """What has been spent, call by call and in sums, and whether all books agree.

Ask at the gateway's address: it relays these paths to the ledger. Every caller sees their own org, and of it what
their key's pins allow."""
_KEY = {"type": "http", "scheme": "bearer", "description": "A Farthing key: fk_live_…"}


def describe() -> dict[str, Any]:
    """The OpenAPI description, without FastAPI's own 422: a request that is not valid gets our 400."""
    schema = get_openapi(title="Farthing ledger API", version=__version__, description=_ABOUT, routes=router.routes)
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["security"] = [{"key": []}]
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    schema["components"]["securitySchemes"] = {"key": _KEY}
    return schema
