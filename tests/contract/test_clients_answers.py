"""The official clients through the gateway: what they get, what the vendor gets, and what is recorded of it.

Each client gives through the gateway the very outcome that it gives at the vendor itself, whatever way the vendor is
named; and each of its calls is held once and settled once, for what the vendor's figures cost by the catalog.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import pytest

from services.core.events import Settlement
from tests.support.client_scenarios import ACME, DIRECT, LABEL, OWN_KEY, VENDOR_KEY, kinds_of
from tests.support.client_world import OWN_PRICES, Run, run_of
from tests.support.clients import CLIENTS, MODELS, ROOT
from tests.support.vendors import Received
from tests.support.vendors.forms import parts_of

FREE: Final = {"models", "moderations", "count_tokens"}
# How the vendor is named and whose key is brought, and what is asked for that way.
WAYS: Final = {
    "prefix-plain": "plain",
    "acme-stream": "stream",
    "named-plain": "plain",
    "own-apart-stream": "stream",
    "own-beside-plain": "plain",
}
PROMPT: Final = "Say hello."


@dataclass(frozen=True)
class Figures:
    """What the stand-in's answer says was used, by the ledger's names, and what of it is charged, by component."""

    usage: Mapping[str, int]
    charged: Mapping[str, int]
    source: str = "reported"


def tokens(read: int, written: int = 0, **more: int) -> Figures:
    """Tokens in and out, all at the text rates; `more` are counts that change nothing of what is charged."""
    usage = {"input_tokens": read, "output_tokens": written, **more}
    return Figures({name: count for name, count in usage.items() if count}, {"input": read, "output": written})


# By vendor and, unless it is a chat or another way to ask for one, by scenario: the figures of the stand-ins' answers.
FIGURES: Final[Mapping[str, Mapping[str, Figures]]] = {
    "openai": {
        "": tokens(13, 9),
        "completions": tokens(5, 3),
        "completions_stream": tokens(5, 3),
        "embed": tokens(8),
        # Ten tokens of text in, and a picture of 272 out, for which this model has no rate of its own.
        "images": tokens(10, 272, image_output_tokens=272),
        "speech": Figures({"characters": len(PROMPT)}, {"character": len(PROMPT)}, "counted"),
        "transcription": Figures(
            {"input_tokens": 14, "audio_input_tokens": 14, "output_tokens": 45}, {"audio_input": 14, "output": 45}
        ),
        # The answer says nothing; the file that was sent is a second of silence.
        "translation": Figures({"audio_ms": 1_000}, {"audio_duration": 1_000}, "counted"),
    },
    "anthropic": {"": tokens(13, 12), "thinking_stream": tokens(13, 12, reasoning_tokens=5)},
    "google": {"": tokens(13, 9)},
    "mistral": {"": tokens(13, 9), "embed": tokens(8), "ocr": Figures({"pages": 1}, {"page": 1})},
    "cohere": {
        # 71 tokens are what the model read, with the vendor's own words; 5 are what is billed.
        "": tokens(5, 9, prompt_tokens=71),
        "embed": tokens(8),
        "v1_embed": tokens(8),
        **dict.fromkeys(("rerank", "v1_rerank"), Figures({"rerank_searches": 1}, {"rerank_search": 1})),
    },
}
# This model's answers do not say what they used (Google, "Embeddings"), so the bound is taken, and marked.
UNREPORTED: Final = {("google-genai", "embed"), ("node-google", "embed")}

CREDENTIALS: Final = {
    "openai": ("authorization", "Bearer {}"),
    "anthropic": ("x-api-key", "{}"),
    "google": ("x-goog-api-key", "{}"),
    "mistral": ("authorization", "Bearer {}"),
    "cohere": ("authorization", "Bearer {}"),
}
# Of the connection or of who asks: the gateway says these in its own way.
NOT_COMPARED: Final = {
    *("host", "connection", "accept-encoding", "content-length", "transfer-encoding", "content-type", "keep-alive"),
    *("authorization", "x-api-key", "x-goog-api-key", LABEL),
}


@pytest.fixture(scope="module", params=CLIENTS)
def run(request: pytest.FixtureRequest) -> Run:
    """Each client's run."""
    return run_of(request.param)


