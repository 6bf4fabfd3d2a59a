"""Compiles an org's own prices into entries of a catalog. Pure: equal rows give equal entries.

An own price replaces what the catalog says of the model, variants included, from its day on and until it is withdrawn.
Before that day the catalog's prices hold, so they are part of the entry; so are the model's other names, or a call by
one of those would be priced as if there were no own price.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import Any

from services.core.catalog import Catalog, Model, catalog_version
from services.core.catalog_fields import entry_fields, priced_model
from services.core.snapshot import Overrides

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OwnPrice:
    """What a vendor's model costs an org from a day on.

    `period` has ``{"usd", "tiers", "variants": [{"when", "usd", "tiers"}]}`` in the form of `core.catalog`.
    """

    vendor: str
    model: str
    from_date: date
    period: Fields
    max_output_tokens: int | None = None
    context_window: int | None = None


def compile_overrides(prices: Iterable[OwnPrice], catalog: Catalog) -> Overrides | None:
    """The overrides of an org that uses `catalog`; None without any."""
    ordered = sorted(prices, key=lambda each: (each.vendor, each.model, each.from_date))
    taken = {(each.vendor, each.model) for each in ordered}
    entries = [
        _entry(list(group), priced_model(catalog, vendor, model), taken)
        for (vendor, model), group in groupby(ordered, key=lambda each: (each.vendor, each.model))
    ]
    return Overrides(catalog_version({"models": entries}), tuple(entries)) if entries else None


def _entry(own: Sequence[OwnPrice], listed: Model | None, taken: set[tuple[str, str]]) -> dict[str, Any]:
    """The entry of one model; the names it goes by are added to `taken`, for no two models may share one."""
    vendor, model, first_day = own[0].vendor, own[0].model, own[0].from_date.isoformat()
    before = {} if listed is None else entry_fields(vendor, listed)
    is_by_its_name = before.get("model") == model
    aliases = [each for each in before["aliases"] if (vendor, each) not in taken] if is_by_its_name else []
    taken.update((vendor, each) for each in aliases)
    return {
        "vendor": vendor,
        "model": model,
        "aliases": aliases,
        "prefixes": before["prefixes"] if is_by_its_name else [],
        "prices": [
            *(each for each in before.get("prices", ()) if each["from"] is None or each["from"] < first_day),
            *(_period(each) for each in own),
        ],
        "variants": _variants(own, before.get("variants", ())),
        "max_output_tokens": _latest([each.max_output_tokens for each in own], before.get("max_output_tokens")),
        "context_window": _latest([each.context_window for each in own], before.get("context_window")),
        "minimums": before.get("minimums", {}),
    }


def _period(own: OwnPrice) -> dict[str, Any]:
    day = own.from_date.isoformat()
    return {"from": day, "daily": None, "usd": own.period["usd"], "tiers": own.period.get("tiers", [])}


def _variants(own: Sequence[OwnPrice], listed: Sequence[Fields]) -> list[dict[str, Any]]:
    """The variants of every price, the latest price's first: of those in force, the first that holds counts.

    A variant has no end, so each price is followed by one without rates of its own for every context there is: a call
    in a context that it does not name has its plain rates, and not an earlier price's.
    """
    contexts: list[Fields] = []
    for each in [*(variant for price in own for variant in price.period.get("variants", ())), *listed]:
        if each["when"] not in contexts:
            contexts.append(each["when"])
    found: list[dict[str, Any]] = []
    for price in reversed(own):
        day = price.from_date.isoformat()
        variants = price.period.get("variants", ())
        found += [
            {"when": each["when"], "from": day, "usd": each["usd"], "tiers": each.get("tiers", [])} for each in variants
        ]
        named = [each["when"] for each in variants]
        found += [{"when": when, "from": day, "usd": {}, "tiers": []} for when in contexts if when not in named]
    return [*found, *(dict(each) for each in listed)]


def _latest(said: Sequence[int | None], otherwise: int | None) -> int | None:
    return next((value for value in reversed(said) if value is not None), otherwise)
