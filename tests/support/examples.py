"""Realistic events: what tests start from, and what ``schemas/examples`` holds as bytes.

``python -m tests.support.examples`` writes those files again, after an event has gained a field.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from services.core.budgets import Charge
from services.core.codec import encode
from services.core.events import (
    Attempt,
    CallFacts,
    ComponentCost,
    Denial,
    Expiry,
    HoldResized,
    Reservation,
    Settlement,
    Stamped,
)
from services.core.identity import Identity

FOLDER: Final = Path(__file__).parents[2] / "schemas" / "examples"
PRODUCER: Final = "gw_01JD3TZZZZ0P1R2S3T4V5W6X7Y"

FACTS: Final = CallFacts(
    identity=Identity(
        org="default",
        key_id="key_01JD3V0S5G8Q4X1Y2Z3A4B5C6D",
        team="ml",
        agent="ada",
        session="ses-42",
        tags=("nightly", "eval"),
    ),
    vendor="sandbox",
    route="/v1/chat/completions",
    model_requested="sandbox-small",
    model_priced="sandbox-small",
    match="exact",
    catalog_version="5f1d7a84db00d2fc",
    config_version=12,
)
CHARGES: Final = (
    Charge("bud_01JD3V0S5GORG000000000000A", "org:default", "c:1764547200000:1767225600000"),
    Charge("bud_01JD3V0S5GTEAM00000000000A", "team:ml", "c:1764630000000:1764716400000"),
    Charge("bud_01JD3V0S5GAGENT0000000000A", "agent:ada", "r:60000:60:29411321"),
)
RESERVATION: Final = Reservation(
    transaction_id="txn_01JD3V2K7N9P0Q1R2S3T4V5W6X",
    time_ms=1_764_679_260_123,
    facts=FACTS,
    estimate_mode="strict",
    input_tokens_bound=1_000,
    output_tokens_bound=500,
    held_nano=1_500_000,
    charges=CHARGES,
    expires_at_ms=1_764_680_160_123,
)
SETTLEMENT: Final = Settlement(
    transaction_id=RESERVATION.transaction_id,
    time_ms=1_764_679_261_456,
    facts=FACTS,
    outcome="completed",
    usage_source="reported",
    usage={"input_tokens": 250, "cache_read_tokens": 0, "output_tokens": 200},
    components=(
        ComponentCost("input", 250, 500_000_000, 125_000),
        ComponentCost("output", 200, 2_000_000_000, 400_000),
    ),
    cost_nano=525_000,
    held_nano=RESERVATION.held_nano,
    charges=CHARGES,
    http_status=200,
    retry_count=0,
    latency_us={"auth": 41, "reserve": 480, "vendor": 1_250_000, "total": 1_251_333},
    attempts=(Attempt("sandbox", "sandbox-small", "answered", 200, 1_250_000),),
    admitted_at_ms=RESERVATION.time_ms,
)
RESIZED: Final = HoldResized(
    transaction_id=RESERVATION.transaction_id,
    time_ms=1_764_679_260_789,
    facts=replace(FACTS, vendor="openai", model_priced="gpt-4o-mini", catalog_version="5f1d7a84db00d2fc+03c7b6a1"),
    held_nano=1_875_000,
    charges=CHARGES,
    expires_at_ms=1_764_680_160_789,
)
AUDIO: Final = replace(
    SETTLEMENT,
    transaction_id="txn_01JD3VAT4W6X7Y8Z9A0B1C2D3E",
    facts=replace(FACTS, vendor="groq", model_requested="whisper-large-v3", model_priced="whisper-large-v3"),
    usage_source="counted",
    usage={"audio_ms": 61_000, "web_searches": 1},
    components=(ComponentCost("audio_duration", 61_000, 111_000_000, 1_880_833, 3_600_000),),
    cost_nano=1_880_833,
    estimate_mode="calibrated",
    price_context={"service_tier": "flex"},
    unpriced=("web_searches",),
    attempts=(
        Attempt("openai", "whisper-1", "failed", 503, 88_000),
        Attempt("groq", "whisper-large-v3", "answered", 200, 910_000),
    ),
)
EXPIRY: Final = Expiry(
    transaction_id="txn_01JD3V4M8P0Q1R2S3T4V5W6X7Y",
    time_ms=1_764_680_161_000,
    facts=FACTS,
    held_nano=RESERVATION.held_nano,
    booked_nano=RESERVATION.held_nano,
    charges=CHARGES,
    admitted_at_ms=RESERVATION.time_ms,
)
DENIAL: Final = Denial(
    transaction_id="txn_01JD3V5N9Q1R2S3T4V5W6X7Y8Z",
    time_ms=1_764_679_262_789,
    facts=FACTS,
    code="budget_exhausted",
    reason="budget of team:ml has 0.000100000 USD left; this call may cost up to 0.001500000 USD",
    estimate_nano=RESERVATION.held_nano,
    budget_id=CHARGES[1].budget_id,
    scope=CHARGES[1].scope,
    limit_nano=50_000_000_000,
    spent_nano=49_998_400_000,
    held_nano=1_500_000,
)
PARTIAL: Final = replace(
    SETTLEMENT,
    transaction_id="txn_01JD3V6P0R2S3T4V5W6X7Y8Z9A",
    outcome="partial",
    usage_source="estimated",
    usage={"input_tokens": 250, "output_tokens": 37},
    components=(
        ComponentCost("input", 250, 500_000_000, 125_000),
        ComponentCost("output", 37, 2_000_000_000, 74_000),
    ),
    cost_nano=199_000,
)
VENDOR_ERROR: Final = replace(
    SETTLEMENT,
    transaction_id="txn_01JD3V7Q1S3T4V5W6X7Y8Z9A0B",
    outcome="vendor_error",
    usage_source="none",
    usage={},
    components=(),
    cost_nano=0,
    http_status=500,
    retry_count=2,
)
UNBUDGETED: Final = replace(
    RESERVATION,
    transaction_id="txn_01JD3V8R2T4V5W6X7Y8Z9A0B1C",
    facts=replace(
        FACTS,
        identity=Identity(org="default", key_id=FACTS.identity.key_id),
        vendor="openai",
        model_requested="gpt-4o-2024-08-06",
        model_priced="gpt-4o",
        match="normalised",
    ),
    charges=(),
)
UNKNOWN_MODEL: Final = replace(
    DENIAL,
    transaction_id="txn_01JD3V9S3V5W6X7Y8Z9A0B1C2D",
    facts=replace(FACTS, vendor="openai", model_requested="größtes-modell ✓", model_priced="", match="none"),
    code="unknown_model",
    reason="model 'größtes-modell ✓' has no price; see the price catalog",
    estimate_nano=0,
    budget_id=None,
    scope=None,
    limit_nano=None,
    spent_nano=None,
    held_nano=None,
)

# The team's budget was full, and its parent, the org's, pays; the agent's was full, too, and only watches.
PARENT_CHARGED: Final = replace(
    RESERVATION,
    transaction_id="txn_01JD3VBT5X7Y8Z9A0B1C2D3E4F",
    charges=(CHARGES[0], CHARGES[2]),
    parent_charged=(CHARGES[1].budget_id,),
    would_block=(CHARGES[2].budget_id,),
)
DOWNGRADED: Final = replace(
    RESERVATION,
    transaction_id="txn_01JD3VCV6Y8Z9A0B1C2D3E4F5G",
    facts=replace(
        FACTS,
        vendor="openai",
        model_requested="gpt-4o",
        model_priced="gpt-4o-mini",
        flags=("expression_error:bud_01JD3V0S5GCEL000000000000A", "downgraded"),
    ),
    charges=(CHARGES[0], Charge("bud_01JD3V0S5GCEL000000000000A", "cel:nightly-eval", "c:1764547200000:1767225600000")),
)
# One session's, one user's of a budget that every user has one of, and a budget for all time.
LASTING: Final = replace(
    RESERVATION,
    transaction_id="txn_01JD3VDW7Z9A0B1C2D3E4F5G6H",
    facts=replace(FACTS, identity=replace(FACTS.identity, user="eve@example.org", project="apollo"), auth_mode="byok"),
    charges=(
        Charge("cap_byok.sandbox.session", "billing_class:byok.sandbox", "s:ses-42"),
        Charge("bud_01JD3V0S5GPROJECT00000000A", "project:apollo", "l"),
        Charge(
            "bud_01JD3V0S5GUSERS000000000A@eve@example.org", "user:eve@example.org", "c:1764630000000:1764716400000"
        ),
    ),
)
CUT_OFF: Final = replace(
    PARTIAL,
    transaction_id="txn_01JD3VEX8A0B1C2D3E4F5G6H7J",
    outcome="cut_off",
    usage_source="counted",
    parent_charged=PARENT_CHARGED.parent_charged,
    charges=PARENT_CHARGED.charges,
)

# By file, below `FOLDER`: <topic>/<version>/<what it shows>.json.
EXAMPLES: Final[Mapping[str, Stamped]] = {
    "spend.reservations.v1/1/three-budgets.json": Stamped(RESERVATION, PRODUCER, 1),
    "spend.reservations.v1/1/resized.json": Stamped(RESIZED, PRODUCER, 7),
    "spend.reservations.v1/1/no-budget.json": Stamped(UNBUDGETED, PRODUCER, 6),
    "spend.reservations.v1/1/parent-charged.json": Stamped(PARENT_CHARGED, PRODUCER, 9),
    "spend.reservations.v1/1/downgraded.json": Stamped(DOWNGRADED, PRODUCER, 10),
    "spend.reservations.v1/1/session-and-lifetime.json": Stamped(LASTING, PRODUCER, 11),
    "spend.settlements.v1/1/completed.json": Stamped(SETTLEMENT, PRODUCER, 2),
    "spend.settlements.v1/1/counted-audio.json": Stamped(AUDIO, PRODUCER, 8),
    "spend.settlements.v1/1/partial.json": Stamped(PARTIAL, PRODUCER, 4),
    "spend.settlements.v1/1/vendor-error.json": Stamped(VENDOR_ERROR, PRODUCER, 5),
    "spend.settlements.v1/1/cut-off.json": Stamped(CUT_OFF, PRODUCER, 12),
    "spend.settlements.v1/1/hold-expired.json": Stamped(EXPIRY, f"expiry:{EXPIRY.transaction_id}", 1),
    "spend.decisions.v1/1/budget-exhausted.json": Stamped(DENIAL, PRODUCER, 3),
    "spend.decisions.v1/1/unknown-model.json": Stamped(UNKNOWN_MODEL, PRODUCER, 1_000_007),
}


if __name__ == "__main__":
    for name, stamped in EXAMPLES.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        # The bytes of the wire: no line end follows.
        (FOLDER / name).write_bytes(encode(stamped))