# ---- what the client gets -------------------------------------------------------------------------------------------


def test_every_outcome_is_the_very_one_that_the_vendor_gives(run: Run) -> None:
    different = {
        kind: (run.outcomes[kind], run.outcomes[DIRECT + kind])
        for kind in kinds_of(run.name)
        if not (kind == "models" and run.vendor == "openai") and run.outcomes[kind] != run.outcomes[DIRECT + kind]
    }
    assert different == {}
    assert [kind for kind in kinds_of(run.name) if not run.outcomes[DIRECT + kind]["ok"]] == []


def test_the_list_of_models_in_openais_dialect_is_the_gateways_own(run: Run) -> None:
    """It has every model with a price, of all vendors within reach; the vendor is not asked."""
    if run.vendor != "openai" or "models" not in kinds_of(run.name):
        return
    named = {name for entry in catalog() if entry["vendor"] == "openai" for name in names_of(entry)}
    models = {*MODELS["openai"].values()} - {"omni-moderation-latest"}
    assert models <= set(run.outcomes["models"]["data"]) <= named
    assert run.requests("models") == []


def test_every_way_to_name_the_vendor_or_bring_a_key_gives_the_same(run: Run) -> None:
    for way, kind in WAYS.items():
        assert run.outcomes[way] == run.outcomes[DIRECT + kind], way


# ---- what the vendor gets -------------------------------------------------------------------------------------------


def test_the_vendor_gets_the_very_requests(run: Run) -> None:
    for label, kind in through(run):
        if kind == "models" and run.vendor == "openai":
            continue
        straight, passed_on = run.requests(DIRECT + kind), run.requests(label)
        assert [each.target for each in passed_on] == [each.target for each in straight], label
        for theirs, ours in zip(straight, passed_on, strict=True):
            assert_same_body(run, theirs, ours)
            assert headers_of(ours) == headers_of(theirs), label
            assert ours.header("user-agent") == theirs.header("user-agent") is not None


def test_the_vendor_sees_its_own_key_and_nothing_of_the_caller(run: Run) -> None:
    header, form = CREDENTIALS[run.vendor]
    for label, scenario in run.scenarios.items():
        if label.startswith(DIRECT):
            continue
        for request in run.requests(label):
            expected = form.format(VENDOR_KEY if scenario.own_key is None else OWN_KEY)
            keys = {name: value for name, value in request.headers if name in {*KEY_HEADERS, "x-vendor-key"}}
            assert keys == {header: expected}, label
            assert not [name for name, _ in request.headers if name.startswith("x-spend-")]
            assert "fk_live_" not in repr(request)


KEY_HEADERS: Final = ("authorization", "x-api-key", "x-goog-api-key", "api-key")


def test_no_key_is_in_what_is_kept(run: Run) -> None:
    """Neither in events nor in the outbox's files nor in logs: not the caller's, not the org's, not ours."""
    kept = repr(run.events) + run.logs + run.written.decode("latin-1")
    assert "txn_" in run.written.decode("latin-1")
    for secret in (OWN_KEY, VENDOR_KEY, *run.keys.values()):
        assert secret not in kept


# ---- what is recorded -----------------------------------------------------------------------------------------------


def test_every_call_is_held_once_and_settled_once_for_what_it_cost(run: Run) -> None:
    for label, kind in through(run):
        if kind in FREE:
            continue
        reservation, settlement = run.call(label)
        assert (settlement.outcome, settlement.http_status) == ("completed", 200), label
        assert reservation.facts == settlement.facts
        assert settlement.cost_nano == sum(each.cost_nano for each in settlement.components)
        if (run.name, kind) in UNREPORTED:
            assert settlement.usage_source == "estimated"
            assert settlement.cost_nano == reservation.held_nano == cost_nano(run, kind, {"input": used(settlement)})
            continue
        figures = figures_of(run, kind)
        counts = {name: count for name, count in settlement.usage.items() if count}
        assert (counts, settlement.usage_source) == (figures.usage, figures.source), label
        assert settlement.cost_nano == cost_nano(run, kind, figures.charged), label
        assert 0 < settlement.cost_nano <= reservation.held_nano, label


