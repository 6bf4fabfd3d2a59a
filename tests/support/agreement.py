"""That log, hot state and ledger agree, seen from outside: raw log, keys of the hot state, the ledger's API."""

import asyncio
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import redis

from services.adapters.secrets import Secrets, load_master_key
from services.core.ports import EventLog, Incoming, TopicPartition
from tests.support.checker import Verdict, judge, nano
from tests.support.cluster import Cluster
from tests.support.patience import patiently

SOURCES = ("spend.reservations.v1", "spend.settlements.v1", "spend.decisions.v1")
FOLDED = SOURCES[:2]
ORG = "{default}"


async def places_of(log: EventLog, topics: Sequence[str] = SOURCES) -> list[TopicPartition]:
    """Every partition of the topics."""
    return [TopicPartition(topic, number) for topic in topics for number in range(await log.partitions(topic))]


async def read_all(
    log: EventLog, topics: Sequence[str] = SOURCES, since: Mapping[TopicPartition, int] | None = None
) -> list[Incoming]:
    """Everything the log holds of the topics now: from its first message on, or from the offsets `since`."""
    places = await places_of(log, topics)
    ends = await log.end_offsets(places)
    begins = {**await log.low_offsets(places), **(since or {})}
    missing = {place for place in places if ends[place] > begins[place]}
    messages: list[Incoming] = []
    if not missing:
        return messages
    reader = log.read({place: begins[place] for place in missing})
    async with aclosing(reader):  # type: ignore[type-var]
        async for batch in reader:
            messages.extend(message for message in batch if message.offset < ends[message.place])
            missing -= {message.place for message in batch if message.offset >= ends[message.place] - 1}
            if not missing:
                break
    return messages


def outbox_rows(path: Path) -> int:
    """How many events wait in an outbox file."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM outbox").fetchone()[0])


def hot_figures(redis_url: str) -> tuple[dict[str, int], dict[str, int]]:
    """(spent, held) in nano-dollars by budget, summed over the windows that the hot state knows."""
    spent: dict[str, int] = {}
    held: dict[str, int] = {}
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        for key in client.scan_iter(f"{ORG}:[br]:*", count=1000):
            budget = key.split(":")[2]
            figures = client.hgetall(key)
            spent[budget] = spent.get(budget, 0) + int(figures.get("spent", figures.get("total", 0)))
            held[budget] = held.get(budget, 0) + int(figures.get("held", 0))
    return spent, held


def ledger_transactions(cluster: Cluster) -> list[dict[str, Any]]:
    """Every transaction of the ledger, through its API."""
    rows: list[dict[str, Any]] = []
    cursor: str | None = ""
    with httpx.Client(headers={"authorization": f"Bearer {cluster.admin_key}"}, timeout=30) as client:
        while cursor is not None:
            params = {"limit": "500"} | ({"cursor": cursor} if cursor else {})
            answer = client.get(cluster.url("ledger") + "/v1/transactions", params=params)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            rows.extend(page["transactions"])
            cursor = page["next_cursor"]
    return rows


async def settle_down(cluster: Cluster, log: EventLog, gateways: Iterable[str], seconds: float = 40.0) -> None:
    """Waits until outboxes are empty and both consumers have reached the end of the log, and it has not moved since."""
    deadline = time.monotonic() + seconds
    state: object = None
    while time.monotonic() < deadline:
        waiting = {name: outbox_rows(cluster.directory / f"{name}.outbox.sqlite") for name in gateways}
        places = await patiently(lambda: places_of(log))
        ends = await patiently(partial(log.end_offsets, places))
        with redis.Redis.from_url(cluster.redis_url, decode_responses=True) as client:
            due = client.zcard(f"{ORG}:hx")
            fold = {
                place: int(client.get(f"fold:{place.topic}:{place.partition}") or 0)
                for place in places
                if place.topic in FOLDED
            }
        rows = ledger_events_by_place(cluster)
        behind = {place for place, offset in fold.items() if offset != ends[place]} | {
            place for place in places if rows.get(place, 0) != ends[place]
        }
        if not any(waiting.values()) and not behind and due == 0 and state == ends:
            return
        state = (waiting, behind, due) if any(waiting.values()) or behind or due else ends
        await asyncio.sleep(0.25)
    raise AssertionError(f"not quiet after {seconds} s: {state}")


def ledger_events_by_place(cluster: Cluster) -> dict[TopicPartition, int]:
    """The next offset the ledger will take, by partition."""
    token = Secrets(load_master_key(cluster.directory / "secrets" / "master.key")).internal_token
    answer = httpx.get(
        cluster.url("ledger") + "/internal/v1/next-offsets", headers={"authorization": f"Bearer {token}"}, timeout=20
    )
    assert answer.status_code == 200, answer.text
    return {TopicPartition(row["topic"], row["partition"]): row["offset"] for row in answer.json()["next_offsets"]}


def assert_agreement(verdict: Verdict, cluster: Cluster) -> None:
    """Asserts that hot state and ledger say what the log means, to the nano-dollar and to the row."""
    spent, held = hot_figures(cluster.redis_url)
    for budget in {name for name, _ in verdict.spent()}:
        assert spent.get(budget, 0) == verdict.spent_of_budget(budget), f"hot state spent of {budget}"
    for (budget, _), amount in verdict.held().items():
        assert held.get(budget, 0) >= amount, f"hot state held of {budget}"
    if not verdict.held():
        assert not any(held.values()), f"holds without an open reservation: {held}"
    rows = {row["transaction_id"]: row for row in ledger_transactions(cluster)}
    # A gateway that was killed between its hold and its record leaves an expiry without a reservation: it is in every
    # sum, and in no list of transactions.
    opened = {name for name, each in verdict.transactions.items() if each.reservation or each.denial}
    assert rows.keys() == opened
    for name, transaction in verdict.transactions.items():
        if name in opened and transaction.settlement is not None:
            assert nano(rows[name]["cost_usd"]) == transaction.spent_nano, name


async def judge_log(log: EventLog) -> Verdict:
    """The independent model's reading of the whole log."""
    return judge(await read_all(log))
