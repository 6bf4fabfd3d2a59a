"""Spend by billing class, project and session on a real ClickHouse engine, and where calls that moved are found."""

from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from services.adapters.clickhouse import ClickHouse
from services.control.cap_policies.compiled import compile_caps
from services.core.backfill import ImpliedBudgets
from services.core.billing import Cap
from services.core.budgets import EACH, Budget
from services.core.codec import encode_facts
from services.core.codec_fields import format_time
from services.core.events import Reservation, Settlement
from services.core.hotstate import Admitted, Backfill, HoldRequest
from services.core.identity import KeyRecord, hash_key
from services.core.implied import HeldBackfills
from services.core.matching import BudgetIndex, proposals_for
from services.core.ports import TopicPartition
from services.core.snapshot import Snapshot, encode_snapshot
from services.core.windows import CalendarWindow, span_at
from services.ledger import query as query_module
from services.ledger import reconcile as reconcile_module
from services.ledger import routes
from services.ledger import sink as sink_module
from services.ledger.description import describe
from tests.integration.test_ledger_api import ADA, ADMIN, PEPPER, STRANGER, World, expired, settled
from tests.support.examples import DENIAL, RESERVATION, RESIZED, SETTLEMENT
from tests.support.ledger import now_ms

SPEND = "/api/admin/billing/spend"
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@pytest.fixture
async def world(ledger_store: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(sink_module, "BATCH_WAIT_S", 0.01)
    monkeypatch.setattr(routes, "PATIENCE_S", 0.0)
    world = World(ledger_store)
    await world.publish_directory()
    yield world
    await world.client.aclose()


def call(name: str, billing_class: str = "metered.openai", age_ms: int = 1_000, **who: str | None) -> Reservation:
    """A call that was opened `age_ms` ago."""
    auth_mode, _, vendor = billing_class.partition(".")
    identity = replace(RESERVATION.facts.identity, **{"project": None, **who})
    facts = replace(RESERVATION.facts, auth_mode=auth_mode, vendor=vendor, identity=identity)
    return replace(RESERVATION, transaction_id=f"txn_{name}", time_ms=now_ms() - age_ms, facts=facts)


def figures(answer: Any) -> list[tuple[str | None, str, int, int]]:
    """The rows of an answer: value, cost, calls, expired."""
    return [(row["value"], row["costUsd"], row["calls"], row["expired"]) for row in answer["rows"]]


async def spending(world: World) -> None:
    """Settled, expired, corrected and open calls of three billing classes, and what must not count."""
    one, two = call("1", project="p1", session="s1"), call("2", project="p2", session="s2")
    own, plan = call("3", "byok.anthropic", session="s1"), call("4", "host-session.anthropic", project="p1")
    lost, late = call("5", project="p1", session="s2"), call("6", project="p1", session="s1")
    old, open_ = call("7", age_ms=8 * DAY_MS, project="p1"), call("8", project="p1")
    theirs = replace(
        one, transaction_id="txn_9", facts=replace(one.facts, identity=replace(one.facts.identity, org="x"))
    )
    await world.tell(
        *(one, settled(one, 1_000), two, settled(two, 2_000), own, settled(own, 400), plan, settled(plan, 0)),
        *(lost, expired(lost, 30), late, expired(late, 9_999), settled(late, 7), old, settled(old, 50_000), open_),
        *(theirs, settled(theirs, 123), replace(DENIAL, time_ms=now_ms())),
    )


async def test_sums_are_by_billing_class_dearest_first(world: World) -> None:
    await spending(world)
    answer = await world.json(SPEND, window="7d")
    assert figures(answer) == [
        ("metered.openai", "0.000003037", 4, 1),
        ("byok.anthropic", "0.000000400", 1, 0),
        ("host-session.anthropic", "0.000000000", 1, 0),
    ]
    assert (answer["orgId"], answer["by"], answer["nextCursor"]) == ("default", "billing_class", None)
    tokens = 5 * 250
    assert answer["total"] == {
        "costUsd": "0.000003437", "calls": 6, "expired": 1, "inputTokens": tokens, "outputTokens": 5 * 200,
    }  # fmt: skip
    assert sum(row["inputTokens"] for row in answer["rows"]) == tokens
    assert (await world.json(SPEND))["rows"][0]["costUsd"] == "0.000053037", "the last 30 days unless said otherwise"


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("project", [("p2", "0.000002000", 1, 0), ("p1", "0.000001037", 4, 1), (None, "0.000000400", 1, 0)]),
        ("session", [("s2", "0.000002030", 2, 1), ("s1", "0.000001407", 3, 0), ("ses-42", "0.000000000", 1, 0)]),
    ],
)
async def test_sums_are_by_project_and_session(world: World, by: str, expected: list[Any]) -> None:
    await spending(world)
    assert figures(await world.json(SPEND, by=by, window="7d")) == expected


