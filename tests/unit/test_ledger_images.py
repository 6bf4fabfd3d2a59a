"""Images for whoever asks: one of an org at a time."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from services.core.events import Expiry, Settlement
from services.core.hotstate import CORRECTION_MS, TOLD_AGAIN_MS, TOMBSTONE_MS
from services.core.ports import Query, UnavailableError
from services.core.windows import CalendarSpan
from services.ledger.image import Images, org_image


class SlowStore:
    """A ledger with nothing in it that answers when told; each question is remembered by its org."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked: list[object] = []
        self.is_away = False

    async def query(self, *queries: Query) -> Sequence[Sequence[Mapping[str, Any]]]:
        self.asked.append(queries[-1].parameters["org"])
        await self.go.wait()
        if self.is_away:
            raise UnavailableError("the store is away")
        return [[] for _ in queries]

    async def insert(self, table: str, rows: Sequence[Mapping[str, object]], token: str) -> None:
        raise AssertionError("an image only reads")


async def ask(images: Images, *orgs: str) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(images.of(org, 0)) for org in orgs]
    await asyncio.sleep(0.01)
    return tasks


async def test_who_asks_for_one_under_way_gets_that_one() -> None:
    store = SlowStore()
    images = Images(store)
    tasks = await ask(images, "a", "a", "b", "a")
    assert store.asked == ["a", "b"]
    store.go.set()
    first, second, other, third = await asyncio.gather(*tasks)
    assert first is second is third
    assert other is not first
    assert await images.of("a", 0) is not first
    assert store.asked == ["a", "b", "a"]


async def test_an_asker_who_goes_away_takes_nothing_from_the_others() -> None:
    store = SlowStore()
    images = Images(store)
    gone, staying = await ask(images, "a", "a")
    gone.cancel()
    await asyncio.wait({gone})
    (late,) = await ask(images, "a")
    store.go.set()
    assert await staying is await late
    assert store.asked == ["a"]


async def test_a_failure_is_told_to_all_and_not_kept() -> None:
    store = SlowStore()
    store.is_away = True
    images = Images(store)
    tasks = await ask(images, "a", "a")
    store.go.set()
    for task in tasks:
        with pytest.raises(UnavailableError, match="away"):
            await task
    store.is_away = False
    assert (await images.of("a", 0)).next_offsets == {}


class EndedStore(SlowStore):
    """A ledger with one hold, which has ended."""

    def __init__(self, **told: object) -> None:
        super().__init__()
        amounts = dict.fromkeys(("amount_nano", "hold_nano", "expires_at_ms", "admitted_at_ms", "resized_at_ms"), 1)
        self.ended = {"transaction_id": "txn_1", **amounts, "charged": [], "windows": [], **told}

    async def query(self, *queries: Query) -> Sequence[Sequence[Mapping[str, Any]]]:
        return [[self.ended] if "ended_by" in each.statement else [] for each in queries]


@pytest.mark.parametrize("windows", [[], [CalendarSpan(0, 1).key()]], ids=["no window", "one that is over"])
@pytest.mark.parametrize(
    ("ended_by", "may_end_again", "least_ms"),
    [
        (Settlement.TYPE, False, TOMBSTONE_MS),
        (Settlement.TYPE, True, TOLD_AGAIN_MS),
        (Expiry.TYPE, True, CORRECTION_MS),
    ],
)
async def test_after_a_rebuild_an_end_is_remembered_as_long_as_the_fold_would(
    ended_by: str, may_end_again: bool, least_ms: int, windows: list[str]
) -> None:
    now_ms = 1_760_000_000_000
    store = EndedStore(ended_by=ended_by, may_end_again=may_end_again, windows=windows)
    hold = (await org_image(store, "default", now_ms)).image.holds["txn_1"]
    assert hold.forget_at_ms == now_ms + least_ms
