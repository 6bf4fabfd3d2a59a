"""``/v1/budgets``: delegations' HTTP face (BU-9)."""

from typing import Final

from services.gateway.body import Message
from services.gateway.delegations.desk import DelegateBody, Desk, EndBody
from services.gateway.delegations.once import once
from services.gateway.identify import Authenticator
from services.gateway.plain_api import Caller, PlainApi, Told, check_method, idempotency_key
from services.gateway.refusal import RefusedError
from services.gateway.reservations.bodies import read, request_hash
from services.gateway.snapshots import Snapshots

PATH: Final = "/v1/budgets"


class DelegationApi(PlainApi):
    """Serves ``/v1/budgets/{id}``, ``…/delegate`` and ``…/end``."""

    def __init__(self, authenticator: Authenticator, snapshots: Snapshots, desk: Desk, header_prefix: str) -> None:
        super().__init__(authenticator, snapshots, header_prefix)
        self._desk = desk

    async def answer(self, scope: Message, caller: Caller, body: bytes) -> Told:
        """See `PlainApi`."""
        method: str = scope["method"]
        rest = [part for part in scope["path"].removeprefix(PATH).split("/") if part]
        match rest:
            case [budget_id]:
                check_method(method, "GET")
                return await self._desk.find(caller, budget_id)
            case [budget_id, "delegate"]:
                check_method(method, "POST")
                return await self._delegate(scope, caller, budget_id, read(DelegateBody, body))
            case [budget_id, "end"]:
                check_method(method, "POST")
                read(EndBody, body)
                return await self._desk.end(caller, budget_id)
        message = "below /v1/budgets there are {id}, {id}/delegate and {id}/end; budgets are managed at /api/v1/budgets"
        raise RefusedError(404, "not_found", message)

    async def _delegate(self, scope: Message, caller: Caller, budget_id: str, body: DelegateBody) -> Told:
        key = idempotency_key(scope)
        asked = None
        if key is not None:
            asked = once(caller, key, request_hash(f"delegate {budget_id}", body, caller.identity))
        return await self._desk.delegate(caller, budget_id, body, asked)
