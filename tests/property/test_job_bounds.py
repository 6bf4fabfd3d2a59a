"""A batch is never settled above what was held for it, whatever its lines use within their own bounds."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.core.budgets import Charge
from services.core.catalog import catalog_of
from services.core.estimate import Demand
from services.core.events import CallFacts
from services.core.identity import Identity
from services.core.jobs import Job, decode_job, encode_job
from services.core.pricebook import PriceBook
from services.core.snapshot import UnknownModels
from services.core.usage.openai_chat import NEEDED, ChatShape
from services.core.usage.reading import Reading
from services.gateway.jobs.lines import BoundLines, bound_lines
from services.gateway.jobs.tally import Tally
from services.gateway.vendors import RequestFacts

BATCH = {"processing": "batch"}
MODELS = ("small", "large")
# Rates in dollars a million tokens: down to a fraction of a nano-dollar a token, so that rounding shows.
RATES = st.integers(1, 10**10).map(lambda nano: f"{nano // 10**9}.{nano % 10**9:09d}")


@st.composite
def price(draw: st.DrawFn, model: str) -> dict[str, Any]:
    """A catalog entry: standard and batch rates, some with a price for cached input and a long-context tier."""

    def rates() -> dict[str, str]:
        names = ["input", "output", "web_search", *(("cache_read",) if draw(st.booleans()) else ())]
        return {name: draw(RATES) for name in names}

    entry: dict[str, Any] = {"vendor": "openai", "model": model, "aliases": [], "max_output_tokens": 10_000}
    entry["prices"] = [{"usd": rates()}]
    variant: dict[str, Any] = {"when": BATCH, "usd": rates()}
    if draw(st.booleans()):
        variant["tiers"] = [{"above_input_tokens": draw(st.integers(0, 2_000)), "usd": rates()}]
    entry["variants"] = [variant]
    return entry


# A model, tokens in and out, and the searches that the request itself asks for and is charged for.
LINE = st.tuples(st.sampled_from(MODELS), st.integers(0, 3_000), st.integers(0, 3_000), st.integers(0, 2))


def facts(model: str, input_tokens: int, output_tokens: int, searches: int) -> RequestFacts:
    counts = {"web_searches": searches} if searches else {}
    demand = Demand(input_tokens, output_tokens, counts=counts, contexts=(BATCH,))
    return RequestFacts(model, False, demand, ChatShape(), b"", counted=counts, context=BATCH)


def batch(lines: list[tuple[str, int, int, int]]) -> RequestFacts:
    return replace(facts(lines[0][0], 0, 0, 0), lines=tuple(facts(*each) for each in lines))


def job_of(found: BoundLines) -> Job:
    made = Job(
        org="acme", vendor="openai", job_id="b", kind="openai.batch", dialect="openai", path="/v1/batches", query="",
        headers=(), endpoint="/v1/chat/completions", transaction_id="txn_1",
        facts=CallFacts(Identity("acme", "key_1"), "openai", "batches", "m", "m", "exact", "v1", 1),
        charges=(Charge("bud_1", "org:acme", "1:2"),), held_nano=found.bound.amount_nano,
        bound_nano=found.bound.amount_nano, estimate_mode="strict", context=BATCH, parts=found.parts, http_status=200,
        attempts=(), latency_us={}, trace=(), by_own_key=False, gives_up_at_ms=1,
    )  # fmt: skip
    return decode_job(encode_job(made))


def cost(tally: Tally) -> int:
    return sum(each.cost_nano for each in tally.components())


@given(
    prices=st.tuples(*(price(model) for model in MODELS)),
    lines=st.lists(LINE, min_size=1, max_size=40),
    data=st.data(),
)
def test_a_batch_costs_no_more_than_was_held_for_it(
    prices: tuple[dict[str, Any], ...], lines: list[tuple[str, int, int, int]], data: st.DataObject
) -> None:
    book = PriceBook(catalog_of("v1", prices, {}), None, UnknownModels())
    found = bound_lines(book, "openai", 1_795_000_000_000, batch(lines))
    tally = Tally(job_of(found))
    kinds = []
    for model, most_in, most_out, _ in lines:
        kind = data.draw(st.sampled_from(["answered", "dated", "refused", "silent", "unread"]))
        kinds.append(kind)
        usage: dict[str, int] = {}
        if kind in ("answered", "dated"):
            usage["input_tokens"] = data.draw(st.integers(0, most_in))
            usage["cache_read_tokens"] = data.draw(st.integers(0, usage["input_tokens"]))
            usage["output_tokens"] = data.draw(st.integers(0, most_out))
        name = f"{model}-2026-01-01" if kind == "dated" else model
        if kind == "unread":
            tally.add_unread()
        elif kind != "refused":
            text_bytes = data.draw(st.integers(0, 5_000))
            tally.add(Reading(usage, text_bytes, complete=True, model=name, context=BATCH), NEEDED)
    asked_for = sum(each[3] for each in lines)
    assert tally.usage.get("web_searches", 0) <= asked_for
    # A line that can't be read is taken for the dearest there is, and so may take another's search with it.
    if not {"refused", "unread"} & set(kinds):
        assert tally.usage.get("web_searches", 0) == asked_for
    if tally.source == "reported":
        assert cost(tally) <= found.bound.amount_nano


def test_no_line_is_taken_to_have_used_what_all_may() -> None:
    """A count that an answer has to report and does not stands at what one line can have of it."""
    entry = {"vendor": "openai", "model": "small", "aliases": [], "max_output_tokens": 10}
    rates = {"input": "1.000000000", "output": "1.000000000", "web_search": "10000.000000000"}
    book = PriceBook(catalog_of("v1", [{**entry, "prices": [{"usd": rates}]}], {}), None, UnknownModels())
    lines = [replace(facts("small", 5, 5, searches), counted={}) for searches in (1, 3, 2)]
    tally = Tally(job_of(bound_lines(book, "openai", 1_795_000_000_000, replace(lines[0], lines=tuple(lines)))))
    silent = Reading({"input_tokens": 1, "output_tokens": 1}, 0, complete=True, model="small", context=BATCH)
    seen = []
    for _ in lines:
        tally.add(silent, (*NEEDED, "web_searches"))
        seen.append(tally.usage["web_searches"])
    assert seen == [3, 6, 6]


@given(prices=st.tuples(*(price(model) for model in MODELS)), lines=st.lists(LINE, min_size=1, max_size=40))
def test_what_nobody_will_ever_know_costs_the_bound_and_no_more(
    prices: tuple[dict[str, Any], ...], lines: list[tuple[str, int, int, int]]
) -> None:
    book = PriceBook(catalog_of("v1", prices, {}), None, UnknownModels())
    found = bound_lines(book, "openai", 1_795_000_000_000, batch(lines))
    tally = Tally(job_of(found))
    tally.add_bound()
    assert tally.source == "estimated"
    assert cost(tally) <= found.bound.amount_nano
    # At its standard rates every token is charged.
    quantities = {each.component: 0 for each in tally.components()}
    for each in tally.components():
        quantities[each.component] += each.quantity
    assert quantities.get("input", 0) == sum(each[1] for each in lines)
    assert quantities.get("output", 0) == sum(each[2] for each in lines)
    assert quantities.get("web_search", 0) == sum(each[3] for each in lines)
