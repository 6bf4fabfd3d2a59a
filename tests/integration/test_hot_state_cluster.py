"""The hot state on a Redis Cluster: the same conformance, slots that move, servers that go, replicas that take over."""

import asyncio
import inspect
import itertools
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hiredis
import pytest

from services.adapters.valkey import (
    _GENERATION,
    _ORGS,
    _SEEN,
    UnsafeHotStateError,
    ValkeyDirectory,
    ValkeyHotState,
    key_key,
)
from services.adapters.valkey_cluster import ClusterConnection, key_of, slot_of
from services.adapters.valkey_connection import ValkeyConnection
from services.adapters.valkey_jobs import ValkeyJobs
from services.adapters.valkey_log import ValkeyLog
from services.adapters.valkey_scripts import Script
from services.adapters.valkey_upkeep import ValkeyUpkeep
from services.core.budgets import Charge
from services.core.hotstate import Admitted, Applied, Cold, HoldRequest
from services.core.identity import KeyRecord
from services.core.ports import TopicPartition, UnavailableError
from services.core.windows import CalendarSpan
from tests.integration.hot_state import (
    test_admission,
    test_directory,
    test_folding,
    test_loading,
    test_resizing,
    test_upkeep,
)
from tests.support.aggregation import Parts, World
from tests.support.history import Caller
from tests.support.hot_rig import EMPTY, NOW_MS, ORG, PLACE, Rig, proposal, settle
from tests.support.hot_state import read_state
from tests.support.patience import patiently
from tests.support.valkey_cluster import ValkeyCluster, ask, servers_of, wait_for

# Every conformance test that needs nothing but a rig runs here, too, over this module's own `rig`.
for _module in (test_admission, test_directory, test_folding, test_loading, test_resizing, test_upkeep):
    for _name, _test in vars(_module).items():
        if _name.startswith("test_") and set(inspect.signature(_test).parameters) == {"rig"}:
            globals()[_name] = _test

ORGS = tuple(f"org-{number}" for number in range(12))


@pytest.fixture(scope="module")
def standing_cluster() -> Iterator[ValkeyCluster]:
    """Three primaries for all tests that leave them as they are."""
    directory = Path(tempfile.mkdtemp(prefix="farthing-cluster-"))
    with ValkeyCluster(directory) as cluster:
        yield cluster
    shutil.rmtree(directory)


@pytest.fixture
def cluster(standing_cluster: ValkeyCluster) -> ValkeyCluster:
    """The standing cluster, wiped for this test."""
    for server in standing_cluster.servers:
        server.flush()
    return standing_cluster


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[ValkeyCluster]:
    """A cluster of the test's own, to be broken."""
    with ValkeyCluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def connection(cluster: ValkeyCluster) -> AsyncIterator[ClusterConnection]:
    connection = ClusterConnection(cluster.url)
    yield connection
    await connection.close()


class ClusterRig(Rig):
    """A rig whose clock is a key in the slot of each org, as no script may look at another slot."""

    async def turn_to(self, now_ms: int) -> None:
        self.now_ms = now_ms
        seconds, millis = divmod(now_ms, 1000)
        assert self.connection is not None
        await self.connection.execute(
            "HSET", f"test:clock:{{{ORG}}}", "seconds", seconds, "micros", millis * 1000 + 999
        )


@pytest.fixture
async def rig(connection: ClusterConnection) -> Rig:
    """A live, empty org on the cluster, on a clock that the test turns."""
    hot = ValkeyHotState(connection)
    tag = "(string.match(KEYS[1], '{(.-)}') or KEYS[1])"
    clock = (
        f"(function() local at = redis.call('HMGET', 'test:clock:{{' .. {tag} .. '}}', 'seconds', 'micros')"
        f" return at[1] and at or {{ '{NOW_MS // 1000}', '999' }} end)()"
    )
    hot._scripts = {
        name: Script.of(each.source.replace("redis.call('TIME')", clock)) for name, each in hot._scripts.items()
    }
    built = ClusterRig(hot, ValkeyDirectory(connection), connection)  # type: ignore[arg-type]
    await built.turn_to(NOW_MS)
    assert await hot.load(ORG, EMPTY, "epoch-1")
    return built


