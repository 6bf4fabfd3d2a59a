"""The key cache: it spares look-ups, forgets in time, and never remembers past a change."""

import asyncio

import pytest

from services.core.identity import KEY_PREFIX, KeyRecord, hash_key
from services.core.ports import Pulse, UnavailableError
from services.gateway.headers import CallHeaders
from services.gateway.identify import CACHE_ENTRIES, CACHE_S, Authenticator
from services.gateway.refusal import RefusedError
from tests.support.gateway import PEPPER

KEY = KEY_PREFIX + "a" * 40
OTHER = KEY_PREFIX + "b" * 40


class Directory:
    """`ports.Directory` as far as keys go; counts look-ups and can hold one up."""

    def __init__(self) -> None:
        self.records: dict[str, KeyRecord] = {hash_key(KEY, PEPPER): KeyRecord("key_1", "default", "agent", {})}
        self.look_ups = 0
        self.away = False
        self.gate: asyncio.Event | None = None

    async def find_key(self, key_hash: str) -> KeyRecord | None:
        self.look_ups += 1
        record = self.records.get(key_hash)
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise UnavailableError("away")
        return record

    async def pulse(self) -> Pulse:
        raise AssertionError("looking up a key asks for no pulse")


@pytest.fixture
def directory() -> Directory:
    return Directory()


@pytest.fixture
def now_s() -> list[float]:
    return [1000.0]


@pytest.fixture
def authenticator(directory: Directory, now_s: list[float]) -> Authenticator:
    return Authenticator(directory, PEPPER, "x-spend-", monotonic_s=lambda: now_s[0])  # type: ignore[arg-type]


async def status(authenticator: Authenticator, key: str) -> int:
    try:
        identity = await authenticator.identify(CallHeaders(key=key))
    except RefusedError as refusal:
        return refusal.status
    assert identity.org == "default"
    return 200


async def test_answers_are_kept_unknown_keys_included(authenticator: Authenticator, directory: Directory) -> None:
    for _ in range(3):
        assert await status(authenticator, KEY) == 200
        assert await status(authenticator, OTHER) == 401
    assert directory.look_ups == 2


async def test_answers_are_kept_for_a_minute(
    authenticator: Authenticator, directory: Directory, now_s: list[float]
) -> None:
    assert await status(authenticator, KEY) == 200
    directory.records.clear()
    now_s[0] += CACHE_S - 0.1
    assert await status(authenticator, KEY) == 200
    now_s[0] += 0.2
    assert await status(authenticator, KEY) == 401


async def test_a_change_is_seen_at_once(authenticator: Authenticator, directory: Directory) -> None:
    assert (await status(authenticator, KEY), await status(authenticator, OTHER)) == (200, 401)
    directory.records = {hash_key(OTHER, PEPPER): KeyRecord("key_2", "default", "agent", {})}
    authenticator.forget()
    assert (await status(authenticator, KEY), await status(authenticator, OTHER)) == (401, 200)


async def test_an_answer_on_its_way_during_a_change_is_not_kept(
    authenticator: Authenticator, directory: Directory
) -> None:
    directory.gate = asyncio.Event()
    slow = asyncio.create_task(status(authenticator, KEY))
    await asyncio.sleep(0)
    directory.records.clear()
    authenticator.forget()
    directory.gate.set()
    assert await slow == 200, "it was asked before the change"
    assert await status(authenticator, KEY) == 401


async def test_what_has_not_the_shape_of_a_key_needs_no_look_up(
    authenticator: Authenticator, directory: Directory
) -> None:
    for key in ("", "sk-proj-1", KEY + "a", "fk_live_" + "ü" * 40):
        assert await status(authenticator, key) == 401
    assert directory.look_ups == 0


async def test_a_directory_that_is_away_is_no_wrong_key_and_is_not_remembered(
    authenticator: Authenticator, directory: Directory
) -> None:
    directory.away = True
    assert await status(authenticator, KEY) == 503
    directory.away = False
    assert await status(authenticator, KEY) == 200


async def test_the_least_recently_used_go_first(authenticator: Authenticator, directory: Directory) -> None:
    assert await status(authenticator, KEY) == 200
    for number in range(CACHE_ENTRIES):
        await status(authenticator, f"{KEY_PREFIX}{number:040d}")
        if number == CACHE_ENTRIES // 2:
            assert await status(authenticator, KEY) == 200
    before = directory.look_ups
    assert await status(authenticator, KEY) == 200
    assert directory.look_ups == before
    assert await status(authenticator, f"{KEY_PREFIX}{0:040d}") == 401
    assert directory.look_ups == before + 1
