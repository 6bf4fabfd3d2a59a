"""``farthing price --jsonl`` gives a line for a line, whatever is on it."""

import json
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.commands.price_lines import price_lines
from services.core.catalog import Catalog, decode_catalog
from services.core.money import format_usd, parse_usd
from services.gateway.vendors.registry import DIALECTS, routes_of
from tools.compile_catalog import CATALOG

NAMES = st.sampled_from(
    ["object", "type", "model", "usage", "created", "choices", "prompt_tokens", "completion_tokens", "message", "data"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
VALUES = st.recursive(
    LEAVES | st.sampled_from(["chat.completion", "response", "list", "gpt-4o", "message", "claude-sonnet-4-5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=6), inner, max_size=6),
    max_leaves=12,
)
ROUTES = sorted({route for vendor in DIALECTS for route in routes_of(vendor)})


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Anything from noise to an answer that could nearly be one."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=40)).replace(b"\n", b"")
    fields: dict[str, Any] = {"vendor": draw(st.sampled_from([*DIALECTS, "groq", "nobody"]) | VALUES)}
    if draw(st.booleans()):
        fields["body"] = draw(VALUES)
    else:
        events = draw(st.lists(VALUES, max_size=3))
        fields["stream"] = draw(st.just("".join(f"data: {json.dumps(each)}\n\n" for each in events)) | st.text())
    for name, values in (("route", st.sampled_from(ROUTES)), ("model", st.just("gpt-4o")), ("at", st.integers())):
        if draw(st.booleans()):
            fields[name] = draw(values | VALUES)
    return json.dumps(fields).encode()


@cache
def shipped() -> Catalog:
    return decode_catalog(CATALOG.read_bytes())


@settings(deadline=None, max_examples=300)
@given(st.lists(lines(), max_size=4))
def test_a_line_for_a_line(given_lines: list[bytes]) -> None:
    found = [json.loads(each) for each in price_lines(shipped(), given_lines, {})]
    assert len(found) == sum(bool(each.strip()) for each in given_lines)
    for each in found:
        assert each.get("error") != "internal_error", each
        if "error" in each:
            assert set(each) == {"error", "message", "id"}
        else:
            costs = [parse_usd(part["cost_usd"]) for part in each["components"]]
            assert each["cost_usd"] == format_usd(sum(costs))
            assert all(cost >= 0 for cost in costs)
