"""The ledger's API on a real ClickHouse engine: transactions, spend, reconciliation, and who may see what."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx
import jsonschema
import pytest

from services.adapters.clickhouse import ClickHouse
from services.adapters.ledger_http import _image
from services.adapters.memory import MemoryDirectory
from services.core.backfill import ImpliedBudgets
from services.core.budgets import Budget, propose
from services.core.codec import decode, encode, encode_facts
from services.core.codec_fields import format_time
from services.core.events import Denial, Event, Expiry, HoldResized, Reservation, Settlement, Stamped
from services.core.fold import step_of
from services.core.hotstate import Admitted, Backfill, HoldRequest
from services.core.identity import KeyRecord, Role, hash_key
from services.core.implied import HeldBackfills
from services.core.ports import GoneError, Incoming, Outgoing, Query, TopicPartition, UnavailableError
from services.core.snapshot import Snapshot, encode_snapshot
from services.core.windows import CalendarWindow, LifetimeWindow, RollingWindow
from services.ledger import reconcile as reconcile_module
from services.ledger import routes
from services.ledger import sink as sink_module
from services.ledger.auth import Gate
from services.ledger.description import describe
from services.ledger.reconcile import FOLDED, Reconciler
from services.ledger.routes import Context, build_api
from services.ledger.rows import event_row
from tests.support.examples import (
    AUDIO,
    DENIAL,
    EXPIRY,
    FACTS,
    PARTIAL,
    RESERVATION,
    SETTLEMENT,
    UNBUDGETED,
    UNKNOWN_MODEL,
)
from tests.support.ledger import Rig, new_log, now_ms

PEPPER = b"pepper"
TOKEN = "internal-token"
ADMIN, ADA, BOB = (f"fk_live_{letter * 40}" for letter in "abc")
STRANGER = "fk_live_" + "z" * 40
BUDGETS = (
    Budget("bud_org", "org", "default", CalendarWindow("month", "UTC"), 10_000_000_000),
    Budget("bud_team", "team", "ml", RollingWindow(3_600_000), 5_000_000_000),
    Budget("bud_agent", "agent", "ada", CalendarWindow("hour", "Asia/Kolkata"), 1_000_000_000),
)


class World:
    """A ledger with its API, its log, and a hot state that a fold keeps up to date."""

    def __init__(self, store: ClickHouse) -> None:
        self.log = new_log(1)
        self.rig = Rig(store, self.log)
        self.hot = self.rig.hot
        self.directory = MemoryDirectory(now_ms, self.rig.memory)
        self.reason: str | None = None
        gate = Gate(self.directory, PEPPER, TOKEN, "x-spend-key")
        reconciler = Reconciler(self.rig.log, self.rig.store, self.hot, self.directory)
        self.api = build_api(Context(self.rig.store, gate, reconciler, self._readiness))
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.api, raise_app_exceptions=False), base_url="http://ledger"
        )

    async def _readiness(self) -> str | None:
        return self.reason

    async def publish_directory(self) -> None:
        snapshot = Snapshot("default", 1, "c", 900_000, True, BUDGETS, {})
        pins: Mapping[str, tuple[Role, dict[str, str]]] = {
            ADMIN: ("org_admin", {}),
            ADA: ("agent", {"team": "ml", "agent": "ada"}),
            BOB: ("agent", {"team": "ops"}),
        }
        keys = {hash_key(key, PEPPER): KeyRecord(key[8:12], "default", *rest) for key, rest in pins.items()}
        await self.directory.publish_org("default", 1, encode_snapshot(snapshot), keys, [])
        self.rig.memory.state("default").epoch = "epoch"

    async def tell(self, *events: Event) -> None:
        """Publishes events, and waits until ledger and hot state have them."""
        await self.rig.publisher.publish(*events)
        await self.rig.catch_up()
        for topic in FOLDED:
            place = TopicPartition(topic, 0)
            messages = self.log.messages(place)
            steps = [step_of(decode(message.value), message.offset) for message in messages]
            await self.hot.apply("default", place, [step for step in steps if step is not None], len(messages))
            await self.hot.move_fold_fence(place, len(messages))

    async def admit(self, name: str, amount_nano: int, hold_ms: int = 900_000) -> Reservation:
        """A call held in the hot state, and the event that says so."""
        now = await self.hot.now_ms()
        request = HoldRequest("default", name, amount_nano, propose(BUDGETS, now), hold_ms, encode_facts(FACTS))
        answer = await self.hot.reserve(request)
        assert isinstance(answer, Admitted)
        return replace(
            RESERVATION,
            transaction_id=name,
            time_ms=now,
            held_nano=amount_nano,
            charges=answer.charges,
            expires_at_ms=answer.expires_at_ms,
        )

    async def get(self, path: str, key: str | None = ADMIN, **parameters: str) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return await self.client.get(path, params=parameters, headers=headers)

    async def json(self, path: str, key: str = ADMIN, **parameters: str) -> Any:
        answer = await self.get(path, key, **parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()


def settled(reservation: Reservation, cost_nano: int, **changes: Any) -> Settlement:
    return replace(
        SETTLEMENT,
        transaction_id=reservation.transaction_id,
        time_ms=reservation.time_ms + 100,
        facts=reservation.facts,
        held_nano=reservation.held_nano,
        charges=reservation.charges,
        cost_nano=cost_nano,
        **changes,
    )


def expired(reservation: Reservation, booked_nano: int) -> Expiry:
    return Expiry(
        reservation.transaction_id,
        reservation.time_ms + 200,
        reservation.facts,
        reservation.held_nano,
        booked_nano,
        reservation.charges,
    )


def of(event: Any, **who: Any) -> Any:
    """The event of another caller, vendor or model."""
    facts = {name: who.pop(name) for name in ("vendor", "model_priced", "model_requested") if name in who}
    identity = replace(event.facts.identity, **who)
    return replace(event, facts=replace(event.facts, identity=identity, **facts))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "BATCH_WAIT_S", 0.01)
    monkeypatch.setattr(routes, "PATIENCE_S", 0.0)
    monkeypatch.setattr(reconcile_module, "PATIENCE_S", 0.0)


@pytest.fixture
async def world(ledger_store: ClickHouse) -> AsyncIterator[World]:
    world = World(ledger_store)
    await world.publish_directory()
    yield world
    await world.client.aclose()


# ---- one transaction ------------------------------------------------------------------------------------------------


async def test_a_settled_call_is_told_whole(world: World) -> None:
    await world.tell(RESERVATION, SETTLEMENT)
    answer = await world.json(f"/v1/transactions/{RESERVATION.transaction_id}")
    assert answer["state"] == "settled"
    assert answer["created_at"] == format_time(RESERVATION.time_ms)
    assert answer["settled_at"] == format_time(SETTLEMENT.time_ms)
    assert answer["expires_at"] == format_time(RESERVATION.expires_at_ms)
    assert answer["identity"]["agent"] == "ada"
    assert answer["identity"]["tags"] == ["nightly", "eval"]
    assert (answer["cost_usd"], answer["held_usd"]) == ("0.000525000", "0.001500000")
    assert answer["components"][0] == {
        "component": "input",
        "quantity": 250,
        "price_usd_per_million": "0.500000000",
        "cost_usd": "0.000125000",
    }
    assert [charge["scope"] for charge in answer["charges"]] == ["org:default", "team:ml", "agent:ada"]
    assert answer["usage"] == {"input_tokens": 250, "cache_read_tokens": 0, "output_tokens": 200}
    assert answer["estimate"] == {"mode": "strict", "input_tokens": 1000, "output_tokens": 500}
    assert (answer["expiry"], answer["denial"]) == (None, None)


async def test_every_state(world: World) -> None:
    late = replace(RESERVATION, transaction_id="txn_late")
    await world.tell(RESERVATION, EXPIRY, DENIAL, PARTIAL, late, expired(late, 700), settled(late, 300))
    states = {
        RESERVATION.transaction_id: ("held", "0.000000000"),
        EXPIRY.transaction_id: ("expired", "0.001500000"),
        DENIAL.transaction_id: ("denied", "0.000000000"),
        PARTIAL.transaction_id: ("settled", "0.000199000"),
        "txn_late": ("settled", "0.000000300"),
    }
    for name, (state, cost_usd) in states.items():
        answer = await world.json(f"/v1/transactions/{name}")
        assert (answer["state"], answer["cost_usd"]) == (state, cost_usd), name
    assert (await world.json("/v1/transactions/txn_late"))["expiry"]["booked_usd"] == "0.000000700"
    denial = (await world.json(f"/v1/transactions/{DENIAL.transaction_id}"))["denial"]
    assert (denial["code"], denial["budget"]["scope"]) == ("budget_exhausted", "team:ml")


async def test_a_call_that_has_just_ended_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "PATIENCE_S", 1.0)
    await world.tell(RESERVATION)
    asking = asyncio.create_task(world.json(f"/v1/transactions/{RESERVATION.transaction_id}"))
    await asyncio.sleep(0.1)
    await world.tell(SETTLEMENT)
    assert (await asking)["state"] == "settled"


@pytest.mark.parametrize("name", ["txn_unknown", "%00", "a'b", "x" * 200])
async def test_an_unknown_transaction_is_404(world: World, name: str) -> None:
    answer = await world.get(f"/v1/transactions/{name}")
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


# ---- lists ----------------------------------------------------------------------------------------------------------


def calls(count: int) -> Iterable[Reservation]:
    for number in range(count):
        # Two calls a millisecond: the id decides between them.
        yield replace(RESERVATION, transaction_id=f"txn_{number:03d}", time_ms=RESERVATION.time_ms + number // 2)


async def test_pages_are_newest_first_and_complete_while_more_arrives(world: World) -> None:
    await world.tell(*calls(25))
    seen: list[str] = []
    parameters = {"limit": "10"}
    while True:
        page = await world.json("/v1/transactions", **parameters)
        seen.extend(row["transaction_id"] for row in page["transactions"])
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]
        await world.tell(replace(RESERVATION, transaction_id=f"txn_new_{len(seen)}", time_ms=RESERVATION.time_ms + 999))
    assert seen == [f"txn_{number:03d}" for number in reversed(range(25))]


async def test_a_page_has_each_call_once_with_all_its_events(world: World) -> None:
    await world.tell(RESERVATION, SETTLEMENT, DENIAL)
    page = await world.json("/v1/transactions")
    assert [(row["transaction_id"], row["state"]) for row in page["transactions"]] == [
        (DENIAL.transaction_id, "denied"),
        (RESERVATION.transaction_id, "settled"),
    ]
    assert page["transactions"][1] == await world.json(f"/v1/transactions/{RESERVATION.transaction_id}")


async def test_filters(world: World) -> None:
    ended = replace(RESERVATION, transaction_id="txn_ended")
    lost = replace(RESERVATION, transaction_id="txn_lost")
    late = replace(RESERVATION, transaction_id="txn_late")
    bob = of(replace(RESERVATION, transaction_id="txn_bob"), team="ops", agent="bob", vendor="openai")
    await world.tell(RESERVATION, ended, settled(ended, 5), lost, expired(lost, 5), bob, UNKNOWN_MODEL)
    await world.tell(late, expired(late, 5), settled(late, 4))

    async def found(**parameters: str) -> set[str]:
        page = await world.json("/v1/transactions", **parameters)
        return {row["transaction_id"] for row in page["transactions"]}

    held = {RESERVATION.transaction_id, "txn_bob"}
    assert await found(state="held") == held
    assert await found(state="settled") == {"txn_ended", "txn_late"}
    assert await found(state="expired") == {"txn_lost"}
    assert await found(state="denied") == {UNKNOWN_MODEL.transaction_id}
    assert await found(team="ops") == await found(agent="bob") == {"txn_bob"}
    assert await found(vendor="openai") == {"txn_bob", UNKNOWN_MODEL.transaction_id}
    assert await found(model=UNKNOWN_MODEL.facts.model_requested) == {UNKNOWN_MODEL.transaction_id}
    assert await found(since=format_time(UNKNOWN_MODEL.time_ms)) == {UNKNOWN_MODEL.transaction_id}
    assert UNKNOWN_MODEL.transaction_id not in await found(until=format_time(UNKNOWN_MODEL.time_ms))
    assert await found(team="nobody") == set()


# ---- spend ----------------------------------------------------------------------------------------------------------


async def spending(world: World) -> None:
    now = now_ms()

    def call(name: str, age_ms: int, **who: Any) -> Reservation:
        changed: Reservation = of(replace(RESERVATION, transaction_id=name, time_ms=now - age_ms), **who)
        return changed

    day = 86_400_000
    ada, bob = call("txn_1", 1000), call("txn_2", 2000, team="ops", agent="bob", vendor="openai", model_priced="gpt")
    open_team = call("txn_3", 3000, team=None, agent=None)
    lost, late, old = call("txn_4", 4000), call("txn_5", 5000), call("txn_6", 40 * day)
    await world.tell(
        *(ada, settled(ada, 1_000), bob, settled(bob, 20_000), open_team, settled(open_team, 300)),
        *(lost, expired(lost, 4), late, expired(late, 50), settled(late, 7), old, settled(old, 1_000_000)),
        replace(DENIAL, time_ms=now),
    )


async def test_spend_by_each_dimension_adds_up(world: World) -> None:
    await spending(world)
    expected = {
        "team": {"ml": "0.000001011", "ops": "0.000020000", None: "0.000000300"},
        "agent": {"ada": "0.000001011", "bob": "0.000020000", None: "0.000000300"},
        "org": {"default": "0.000021311"},
        "vendor": {"openai": "0.000020000", "sandbox": "0.000001311"},
        "model": {"gpt": "0.000020000", "sandbox-small": "0.000001311"},
    }
    for by, amounts in expected.items():
        answer = await world.json("/v1/spend", by=by, window="30d")
        assert {row["value"]: row["cost_usd"] for row in answer["rows"]} == amounts, by
        assert answer["total"]["cost_usd"] == "0.000021311"
        costs = [row["cost_usd"] for row in answer["rows"]]
        assert costs == sorted(costs, reverse=True)
    assert answer["total"] | {"settled": 4, "expired": 1, "denied": 1} == answer["total"]
    assert answer["total"]["input_tokens"] == 4 * 250


async def test_spend_over_other_spans(world: World) -> None:
    await spending(world)
    assert (await world.json("/v1/spend", window="60d"))["total"]["cost_usd"] == "0.001021311"
    assert (await world.json("/v1/spend"))["total"]["cost_usd"] == "0.000021311"
    since = format_time(now_ms() - 41 * 86_400_000)
    until = format_time(now_ms() - 39 * 86_400_000)
    assert (await world.json("/v1/spend", since=since, until=until))["total"]["cost_usd"] == "0.001000000"
    month = await world.json("/v1/spend", window="month", zone="Europe/Berlin")
    assert month["since"] < format_time(now_ms()) < month["until"]
    assert (await world.json("/v1/spend", by="team", team="ops"))["total"]["settled"] == 1


async def test_estimates_are_held_against_what_calls_cost(world: World) -> None:
    """Three calibrated calls of one kind, one too low by a nano-dollar; a strict one; one of long ago; one stated."""
    held = [await world.admit(f"txn_{number}", 1_000) for number in range(5)]
    old = replace(held[4], time_ms=held[4].time_ms - 40 * 86_400_000)
    strict = of(held[3], vendor="openai", model_priced="gpt")
    stated = replace(held[0], transaction_id="rsv_1", estimate_mode="stated")
    await world.tell(
        *held[:3],
        stated,
        settled(stated, 5_000, estimate_mode="stated"),
        strict,
        old,
        settled(held[0], 1_000, estimate_mode="calibrated"),
        settled(held[1], 1_001, estimate_mode="calibrated"),
        settled(held[2], 1, estimate_mode="calibrated"),
        settled(strict, 400),
        settled(old, 5_000, estimate_mode="calibrated"),
    )
    answer = await world.json("/v1/estimates")
    assert answer["until"] is None
    assert answer["rows"] == [
        {
            "vendor": "sandbox",
            "model": "sandbox-small",
            "route": FACTS.route,
            "estimate_mode": "calibrated",
            "settled": 3,
            "underestimated": 1,
            "underestimated_ppm": 333_333,
            "held_usd": "0.000003000",
            "cost_usd": "0.000002002",
        },
        {
            "vendor": "openai",
            "model": "gpt",
            "route": FACTS.route,
            "estimate_mode": "strict",
            "settled": 1,
            "underestimated": 0,
            "underestimated_ppm": 0,
            "held_usd": "0.000001000",
            "cost_usd": "0.000000400",
        },
    ]
    (first, _) = (await world.json("/v1/estimates", window="60d"))["rows"]
    assert (first["settled"], first["underestimated"], first["underestimated_ppm"]) == (4, 2, 500_000)
    assert [row["vendor"] for row in (await world.json("/v1/estimates", vendor="openai"))["rows"]] == ["openai"]
    assert (await world.json("/v1/estimates", BOB))["rows"] == [], "another team's"


# ---- who may see what -----------------------------------------------------------------------------------------------


async def test_a_pinned_key_sees_what_its_pins_allow(world: World) -> None:
    bob = of(replace(RESERVATION, transaction_id="txn_bob"), team="ops", agent="bob")
    await world.tell(RESERVATION, SETTLEMENT, bob, settled(bob, 9), UNBUDGETED)
    for key, visible in ((ADA, {RESERVATION.transaction_id}), (BOB, {"txn_bob"})):
        page = await world.json("/v1/transactions", key)
        assert {row["transaction_id"] for row in page["transactions"]} == visible
    assert (await world.get("/v1/transactions/txn_bob", ADA)).status_code == 404
    assert (await world.json("/v1/transactions/txn_bob", BOB))["state"] == "settled"
    spend = await world.json("/v1/spend", BOB, by="team", since="2020-01-01T00:00:00Z")
    assert [(row["value"], row["cost_usd"], row["settled"]) for row in spend["rows"]] == [("ops", "0.000000009", 1)]
    answer = await world.get("/v1/transactions", ADA, team="ops")
    assert (answer.status_code, answer.json()["error"], answer.json()["field"]) == (403, "identity_mismatch", "team")


async def test_orgs_do_not_see_each_other(world: World) -> None:
    await world.tell(of(RESERVATION, org="other"), of(SETTLEMENT, org="other"))
    assert (await world.json("/v1/transactions"))["transactions"] == []
    assert (await world.get(f"/v1/transactions/{RESERVATION.transaction_id}")).status_code == 404
    assert (await world.json("/v1/spend", since="2020-01-01T00:00:00Z"))["rows"] == []


@pytest.mark.parametrize(
    "path", ["/v1/transactions", "/v1/transactions/txn_1", "/v1/spend", "/v1/estimates", "/v1/reconciliation"]
)
async def test_keys_are_checked(world: World, path: str) -> None:
    for key in (None, STRANGER, "fk_live_short", "x\x7f"):
        answer = await world.get(path, key)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_key"), key
    world.rig.memory.generation = None
    answer = await world.get(path)
    assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (503, "state_rebuilding", "1")


async def test_a_key_may_come_in_the_spend_header(world: World) -> None:
    answer = await world.client.get("/v1/transactions", headers={"x-spend-key": ADMIN})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "parameters", "field"),
    [
        ("/v1/transactions", {"limit": "0"}, "limit"),
        ("/v1/transactions", {"limit": "501"}, "limit"),
        ("/v1/transactions", {"limit": "many"}, "limit"),
        ("/v1/transactions", {"cursor": "!!"}, "cursor"),
        ("/v1/transactions", {"cursor": "bm90aGluZw"}, "cursor"),
        ("/v1/transactions", {"state": "paid"}, "state"),
        ("/v1/transactions", {"team": ""}, "team"),
        ("/v1/transactions", {"agent": "a b"}, "agent"),
        ("/v1/transactions", {"since": "yesterday"}, "since"),
        ("/v1/transactions", {"since": "2026-01-01T00:00:00"}, "since"),
        ("/v1/transactions", {"until": "9999-01-01T00:00:00Z"}, "until"),
        ("/v1/transactions", {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "until"),
        ("/v1/transactions", {"colour": "red"}, "colour"),
        ("/v1/transactions/txn_1", {"verbose": "1"}, "verbose"),
        ("/v1/spend", {"by": "mood"}, "by"),
        ("/v1/spend", {"window": "fortnight"}, "window"),
        ("/v1/spend", {"window": "999d"}, "window"),
        ("/v1/spend", {"window": "day", "zone": "Mars/Olympus"}, "zone"),
        ("/v1/spend", {"window": "1h", "zone": "UTC"}, "zone"),
        ("/v1/spend", {"window": "1h", "since": "2026-01-01T00:00:00Z"}, "window"),
        ("/v1/spend", {"model": ""}, "model"),
        ("/v1/spend", {"limit": "5"}, "limit"),
        ("/v1/estimates", {"by": "team"}, "by"),
        ("/v1/estimates", {"window": "fortnight"}, "window"),
        ("/v1/estimates", {"window": "1h", "until": "2026-01-01T00:00:00Z"}, "window"),
        ("/v1/reconciliation", {"org": "other"}, "org"),
    ],
)
async def test_what_is_not_understood_is_400_and_named(
    world: World, path: str, parameters: dict[str, str], field: str
) -> None:
    answer = await world.get(path, **parameters)
    body = answer.json()
    assert (answer.status_code, body["error"], body["field"]) == (400, "invalid_request", field)
    assert field in body["message"]


async def test_other_paths_and_methods(world: World) -> None:
    for path in ("/", "/v1", "/docs", "/openapi.json", "/v1/transactions/", "/v1/transactions/a/b"):
        assert (await world.get(path)).status_code == 404, path
    answer = await world.client.post("/v1/spend", headers={"authorization": f"Bearer {ADMIN}"})
    assert (answer.status_code, answer.json()["error"]) == (405, "method_not_allowed")


async def test_a_store_that_is_away_is_503(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*queries: object) -> None:
        raise UnavailableError("gone")

    monkeypatch.setattr(world.rig.store, "query", away)
    answer = await world.get("/v1/transactions")
    assert (answer.status_code, answer.json()["error"]) == (503, "ledger_unavailable")
    assert answer.headers["retry-after"] == "1"


async def test_health_and_readiness(world: World) -> None:
    assert (await world.get("/healthz", None)).status_code == 200
    assert (await world.get("/readyz", None)).status_code == 200
    world.reason = "the sink waits"
    answer = await world.get("/readyz", None)
    assert (answer.status_code, answer.json()["reason"]) == (503, "the sink waits")


# ---- for our own services -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/internal/v1/next-offsets", "/internal/v1/orgs/default/image"])
async def test_internal_calls_need_the_internal_token(world: World, path: str) -> None:
    for key in (None, ADMIN, "wrong"):
        assert (await world.get(path, key)).status_code == 401
    assert (await world.get(path, TOKEN)).status_code == 200


async def test_the_image_over_http_is_as_the_aggregator_reads_it(world: World) -> None:
    first, second = await world.admit("txn_1", 1_000), await world.admit("txn_2", 2_000)
    await world.tell(first, second, settled(first, 600))
    image = _image(await world.json("/internal/v1/orgs/default/image", TOKEN))
    assert image.next_offsets == {TopicPartition(Reservation.TOPIC, 0): 2, TopicPartition(Settlement.TOPIC, 0): 1}
    assert image.image.spent_nano == {(charge.budget_id, charge.window): 600 for charge in first.charges}
    assert {name: hold.phase for name, hold in image.image.holds.items()} == {"txn_1": "settled", "txn_2": "held"}
    assert image.image.holds["txn_2"].charges == second.charges
    assert image.image.holds["txn_2"].expires_at_ms == second.expires_at_ms
    offsets = await world.json("/internal/v1/next-offsets", TOKEN)
    assert {"topic": Settlement.TOPIC, "partition": 0, "offset": 1} in offsets["next_offsets"]


async def test_images_asked_for_at_once_are_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.tell(await world.admit("txn_1", 1_000))
    asked: list[int] = []
    query = world.rig.store.query

    async def slow(*queries: Query) -> Any:
        asked.append(len(queries))
        await asyncio.sleep(0.2)
        return await query(*queries)

    monkeypatch.setattr(world.rig.store, "query", slow)
    images = await asyncio.gather(*(world.json("/internal/v1/orgs/default/image", TOKEN) for _ in range(3)))
    assert asked == [6]
    assert [[hold["reservation_id"] for hold in each["holds"]] for each in images] == [["txn_1"]] * 3


# ---- the description ------------------------------------------------------------------------------------------------


async def test_answers_have_the_form_they_are_described_with(world: World) -> None:
    description = describe()
    components = {"components": description["components"]}
    held, first, late = [await world.admit(f"txn_{number}", 1_000) for number in range(3)]
    await world.tell(held, first, late, settled(first, 900), expired(late, 1_000), DENIAL, UNKNOWN_MODEL, AUDIO)
    month = {"by": "team", "window": "month", "zone": "Europe/Berlin"}
    requests: list[tuple[str, str, dict[str, str]]] = [
        ("/v1/transactions", "/v1/transactions", {"limit": "2"}),
        ("/v1/transactions", "/v1/transactions", {}),
        *(("/v1/transactions/{transaction_id}", f"/v1/transactions/txn_{number}", {}) for number in range(3)),
        ("/v1/transactions/{transaction_id}", f"/v1/transactions/{AUDIO.transaction_id}", {}),
        ("/v1/transactions/{transaction_id}", f"/v1/transactions/{DENIAL.transaction_id}", {}),
        ("/v1/transactions/{transaction_id}", f"/v1/transactions/{UNKNOWN_MODEL.transaction_id}", {}),
        ("/v1/transactions/{transaction_id}", "/v1/transactions/txn_unknown", {}),
        ("/v1/spend", "/v1/spend", month),
        ("/v1/spend", "/v1/spend", {"since": "2020-01-01T00:00:00Z"}),
        ("/v1/spend", "/v1/spend", {"by": "nobody"}),
        ("/v1/estimates", "/v1/estimates", {"since": "2020-01-01T00:00:00Z"}),
        ("/v1/reconciliation", "/v1/reconciliation", {}),
        ("/api/admin/billing/spend", "/api/admin/billing/spend", {"limit": "1"}),
    ]
    statuses = []
    for template, path, parameters in requests:
        response = await world.get(path, **parameters)
        described = description["paths"][template]["get"]["responses"][str(response.status_code)]
        jsonschema.validate(response.json(), described["content"]["application/json"]["schema"] | components)
        statuses.append(response.status_code)
    assert {template for template, *_ in requests} == set(description["paths"])
    assert (statuses.count(200), statuses.count(400), statuses.count(404)) == (13, 1, 1)
    world.log.trim(TopicPartition(Denial.TOPIC, 0), 1)
    schema = {"$ref": "#/components/schemas/ReconciliationAnswer"} | components
    jsonschema.validate(await world.json("/v1/reconciliation"), schema)


# ---- reconciliation -------------------------------------------------------------------------------------------------


async def some_calls(world: World) -> None:
    reservations = [await world.admit(f"txn_{number}", 1_000 + number) for number in range(5)]
    first, second, third, *_ = reservations
    await world.tell(*reservations, settled(first, 900), settled(second, 1), expired(third, 1_002), DENIAL)


async def test_three_books_agree_to_the_nano_dollar(world: World) -> None:
    await some_calls(world)
    answer = await world.json("/v1/reconciliation")
    assert answer["agree"] is True
    assert answer["lagging"] is False
    books = {"spent_usd": "0.000001903", "held_usd": "0.000002007"}
    assert {row["budget_id"]: row["agree"] for row in answer["budgets"]} == {
        "bud_org": True,
        "bud_team": True,
        "bud_agent": True,
    }
    assert all(row[book] == books for row in answer["budgets"] for book in ("hot_state", "ledger", "log"))
    assert [row["window"] for row in answer["budgets"]] == ["month", "1h", "hour"]
    expected = {"reservations": 5, "settlements": 2, "expiries": 1, "denials": 1}
    assert answer["events"]["ledger"] == expected
    assert answer["events"]["log"] == expected | {"duplicates": 0, "unreadable": 0}


async def test_a_hot_state_that_is_off_is_seen(world: World) -> None:
    await some_calls(world)
    next(iter(world.rig.memory.state("default").windows.values())).spent_nano += 1
    answer = await world.json("/v1/reconciliation")
    assert answer["agree"] is False
    assert sorted(row["agree"] for row in answer["budgets"]) == [False, True, True]


async def test_a_ledger_that_is_off_is_seen(world: World) -> None:
    """A row that the log never had."""
    await some_calls(world)
    slipped = settled(await world.admit("txn_slipped_in", 0), 1)
    message = Incoming("elsewhere", 0, 0, b"default", encode(Stamped(slipped, "gw_x", 1)), (), 0)
    await world.rig.store.insert("events", [event_row(message, decode(message.value))], "slipped in")
    answer = await world.json("/v1/reconciliation")
    assert answer["agree"] is False
    assert [row["agree"] for row in answer["budgets"]] == [False] * 3
    assert answer["events"]["agree"] is False


async def test_what_the_log_has_beyond_ledger_and_fold_is_lag(world: World) -> None:
    await some_calls(world)
    await world.rig.publisher.publish(await world.admit("txn_more", 5))
    answer = await world.json("/v1/reconciliation")
    assert answer["lagging"] is True
    place = {"topic": Reservation.TOPIC, "partition": 0}
    assert {**place, "log_end": 6, "ledger_next": 5, "fold_next": 5} in answer["offsets"]


async def test_repeats_are_counted_but_change_no_book(world: World) -> None:
    first = await world.admit("txn_1", 100)
    await world.tell(first, settled(first, 60))
    for message in [each for topic in FOLDED for each in world.log.messages(TopicPartition(topic, 0))]:
        await world.log.publish([Outgoing(message.topic, message.key, message.value)])
    await world.tell()
    answer = await world.json("/v1/reconciliation")
    assert answer["agree"] is True
    assert answer["lagging"] is False
    assert answer["events"]["log"]["duplicates"] == 2


async def test_a_log_that_has_been_trimmed_can_not_be_a_book(world: World) -> None:
    await some_calls(world)
    world.log.trim(TopicPartition(Denial.TOPIC, 0), 1)
    answer = await world.json("/v1/reconciliation")
    assert answer["agree"] is True
    assert answer["events"]["log"] is None
    assert all(row["log"] is None for row in answer["budgets"])


async def test_what_calls_under_way_hold_without_saying_so_is_in_every_book(world: World) -> None:
    """A budget was made after they were admitted; one of them was changed since."""
    calls = [await world.admit(f"txn_open_{number}", 100) for number in (1, 2)]
    await world.tell(*calls)
    request = HoldRequest(
        "default", "txn_open_2", 300, propose(BUDGETS, calls[1].time_ms), 900_000, encode_facts(FACTS)
    )
    changed = await world.hot.resize(request)
    assert isinstance(changed, Admitted)
    told = (changed.now_ms, FACTS, 300, changed.charges, changed.expires_at_ms)
    await world.tell(HoldResized("txn_open_2", *told))
    new = Budget("bud_new", "team", "ml", LifetimeWindow(), 10**12, since_version=13)
    snapshot = Snapshot("default", 13, "c", 900_000, True, (*BUDGETS, new), {})
    await world.directory.publish_org("default", 13, encode_snapshot(snapshot), {}, [])
    pending = HeldBackfills(ImpliedBudgets([new]))
    fill = Backfill({}, {}, {"bud_new": 13}, "token", holds=pending.of(await world.hot.open_holds("default")))
    assert await world.hot.backfill("default", fill)
    answer = await world.json("/v1/reconciliation")
    assert answer["agree"] is True
    [row] = [row for row in answer["budgets"] if row["budget_id"] == "bud_new"]
    assert {row[book]["held_usd"] for book in ("hot_state", "ledger", "log")} == {"0.000000400"}
    world.log.trim(TopicPartition(Reservation.TOPIC, 0), 1)
    assert (await world.json("/v1/reconciliation"))["agree"] is True


async def test_a_configuration_that_can_not_be_read_is_waited_out(world: World) -> None:
    await some_calls(world)
    await world.directory.publish_org("default", 13, b'{"org":"default"}', {}, [])
    answer = await world.get("/v1/reconciliation")
    assert (answer.status_code, answer.json()["error"]) == (503, "state_rebuilding")


async def test_a_log_that_is_not_compared_is_said_so(world: World) -> None:
    await some_calls(world)
    assert (await world.json("/v1/reconciliation"))["log_compared"] is True
    world.log.trim(TopicPartition(Denial.TOPIC, 0), 1)
    assert (await world.json("/v1/reconciliation"))["log_compared"] is False


async def test_a_log_that_is_trimmed_meanwhile_can_not_be_a_book(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await some_calls(world)
    low_offsets = world.log.low_offsets

    async def then_trimmed(places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        lows = await low_offsets(places)
        world.log.trim(TopicPartition(Reservation.TOPIC, 0), 2)
        return lows

    monkeypatch.setattr(world.log, "low_offsets", then_trimmed)
    answer = await world.json("/v1/reconciliation")
    assert (answer["agree"], answer["log_compared"]) == (True, False)


async def test_a_log_without_its_topics_is_503(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def missing(topic: str) -> int:
        raise GoneError(f"topic {topic!r} is not there")

    monkeypatch.setattr(world.log, "partitions", missing)
    answer = await world.get("/v1/reconciliation")
    assert (answer.status_code, answer.json()["error"]) == (503, "ledger_unavailable")


async def test_a_log_that_says_nothing_more_is_not_waited_for_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await some_calls(world)

    async def silent(start: Mapping[TopicPartition, int]) -> AsyncIterator[Sequence[Incoming]]:
        while True:
            await asyncio.sleep(0.01)
            yield []

    with monkeypatch.context() as patched:
        patched.setattr(world.log, "read", silent)
        patched.setattr(reconcile_module, "DEADLINE_S", 0.3)
        # The second waits for its turn, and no longer than the first.
        answers = await asyncio.wait_for(asyncio.gather(*(world.get("/v1/reconciliation") for _ in range(2))), 5)
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]) == (503, "ledger_unavailable")
        assert "could not be compared within 0.3 s" in answer.json()["message"]
        assert answer.headers["retry-after"]
    assert (await world.json("/v1/reconciliation"))["agree"] is True


async def test_reconciliation_is_for_admins_of_a_warm_org(world: World) -> None:
    answer = await world.get("/v1/reconciliation", ADA)
    assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    world.rig.memory.state("default").epoch = None
    answer = await world.get("/v1/reconciliation")
    assert (answer.status_code, answer.json()["error"]) == (503, "state_rebuilding")
