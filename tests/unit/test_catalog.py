"""The shipped catalog: what the tool makes, what is in it, and what names it knows."""

import json
from collections import Counter
from decimal import Decimal
from functools import cache
from importlib.metadata import version
from typing import Any

import pytest
from genai_prices.data import providers

from services.core.catalog import Catalog, Model, decode_catalog
from services.core.components import COMPONENTS
from services.core.estimate import Demand, UnboundedError, strict_bound
from services.core.money import NANO_PER_USD
from services.sandbox.request import MODELS
from tools.catalog.limits import listed
from tools.compile_catalog import AS_OF, CATALOG, VENDORS, compile_catalog, render

COMMON = {
    "openai": (
        "gpt-3.5-turbo", "gpt-4", "gpt-4-turbo", "gpt-4o", "gpt-4o-mini", "gpt-4o-2024-05-13", "gpt-4.1",
        "gpt-4.1-mini", "gpt-4.1-nano", "gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-5.1", "gpt-5.2", "gpt-5.4",
        "gpt-5.4-mini", "gpt-5.5", "gpt-5.6", "gpt-6-sol", "gpt-6-luna", "gpt-6-astra", "gpt-6.1-sol", "gpt-6.1-terra",
        "gpt-audio", "o1", "o3", "o3-mini", "o4-mini",
    ),
    "anthropic": ("claude-sonnet-4-5", "claude-haiku-4-5", "claude-opus-4-1", "claude-opus-4-5", "claude-3-haiku"),
    "google": ("gemini-2.0-flash", "gemini-2.5-flash", "gemini-2.5-pro", "gemini-2.5-flash-lite"),
    "mistral": ("mistral-large-latest", "mistral-small-latest", "codestral-latest"),
    "cohere": ("command-a-03-2025", "command-r-08-2024", "command-r7b-12-2024"),
}  # fmt: skip
NO_CHAT = {
    "openai": (
        "text-embedding-3-small",
        "tts-1",
        "whisper-1",
        "gpt-4o-mini-transcribe",
        "gpt-image-1",
        "gpt-image-1.5",
    ),
    "google": ("gemini-embedding-001",),
    "mistral": ("mistral-embed", "mistral-ocr-latest"),
    "cohere": ("embed-v4.0", "rerank-v3.5"),
}
AT_MS = 1_795_737_600_000  # 2026-11-27


@cache
def shipped() -> Catalog:
    return decode_catalog(CATALOG.read_bytes())


@cache
def compiled() -> dict[str, Any]:
    return compile_catalog()


def model(vendor: str, name: str) -> Model:
    return shipped().models[vendor][name]


def test_the_shipped_file_is_what_the_tool_makes() -> None:
    assert CATALOG.read_bytes() == render(compiled())


def test_the_tool_is_deterministic() -> None:
    assert render(compile_catalog()) == render(compiled())


def test_it_says_what_it_was_made_of() -> None:
    assert compiled()["as_of"] == AS_OF.isoformat()
    assert compiled()["source"].startswith(f"genai-prices {version('genai-prices')}; ")


def test_a_line_of_the_file_is_a_model() -> None:
    lines = [line.strip().rstrip(",") for line in CATALOG.read_text().splitlines()]
    models = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    assert models == json.loads(CATALOG.read_bytes())["models"]


def test_it_has_three_hundred_models_and_more_than_five_vendors() -> None:
    counts = Counter(entry["vendor"] for entry in compiled()["models"])
    assert set(counts) == {*VENDORS, "sandbox"}
    first_hand = [vendor for vendor in VENDORS if vendor != "openrouter"]
    assert sum(counts[vendor] for vendor in first_hand) >= 600
    # A release under a name of its own is a model to whoever calls it.
    five = ("openai", "anthropic", "google", "mistral", "cohere")
    assert sum(len(shipped().models[vendor]) for vendor in five) >= 300


@pytest.mark.parametrize("vendor", COMMON)
def test_the_common_models_are_there_and_bounded(vendor: str) -> None:
    for name in COMMON[vendor]:
        found = shipped().find(vendor, name, AT_MS)
        assert found is not None, name
        assert found.match == "exact", name
        assert strict_bound(found.price, Demand(1000, None)).amount_nano > 0, name