def test_a_command_goes_by_its_first_key() -> None:
    assert key_of(("GET", "a")) == b"a"
    assert key_of(("evalsha", "digest", 2, "{x}:a", "{x}:b", "argument")) == b"{x}:a"
    assert key_of(("EVAL", "return 1", 0)) is None
    assert key_of(("TIME",)) is None
    assert key_of(("SCAN", "0", "MATCH", r"{a\*b}:*", "COUNT", 10)) == b"{a*b}"
    assert slot_of("{a*b}") == slot_of("{a*b}:epoch")
    for command in (("SCAN", 0), ("KEYS", "*"), ("KEYS", "{a*}:b"), ("FLUSHALL",)):
        with pytest.raises(ValueError):
            key_of(command)


def test_slots_are_those_of_the_servers(cluster: ValkeyCluster) -> None:
    for key in ("a", "{org-1}:epoch", "{}x", "x{", "fold:spend.settlements.v1:3", "{a}{b}", "jobs:{ö}:due", "{{a}}"):
        assert slot_of(key) == ask(cluster.servers[0].port, "CLUSTER", "KEYSLOT", key), key


async def test_orgs_on_all_servers_hold_and_fold_side_by_side(
    cluster: ValkeyCluster, connection: ClusterConnection
) -> None:
    assert len(servers_of(cluster, ORGS)) == 3
    assert len({connection.server_of(f"{{{org}}}:x") for org in ORGS}) == 1, "nothing is known before it is asked for"
    hot = ValkeyHotState(connection)
    await hot.check_safe()
    assert set((await hot.epochs(ORGS)).values()) == {None}
    for org in ORGS:
        assert await hot.load(org, EMPTY, f"epoch-{org}")
    assert await hot.epochs(ORGS) == {org: f"epoch-{org}" for org in ORGS}
    now_ms = await hot.now_ms()
    spans = [(org, number) for org in ORGS for number in range(10)]
    answers = await asyncio.gather(*(hot.reserve(_request(org, f"txn_{number}", now_ms)) for org, number in spans))
    assert [type(each).__name__ for each in answers].count("Admitted") == 7 * len(ORGS), "70 of 75 are held in each"
    for org in ORGS:
        steps = [settle(0, 9, "txn_0", _charges(now_ms)), settle(1, 8, "txn_1", _charges(now_ms))]
        assert await hot.apply(org, PLACE, steps, 2) == Applied(2, 0)
    places = [TopicPartition("spend.settlements.v1", number) for number in range(8)]
    for place in places:
        await hot.move_fold_fence(place, place.partition + 1)
    assert await hot.fold_fences(places) == {place: place.partition + 1 for place in places}
    for org in ORGS:
        (figures,) = (await read_state(connection, org)).windows.values()  # type: ignore[arg-type]
        assert (figures.spent_nano, figures.held_nano) == (17, 50)
    assert len({connection.server_of(f"{{{org}}}:x") for org in ORGS}) == 3


async def test_what_control_publishes_is_found_on_whatever_server_it_is(connection: ClusterConnection) -> None:
    directory, jobs = ValkeyDirectory(connection), ValkeyJobs(connection)
    keys = {f"hash-{number}": KeyRecord(f"key_{number}", "org-1", "agent", {}) for number in range(40)}
    assert (await directory.pulse()).generation is None
    with pytest.raises(UnavailableError, match="bare"):
        await directory.find_key("hash-1")
    for org in ORGS:
        assert await directory.publish_org(org, 3, org.encode(), keys if org == "org-1" else {}, [])
    assert await directory.published_versions() == dict.fromkeys(ORGS, 3)
    for name, record in keys.items():
        assert await directory.find_key(name) == record
    assert await directory.find_key("nobody's") is None
    assert [await directory.snapshot(org) for org in ORGS] == [org.encode() for org in ORGS]
    await directory.publish_catalog("v1", b"{}")
    assert await directory.catalog("v1") == b"{}"
    assert await jobs.claim_due("org-2", 5, 1000) == []


