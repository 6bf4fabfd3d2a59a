"""Images for whoever asks: one of an org at a time."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from services.core.ports import Query, UnavailableError
from services.ledger.image import Images


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
