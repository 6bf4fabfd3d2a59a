"""What control publishes is seen in time, loaded once, and its absence is not taken for anything else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from services.adapters.cel import Cel
from services.adapters.memory import MemoryDirectory, MemoryHotState
from services.core.budgets import Budget
from services.core.hotstate import OrgImage
from services.core.matching import Expressions
from services.core.ports import Pulse, UnavailableError
from services.core.snapshot import Snapshot, encode_snapshot
from services.core.windows import CalendarWindow
from services.gateway import snapshots as snapshots_module
from services.gateway.snapshots import HotClock, Snapshots
from tests.support.gateway import PublishedOrg, ScriptedAnswer, SettableClock, chat, until, world

OK = b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}'


class CountingDirectory(MemoryDirectory):
    """Counts what is read, and can be away or hold a snapshot up."""

    snapshots_read = 0
    catalogs_read = 0
    pulses = 0
    away = False
    gate: asyncio.Event | None = None

    async def pulse(self) -> Pulse:
        self.pulses += 1
        if self.away:
            raise UnavailableError("away")
        return await super().pulse()

    async def snapshot(self, org: str) -> bytes | None:
        self.snapshots_read += 1
        body = await super().snapshot(org)
        if self.gate is not None:
            await self.gate.wait()
        return body

    async def catalog(self, version: str) -> bytes | None:
        self.catalogs_read += 1
        return await super().catalog(version)

    async def published_versions(self) -> Mapping[str, int]:
        if self.away:
            raise UnavailableError("away")
        return await super().published_versions()


def snapshots_of(
    directory: CountingDirectory,
    on_change: Callable[[], None] = lambda: None,
    poll_interval_s: float = 60.0,
    expressions: Expressions | None = None,
) -> Snapshots:
    hot_state = MemoryHotState(SettableClock(), directory.store)
    return Snapshots(directory, hot_state, HotClock(), on_change, poll_interval_s, expressions)


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
async def directory(clock: SettableClock) -> CountingDirectory:
    return CountingDirectory(clock)


@pytest.fixture
async def org(directory: CountingDirectory, clock: SettableClock) -> PublishedOrg:
    org = PublishedOrg(directory, MemoryHotState(clock, directory.store))
    await org.warm_up()
    return org


@pytest.fixture
def changes() -> list[str]:
    return []


@pytest.fixture
def snapshots(directory: CountingDirectory, changes: list[str]) -> Snapshots:
    return snapshots_of(directory, lambda: changes.append("changed"), 0.01, Cel())


@contextlib.asynccontextmanager
async def polling(snapshots: Snapshots) -> AsyncIterator[None]:
    task = asyncio.create_task(snapshots.run())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_view_is_loaded_once_for_all_who_ask(
    snapshots: Snapshots, directory: CountingDirectory, org: PublishedOrg
) -> None:
    directory.gate = asyncio.Event()
    asking = [asyncio.create_task(snapshots.view("default")) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()
    directory.gate.set()
    views = await asyncio.gather(*asking[1:])
    assert {id(view) for view in views} == {id(await snapshots.view("default"))}
    assert (directory.snapshots_read, directory.catalogs_read) == (1, 1)
    assert views[0].snapshot.catalog_version == org.snapshot.catalog_version


async def test_a_change_is_loaded_and_told_of(
    snapshots: Snapshots, directory: CountingDirectory, org: PublishedOrg, changes: list[str]
) -> None:
    await snapshots.poll()
    first = await snapshots.view("default")
    await snapshots.poll()
    assert (len(changes), directory.snapshots_read) == (1, 1), "nothing new: nothing is read"
    budget_id = await org.set_budget("1.00")
    await snapshots.poll()
    second = await snapshots.view("default")
    assert second.snapshot.version == first.snapshot.version + 1
    assert [each.budget_id for each in second.snapshot.budgets] == [budget_id]
    assert (len(changes), directory.catalogs_read) == (2, 1), "the catalog is still the same"


async def test_an_org_nobody_published_is_not_there(snapshots: Snapshots, org: PublishedOrg) -> None:
    with pytest.raises(UnavailableError, match="other"):
        await snapshots.view("other")
    with pytest.raises(UnavailableError, match="other"):
        await snapshots.view("other")


async def test_a_catalog_nobody_published_is_not_there(
    snapshots: Snapshots, directory: CountingDirectory, org: PublishedOrg
) -> None:
    directory.store.catalogs.clear()
    with pytest.raises(UnavailableError, match="price catalog"):
        await snapshots.view("default")


async def test_a_refresh_that_fails_is_tried_again(
    snapshots: Snapshots, directory: CountingDirectory, org: PublishedOrg
) -> None:
    await snapshots.poll()
    await snapshots.view("default")
    await org.set_budget("1.00")
    snapshot, directory.store.snapshots["default"] = directory.store.snapshots["default"], b""
    directory.store.snapshots.clear()
    with pytest.raises(UnavailableError):
        await snapshots.poll()
    assert (await snapshots.view("default")).snapshot.budgets == ()
    directory.store.snapshots["default"] = snapshot
    await snapshots.poll()
    assert len((await snapshots.view("default")).snapshot.budgets) == 1


# What a newer control may write of a budget: it is whole, but for a word that nobody here knows.
NEWER_WORD = encode_snapshot(
    Snapshot("default", 2, "c", 900_000, True, (Budget("b", "org", "default", CalendarWindow("day", "UTC"), 1),), {})
).replace(b'"day"', b'"fortnight"')


@pytest.mark.parametrize("damage", [b"not JSON", b"[]", b'{"org":"default"}', NEWER_WORD, b"catalog"])
async def test_what_can_not_be_read_leaves_the_old_view_and_the_other_orgs(
    damage: bytes,
    directory: CountingDirectory,
    org: PublishedOrg,
    monkeypatch: pytest.MonkeyPatch,
    clock: SettableClock,
) -> None:
    # The loggers of a process keep the processors of their first use, which capture_logs could not replace.
    monkeypatch.setattr(snapshots_module, "log", structlog.get_logger())
    other = PublishedOrg(directory, MemoryHotState(clock, directory.store), "other")
    await other.warm_up()
    snapshots = snapshots_of(directory)
    await snapshots.poll()
    first, _ = await snapshots.view("default"), await snapshots.view("other")

    if damage == b"catalog":
        directory.store.catalogs["newer"] = b'{"version":"newer"}'
        await org.publish(catalog_version="newer")
    else:
        await org.publish()
        directory.store.snapshots["default"] = damage
    await other.set_budget("1.00")
    with capture_logs() as lines:
        await snapshots.poll()
        await snapshots.poll()
    assert await snapshots.view("default") is first
    assert len((await snapshots.view("other")).snapshot.budgets) == 1
    assert [(line["event"], line["org"], line["log_level"]) for line in lines] == [
        ("publication_unreadable", "default", "error")
    ]
    read = directory.snapshots_read
    snapshots.hint(first, first.snapshot.version + 1)
    await snapshots.poll()
    assert directory.snapshots_read == read, "it is not read again for every call that names its version"

    await org.publish(catalog_version=first.snapshot.catalog_version)
    await snapshots.poll()
    assert (await snapshots.view("default")).snapshot.version == first.snapshot.version + 2


def of_expression(expression: str) -> Budget:
    return Budget("bud_1", "cel", "name", CalendarWindow("day", "UTC"), 1, expression=expression)


@pytest.mark.parametrize(
    "budgets",
    [
        (of_expression("no such ("),),
        (of_expression('nobody == "x"'),),
        (replace(of_expression("true"), parent_id="bud_gone"),),
    ],
    ids=["no expression", "an unknown name", "no parent"],
)
async def test_budgets_that_can_not_be_compiled_leave_the_old_view(
    snapshots: Snapshots, org: PublishedOrg, budgets: tuple[Budget, ...]
) -> None:
    """Going on without the one that can't be read would let calls past it."""
    await org.publish(budgets=(of_expression("true"),))
    await snapshots.poll()
    first = await snapshots.view("default")
    await org.publish(budgets=budgets)
    await snapshots.poll()
    assert await snapshots.view("default") is first
    await org.publish(budgets=(of_expression('team == "ml"'),))
    await snapshots.poll()
    assert (await snapshots.view("default")).snapshot.version == first.snapshot.version + 2


