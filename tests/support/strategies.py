"""Hypothesis strategies of valid events, for every suite that needs some."""

from hypothesis import strategies as st

from services.core.budgets import SCOPE_KINDS, Charge
from services.core.codec_fields import MAX_INTEGER
from services.core.events import (
    ATTEMPT_OUTCOMES,
    MATCHES,
    OUTCOMES,
    USAGE_SOURCES,
    Attempt,
    CallFacts,
    ComponentCost,
    Denial,
    Event,
    Expiry,
    HoldResized,
    Reservation,
    Settlement,
    Stamped,
)
from services.core.identity import DIMENSIONS, MAX_TAGS, Identity
from services.core.windows import CalendarSpan, LifetimeSpan, RollingSpan, SessionSpan, Span

_FIRST = "ABCXYZabcxyz0189"
texts = st.text(st.characters(codec="utf-8"), max_size=40)
names = st.builds(str.__add__, st.sampled_from(_FIRST), st.text(_FIRST + "._:@/+-", max_size=127))
ulids = st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=26, max_size=26)
transaction_ids = st.builds("txn_{}".format, ulids)
producers = st.one_of(st.builds("gw_{}".format, ulids), st.builds("expiry:{}".format, transaction_ids))
counts = st.integers(0, MAX_INTEGER)
amounts = st.integers(0, MAX_INTEGER)
instants = st.integers(0, 7_258_118_399_999)  # 1970 to 2199
counters = st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,19}", fullmatch=True), counts, max_size=6)


@st.composite
def spans(draw: st.DrawFn) -> Span:
    """A window span as events carry it."""
    kind = draw(st.sampled_from(("calendar", "rolling", "session", "lifetime")))
    if kind == "session":
        return SessionSpan(draw(names))
    if kind == "lifetime":
        return LifetimeSpan()
    if kind == "calendar":
        start_ms = draw(instants)
        return CalendarSpan(start_ms, start_ms + draw(st.integers(1, 2_678_400_000)))
    bucket_ms = draw(st.integers(1, 527_040_000))
    return RollingSpan(bucket_ms, draw(st.integers(1, 60)), draw(instants) // bucket_ms)


budget_ids = st.one_of(
    st.builds("bud_{}".format, ulids), st.builds("bud_{}@{}".format, ulids, names.map(lambda name: name[:90]))
)
budget_lists = st.lists(budget_ids, max_size=2).map(tuple)
charges = st.builds(
    Charge,
    budget_id=budget_ids,
    scope=st.builds("{}:{}".format, st.sampled_from(SCOPE_KINDS), names),
    window=spans().map(lambda span: span.key()),
)
charge_lists = st.lists(charges, max_size=4).map(tuple)

identities = st.builds(
    Identity,
    org=names,
    key_id=st.builds("key_{}".format, ulids),
    tags=st.lists(names, max_size=MAX_TAGS, unique=True).map(tuple),
    **{name: st.none() | names for name in DIMENSIONS},
)
facts = st.builds(
    CallFacts,
    identity=identities,
    vendor=names,
    route=texts,
    model_requested=texts,
    model_priced=texts,
    match=st.sampled_from(MATCHES),
    catalog_version=texts,
    config_version=counts,
    auth_mode=names,
    flags=st.lists(
        st.one_of(st.sampled_from(("fail_open", "downgraded")), st.builds("expression_error:{}".format, budget_ids)),
        max_size=3,
    ).map(tuple),
    request_hash=st.just("") | names,
)
components = st.builds(
    ComponentCost,
    component=names,
    quantity=counts,
    price_nano=amounts.map(lambda nano: nano // 1_000_000),
    cost_nano=amounts,
    per=st.sampled_from((1_000_000, 3_600_000, 1)),
)
attempts = st.builds(
    Attempt,
    vendor=names,
    model=texts,
    outcome=st.sampled_from(ATTEMPT_OUTCOMES),
    http_status=st.integers(0, 599),
    duration_us=counts,
)
reservations = st.builds(
    Reservation,
    transaction_id=transaction_ids,
    time_ms=instants,
    facts=facts,
    estimate_mode=st.sampled_from(("strict", "calibrated", "stepped")),
    input_tokens_bound=counts,
    output_tokens_bound=counts,
    held_nano=amounts,
    charges=charge_lists,
    expires_at_ms=instants,
    parent_charged=budget_lists,
    would_block=budget_lists,
)
settlements = st.builds(
    Settlement,
    transaction_id=transaction_ids,
    time_ms=instants,
    facts=facts,
    outcome=st.sampled_from(OUTCOMES),
    usage_source=st.sampled_from(USAGE_SOURCES),
    usage=counters,
    components=st.lists(components, max_size=4).map(tuple),
    cost_nano=amounts,
    held_nano=amounts,
    charges=charge_lists,
    http_status=st.integers(0, 599),
    retry_count=st.integers(0, 2),
    latency_us=counters,
    estimate_mode=st.sampled_from(("strict", "calibrated", "stepped")),
    price_context=st.dictionaries(names, texts, max_size=2),
    unpriced=st.lists(names, max_size=2).map(tuple),
    attempts=st.lists(attempts, max_size=3).map(tuple),
    parent_charged=budget_lists,
    admitted_at_ms=instants,
)
resizes = st.builds(
    HoldResized,
    transaction_id=transaction_ids,
    time_ms=instants,
    facts=facts,
    held_nano=amounts,
    charges=charge_lists,
    expires_at_ms=instants,
)
expiries = st.builds(
    Expiry,
    transaction_id=transaction_ids,
    time_ms=instants,
    facts=facts,
    held_nano=amounts,
    booked_nano=amounts,
    charges=charge_lists,
    admitted_at_ms=instants,
)


@st.composite
def denials(draw: st.DrawFn) -> Denial:
    """A denial, by a budget (with its figures) or for another reason (with none)."""
    by_budget = draw(st.booleans())
    figures = {
        "budget_id": draw(st.builds("bud_{}".format, ulids)),
        "scope": "org:" + draw(names),
        "limit_nano": draw(amounts),
        "spent_nano": draw(st.integers(-MAX_INTEGER, MAX_INTEGER)),
        "held_nano": draw(amounts),
    }
    return Denial(
        transaction_id=draw(transaction_ids),
        time_ms=draw(instants),
        facts=draw(facts),
        code=draw(st.sampled_from(("budget_exhausted", "BudgetCapExceeded", "unknown_model", "unpriced_feature"))),
        reason=draw(texts),
        estimate_nano=draw(amounts),
        **(figures if by_budget else {}),  # type: ignore[arg-type]
    )


events: st.SearchStrategy[Event] = st.one_of(reservations, resizes, settlements, expiries, denials())
stamped_events = st.builds(Stamped, event=events, producer=producers, sequence=st.integers(1, MAX_INTEGER))