async def test_one_billing_class_or_project_can_be_looked_into(world: World) -> None:
    await spending(world)
    answer = await world.json(SPEND, by="session", window="7d", billingClass="metered.openai", project="p1")
    assert figures(answer) == [("s1", "0.000001007", 2, 0), ("s2", "0.000000030", 1, 1)]
    assert answer["total"]["costUsd"] == "0.000001037"


async def test_a_row_tells_when_its_calls_ended(world: World) -> None:
    first, last = call("1", age_ms=5_000), call("2", age_ms=3_000)
    await world.tell(first, settled(first, 1), last, settled(last, 1))
    (row,) = (await world.json(SPEND))["rows"]
    assert (row["firstAt"], row["lastAt"]) == (format_time(first.time_ms + 100), format_time(last.time_ms + 100))


@pytest.mark.parametrize("window", ["1h", "24h", "7d", "90d", "2160h"])
async def test_a_window_ends_now_and_begins_its_length_ago(world: World, window: str) -> None:
    length_ms = int(window[:-1]) * (HOUR_MS if window.endswith("h") else DAY_MS)
    inside, outside = call("1", age_ms=length_ms - 60_000), call("2", age_ms=length_ms + 60_000)
    await world.tell(inside, settled(inside, 1), outside, settled(outside, 10))
    answer = await world.json(SPEND, window=window)
    assert answer["total"]["costUsd"] == "0.000000001"
    assert answer["since"] < answer["asOf"]


# ---- pages ----------------------------------------------------------------------------------------------------------


async def pages(world: World, **parameters: str) -> AsyncIterator[Any]:
    while True:
        page = await world.json(SPEND, **parameters)
        yield page
        if page["nextCursor"] is None:
            return
        parameters["cursor"] = page["nextCursor"]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 10])
async def test_pages_have_every_row_once_also_where_sums_are_equal(world: World, limit: int) -> None:
    events: list[Any] = []
    expected: dict[str | None, int] = defaultdict(int)
    for number in range(10):
        opened = call(str(number), session=f"s{number % 7}" if number else None)
        cost_nano = 10 if number % 2 else 10**12
        expected[opened.facts.identity.session] += cost_nano
        events += [opened, settled(opened, cost_nano)]
    await world.tell(*events)
    seen = [row async for page in pages(world, by="session", limit=str(limit)) for row in page["rows"]]
    assert [(row["value"], row["costUsd"]) for row in seen] == [
        (value, f"{nano // 10**9}.{nano % 10**9:09d}")
        for value, nano in sorted(expected.items(), key=lambda each: (-each[1], each[0] or ""))
    ]


async def test_pages_are_all_of_the_moment_of_the_first(world: World) -> None:
    """Between pages a call settles, one that was expired is corrected, and a dear session begins: none of it shows."""
    opened = [call(str(number), session=f"s{number}") for number in range(5)]
    await world.tell(*opened, *(settled(each, 1_000 - 100 * number) for number, each in enumerate(opened[:4])))
    await world.tell(expired(opened[4], 50))
    before = await world.json(SPEND, by="session")
    seen: list[Any] = []
    totals = []
    async for page in pages(world, by="session", limit="1"):
        seen += page["rows"]
        totals.append(page["total"])
        if len(seen) == 2:
            more = call("more", session="s0")
            dear = call("dear", session="new")
            await world.tell(more, settled(more, 10**9), dear, settled(dear, 10**9), settled(opened[4], 10**9))
    assert seen == before["rows"]
    assert totals == [before["total"]] * 5
    assert (await world.json(SPEND, by="session"))["rows"][0]["costUsd"] == "1.000001000"