async def test_an_org_whose_budgets_were_never_read_is_unavailable(
    snapshots: Snapshots, directory: CountingDirectory, org: PublishedOrg
) -> None:
    await org.publish(budgets=(of_expression("no such ("),))
    with pytest.raises(UnavailableError, match="snapshot of org default can't be read"):
        await snapshots.view("default")
    await org.publish(budgets=(of_expression("true"),))
    without_expressions = snapshots_of(directory)
    with pytest.raises(UnavailableError, match="that nothing here can evaluate"):
        await without_expressions.view("default")


async def test_other_work_goes_on_while_many_budgets_are_read(snapshots: Snapshots, org: PublishedOrg) -> None:
    day = CalendarWindow("day", "UTC")
    await org.publish(budgets=tuple(Budget(f"bud_{number}", "user", f"u{number}", day, 1) for number in range(5000)))
    turns = 0

    async def work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    working = asyncio.create_task(work())
    view = await snapshots.view("default")
    working.cancel()
    assert len(view.snapshot.budgets) == 5000
    assert view.budgets.find("bud_4999") is not None
    assert turns > 5


async def test_what_could_not_be_read_during_a_publication_is_not_the_last_word(
    snapshots: Snapshots, directory: CountingDirectory, org: PublishedOrg
) -> None:
    await snapshots.poll()
    directory.store.snapshots["default"] = b"{}"
    directory.gate = asyncio.Event()
    loading = asyncio.create_task(snapshots.view("default"))
    await until(lambda: directory.snapshots_read == 1)
    await org.set_budget("1.00")
    joining = asyncio.create_task(snapshots.poll())
    await asyncio.sleep(0.01)
    directory.gate.set()
    with pytest.raises(UnavailableError, match="can't be read"):
        await loading
    await joining
    budgets = (await snapshots.view("default")).snapshot.budgets
    assert len(budgets) == 1