def test_what_is_free_leaves_no_event(run: Run) -> None:
    for kind in kinds_of(run.name):
        if kind in FREE:
            assert run.recorded(kind) == []
            assert run.arrivals[kind] == 1


def test_one_request_arrives_for_each_call(run: Run) -> None:
    assert {label: run.arrivals[label] for label, _ in through(run)} == {label: 1 for label, _ in through(run)}


def test_events_say_which_vendor_and_whose_key(run: Run) -> None:
    for label, kind in through(run):
        if kind in FREE:
            continue
        facts = run.call(label)[1].facts
        vendor = ACME if label.startswith(("acme-", "named-")) else run.vendor
        assert facts.vendor == vendor, label
        assert facts.auth_mode == ("byok" if label.startswith("own-") else "metered"), label
        assert facts.identity.team == "ml"
        assert facts.model_requested == model_of(run, kind)


# ---- independent figures --------------------------------------------------------------------------------------------


def through(run: Run) -> list[tuple[str, str]]:
    """The labels of all calls through the gateway that succeed, and what each asks for."""
    return [*((kind, kind) for kind in kinds_of(run.name)), *WAYS.items()]


def figures_of(run: Run, kind: str) -> Figures:
    known = FIGURES[run.vendor]
    return known.get(kind, known[""])


def used(settlement: Settlement) -> int:
    """What an answer without figures is taken for: more than nothing, all of it input."""
    (count,) = (count for count in settlement.usage.values() if count)
    assert settlement.usage["input_tokens"] == count > len(PROMPT)
    return count


def model_of(run: Run, kind: str) -> str:
    models = MODELS[run.vendor]
    return models.get(kind, models[""])


def catalog() -> list[dict[str, Any]]:
    entries = json.loads((ROOT / "services" / "control" / "prices" / "catalog.json").read_bytes())["models"]
    return [*entries, *map(dict, OWN_PRICES.entries)]


def names_of(entry: Mapping[str, Any]) -> list[str]:
    return [entry["model"], *entry.get("aliases", [])]


def cost_nano(run: Run, kind: str, charged: Mapping[str, int]) -> int:
    """The cost by the catalog as it is written: each component rounded by itself, half to even."""
    (entry,) = (each for each in catalog() if each["vendor"] == run.vendor and model_of(run, kind) in names_of(each))
    today = datetime.now(UTC).date()
    in_force = [each for each in entry["prices"] if date.fromisoformat(each.get("from") or "2000-01-01") <= today]
    rates = in_force[-1]["usd"]
    per = {"audio_duration": 3_600_000}
    return sum(
        round(Fraction(Decimal(rates[name])) * 10**9 * quantity / per.get(name, 1_000_000))
        for name, quantity in charged.items()
        if quantity
    )


def assert_same_body(run: Run, theirs: Received, ours: Received) -> None:
    """The same bytes; of a form, the same parts; of a stream of OpenAI's, with usage asked for (GW-6)."""
    kind = theirs.header("content-type") or ""
    if kind.startswith("multipart/"):
        assert parts_of(ours) == parts_of(theirs)
        return
    asks = ours.path.endswith("/completions") and run.vendor == "openai" and theirs.json().get("stream")
    if not asks:
        assert ours.body == theirs.body
        return
    fields = theirs.json()
    options = {**(fields.get("stream_options") or {}), "include_usage": True}
    assert ours.json() == {**fields, "stream_options": options}


def headers_of(request: Received) -> list[tuple[str, str]]:
    return sorted((name, value) for name, value in request.headers if name not in NOT_COMPARED)
