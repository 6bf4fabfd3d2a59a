"""Our costs are those of genai-prices: for every model it prices, at every date and in every context it knows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Final

import pytest
from genai_prices.data import providers
from genai_prices.data_units import unit_data
from genai_prices.types import ModelInfo, Provider, Usage
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.catalog import Catalog, Model, decode_catalog
from services.core.components import COMPONENTS
from services.core.events import ComponentCost
from services.core.money import NANO_PER_USD
from services.core.pricing import Price, price_usage
from tools.catalog.prices import COMPONENTS as THEIRS
from tools.catalog.published import PUBLISHED_RATES
from tools.compile_catalog import AS_OF, CATALOG, VENDORS

# The usage counts of genai-prices by ours. Of audio, they count seconds.
KEYS: Final = {
    COMPONENTS[THEIRS[unit["price_key"]]].count: key
    for key, unit in unit_data.items()
    if unit["price_key"] in THEIRS and key not in ("audio_seconds", "requests")
}

# What is not the same, and why; each is asserted below.
DIFFERENCES: Final = {
    "overlap": "Where parts add up to more than their total, genai-prices raises an error. We cut the cheaper parts.",
    "contexts": "Of two things that pick the rates, we follow the first of the catalog; they merge them key by key.",
    "published": "Cohere's rerank and third embedding models, and its images, have no price there: they are its own.",
    "resold": "In a context, they price a resold model without its variants; we price it as its own vendor would.",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One of our models beside theirs."""

    vendor: str
    model: Model
    provider: Provider
    theirs: ModelInfo

    def moments(self) -> Iterator[datetime]:
        """Before and at every change of price, and one day, hour by hour where that matters."""
        day = datetime(AS_OF.year, AS_OF.month, AS_OF.day, tzinfo=UTC)
        by_the_clock = any(period.daily_ms is not None for period in self.model.periods)
        yield from (day + timedelta(hours=hours) for hours in ((0, 2, 7, 12, 23) if by_the_clock else (12,)))
        for dated in (*self.model.periods, *self.model.variants):
            if dated.from_ms is not None:
                start = datetime.fromtimestamp(dated.from_ms / 1000, UTC)
                yield from (start - timedelta(seconds=1), start)

    def contexts(self) -> list[dict[str, str]]:
        """No context, one that nothing is said of, and every one that picks other rates."""
        return [{}, {"service_tier": "default"}, *(dict(variant.when) for variant in self.model.variants)]


@cache
def cases() -> list[Case]:
    catalog: Catalog = decode_catalog(CATALOG.read_bytes())
    found = []
    for vendor in VENDORS:
        mine = next(each for each in providers if each.id == vendor)
        prefixes = {known.name: f"{prefix}08-06:acme::A1" for prefix, known in catalog.prefixes[vendor]}
        for model in {id(each): each for each in catalog.models[vendor].values()}.values():
            theirs = mine.find_model(model.name)
            if theirs is not None:
                found.append(Case(vendor, model, mine, theirs))
        for model in {id(known): known for _, known in catalog.prefixes[vendor]}.values():
            theirs = mine.find_model(prefixes[model.name])
            assert theirs is not None, model.name
            found.append(Case(vendor, model, mine, theirs))
    return found


def ours(price: Price, usage: Mapping[str, int], context: Mapping[str, str]) -> tuple[ComponentCost, ...]:
    return price_usage(price, usage, context)


def expected(case: Case, usage: Mapping[str, int], when: datetime, context: Mapping[str, str]) -> Decimal:
    """Their cost, in nano-dollars. Raises `ValueError` where they do."""
    counts: dict[str, int | Decimal] = {KEYS[count]: many for count, many in usage.items() if count in KEYS}
    if "audio_ms" in usage:
        seconds = Decimal(usage["audio_ms"]) / 1000
        counts |= {"audio_seconds": seconds, "input_audio_seconds": seconds}
    found = case.theirs.calc_price(
        Usage(**counts), case.provider, genai_request_timestamp=when, price_context=context or None
    )
    return found.total_price * NANO_PER_USD


def check(case: Case, usage: Mapping[str, int], when: datetime, context: Mapping[str, str]) -> None:
    price = case.model.price_at(int(when.timestamp() * 1000))
    added = PUBLISHED_RATES.get((case.vendor, case.model.name), {})
    usage = {**usage, **dict.fromkeys((COMPONENTS[name].count for name in added), 0)}
    costs = ours(price, usage, context)
    theirs = expected(case, usage, when, context)
    # Only a component whose exact cost is no whole number of nano-dollars is rounded, by half of one at most.
    rounded = sum(each.quantity * each.price_nano % each.per != 0 for each in costs)
    gap = abs(theirs - sum(each.cost_nano for each in costs))
    assert gap <= Decimal("0.5") * rounded, (case.vendor, case.model.name, when, context, usage, theirs, costs)