async def test_an_org_that_was_never_read_is_unavailable_while_it_can_not_be(
    snapshots: Snapshots, directory: CountingDirectory, org: PublishedOrg
) -> None:
    directory.store.snapshots["default"] = b"{}"
    with pytest.raises(UnavailableError, match=r"snapshot of org default can't be read: .*there is no org"):
        await snapshots.view("default")


async def test_a_newer_version_seen_in_an_answer_is_fetched_at_once(
    directory: CountingDirectory, org: PublishedOrg
) -> None:
    slow = snapshots_of(directory)
    async with polling(slow):
        await until(lambda: directory.pulses == 1)
        view = await slow.view("default")
        await org.set_budget("1.00")
        slow.hint(view, view.snapshot.version)
        await asyncio.sleep(0.02)
        assert directory.pulses == 1
        slow.hint(view, view.snapshot.version + 1)
        await until(lambda: directory.snapshots_read == 2)
        await asyncio.sleep(0)
        assert (await slow.view("default")).snapshot.version == view.snapshot.version + 1


@pytest.mark.parametrize("known", [True, False])
async def test_a_view_loaded_during_a_publication_is_not_the_last_word(
    snapshots: Snapshots, directory: CountingDirectory, org: PublishedOrg, known: bool
) -> None:
    await snapshots.poll()
    if known:
        await snapshots.view("default")
        await org.set_budget("0.50")
    directory.gate = asyncio.Event()
    loading = asyncio.create_task(snapshots.poll() if known else snapshots.view("default"))
    await until(lambda: directory.snapshots_read == 1 + known)
    budgets = len(org.snapshot.budgets) + 1
    await org.set_budget("1.00")
    joining = asyncio.create_task(snapshots.poll())
    await asyncio.sleep(0.01)
    directory.gate.set()
    await asyncio.gather(loading, joining)
    assert len((await snapshots.view("default")).snapshot.budgets) == budgets - 1, "it was read before"
    await snapshots.poll()
    assert len((await snapshots.view("default")).snapshot.budgets) == budgets