async def test_a_cursor_is_good_for_its_own_query_only(world: World) -> None:
    await world.tell(
        *(
            event
            for n in range(3)
            for opened in [call(str(n), session=f"s{n}")]
            for event in (opened, settled(opened, n))
        )
    )
    first = await world.json(SPEND, by="session", limit="1")
    cursor = first["nextCursor"]
    for parameters in ({"by": "project"}, {"by": "session", "window": "7d"}, {"by": "session", "project": "p"}):
        answer = await world.get(SPEND, cursor=cursor, **parameters)
        assert (answer.status_code, answer.json()["field"]) == (400, "cursor"), parameters
        assert answer.json()["message"] == "cursor must be the nextCursor of an earlier answer, unchanged"
    second = await world.json(SPEND, by="session", limit="2", cursor=cursor)
    assert second["since"] == first["since"]
    assert len(second["rows"]) == 2


# ---- who may, and what is refused -----------------------------------------------------------------------------------


async def test_only_an_admin_may_and_only_of_their_own_org(world: World) -> None:
    for key, parameters, status, code in (
        (None, {}, 401, "invalid_key"),
        (STRANGER, {}, 401, "invalid_key"),
        (ADA, {}, 403, "forbidden"),
        (None, {"orgId": "default"}, 401, "invalid_key"),
    ):
        answer = await world.get(SPEND, key, **parameters)
        assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert "spend by billing class" in (await world.get(SPEND, ADA)).json()["message"]
    answer = await world.get(SPEND, orgId="other")
    assert (answer.status_code, answer.json()["error"], answer.json()["field"]) == (403, "forbidden", "orgId")
    assert (await world.json(SPEND, orgId="default"))["rows"] == []


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"window": "91d"}, "window"),
        ({"window": "2161h"}, "window"),
        ({"window": "0d"}, "window"),
        ({"window": "90m"}, "window"),
        ({"window": "month"}, "window"),
        ({"window": "-1d"}, "window"),
        ({"window": "1٣d"}, "window"),
        ({"by": "team"}, "by"),
        ({"by": "billingClass"}, "by"),
        ({"limit": "0"}, "limit"),
        ({"limit": "501"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"cursor": "abc"}, "cursor"),
        ({"cursor": "é"}, "cursor"),
        ({"billingClass": "openai"}, "billingClass"),
        ({"billingClass": "metered."}, "billingClass"),
        ({"org_id": "default"}, "org_id"),
        ({"orgid": "default"}, "orgid"),
        ({"project": "a b"}, "project"),
    ],
)
async def test_a_parameter_that_can_not_be_is_refused_by_name(
    world: World, parameters: dict[str, str], field: str
) -> None:
    answer = await world.get(SPEND, **parameters)
    assert (answer.status_code, answer.json()["error"], answer.json()["field"]) == (400, "invalid_request", field)
    message = answer.json()["message"]
    assert field in message
    assert "next_cursor" not in message


async def test_answers_have_the_form_they_are_described_with(world: World) -> None:
    await spending(world)
    description = describe()
    described = description["paths"][SPEND]["get"]["responses"]
    for status, parameters in ((200, {}), (200, {"by": "session", "limit": "1"}), (400, {"by": "x"})):
        answer = await world.get(SPEND, **parameters)
        assert answer.status_code == status
        schema = described[str(status)]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), schema | {"components": description["components"]})


# ---- the other sums -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("project", {"p1": "0.000001037", "p2": "0.000002000", None: "0.000000400"}),
        ("session", {"s1": "0.000001407", "s2": "0.000002030", "ses-42": "0.000000000"}),
        ("environment", {None: "0.000003437"}),
        ("user", {None: "0.000003437"}),
        ("key", {RESERVATION.facts.identity.key_id: "0.000003437"}),
        ("vendor", {"openai": "0.000003037", "anthropic": "0.000000400"}),
        (
            "billing_class",
            {"metered.openai": "0.000003037", "byok.anthropic": "0.000000400", "host-session.anthropic": "0.000000000"},
        ),
    ],
)
async def test_spend_is_by_every_dimension(world: World, by: str, expected: dict[str | None, str]) -> None:
    await spending(world)
    answer = await world.json("/v1/spend", by=by, window="7d")
    assert {row["value"]: row["cost_usd"] for row in answer["rows"]} == expected
    assert answer["rows_left_off"] == 0
    assert (answer["total"]["cost_usd"], answer["total"]["denied"]) == ("0.000003437", 1)
    assert (answer["total"]["settled"], answer["total"]["expired"]) == (5, 1)


