"""The ways a call can be made: as it is asked for, and by the cheaper models that its full budgets name (BU-4)."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from services.core.calibrate import Calibration, Key
from services.core.codec import encode_facts
from services.core.estimate import Bound, strict_bound
from services.core.events import CallFacts
from services.core.hotstate import HoldOption
from services.core.jobs import JobPart
from services.core.matching import Applicable, Matching, asks_for_session, closed_cap, proposals_for
from services.core.pricing import Price
from services.gateway.body import READ_IN_THREAD_BYTES
from services.gateway.sizing import HoldSize, size_hold
from services.gateway.snapshots import OrgView
from services.gateway.vendors import Dialect, RequestFacts, RouteRequest

MAX_ALTERNATIVES: Final = 4
DOWNGRADED: Final = "downgraded"


@dataclass(frozen=True, slots=True)
class CallOption:
    """One way to make a call: its facts, its request as it goes out and as it is read, its cost, what it falls under.

    `models` are the names of models that cap it whoever answers: those it asks for, and what these are priced as.
    """

    facts: CallFacts
    route_request: RouteRequest
    request: RequestFacts
    price: Price
    bound: Bound
    size: HoldSize
    matching: Matching
    models: tuple[str, ...]
    parts: tuple[JobPart, ...] = ()

    def to_hold(self, now_ms: int) -> HoldOption:
        """What the hot state is asked to hold for it."""
        proposals = proposals_for(self.matching, self.facts.identity.session, now_ms)
        return HoldOption(self.size.amount_nano, proposals, encode_facts(self.facts))


async def cheaper_options(
    first: CallOption, view: OrgView, dialect: Dialect, prices_as: str, now_ms: int, calibration: Calibration
) -> tuple[CallOption, ...]:
    """The same call by each model that a budget of `first` has it answered by when it is full, widest budget first.

    A model that the vendor has no listed price for, that the request can't be sent to, or whose own budget is of 0 or
    asks for a session that the call does not name, is left out. Every budget that caps the call as asked caps these,
    too: what the cheaper model costs is still spent on what was asked for.
    """
    options: list[CallOption] = []
    for model in _cheaper_models(first.matching.applicable, first.route_request, first.facts.model_requested):
        option = await _by_model(first, view, dialect, prices_as, model, now_ms, calibration)
        if option is not None:
            options.append(option)
    return tuple(options)


def _cheaper_models(applicable: Iterable[Applicable], request: RouteRequest, asked: str) -> list[str]:
    if request.route.billing != "held":
        return []  # of a batch the vendor has the lines already
    named = dict.fromkeys(each.budget.downgrade_to for each in applicable if each.budget.full_rule == "downgrade")
    return [model for model in named if model and model != asked][:MAX_ALTERNATIVES]


async def _by_model(
    first: CallOption,
    view: OrgView,
    dialect: Dialect,
    prices_as: str,
    model: str,
    now_ms: int,
    calibration: Calibration,
) -> CallOption | None:
    priced = view.prices.listed(prices_as, model, now_ms)
    if priced is None:
        return None
    facts = replace(
        first.facts,
        model_priced=priced.model_priced,
        match=priced.match,
        catalog_version=priced.catalog_version,
        flags=(*first.facts.flags, DOWNGRADED),
    )
    try:
        route_request, request = await for_model(dialect, first.route_request, model)
        bound = strict_bound(priced.price, request.demand)
        # Priced as another one, it may have a budget under the name that it is sent by.
        matching = view.budgets.matching(facts, (*first.models, model))
    except ValueError:  # the request or its bound; or there are too many budgets with those of the cheaper model
        return None
    if facts.identity.session is None and asks_for_session(matching) is not None:
        return None  # unseen by that budget it would slip past
    budgets = [each.budget for each in matching.applicable]
    size = size_hold(budgets, bound, request, priced.price, calibration_key(facts), calibration)
    if closed_cap(matching, size.amount_nano) is not None:
        return None
    return CallOption(facts, route_request, request, priced.price, bound, size, matching, first.models)


async def for_model(dialect: Dialect, request: RouteRequest, model: str) -> tuple[RouteRequest, RequestFacts]:
    """The request for another model, and its facts. Raises `RequestRefusedError`."""

    def read() -> tuple[RouteRequest, RequestFacts]:
        renamed = dialect.renamed(request, model)
        return renamed, dialect.read_request(renamed)

    return await asyncio.to_thread(read) if len(request.body) > READ_IN_THREAD_BYTES else read()


def calibration_key(facts: CallFacts) -> Key:
    """What calls must have in common for their costs to tell of each other."""
    return facts.identity.org, facts.vendor, facts.model_priced, facts.route
