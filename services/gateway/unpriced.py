"""Routes that nothing is known of: refused by name, unless the org has allowed them, unpriced and flagged (GW-1)."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from services.core.estimate import Demand
from services.core.usage.folding import SilentFold
from services.core.usage.reading import Reading, StreamFold
from services.gateway.refusal import RefusedError
from services.gateway.snapshots import OrgView
from services.gateway.table import PLAIN, Candidate, Place, RouteTable
from services.gateway.vendors import Dialect, RequestFacts, Route, RouteRequest

_NAME_LENGTH: Final = 200
NO_DEMAND: Final = Demand(input_tokens=0, output_tokens_limit=0)


def unpriced_place(method: str, place: Place, dialect: Dialect, view: OrgView, table: RouteTable) -> Place:
    """The place with a candidate made for it. Raises `RefusedError` (404).

    Refused are all such routes where the org allows none, and everywhere a priced route in another spelling: its vendor
    may be lax about that, and would be paid for a call that nothing was held for.
    """
    name = (place.below if place.vendor is None else f"/{place.vendor}{place.below}")[:_NAME_LENGTH]
    if not view.snapshot.allow_unpriced_routes or place.below.count("/") < 2:
        message = f"{method} {name} is not a route this gateway can price, so it is not passed on"
        raise RefusedError(404, "unknown_route", message)
    if table.resembles(place.below):
        message = f"{method} {name} is a route this gateway prices, spelled in another way; use its own path"
        raise RefusedError(404, "unknown_route", message)
    # What is encoded still in `below` stays so.
    path = quote(place.below, safe="%/" + PLAIN)
    called = f"{method} {path}"[:_NAME_LENGTH]
    route = Route(called, method, path, "unpriced", "not known: the org has allowed unpriced routes")
    return Place((Candidate(dialect, route),), place.vendor, place.below, is_vendors=True)


def unpriced_facts(request: RouteRequest) -> RequestFacts:
    """Facts of a request that is not read: nothing of it is known, so nothing is held for it."""
    return RequestFacts(model="", stream=False, demand=NO_DEMAND, shape=UNREAD, body=request.body, is_unpriced=True)


class _Unread:
    """`reading.AnswerShape` of answers that say nothing of their cost."""

    needed = ()

    def whole(self, body: Mapping[str, Any]) -> Reading:
        return Reading({}, 0, complete=True)

    def opaque(self, size: int) -> Reading:
        return Reading({}, 0, complete=True)

    def fold(self) -> StreamFold:
        return SilentFold()


UNREAD: Final = _Unread()
