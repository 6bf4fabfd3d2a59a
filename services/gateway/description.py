"""The description of the gateway's own routes: what ``schemas/openapi/gateway.json`` holds.

Vendors' routes are as their vendors describe them, and are listed in ``docs/vendors.md``.
"""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from services import __version__
from services.gateway.delegations.desk import DelegateBody, EndBody
from services.gateway.reservations.bodies import ExtendBody, ReleaseBody, ReserveBody, SettleBody

_ABOUT: Final = """Reservations for what spends without a proxied call (tools, approvals, batches, direct callers), and
parts of budgets that are handed on to runs and sub-agents.

Who asks is told by the key and the X-Spend-* headers, as for any call."""
_USD: Final = r"^-?(0|[1-9][0-9]{0,9})\.[0-9]{9}$"
_REF: Final = "#/components/schemas/{model}"
Usd = Field(pattern=_USD, description="US dollars, with nine decimals.")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ChargeAnswer(_Answer):
    """A budget that is charged, in the window that was decided when the hold was made."""

    budget_id: str
    scope: str
    window: str


class HeldAnswer(_Answer):
    """An open reservation. Past `expires_at` it is expired, and can still be settled."""

    reservation_id: str
    state: Literal["held", "expired"]
    created_at: str
    held_usd: str = Usd
    expires_at: str
    charges: list[ChargeAnswer]
    parent_charged: list[str] = Field(description="Budgets that were full and let their parents pay.")


class EndedAnswer(_Answer):
    """A reservation that has ended."""

    reservation_id: str
    state: Literal["settled", "released"]
    settled_at: str
    cost_usd: str = Usd
    held_usd: str = Usd
    outcome: Literal["completed", "partial", "cancelled"]
    usage: dict[str, int]
    charges: list[ChargeAnswer]


class PartAnswer(_Answer):
    """A part of a budget; `key` is there in the answer that made it, and in no other."""

    budget_id: str
    parent_budget_id: str
    limit_usd: str = Usd
    expires_at: str
    state: Literal["live", "ended"]
    reservation_id: str | None = None
    key: str | None = None
    spent_usd: str | None = None
    held_usd: str | None = None
    remaining_usd: str | None = None


class PartEndedAnswer(_Answer):
    """A part that takes no more calls; what is left returns once its open ones have ended."""

    budget_id: str
    state: Literal["ended"]


class GatewayErrorAnswer(BaseModel):
    """Every error: `error` for programs, `message` for people, `field` where one is at fault, and facts beside them."""

    model_config = ConfigDict(extra="allow")

    error: str
    message: str
    field: str | None = None


_ERRORS: Final = {
    400: "A field can't be taken as it is; `field` names it.",
    401: "No key, or one that is unknown or revoked.",
    402: "A budget has no room.",
    403: "A header or field contradicts what the key is pinned to.",
    404: "There is no such thing, or none of this key's.",
    409: "The request contradicts what was asked before.",
    503: "The spend state or the log is away; nothing was done, and the call may be repeated.",
}
_KEY_HEADER: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "The same key and body are answered alike for ever; another body is a 409. API keys have their own.",
}
_EXTEND_KEY_HEADER: Final = _KEY_HEADER | {
    "description": "The same key and body are answered alike, for two days longer than the hold was first taken for.",
}
_PART_KEY_HEADER: Final = _KEY_HEADER | {
    "description": "The same key and body are answered with the part that is there, its key included; another body is a"
    " 409. A refusal makes no part and may be tried again.",
}
_KEY_HEADERS: Final = {
    "/v1/reservations": _KEY_HEADER,
    "/v1/reservations/{id}/extend": _EXTEND_KEY_HEADER,
    "/v1/budgets/{id}/delegate": _PART_KEY_HEADER,
}
_Route = tuple[str, str, str, type[BaseModel] | None, int, tuple[type[BaseModel], ...]]
_ROUTES: Final[tuple[_Route, ...]] = (
    ("post", "/v1/reservations", "Reserves an amount.", ReserveBody, 201, (HeldAnswer,)),
    ("get", "/v1/reservations/{id}", "Where a reservation stands.", None, 200, (HeldAnswer, EndedAnswer)),
    ("post", "/v1/reservations/{id}/extend", "Changes what is held, and until when.", ExtendBody, 200, (HeldAnswer,)),
    ("post", "/v1/reservations/{id}/settle", "Ends it at what it did cost.", SettleBody, 200, (EndedAnswer,)),
    ("post", "/v1/reservations/{id}/release", "Ends it at no cost.", ReleaseBody, 200, (EndedAnswer,)),
    ("get", "/v1/budgets/{id}", "Where a part stands.", None, 200, (PartAnswer,)),
    ("post", "/v1/budgets/{id}/delegate", "Hands on a part of a budget.", DelegateBody, 201, (PartAnswer,)),
    ("post", "/v1/budgets/{id}/end", "Ends a part before its time.", EndBody, 200, (PartEndedAnswer,)),
)


def describe() -> dict[str, Any]:
    """The OpenAPI description."""
    models = {GatewayErrorAnswer} | {each for *_, answers in _ROUTES for each in answers}
    models |= {body for _, _, _, body, _, _ in _ROUTES if body is not None}
    wanted = sorted(models, key=lambda each: each.__name__)
    _, schemas = models_json_schema([(each, "validation") for each in wanted], ref_template=_REF)
    paths: dict[str, Any] = {}
    for method, path, text, body, status, answers in _ROUTES:
        paths.setdefault(path, {})[method] = _operation(path, text, body, status, answers)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Farthing gateway API", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A Farthing key: fk_live_…"}
            },
        },
    }


def _operation(
    path: str, text: str, body: type[BaseModel] | None, status: int, answers: tuple[type[BaseModel], ...]
) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = []
    if "{id}" in path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string"}})
    if path in _KEY_HEADERS:
        parameters.append(_KEY_HEADERS[path])
    references = [_content(each) for each in answers]
    answer = references[0] if len(references) == 1 else {"anyOf": references}
    responses = {str(status): {"description": text, "content": {"application/json": {"schema": answer}}}}
    for error, meaning in _ERRORS.items():
        responses[str(error)] = {
            "description": meaning,
            "content": {"application/json": {"schema": _content(GatewayErrorAnswer)}},
        }
    operation = {"summary": text, "parameters": parameters, "responses": responses, "security": [{"key": []}]}
    if body is not None:
        operation["requestBody"] = {
            "required": body is not ReleaseBody and body is not EndBody,
            "content": {"application/json": {"schema": _content(body)}},
        }
    return operation


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _REF.format(model=model.__name__)}