@pytest.mark.parametrize("vendor", NO_CHAT)
def test_what_is_no_chat_is_there_too(vendor: str) -> None:
    for name in NO_CHAT[vendor]:
        found = shipped().find(vendor, name, AT_MS)
        assert found is not None, name
        assert any(rate > 0 for rate in found.price.rates.values()), name


def test_a_model_of_unknown_length_asks_for_a_limit() -> None:
    found = shipped().find("openai", "gpt-6-cyber", AT_MS)
    assert found is not None
    with pytest.raises(UnboundedError):
        strict_bound(found.price, Demand(1000, None))


def test_the_sandbox_models_are_priced_and_bounded_as_the_sandbox_writes_them() -> None:
    for name, most in MODELS.items():
        found = shipped().find("sandbox", name, AT_MS)
        assert found is not None
        assert found.price.max_output_tokens == most


def test_no_long_context_price_begins_where_the_context_ends() -> None:
    for vendor, names in shipped().models.items():
        for each in names.values():
            starts = [tier.above_input_tokens for period in each.periods for tier in period.tiers]
            assert not starts or each.context_window is None or max(starts) < each.context_window, (vendor, each.name)


@pytest.mark.parametrize(
    ("vendor", "name", "priced"),
    [
        ("openai", "gpt-4o-2024-08-06", "gpt-4o"),
        ("openai", "openai/gpt-4o", "gpt-4o"),
        ("openai", "ft:gpt-4o-2024-08-06:acme::A1b2", "ft:gpt-4o-2024-"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme:x:A1b2", "ft:gpt-4o-mini-2024-"),
        ("openai", "gpt-6-sol-2026-09-22", "gpt-6-sol"),
        ("anthropic", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("anthropic", "claude-sonnet-4-20250514", "claude-sonnet-4-0"),
        ("anthropic", "claude-3-5-haiku-20241022", "claude-3-5-haiku-latest"),
        ("google", "claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("google", "gemini-2.0-flash-001", "gemini-2.0-flash"),
        ("google", "models/gemini-2.0-flash", "gemini-2.0-flash"),
        ("azure", "gpt-4o", "gpt-4o"),
        ("azure", "azure/gpt-4o-2024-08-06", "gpt-4o"),
        ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ("aws", "global.anthropic.claude-sonnet-4-5-20250929-v1:0", "global.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ("aws", "us.meta.llama3-3-70b-instruct-v1:0", "meta.llama3-3-70b-instruct-v1:0"),
        ("groq", "whisper-large-v3", "whisper-large-v3"),
        ("mistral", "magistral-medium-latest", "magistral-medium"),
    ],
)
def test_releases_are_priced_as_the_model_they_are_of(vendor: str, name: str, priced: str) -> None:
    found = shipped().find(vendor, name, AT_MS)
    assert found is not None
    assert found.model_priced == priced


@pytest.mark.parametrize(
    ("vendor", "name"),
    [
        ("anthropic", "claude-sonnet-4-50"),
        ("anthropic", "claude-sonnet-4-5-turbo"),
        ("anthropic", "claude-haiku-4-5-20251001-thinking"),
        ("google", "my-gemini-1.5-pro"),
        ("google", "gemini-2.5-pro-ultra"),
        ("openai", "gpt-5-nano-next"),
        ("openai", "gpt-4o-search-preview-2025-03-11"),
        ("openai", "gpt-4o-mini-search-preview-2025-03-11"),
        ("openai", "gpt-4o-audio-preview-2024-12-17"),
        ("openai", "gpt-5-search-api-2025-10-14"),
        ("openai", "ft:gpt-4-0613:acme::A1b2"),
        ("openai", "ft:gpt-4.1-2025-04-14:acme::A1b2"),
        ("aws", "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-lite-v1:0"),
        ("perplexity", "sonar-pro"),
        ("cohere", "command-r-03-2024"),
        ("mistral", "gpt-4o"),
    ],
)
def test_a_name_that_only_looks_like_another_has_no_price(vendor: str, name: str) -> None:
    assert shipped().find(vendor, name, AT_MS) is None


def test_no_name_that_is_in_use_gets_the_price_of_another() -> None:
    """Names and prices that another collection lists: what our look-up makes of such a name has that price."""
    checked = 0
    for vendor in VENDORS:
        owners = (vendor, *shipped().also.get(vendor, ()))
        for name, dollars in listed(vendor).items():
            found = shipped().find(vendor, name, AT_MS)
            if found is None or found.match == "exact" or vendor == "azure":
                continue  # What Azure charges for others' models is not what they charge.
            known = next(each for owner in owners for each in [shipped().models[owner].get(found.model_priced)] if each)
            prices = [[period.rates.get(part, 0) for part in ("input", "output")] for period in known.periods]
            assert [int(each * NANO_PER_USD) for each in dollars] in prices, (vendor, name, found.model_priced)
            checked += 1
    assert checked >= 10


def test_each_name_is_one_that_genai_prices_gives_that_entry() -> None:
    for vendor in VENDORS:
        mine = next(each for each in providers if each.id == vendor)
        for name, known in shipped().models[vendor].items():
            theirs = mine.find_model(name)
            if theirs is not None:
                assert theirs is mine.find_model(known.name), (vendor, name)
            else:
                assert (vendor, name) in PUBLISHED, name


PUBLISHED = {
    ("cohere", entry["model"]) for entry in compile_catalog()["models"] if entry["model"].startswith("rerank-")
}
PUBLISHED |= {("cohere", f"embed-{kind}v3.0") for kind in ("english-", "english-light-", "multilingual-")}
PUBLISHED |= {("cohere", "embed-multilingual-light-v3.0")}


def test_cohere_s_published_prices() -> None:
    rerank, embed = model("cohere", "rerank-v3.5"), model("cohere", "embed-english-v3.0")
    # Two dollars a thousand searches, ten cents a million tokens.
    assert rerank.periods[0].rates == {"rerank_search": 2 * NANO_PER_USD * 1000}
    assert embed.periods[0].rates == {"input": NANO_PER_USD // 10}
    # Twelve cents a million tokens of text, forty-seven of images.
    latest = model("cohere", "embed-v4.0").periods[0].rates
    assert latest == {"input": NANO_PER_USD * 12 // 100, "image_input": NANO_PER_USD * 47 // 100}


def test_what_is_left_out_is_listed_with_the_reason() -> None:
    notes = "\n".join(compiled()["notes"])
    for mine in (each for each in providers if each.id in VENDORS):
        named = shipped().models[mine.id]
        prefixes = [prefix for prefix, _ in shipped().prefixes[mine.id]]
        kept = {id(mine.find_model(name)) for name in named} | {id(mine.find_model(f"{each}x")) for each in prefixes}
        for each in mine.models:
            assert id(each) in kept or f"{mine.id}/{each.id} is left out: " in notes, (mine.id, each.id)


def test_only_prices_that_cannot_be_written_exactly_are_left_out_for_their_decimals() -> None:
    reason = "has more than nine decimals"
    ids = [note.split(" is left out")[0].split("/", 1) for note in compiled()["notes"] if reason in note]
    assert ids
    for vendor, name in ids:
        theirs = next(each for each in providers if each.id == vendor).find_model(name)
        assert theirs is not None
        texts = repr(theirs.prices)
        longest = max(len(text.split("'")[0].partition(".")[2]) for text in texts.split("Decimal('")[1:])
        assert longest > 9, name


def test_every_rate_is_of_a_component() -> None:
    seen = {name for names in shipped().models.values() for each in names.values() for name in each.periods[0].rates}
    assert seen <= COMPONENTS.keys()
    assert {"input", "output", "cache_read", "cache_write_1h", "web_search", "page", "audio_duration"} <= seen


def test_history_and_future_are_kept() -> None:
    large = model("mistral", "mistral-large-4")
    assert [period.from_ms is None for period in large.periods] == [True, False, False]
    future = [
        (vendor, each.name)
        for vendor, names in shipped().models.items()
        for each in names.values()
        for dated in (*each.periods, *each.variants)
        if dated.from_ms is not None and dated.from_ms > AT_MS
    ]
    assert future


def test_a_price_by_the_time_of_day() -> None:
    # genai-prices: from 00:30 to 16:30 UTC the standard price, else the lower one.
    chat = model("deepseek", "deepseek-chat")
    day_ms = 86_400_000
    noon, night = AT_MS // day_ms * day_ms + day_ms // 2, AT_MS // day_ms * day_ms + 20 * 3_600_000
    assert chat.price_at(noon).rates["input"] == int(Decimal("0.27") * NANO_PER_USD)
    assert chat.price_at(night).rates["input"] == int(Decimal("0.135") * NANO_PER_USD)


def test_groq_s_ten_seconds() -> None:
    assert model("groq", "whisper-large-v3").minimums == {"audio_ms": 10_000}
