"""``/v1/reservations``: the API's HTTP face (GW-10)."""

from typing import Final

from ulid import ULID

from services.gateway.body import Message
from services.gateway.identify import Authenticator
from services.gateway.plain_api import Caller, PlainApi, Told, check_method, digest, idempotency_key
from services.gateway.refusal import RefusedError
from services.gateway.reservations.bodies import (
    ExtendBody,
    ReleaseBody,
    ReserveBody,
    SettleBody,
    read,
    request_hash,
)
from services.gateway.reservations.book import Book
from services.gateway.snapshots import Snapshots

PATH: Final = "/v1/reservations"
_DEEDS: Final = ("settle", "extend", "release")


class ReservationApi(PlainApi):
    """Serves the paths below `PATH`."""

    def __init__(self, authenticator: Authenticator, snapshots: Snapshots, book: Book, header_prefix: str) -> None:
        super().__init__(authenticator, snapshots, header_prefix)
        self._book = book

    async def answer(self, scope: Message, caller: Caller, body: bytes) -> Told:
        """See `PlainApi`."""
        method: str = scope["method"]
        rest = [part for part in scope["path"].removeprefix(PATH).split("/") if part]
        if not rest:
            check_method(method, "POST")
            return await self._reserve(scope, caller, read(ReserveBody, body))
        if len(rest) == 1:
            check_method(method, "GET")
            return await self._book.find(caller, rest[0])
        if len(rest) > 2 or rest[1] not in _DEEDS:
            message = f"what can be done with a reservation is {', '.join(_DEEDS)}: POST {PATH}/{{id}}/settle"
            raise RefusedError(404, "not_found", message)
        check_method(method, "POST")
        reservation_id, deed = rest
        if deed == "extend":
            extended, key = read(ExtendBody, body), idempotency_key(scope)
            name = None if key is None else digest(key)
            return await self._book.extend(
                caller, reservation_id, extended, name, request_hash(deed, extended, caller.identity)
            )
        if deed == "release":
            released = read(ReleaseBody, body)
            return await self._book.release(caller, reservation_id, request_hash(deed, released, caller.identity))
        settled = read(SettleBody, body)
        return await self._book.settle(caller, reservation_id, settled, request_hash(deed, settled, caller.identity))

    async def _reserve(self, scope: Message, caller: Caller, body: ReserveBody) -> Told:
        key = idempotency_key(scope)
        reservation_id = f"txn_{ULID()}" if key is None else _id_of(caller, key)
        asked = request_hash("reserve", body, caller.identity)
        return await self._book.reserve(caller, body, reservation_id, asked, is_repeatable=key is not None)


def _id_of(caller: Caller, key: str) -> str:
    """The reservation's id by its key: whoever asks again, on whatever gateway, asks for the same reservation.

    Every API key has its own: two agents that count their steps alike don't meet, and whoever asks again may see in the
    ledger what was answered.
    """
    return f"rsv_{digest(caller.org, caller.key.key_id, key)}"