async def test_every_server_has_a_fence_of_its_own_and_the_lowest_counts(
    cluster: ValkeyCluster, connection: ClusterConnection
) -> None:
    hot, keys = (
        ValkeyHotState(connection),
        [f"fold:{PLACE.topic}:{PLACE.partition}:{each}" for each in await connection.tags()],
    )
    assert servers_with(cluster, keys) == {each.port for each in cluster.servers}
    assert await hot.fold_fences([PLACE]) == {PLACE: None}
    assert await hot.move_fold_fence(PLACE, 5)
    assert await hot.fold_fences([PLACE]) == {PLACE: 5}
    await connection.execute("SET", keys[1], 3)  # a replica that was behind has taken over
    assert await hot.fold_fences([PLACE]) == {PLACE: 3}
    await connection.execute("DEL", keys[2])  # and another came back empty
    assert await hot.fold_fences([PLACE]) == {PLACE: None}
    assert not await hot.move_fold_fence(PLACE, 6, 5), "what the one has lost is not skipped"
    assert await hot.fold_fences([PLACE]) == {PLACE: 3}
    assert await hot.move_fold_fence(PLACE, 6, 3)
    assert await hot.fold_fences([PLACE]) == {PLACE: 6}
    orgs = [f"org-{number}" for number in range(9)]
    for org in orgs:
        await hot.load(org, EMPTY, "epoch")
        await hot.apply(org, PLACE, [], 8)
    await connection.execute("SET", f"{{{orgs[4]}}}:f:{PLACE.topic}:{PLACE.partition}", 7)
    assert await hot.org_fences(orgs, PLACE) == {**dict.fromkeys(orgs, 8), orgs[4]: 7}
    assert not await hot.move_fold_fence(PLACE, 8, 6, orgs)
    assert await hot.fold_fences([PLACE]) == {PLACE: 6}
    assert await hot.move_fold_fence(PLACE, 8, 6, orgs[:4])
    assert await hot.fold_fences([PLACE]) == {PLACE: 8}


async def test_what_control_has_published_is_whole_or_told_to_be_missing(
    cluster: ValkeyCluster, connection: ClusterConnection
) -> None:
    directory = ValkeyDirectory(connection)
    everywhere = {cluster.org_on(each): 7 for each in cluster.servers}
    for org, version in everywhere.items():
        assert await directory.publish_org(org, version, b"{}", {f"key of {org}": KeyRecord("k", org, "agent", {})}, [])
    assert await directory.published_versions() == everywhere
    assert len({slot_of(each) for each in (_GENERATION, _ORGS, _SEEN, key_key("a"), key_key("b"))}) == 1
    home = cluster.server_for(_GENERATION)
    (elsewhere, *_) = (each for each in cluster.servers if each is not home)
    elsewhere.flush()
    lost = [org for org in everywhere if cluster.server_for(f"{{{org}}}:cfg") is elsewhere]
    assert await directory.published_versions() == everywhere | dict.fromkeys(lost, 0), "control publishes it again"
    for org in everywhere:
        assert await directory.find_key(f"key of {org}") is not None, "no live key is ever taken for an unknown one"
    home.flush()
    assert (await directory.pulse()).generation is None
    assert await directory.published_versions() == {}
    with pytest.raises(UnavailableError, match="bare"):
        await directory.find_key("key of somebody")


async def test_the_orgs_of_a_server_that_was_wiped_are_rebuilt_and_the_others_left_as_they_are(
    cluster: ValkeyCluster, connection: ClusterConnection
) -> None:
    world = World()
    hot, directory = ValkeyHotState(connection), ValkeyDirectory(connection)
    world.directory = directory  # type: ignore[assignment]
    parts = Parts(world.log, hot, directory, world.ledger, world.places)
    orgs = [cluster.org_on(each) for each in cluster.servers]
    callers = {org: Caller(await hot.now_ms(), org, f"gw_{org}") for org in orgs}
    for org in orgs:
        await world.publish_org(org)
    await parts.rebuilder.rebuild_cold()
    for org, caller in callers.items():
        await world.publish(caller.reservation(f"txn_{org}_1"), caller.settlement(f"txn_{org}_1"))
        await world.publish(caller.reservation(f"txn_{org}_2"))
    await parts.fold_all()
    before = {org: await read_state(connection, org) for org in orgs}  # type: ignore[arg-type]
    assert all(len(each.holds) == 2 for each in before.values())
    home = cluster.server_for("{@control}:generation")
    lost = next(each for each in cluster.servers if each is not home)
    lost.flush()
    epochs = await hot.epochs(orgs)
    assert [org for org in orgs if epochs[org] is None] == [orgs[cluster.servers.index(lost)]]
    for org in orgs:
        await world.publish_org(org)
    await world.publish(*(caller.settlement(f"txn_{org}_2") for org, caller in callers.items()))
    await parts.rebuilder.rebuild_cold()
    await parts.fold_all()
    for org in orgs:
        state = await read_state(connection, org)  # type: ignore[arg-type]
        assert {each.spent_nano for each in state.windows.values()} == {800}
        assert {each.held_nano for each in state.windows.values()} == {0}
        assert (state.epoch == before[org].epoch) == (epochs[org] is not None)
    assert all(fence is not None for fence in (await hot.fold_fences(world.places)).values())