async def test_spend_of_many_values_tells_the_dearest_and_the_whole_total(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_module, "MAX_SPEND_ROWS", 2)
    await spending(world)
    answer = await world.json("/v1/spend", by="session", window="7d")
    assert [row["value"] for row in answer["rows"]] == ["s2", "s1"]
    assert answer["rows_left_off"] == 1
    assert (answer["total"]["settled"], answer["total"]["cost_usd"]) == (5, "0.000003437")


# ---- calls that went on ---------------------------------------------------------------------------------------------


async def test_a_call_is_found_by_the_vendor_it_was_opened_for_and_by_the_one_that_answered(world: World) -> None:
    """One call moved from sandbox to openai and settled there, one moved and is still held, one never moved."""
    moved = replace(SETTLEMENT, facts=RESIZED.facts)
    held = replace(RESERVATION, transaction_id="txn_held")
    stayed = replace(RESERVATION, transaction_id="txn_stayed")
    await world.tell(
        *(RESERVATION, RESIZED, moved, held, replace(RESIZED, transaction_id="txn_held"), stayed, settled(stayed, 5)),
    )

    async def found(**parameters: str) -> list[tuple[str, str]]:
        rows = (await world.json("/v1/transactions", **parameters))["transactions"]
        return sorted((row["transaction_id"], row["vendor"]) for row in rows)

    gone = [(RESERVATION.transaction_id, "openai"), ("txn_held", "openai")]
    assert await found(vendor="openai") == sorted(gone)
    assert await found(vendor="sandbox") == sorted([*gone, ("txn_stayed", "sandbox")])
    assert await found(vendor="openai", state="settled") == [(RESERVATION.transaction_id, "openai")]
    assert await found(model="gpt-4o-mini") == sorted(gone)
    assert await found(model="gpt-4o-mini", vendor="sandbox") == sorted(gone)
    assert await found(vendor="anthropic") == []
    spent = await world.json("/v1/spend", by="vendor", since="2020-01-01T00:00:00Z")
    assert {row["value"]: row["settled"] for row in spent["rows"]} == {"openai": 1, "sandbox": 1}
    only = await world.json("/v1/spend", vendor="sandbox", since="2020-01-01T00:00:00Z")
    assert only["total"]["settled"] == 1, "money is its who answered"


async def test_a_transaction_tells_its_billing_class_and_the_budgets_that_were_full(world: World) -> None:
    facts = replace(RESERVATION.facts, auth_mode="shared", flags=("downgraded",))
    opened = replace(RESERVATION, facts=facts, parent_charged=("bud_a",), would_block=("bud_b",))
    await world.tell(opened, settled(opened, 5, parent_charged=("bud_a",)), DENIAL)
    answer = await world.json(f"/v1/transactions/{opened.transaction_id}")
    assert (answer["billing_class"], answer["auth_mode"]) == ("shared.sandbox", "shared")
    assert (answer["flags"], answer["parent_charged"], answer["would_block"]) == (["downgraded"], ["bud_a"], ["bud_b"])
    denied = await world.json(f"/v1/transactions/{DENIAL.transaction_id}")
    assert (denied["billing_class"], denied["parent_charged"], denied["would_block"]) == ("metered.sandbox", None, None)


# ---- the books of a cap -------------------------------------------------------------------------------------------