async def test_an_outage_is_survived_and_noticed(
    snapshots: Snapshots, directory: CountingDirectory, org: PublishedOrg, caplog: pytest.LogCaptureFixture
) -> None:
    assert snapshots.age_s() is None
    async with polling(snapshots):
        await until(lambda: snapshots.generation is not None)
        directory.away = True
        before = directory.pulses
        await until(lambda: directory.pulses > before + 3)
        age_s = snapshots.age_s()
        assert age_s is not None
        assert age_s > 0.02
        directory.away = False
        await org.set_budget("1.00")
        generation = directory.store.generation
        await until(lambda: snapshots.generation == generation)


async def test_a_bare_hot_state_is_seen(
    snapshots: Snapshots, directory: CountingDirectory, org: PublishedOrg, changes: list[str]
) -> None:
    await snapshots.poll()
    directory.store.wipe()
    await snapshots.poll()
    assert snapshots.generation is None
    assert len(changes) == 1, "what is gone says nothing of what was known"
    await snapshots.poll()
    assert len(changes) == 1
    await org.publish()
    await snapshots.poll()
    assert len(changes) == 2


async def known(snapshots: Snapshots, directory: CountingDirectory, org: PublishedOrg) -> set[str]:
    """Has the gateway know the pasts of two budgets that were new once; answers which."""
    day = CalendarWindow("day", "UTC")
    await org.publish(budgets=tuple(Budget(name, "org", "default", day, 1, since_version=2) for name in ("b1", "b2")))
    directory.store.state("default").filled = {"b1": 2, "b2": 2}
    await snapshots.poll()
    assert (await snapshots.view("default")).pasts.unknown == {}
    return {"b1", "b2"}


async def test_no_past_is_known_once_the_hot_state_was_seen_bare(
    snapshots: Snapshots, directory: CountingDirectory, org: PublishedOrg, clock: SettableClock
) -> None:
    budgets = await known(snapshots, directory, org)
    view, body = await snapshots.view("default"), directory.store.snapshots["default"]
    directory.store.wipe()
    await snapshots.poll()
    assert set(view.pasts.unknown) == budgets
    await directory.publish_org("default", view.snapshot.version, body, {}, ())
    await MemoryHotState(clock, directory.store).load("default", OrgImage({}, {}, {}, {}), "epoch-2")
    await snapshots.poll()
    assert await snapshots.view("default") is view, "what is published again is no news"
    assert set(view.pasts.unknown) == budgets, "it was rebuilt without them"
    directory.store.state("default").filled = {"b1": 2}
    await snapshots.poll()
    assert set(view.pasts.unknown) == {"b2"}


@pytest.mark.parametrize("sign", ["silence", "an older generation"])
async def test_marks_that_a_failover_has_lost_are_missed(
    snapshots: Snapshots, directory: CountingDirectory, org: PublishedOrg, sign: str
) -> None:
    await known(snapshots, directory, org)
    view = await snapshots.view("default")
    del directory.store.state("default").filled["b2"]
    await snapshots.poll()
    assert view.pasts.unknown == {}, "nothing is asked for while nothing has happened"
    if sign == "silence":
        directory.away = True
        with pytest.raises(UnavailableError):
            await snapshots.poll()
        directory.away = False
    else:
        assert directory.store.generation is not None
        directory.store.generation -= 1
    await snapshots.poll()
    assert set(view.pasts.unknown) == {"b2"}
    directory.store.state("default").filled["b2"] = 2
    await snapshots.poll()
    assert view.pasts.unknown == {}


def test_the_clock_learns_and_does_not_follow_this_hosts_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HotClock()
    clock.learn(5_000_000)
    monkeypatch.setattr("time.time_ns", lambda: 0)
    assert 5_000_000 <= clock.now_ms() < 5_060_000


async def test_a_key_revoked_and_a_budget_set_are_live_with_the_next_pulse(tmp_path: Path) -> None:
    async with world(tmp_path) as there:
        there.answer(ScriptedAnswer([OK]))
        assert (await there.call()).status == 200
        await there.org.set_budget("0")
        await there.sync()
        assert (await there.call()).status == 402
        await there.org.revoke_key(there.key)
        await there.sync()
        assert (await there.call(chat())).status == 401