async def test_a_server_of_a_cluster_is_no_hot_state_and_no_log_by_itself(cluster: ValkeyCluster) -> None:
    alone = ValkeyConnection(cluster.servers[0].url)
    with pytest.raises(UnsafeHotStateError, match=r"redis\+cluster://"):
        await ValkeyHotState(alone).check_safe()
    await alone.close()
    with pytest.raises(ValueError, match="Kafka"):
        ValkeyLog(cluster.url)


async def test_a_single_server_is_no_cluster(valkey_url: str) -> None:
    connection = ClusterConnection(valkey_url.replace("redis://", "redis+cluster://").removesuffix("/0"))
    with pytest.raises(UnavailableError, match="is in no cluster"):
        await connection.execute("GET", "a")
    await connection.close()


async def test_a_slot_that_moves_under_traffic_takes_its_orgs_along(own_cluster: ValkeyCluster) -> None:
    source, target = own_cluster.servers[:2]
    org = own_cluster.org_on(source)
    slot = slot_of(f"{{{org}}}:x")
    connections = [ClusterConnection(own_cluster.url) for _ in range(2)]
    states = [ValkeyHotState(each) for each in connections]
    assert await states[0].load(org, EMPTY, "epoch-1")
    now_ms = await states[0].now_ms()
    admitted: list[str] = []
    failed: list[UnavailableError] = []
    stopped = asyncio.Event()

    async def calls(hot: ValkeyHotState, name: str) -> None:
        for number in itertools.count():
            if stopped.is_set():
                return
            try:
                answer = await hot.reserve(_request(org, f"txn_{name}_{number}", now_ms, limit_nano=10**12))
            except UnavailableError as error:
                failed.append(error)  # while its keys are on two servers, an org has to wait
            else:
                assert isinstance(answer, Admitted)
                admitted.append(f"txn_{name}_{number}")
            await asyncio.sleep(0)

    traffic = [asyncio.create_task(calls(hot, str(number))) for number, hot in enumerate(states)]
    await asyncio.sleep(0.1)
    await asyncio.to_thread(own_cluster.begin_move, slot, source, target)
    moved = 1
    while moved:
        moved = len(await asyncio.to_thread(own_cluster.move_keys, slot, source, target, 20))
    await asyncio.to_thread(own_cluster.end_move, slot, target)
    before = len(admitted)
    await asyncio.sleep(0.2)
    stopped.set()
    await asyncio.gather(*traffic)
    assert len(admitted) > before > 0, failed[:1]
    state = await read_state(connections[0], org)  # type: ignore[arg-type]
    assert set(admitted) <= set(state.holds), "no hold is lost on the way"
    (figures,) = state.windows.values()
    assert figures.held_nano == 10 * len(state.holds)
    assert connections[1].server_of(f"{{{org}}}:x").endswith(f":{target.port}")
    for connection in connections:
        await connection.close()


async def test_a_key_that_has_moved_ahead_of_its_slot_is_asked_for_where_it_is(own_cluster: ValkeyCluster) -> None:
    source, target = own_cluster.servers[1:]
    org = own_cluster.org_on(source)
    slot = slot_of(f"{{{org}}}:x")
    connection = ClusterConnection(own_cluster.url)
    await connection.execute("SET", f"{{{org}}}:a", 1)
    own_cluster.begin_move(slot, source, target)
    assert own_cluster.move_keys(slot, source, target) == [f"{{{org}}}:a"]
    assert await connection.execute("GET", f"{{{org}}}:a") == b"1"
    assert await connection.execute("SET", f"{{{org}}}:b", 2) == b"OK"
    with pytest.raises(hiredis.ReplyError, match="ASK"):
        ask(source.port, "GET", f"{{{org}}}:b")
    own_cluster.end_move(slot, target)
    assert await connection.execute_all([("GET", f"{{{org}}}:a"), ("GET", f"{{{org}}}:b")]) == [b"1", b"2"]
    await connection.close()