async def test_the_books_of_every_session_and_value_are_compared(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap on sessions and a budget of each user, with a call settled and one open for each of three of them."""
    monkeypatch.setattr(reconcile_module, "PATIENCE_S", 0.0)
    monkeypatch.setattr(reconcile_module, "_PEEKED", 2)
    (cap,) = compile_caps([Cap("metered.openai", "per_session", 10**9, 0)])
    users = Budget("bud_users", "user", EACH, CalendarWindow("month", "UTC"), 10**9)
    index = BudgetIndex([cap, users])
    snapshot = Snapshot("default", 2, "c", 900_000, True, (cap, users), {})
    keys = {hash_key(ADMIN, PEPPER): KeyRecord("key_1", "default", "org_admin", {})}
    await world.directory.publish_org("default", 2, encode_snapshot(snapshot), keys, [])
    for number in range(3):
        settles, stays = [
            await held(world, index, call(f"{kind}{number}", user=f"u{number}", session=f"s{number}"))
            for kind in ("settles", "stays")
        ]
        await world.tell(settles, settled(settles, 100 + number), stays)
    answer = await world.json("/v1/reconciliation")
    assert answer["agree"] is True
    told = {(row["budget_id"], row["ledger"]["spent_usd"], row["ledger"]["held_usd"]) for row in answer["budgets"]}
    spent = [(f"0.00000010{number}", "0.000001000") for number in range(3)]
    assert told == {
        *((cap.budget_id, *each) for each in spent),
        *((f"bud_users@u{number}", *each) for number, each in enumerate(spent)),
    }
    assert {row["span"] for row in answer["budgets"] if row["budget_id"] == cap.budget_id} == {"s:s0", "s:s1", "s:s2"}
    monkeypatch.setattr(reconcile_module, "_ROWS", 0)
    windows = world.rig.memory.state("default").windows
    next(each for key, each in windows.items() if "s:s2" in key).spent_nano += 1
    answer = await world.json("/v1/reconciliation")
    assert (answer["agree"], [row["span"] for row in answer["budgets"]]) == (False, ["s:s2"])


async def test_the_books_of_a_cap_have_what_was_spent_before_it_was_set(world: World) -> None:
    """Two calls of before a cap: one told before the cap was backfilled, one that settles after."""
    (cap,) = compile_caps([Cap("metered.openai", "monthly", 10**9, 20)])
    before = [await held(world, BudgetIndex([]), call(str(number))) for number in range(2)]
    await world.tell(*before, settled(before[0], 300, admitted_at_ms=before[0].time_ms))
    keys = {hash_key(ADMIN, PEPPER): KeyRecord("key_1", "default", "org_admin", {})}
    snapshot = Snapshot("default", 20, "c", 900_000, True, (cap,), {})
    await world.directory.publish_org("default", 20, encode_snapshot(snapshot), keys, [])
    answer = await world.json("/v1/reconciliation")
    assert answer["lagging"] is True, "it is not backfilled yet"
    places = [TopicPartition(Settlement.TOPIC, 0)]
    fences = (await world.hot.marks("default", places)).fences
    window = span_at(cap.window, now_ms()).key()
    under_way = HeldBackfills(ImpliedBudgets([cap])).of(await world.hot.open_holds("default"))
    fill = Backfill(fences, {(cap.budget_id, window): 300}, {cap.budget_id: 20}, "token", holds=under_way)
    assert await world.hot.backfill("default", fill)
    books = {"spent_usd": "0.000000300", "held_usd": "0.000001000"}
    answer = await world.json("/v1/reconciliation")
    assert (answer["agree"], answer["lagging"]) == (True, False)
    assert [(row["hot_state"], row["ledger"], row["log"]) for row in answer["budgets"]] == [(books,) * 3]
    await world.tell(settled(before[1], 40, admitted_at_ms=before[1].time_ms))
    answer = await world.json("/v1/reconciliation")
    (row,) = answer["budgets"]
    later = {"spent_usd": "0.000000340", "held_usd": "0.000000000"}
    assert (row["ledger"], row["log"]) == (later, later)
    assert answer["agree"] is False, "the fold of this test does not charge what calls imply; the aggregator's does"


async def held(world: World, index: BudgetIndex, opened: Reservation) -> Reservation:
    """The call held in the hot state against all it falls under, and the event that says so."""
    now = await world.hot.now_ms()
    proposals = proposals_for(index.matching(opened.facts), opened.facts.identity.session, now)
    context = encode_facts(opened.facts)
    answer = await world.hot.reserve(HoldRequest("default", opened.transaction_id, 1_000, proposals, 900_000, context))
    assert isinstance(answer, Admitted)
    return replace(opened, time_ms=now, held_nano=1_000, charges=answer.charges, expires_at_ms=answer.expires_at_ms)