# Disjoint kinds of tokens, and the counts that each of them is in.
KINDS: Final = {
    "text": ("input_tokens",),
    "cached": ("input_tokens", "cache_read_tokens"),
    "written": ("input_tokens", "cache_write_tokens"),
    "written_1h": ("input_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
    "heard": ("input_tokens", "audio_input_tokens"),
    "heard_cached": ("input_tokens", "audio_input_tokens", "cache_read_tokens", "audio_cache_read_tokens"),
    "seen": ("input_tokens", "image_input_tokens"),
    "seen_cached": ("input_tokens", "image_input_tokens", "cache_read_tokens", "image_cache_read_tokens"),
    "watched": ("input_tokens", "video_input_tokens"),
    "said": ("output_tokens",),
    "thought": ("output_tokens", "reasoning_tokens"),
    "cited": ("output_tokens", "citation_tokens"),
    "spoken": ("output_tokens", "audio_output_tokens"),
    "drawn": ("output_tokens", "image_output_tokens"),
    "filmed": ("output_tokens", "video_output_tokens"),
    "page": ("pages",),
    "annotated": ("pages", "annotated_pages"),
    "characters": ("characters",),
    "audio_ms": ("audio_ms",),
    "web": ("web_searches",),
    "file": ("file_searches",),
    "messages": ("text_messages",),
}


def counted(amounts: Mapping[str, int]) -> dict[str, int]:
    """The counts of so many of each kind."""
    usage: dict[str, int] = {}
    for kind, many in amounts.items():
        for count in KINDS[kind]:
            usage[count] = usage.get(count, 0) + many
    return usage


# Text enough that overlapping parts, which some models have no price for, never add up to more than the total.
FIXED: Final = (
    counted(dict.fromkeys(KINDS, 0)),
    counted({kind: 7919 + 13 * number for number, kind in enumerate(KINDS)} | {"text": 99_991, "said": 50_021}),
    counted({kind: 3 + number for number, kind in enumerate(KINDS)} | {"text": 271_000, "audio_ms": 9_999}),
    counted({"text": 100_001, "cached": 100_000, "written": 1, "said": 17, "audio_ms": 3_600_001}),
)


def test_every_model_of_theirs_is_compared() -> None:
    found = cases()
    assert len(found) >= 1_500
    assert {each.vendor for each in found} == set(VENDORS)


def test_costs_are_theirs_for_every_model_date_and_context() -> None:
    compared = 0
    for case in cases():
        # OpenRouter's many entries are much alike: for them, one usage below every tier and one above some.
        usages = FIXED[1:3] if case.vendor == "openrouter" else FIXED
        for when in sorted(set(case.moments())):
            for context in case.contexts():
                for usage in usages:
                    check(case, usage, when, context)
                    compared += 1
    assert compared > 15_000


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_costs_are_theirs_for_any_usage(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(cases()))
    when = data.draw(st.sampled_from(sorted(set(case.moments()))))
    context = data.draw(st.sampled_from(case.contexts()))
    amounts = data.draw(st.fixed_dictionaries({kind: st.integers(0, 400_000) for kind in KINDS}))
    usage = counted(amounts)
    if raises(case, usage, when, context):
        # What is two parts at once is taken off twice by a model that has prices for both and none for their overlap.
        assert amounts["heard_cached"] + amounts["seen_cached"] > amounts["text"], DIFFERENCES["overlap"]
    else:
        check(case, usage, when, context)


def raises(case: Case, usage: Mapping[str, int], when: datetime, context: Mapping[str, str]) -> bool:
    try:
        expected(case, usage, when, context)
    except ValueError:
        return True
    return False


def test_the_difference_where_parts_overlap() -> None:
    when = datetime(2026, 11, 27, tzinfo=UTC)
    usage = {"input_tokens": 10, "audio_input_tokens": 8, "cache_read_tokens": 8}
    case = next(each for each in cases() if each.vendor == "openai" and each.model.name == "gpt-realtime")
    with pytest.raises(ValueError, match="exceed"):
        expected(case, {**usage, "audio_cache_read_tokens": 0}, when, {})
    costs = {each.component: each.quantity for each in ours(case.model.price_at(0), usage, {})}
    assert costs["audio_input"] == 8
    assert costs["cache_read"] == 2
    assert costs["input"] == 0


def test_the_difference_in_two_contexts_at_once() -> None:
    case = next(each for each in cases() if each.vendor == "openai" and each.model.name == "gpt-4.1")
    price = case.model.price_at(int(datetime(2026, 11, 27, tzinfo=UTC).timestamp() * 1000))
    both = {"processing": "batch", "service_tier": "priority"}
    first = next(variant for variant in price.variants if variant.holds_in(both))
    assert ours(price, FIXED[1], both) == ours(price, FIXED[1], first.when)
    standard = {"processing": "batch", "service_tier": "default"}
    assert ours(price, FIXED[1], standard) == ours(price, FIXED[1], {"processing": "batch"})


def test_the_difference_of_resold_models() -> None:
    catalog = decode_catalog(CATALOG.read_bytes())
    at_ms = int(datetime(2026, 11, 27, tzinfo=UTC).timestamp() * 1000)
    resold, own = catalog.find("azure", "gpt-4.1", at_ms), catalog.find("openai", "gpt-4.1", at_ms)
    assert resold is not None
    assert own is not None
    assert resold.match == "normalised"
    assert resold.price == own.price