async def test_a_server_that_is_killed_takes_its_own_orgs_away_and_no_others(own_cluster: ValkeyCluster) -> None:
    lost = own_cluster.servers[2]
    gone, stays = own_cluster.org_on(lost), own_cluster.org_on(own_cluster.servers[0])
    connection = ClusterConnection(own_cluster.url)
    hot = ValkeyHotState(connection)
    for org in (gone, stays):
        assert await hot.load(org, EMPTY, "epoch-1")
    now_ms = await hot.now_ms()
    lost.kill()
    for number in range(20):
        began_s = time.monotonic()
        with pytest.raises(UnavailableError):
            await hot.reserve(_request(gone, f"txn_{number}", now_ms))
        assert time.monotonic() - began_s < 0.5
        assert isinstance(await hot.reserve(_request(stays, f"txn_{number}", now_ms, limit_nano=10**9)), Admitted)
    with pytest.raises(UnavailableError):
        await hot.epochs([stays, gone])
    await hot.check_safe()
    lost.start()
    wait_for(lambda: b"cluster_state:ok" in ask(lost.port, "CLUSTER", "INFO"))
    assert await hot.epochs([stays, gone]) == {stays: "epoch-1", gone: None}, "what came back empty is cold, not zero"
    assert await hot.reserve(_request(gone, "txn_x", now_ms)) == Cold()
    await connection.close()


async def test_a_replica_that_takes_over_is_followed(own_cluster: ValkeyCluster) -> None:
    lost = own_cluster.servers[1]
    await asyncio.to_thread(own_cluster.add_replica, lost)
    org = own_cluster.org_on(lost)
    connection = ClusterConnection(own_cluster.url)
    hot = ValkeyHotState(connection)
    assert await hot.load(org, EMPTY, "epoch-1")
    now_ms = await hot.now_ms()
    assert isinstance(await hot.reserve(_request(org, "txn_1", now_ms)), Admitted)
    assert ask(lost.port, "WAIT", 1, 5000) == 1
    replica = own_cluster.servers[-1]
    with pytest.raises(hiredis.ReplyError, match="MOVED"):
        ask(replica.port, "GET", f"{{{org}}}:epoch")
    lost.kill()
    answer = await patiently(lambda: hot.reserve(_request(org, "txn_2", now_ms)))
    assert isinstance(answer, Admitted)
    assert answer.standings[0].held_nano == 20, "the hold that the first primary took is there"
    assert connection.server_of(f"{{{org}}}:x").endswith(f":{replica.port}")
    await connection.close()


def servers_with(cluster: ValkeyCluster, keys: list[str]) -> set[int]:
    return {cluster.server_for(each).port for each in keys}


def _request(org: str, name: str, now_ms: int, limit_nano: int = 75) -> HoldRequest:
    return HoldRequest(org, name, 10, (proposal(limit_nano, span=_span(now_ms)),), 60_000, "{}")


def _span(now_ms: int) -> CalendarSpan:
    return CalendarSpan(now_ms - 3_600_000, now_ms + 3_600_000)


def _charges(now_ms: int) -> tuple[Charge, ...]:
    return (_request("", "", now_ms).proposals[0].charge(),)


async def test_a_round_of_upkeep_goes_through_every_server(
    cluster: ValkeyCluster, connection: ClusterConnection
) -> None:
    assert len(servers_of(cluster, ORGS)) == 3
    hot, upkeep = ValkeyHotState(connection), ValkeyUpkeep(connection)
    for org in ORGS:
        await hot.load(org, EMPTY, "epoch-1")
        await hot.apply(org, PLACE, [settle(0, 9, "txn_0", (Charge("bud_1", "org", "l"),))], 1)
    servers = await upkeep.servers()
    assert len(servers) == 3
    for has_end in (False, True):
        pages = [await upkeep.look(server, "") for server in servers]
        assert all(page.cursor is None and page.endless for page in pages)
        found = [each for page in pages for each in page.endless]
        assert {(each.org, each.has_end) for each in found} == {(org, has_end) for org in ORGS}
        assert {org for page in pages for org, _ in page.producers} == set(ORGS)
        await upkeep.end_soon(found)
    for org in ORGS:
        assert await upkeep.forget_silent(org, PLACE, "") is None
        assert (await read_state(connection, org)).silent, org  # type: ignore[arg-type]
