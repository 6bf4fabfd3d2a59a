"""The judge of the chaos rounds finds what is planted, and nothing else."""

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.chaos.rounds.books import Books
from tests.chaos.rounds.direct import Memory
from tests.chaos.rounds.judging import CapBook, Limits
from tests.chaos.rounds.rest import Agreement
from tests.support.burst import Hit, Shot, fire

MINUTE_MS = 60_000


@dataclass(frozen=True)
class Told:
    """A message of the log."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    value: bytes


def usd(nano: int) -> str:
    return f"0.{nano:09d}"


def text(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Log:
    """A log in the making, and its books. Budget `bud_1` has a limit of 100 nano-dollars, and of 150 from version 2."""

    def __init__(self) -> None:
        limits = Limits(watching={"bud_watching"})
        for version, at_ms, limit in ((1, 0, 100), (2, 10_000, 150)):
            limits.take(entry(version, at_ms, "budget.update", "bud_1", {"limit_usd": usd(limit)}))
        self.books = Books(CapBook(limits), {"bud_child": "bud_1"})
        self.offsets: dict[str, int] = {}
        self.waiting: list[Told] = []

    def add(self, kind: str, name: str, at_ms: int, **fields: Any) -> None:
        topic = "spend.reservations.v1" if kind in ("reservation.created", "hold.resized") else "spend.settlements.v1"
        offset = self.offsets.get(topic, 0)
        self.offsets[topic] = offset + 1
        event = {
            "type": f"spend.{kind}.v1",
            "transaction_id": name,
            "time": text(at_ms),
            "admitted_at": text(at_ms),
            "producer": f"gw_{topic}_{offset}",
            "sequence": 1,
            "config_version": 1,
            "charges": [charge("bud_1")],
            "parent_charged": [],
            "expires_at": text(at_ms + MINUTE_MS),
            "estimate": {"mode": "strict"},
            "billing_class": "metered.sandbox",
            "route": "chat.completions",
            "outcome": "completed",
            "flags": [],
            "identity": {"org": "a", "team": "ml", "agent": "ada", "session": None},
        }
        value = json.dumps(event | fields).encode()
        self.waiting.append(Told(topic, 0, offset, at_ms, value))

    def reserve(self, name: str, at_ms: int, held: int, **fields: Any) -> None:
        self.add("reservation.created", name, at_ms, held_usd=usd(held), **fields)

    def resize(self, name: str, at_ms: int, held: int, **fields: Any) -> None:
        self.add("hold.resized", name, at_ms, held_usd=usd(held), **fields)

    def settle(self, name: str, at_ms: int, cost: int, **fields: Any) -> None:
        self.add("settlement.recorded", name, at_ms, held_usd=usd(cost), cost_usd=usd(cost), **fields)

    def expire(self, name: str, at_ms: int, booked: int) -> None:
        self.add("hold.expired", name, at_ms, held_usd=usd(booked), booked_usd=usd(booked))

    def judged(self) -> Books:
        """The books with all that was added since they were asked for last."""
        self.books.take(self.waiting)
        self.waiting = []
        return self.books


def entry(version: int, at_ms: int, action: str, target: str, after: object) -> dict[str, Any]:
    return {"config_version": version, "at": text(at_ms), "action": action, "target": target, "after": after}


def charge(budget_id: str) -> dict[str, str]:
    return {"budget_id": budget_id, "scope": "org:a", "window": f"c:0:{24 * 60 * MINUTE_MS}"}


# ---- P1 -------------------------------------------------------------------------------------------------------------


def test_what_fits_is_no_overshoot_and_what_does_not_is_one() -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.settle("txn_1", 2, 10)
    log.reserve("txn_2", 3, 90)
    assert not log.judged().caps.found
    log.settle("txn_2", 4, 90)
    log.reserve("txn_3", 5, 1)
    (found,) = log.judged().caps.found
    assert (found.transaction_id, found.total, found.limit) == ("txn_3", 101, 100)
    assert log.books.caps.most == 1


def test_calls_of_one_millisecond_are_checked_together() -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.reserve("txn_2", 1, 60)
    assert [each.total for each in log.judged().caps.found] == [120]


def test_a_hold_that_grows_past_the_limit_is_found_and_one_that_grows_with_it_is_not() -> None:
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.resize("txn_1", 5, 101)
    assert [each.total for each in log.judged().caps.found] == [101]
    log = Log()
    log.reserve("txn_1", 1, 60)
    log.resize("txn_1", 10_001, 150)
    log.reserve("txn_2", 10_002, 10, config_version=2)
    assert [each.transaction_id for each in log.judged().caps.found] == ["txn_2"]


def test_a_hold_that_leaves_a_budget_takes_no_room_of_it_any_more() -> None:
    log = Log()
    log.reserve("txn_1", 1, 100)
    log.resize("txn_1", 2, 100, charges=[charge("bud_watching")])
    log.reserve("txn_2", 3, 100)
    assert not log.judged().caps.found


def test_what_was_booked_counts_until_a_settlement_of_a_later_batch_corrects_it() -> None:
    log = Log()
    log.reserve("txn_1", 1, 90)
    log.expire("txn_1", 2, 90)
    log.reserve("txn_2", 3, 11)
    assert len(log.judged().caps.found) == 1
    log.settle("txn_1", 4, 5)
    log.reserve("txn_3", 5, 80)
    assert len(log.judged().caps.found) == 1
    assert log.books.spent == {"bud_1": 5}
    assert log.books.seen["settled after it had expired"] == 1


def test_a_reservation_that_comes_after_its_ending_changes_nothing() -> None:
    log = Log()
    log.expire("txn_1", 1, 5)
    log.reserve("txn_1", 2, 90)
    log.reserve("txn_2", 3, 95)
    assert not log.judged().caps.found


def test_a_reservation_that_the_log_has_after_a_change_of_it_in_the_same_millisecond_does_not_undo_that() -> None:
    log = Log()
    log.resize("rsv_1", 1, 90)
    log.reserve("rsv_1", 1, 5)
    log.reserve("txn_2", 2, 11)
    assert [each.total for each in log.judged().caps.found] == [101]


def test_what_only_watches_has_no_limit_and_what_is_not_there_has_none_to_give() -> None:
    log = Log()
    log.reserve("txn_1", 1, 500, charges=[charge("bud_watching")])
    assert not log.judged().caps.found
    log.reserve("txn_2", 2, 1, charges=[charge("sub_unheard_of")])
    assert [each.limit for each in log.judged().caps.found] == [0]


def test_parts_and_caps_have_limits_too() -> None:
    limits = Limits()
    limits.take(entry(3, 0, "budget.delegate", "sub_1", {"limit_nano": 7}))
    limits.take(entry(4, 0, "cap_policy.update", "a", {"caps": {"byok.x": {"perSession": usd(9), "daily": None}}}))
    event = {"type": "spend.reservation.created.v1", "config_version": 5}
    assert limits.of(event, "sub_1") == 7
    assert limits.of(event, "cap_per_session_byok.x_4") == 9
    assert limits.open_parts == {"sub_1"}
    with pytest.raises(KeyError):
        limits.of({**event, "config_version": 2}, "sub_1")
    with pytest.raises(KeyError):
        limits.of(event, "cap_daily_byok.x_4")
    limits.take(entry(6, 0, "budget.delegation_end", "sub_1", None))
    assert not limits.open_parts


# ---- P2 to P5 -------------------------------------------------------------------------------------------------------


def test_what_has_no_ending_is_open() -> None:
    log = Log()
    log.reserve("txn_1", 1, 5)
    log.reserve("txn_2", 1, 5)
    log.settle("txn_2", 2, 4)
    assert log.judged().open() == ["txn_1"]
    assert log.books.total() == 4


def test_a_second_ending_is_doubled_and_one_published_again_is_not() -> None:
    log = Log()
    log.reserve("txn_1", 1, 5)
    log.settle("txn_1", 2, 4, producer="gw_x")
    log.settle("txn_1", 2, 4, producer="gw_x")
    assert not log.judged().doubled
    assert log.books.seen["published twice"] == 1
    log.settle("txn_1", 3, 4)
    assert log.judged().doubled == ["txn_1 has two settlement events"]
    assert log.books.total() == 4


def test_a_reservation_told_again_by_another_gateway_is_the_same_one_or_doubled() -> None:
    log = Log()
    log.reserve("rsv_1", 1, 5)
    log.reserve("rsv_1", 1, 5)
    assert not log.judged().doubled
    log.reserve("rsv_1", 1, 6)
    assert log.judged().doubled == ["rsv_1 is reserved twice"]
    log.add("decision.denied", "rsv_1", 2, code="budget_exhausted")
    assert log.judged().doubled[1:] == ["rsv_1 is both reserved and refused"]


def test_what_costs_more_than_it_held_or_lies_elsewhere_is_wrong() -> None:
    log = Log()
    log.reserve("txn_1", 1, 5)
    log.settle("txn_1", 2, 6)
    log.reserve("txn_2", 1, 5)
    log.settle("txn_2", 2, 5, charges=[charge("bud_2")])
    log.reserve("txn_3", 1, 5, charges=[charge("bud_child")])
    assert [each.partition(",")[0] for each in log.judged().wrong] == [
        "txn_3 counts against bud_child",
        "txn_1 cost more than it held",
        "txn_2 was charged elsewhere than held",
    ]


def test_a_missing_offset_ends_the_judging() -> None:
    log = Log()
    log.reserve("txn_1", 1, 5)
    log.offsets["spend.reservations.v1"] += 1
    log.reserve("txn_2", 1, 5)
    with pytest.raises(AssertionError, match="skips to 2"):
        log.judged()


def test_figures_that_lack_money_and_that_have_too_much_are_told_apart() -> None:
    found = Agreement()
    found.compare("spent of bud_1", 5, 5)
    assert not found.findings
    found.compare("spent of bud_1", 4, 6)
    found.compare("spent of bud_2", 9, 6)
    assert (found.missing, found.too_much, len(found.findings)) == (2, 3, 2)


def test_an_answer_that_differs_is_found_whoever_gave_it_and_what_was_not_decided_is_none() -> None:
    memory = Memory()
    shot = Shot("http://one", {"authorization": "Bearer a", "idempotency-key": "k"}, b"{}", "/v1/reservations")
    memory.take(shot, Hit(503, body=b"later"))
    memory.take(shot, Hit(201, body=b"held"))
    memory.take(Shot("http://two", shot.headers, shot.body, shot.path), Hit(201, body=b"held"))
    assert (memory.compared, memory.differing) == (1, [])
    memory.take(shot, Hit(402, body=b"refused"))
    assert [each.then for each in memory.differing] == [(402, b"refused")]
    memory.take(Shot("http://one", {**shot.headers, "authorization": "Bearer b"}, b"{}", shot.path), Hit(402))
    assert len(memory.differing) == 1


# ---- what a burst makes of an answer --------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nX-Spend-Transaction-Id: txn_1\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "leaves_after", "hit"),
    [
        (HEAD + b"content-length: 2\r\n\r\n{}", None, Hit(200, "txn_1", body=b"{}")),
        (HEAD + b"content-length: 3\r\n\r\n{}", None, Hit(0, "txn_1")),
        (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", None, Hit(200, "txn_1")),
        (CHUNKED + b"2\r\nhi\r\n", None, Hit(0, "txn_1")),
        (CHUNKED + b"10\r\nbudget_exhausted\r\n0\r\n\r\n", None, Hit(200, "txn_1", "budget_exhausted")),
        (CHUNKED + b"2\r\nhi\r\n", 2, Hit(200, "txn_1", left=True)),
        (CHUNKED + b"2\r\nhi\r\n", 100, Hit(0, "txn_1")),
        (b"HTTP/1.1 402 No\r\ncontent-length: 15\r\n\r\n" + b'{"error":"full"}'[:15], None, Hit(0)),
        (HEAD.replace(b"200 OK", b"402 No") + b"content-length: 3\r\n\r\n{}", None, Hit(0)),
        (b"HTTP/1.1 402 No\r\ncontent-length: 16\r\n\r\n" + b'{"error":"full"}', None, Hit(402, None, "full")),
        (b"", None, Hit(0)),
    ],
)
async def test_what_came_back_is_whole_or_it_is_nothing(answer: bytes, leaves_after: int | None, hit: Hit) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        seen = await fire(Shot(f"http://127.0.0.1:{port}", {}, b"", leaves_after=leaves_after))
    assert (seen.status, seen.transaction_id, seen.code, seen.left) == (
        hit.status,
        hit.transaction_id,
        hit.code,
        hit.left,
    )
    assert seen.body == hit.body or hit.status >= 400
