"""The corpus: answers of every vendor and route, with usage and cost worked out by hand from the vendors' documents.

Each file of ``tests/golden/answers/<vendor>/<route>.json`` lists cases; a case brings its own prices, so that a new
catalog moves none of them, and says in ``derivation`` how its figures come about.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from services.core.money import format_usd, parse_usd
from services.core.pricing import Price, Tier, price_usage, unpriced_counts
from services.core.usage.reading import BodyReader, Reading, StreamReader
from services.gateway.vendors.registry import DIALECTS, dialect_of, framing_of, shape_of

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "answers"
CASES = [
    pytest.param(path.parent.name, path.stem, case, id=f"{path.parent.name}/{path.stem}: {case['name']}")
    for path in sorted(FOLDER.rglob("*.json"))
    for case in json.loads(path.read_bytes())
]


def reading_of(vendor: str, route: str, case: dict[str, Any]) -> Reading:
    """What the readers of the gateway make of a case."""
    shape = shape_of(vendor, route)
    if "body" in case:
        body = BodyReader(shape)
        body.feed(json.dumps(case["body"]).encode())
        return body.finish()
    chunks = case["stream"] if isinstance(case["stream"], list) else [case["stream"]]
    stream = StreamReader(shape, case.get("framing", framing_of(vendor, route)))
    for chunk in chunks:
        stream.feed(chunk.encode())
    return stream.finish()[2]


def rates(amounts: dict[str, str]) -> dict[str, int]:
    return {name: parse_usd(text) for name, text in amounts.items()}


@pytest.mark.parametrize(("vendor", "route", "case"), CASES)
def test_usage_and_cost_are_as_derived_by_hand(vendor: str, route: str, case: dict[str, Any]) -> None:
    reading = reading_of(vendor, route, case)
    assert dict(reading.usage) == case["usage"], case["derivation"]
    assert reading.complete is case.get("complete", True)
    price = Price(
        rates(case["prices"]),
        tuple(Tier(each["above_input_tokens"], rates(each["usd"])) for each in case.get("tiers", ())),
    )
    costs = price_usage(price, reading.usage, reading.context)
    assert format_usd(sum(each.cost_nano for each in costs)) == case["cost_usd"], case["derivation"]
    assert unpriced_counts(price, reading.usage, reading.context) == tuple(case.get("unpriced", ()))


def test_every_way_to_report_use_is_in_the_corpus() -> None:
    there = {(path.parent.name, path.stem) for path in FOLDER.rglob("*.json")}
    assert all(dialect_of(vendor).name == vendor and route in dialect_of(vendor).shapes for vendor, route in there)
    read = {(vendor, type(shape_of(vendor, route))) for vendor, route in there}
    # Azure's answers are OpenAI's, to the byte.
    owed = {
        (name, type(answers.shape))
        for name, dialect in DIALECTS.items()
        if name != "azure"
        for answers in dialect.shapes.values()
    }
    # A batch's answer is a job, and has used nothing yet.
    owed.discard(("anthropic", type(shape_of("anthropic", "messages.batches"))))
    assert owed == read
