"""The prices of `genai-prices` as catalog entries have them: exact, with all their periods, variants and tiers."""

from collections.abc import Iterator, Mapping
from datetime import UTC, time
from decimal import Decimal
from typing import Any, Final

from genai_prices.data_units import unit_data
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)

from services.core.catalog import rates_fields
from services.core.money import NANO_PER_USD

# Our components by the price keys of genai-prices.
COMPONENTS: Final = {
    "input_mtok": "input",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "input_audio_mtok": "audio_input",
    "cache_audio_read_mtok": "audio_cache_read",
    "input_image_mtok": "image_input",
    "cache_image_read_mtok": "image_cache_read",
    "input_video_mtok": "video_input",
    "output_mtok": "output",
    "output_reasoning_mtok": "reasoning",
    "output_citation_mtok": "citation",
    "output_audio_mtok": "audio_output",
    "output_image_mtok": "image_output",
    "output_video_mtok": "video_output",
    "input_document_kpages": "page",
    "input_annotated_document_kpages": "annotated_page",
    "requests_kcount": "request",
    "input_mchars": "character",
    "input_text_messages_kcount": "text_message",
    "audio_hours": "audio_duration",
    "input_audio_hours": "audio_duration",
    "web_searches_kcount": "web_search",
    "storage_searches_kcount": "file_search",
    "social_searches_kcount": "social_search",
    "code_executions_kcount": "code_execution",
    "rerank_searches_kcount": "rerank_search",
}

# How many of their blocks are one of ours: a million of a thing, an hour of audio.
_BLOCKS: Final = {1_000_000: 1, 1_000: 1_000, 3_600: 1}
_PER: Final = {unit["price_key"]: unit["per"] for unit in unit_data.values()}

Fields = dict[str, Any]


class LeftOutError(ValueError):
    """A model that can't be priced; the text says why."""


def periods_of(model: ModelInfo) -> list[Fields]:
    """Every price a model has had and will have, in the order in which the last one in force counts."""
    periods = []
    for condition in conditions_of(model):
        fields: Fields = {}
        constraint = condition.constraint
        if isinstance(constraint, StartDateConstraint):
            fields["from"] = constraint.start_date.isoformat()
        elif isinstance(constraint, TimeOfDateConstraint):
            fields["daily"] = [_of_day(constraint.start_time), _of_day(constraint.end_time)]
        periods.append({**fields, **_usd_and_tiers(condition.prices)})
    return periods


def conditions_of(model: ModelInfo) -> list[ConditionalPrice]:
    """The model's prices with what each of them is subject to."""
    return model.prices if isinstance(model.prices, list) else [ConditionalPrice(prices=model.prices)]


def variants_of(model: ModelInfo) -> list[Fields]:
    """What overrides those prices in a context, the first that holds counting.

    Of two with the same context the first one overrides the second key by key, so it is given the keys it lacks. One
    that overrides nothing only says that the standard price holds, and is not needed.
    """
    variants = [variant for variant in model.price_variants or () if _amounts(variant.prices)]
    found = []
    for number, variant in enumerate(variants):
        later = [each for each in variants[number + 1 :] if each.when == variant.when]
        fields: Fields = {"when": dict(variant.when)}
        start = _start(variant)
        if start is not None:
            fields["from"] = start
        amounts = _amounts(variant.prices)
        for each in later:
            if (_start(each) or "") > (start or ""):
                raise LeftOutError("a variant of its price is overridden by an earlier one")
            amounts = {**_amounts(each.prices), **amounts}
        found.append({**fields, **_usd_and_tiers(ModelPrice(**amounts))})
    return found


def base_dollars(model: ModelInfo) -> Iterator[tuple[Decimal, Decimal]]:
    """Input and output dollars a million tokens below any tier, of each period that has both."""
    for condition in conditions_of(model):
        found = [getattr(condition.prices, key) for key in ("input_mtok", "output_mtok")]
        plain = [each.base if isinstance(each, TieredPrices) else each for each in found]
        if plain[0] is not None and plain[1] is not None:
            yield plain[0], plain[1]


def _start(variant: PriceVariant) -> str | None:
    if variant.constraint is None:
        return None
    if isinstance(variant.constraint, StartDateConstraint):
        return variant.constraint.start_date.isoformat()
    raise LeftOutError("a variant of its price depends on the time of day")


def _of_day(moment: time) -> str:
    if moment.tzinfo not in (None, UTC):
        raise LeftOutError("its price depends on a time of day that is not UTC")
    return moment.strftime("%H:%M:%S")


def _amounts(prices: ModelPrice) -> dict[str, Decimal | TieredPrices]:
    return {key: amount for key, amount in vars(prices).items() if amount is not None and not key.startswith("_")}


def _usd_and_tiers(prices: ModelPrice) -> Fields:
    amounts = _amounts(prices)
    starts = sorted(
        {tier.start for amount in amounts.values() if isinstance(amount, TieredPrices) for tier in amount.tiers}
    )
    fields: Fields = {"usd": rates_fields(_rates(amounts, None))}
    if starts:
        fields["tiers"] = [
            {"above_input_tokens": start, "usd": rates_fields(_rates(amounts, start))} for start in starts
        ]
    return fields


def _rates(amounts: Mapping[str, Decimal | TieredPrices], above_input_tokens: int | None) -> dict[str, int]:
    """The rates without a tier, or those of a call with more input than a tier's start."""
    rates: dict[str, int] = {}
    for key, amount in amounts.items():
        component = COMPONENTS.get(key)
        if component is None:
            raise LeftOutError(f"it is priced by {key}, which Farthing does not meter")
        if isinstance(amount, TieredPrices):
            start = -1 if above_input_tokens is None else above_input_tokens
            reached = [tier.price for tier in amount.tiers if tier.start <= start]
            amount = reached[-1] if reached else amount.base
        nano = amount * NANO_PER_USD * _BLOCKS[_PER[key]]
        if nano != int(nano):
            raise LeftOutError(f"its {key} price has more than nine decimals, and nothing is rounded")
        if rates.setdefault(component, int(nano)) != int(nano):
            raise LeftOutError(f"its prices of {component} differ by direction")
    return rates
