"""From a commit in PostgreSQL to the gateways' directory in Valkey, whatever dies on the way."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.adapters.valkey import ValkeyDirectory, ValkeyHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.control.boot import BootError, Handover
from services.control.publish import Publisher
from services.core.catalog import decode_catalog
from services.core.identity import KeyRecord, hash_key
from services.core.ports import UnavailableError
from services.core.snapshot import Snapshot, decode_snapshot
from tests.support.cluster import REPOSITORY
from tests.support.control import MASTER_KEY, Away, Control, running_control
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer, free_port

DAY_MS = 86_400_000


@pytest.fixture
async def valkey(valkey_url: str) -> AsyncIterator[ValkeyConnection]:
    connection = ValkeyConnection(valkey_url)
    yield connection
    await connection.close()


@pytest.fixture
def directory(valkey: ValkeyConnection) -> ValkeyDirectory:
    return ValkeyDirectory(valkey)


@pytest.fixture
async def control(
    postgres_dsn: str, valkey: ValkeyConnection, directory: ValkeyDirectory, tmp_path: Path
) -> AsyncIterator[Control]:
    async with running_control(postgres_dsn, tmp_path, ValkeyHotState(valkey), directory) as control:
        await control.context.publisher.reconcile()
        yield control


async def snapshot(directory: ValkeyDirectory) -> Snapshot:
    body = await directory.snapshot("default")
    assert body is not None
    return decode_snapshot(body)


async def find(control: Control, key: str) -> KeyRecord | None:
    return await control.directory.find_key(hash_key(key, control.secrets.pepper))


# ---- what gateways see of a write -----------------------------------------------------------------------------------


async def test_the_first_org_is_there_with_its_prices_budget_and_keys(
    control: Control, directory: ValkeyDirectory
) -> None:
    published = await snapshot(directory)
    assert (published.org, published.version, published.hold_ms, published.book_expired) == (
        "default",
        1,
        900_000,
        True,
    )
    catalog = await directory.catalog(published.catalog_version)
    assert catalog is not None
    assert decode_catalog(catalog).version == published.catalog_version
    [budget] = published.budgets
    assert (budget.scope, budget.limit_nano) == ("org:default", 10_000_000_000)
    agent = await find(control, control.agent_key)
    assert agent is not None
    assert (agent.org, agent.role, agent.pins) == ("default", "agent", {"team": "default", "agent": "default"})
    admin = await find(control, control.admin_key)
    assert admin is not None
    assert (admin.role, admin.pins) == ("org_admin", {})


async def test_every_write_is_there_when_it_is_answered(control: Control, directory: ValkeyDirectory) -> None:
    pulse = await directory.pulse()
    key = await control.ask("POST", "keys", {"agent": "ada", "team": "ml"})
    record = await find(control, key["key"])
    assert record == KeyRecord(key["key_id"], "default", "agent", {"team": "ml", "agent": "ada"})
    budget = await control.ask("PUT", "budgets", {"agent": "ada", "limit_usd": "1.5", "window": "1h"})
    assert {each.budget_id: each.limit_nano for each in (await snapshot(directory)).budgets}[
        budget["budget_id"]
    ] == 1_500_000_000
    await control.ask("PUT", "connections/openai", {"api_key": "sk-gateways-can-open-this"})
    sealed = (await snapshot(directory)).connections["openai"].sealed_key
    assert sealed is not None
    assert control.secrets.open("default", "openai", sealed) == "sk-gateways-can-open-this"
    await control.ask("DELETE", f"keys/{key['key_id']}")
    await control.ask("DELETE", f"budgets/{budget['budget_id']}")
    await control.ask("DELETE", "connections/openai")
    assert await find(control, key["key"]) is None
    after = await snapshot(directory)
    assert (len(after.budgets), dict(after.connections), after.version) == (1, {}, 7)
    assert ((await directory.pulse()).generation or 0) >= (pulse.generation or 0) + 6


async def test_writes_at_once_all_get_there(control: Control, directory: ValkeyDirectory) -> None:
    bodies: list[dict[str, Any]] = [{"team": f"team-{number % 5}", "agent": f"agent-{number}"} for number in range(20)]
    keys = await asyncio.gather(*(control.ask("POST", "keys", body) for body in bodies))
    await asyncio.gather(*(control.ask("DELETE", f"keys/{key['key_id']}") for key in keys[::2]))
    await control.context.publisher.reconcile()
    assert (await snapshot(directory)).version == 31
    assert [await find(control, key["key"]) is not None for key in keys] == [False, True] * 10
    assert await directory.published_versions() == {"default": 31}


# ---- what is made up for --------------------------------------------------------------------------------------------


async def test_a_write_that_was_committed_but_not_published_is_made_up_for(
    control: Control, directory: ValkeyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    [agent] = [each for each in (await control.ask("GET", "keys"))["keys"] if each["role"] == "agent"]
    with monkeypatch.context() as patch:
        patch.setattr(control.context.publisher, "_directory", Away())
        await control.ask("DELETE", f"keys/{agent['key_id']}")
        with pytest.raises(UnavailableError):
            await control.context.publisher.reconcile()
    assert (await control.ask("GET", "status"))["published"] is False
    assert await find(control, control.agent_key) is not None
    await control.context.publisher.reconcile()
    assert await find(control, control.agent_key) is None
    assert (await control.ask("GET", "status"))["published"] is True


async def test_a_wiped_hot_state_gets_everything_again(
    control: Control, directory: ValkeyDirectory, valkey_server: ValkeyServer
) -> None:
    before = await directory.snapshot("default")
    revoked = await control.ask("POST", "keys", {})
    await control.ask("DELETE", f"keys/{revoked['key_id']}")
    loop = asyncio.create_task(control.context.publisher.run())
    try:
        for _ in range(2):
            valkey_server.flush()
            started = time.monotonic()
            while not await directory.published_versions():
                assert time.monotonic() - started < 3
                await asyncio.sleep(0.02)
            published = await snapshot(directory)
            assert await directory.catalog(published.catalog_version) is not None
            assert published.version == 3
            assert await find(control, control.agent_key) is not None
            assert await find(control, revoked["key"]) is None
    finally:
        loop.cancel()
    assert before is not None


async def test_a_wiped_hot_state_stays_bare_until_the_last_of_many_orgs_is_there(
    control: Control, directory: ValkeyDirectory, valkey_server: ValkeyServer, postgres_dsn: str
) -> None:
    """Else a live key of an org still to come would be called invalid."""
    connection = await asyncpg.connect(postgres_dsn)
    try:
        await connection.execute(
            "INSERT INTO orgs (name, catalog_version, hold_ms) SELECT n, catalog_version, hold_ms FROM orgs,"
            " unnest(ARRAY['aaa', 'zzz']) AS n"
        )
    finally:
        await connection.close()
    for write in (control.context.publisher.reconcile(), control.context.publisher.publish_soon("aaa")):
        valkey_server.flush()
        writing = asyncio.create_task(write)
        while (await directory.pulse()).generation is None:
            assert not writing.done(), "it has ended, and announced nothing"
        assert set(await directory.published_versions()) == {"aaa", "default", "zzz"}
        assert await find(control, control.agent_key) is not None
        await writing


async def test_nothing_is_published_when_nothing_changed(control: Control, directory: ValkeyDirectory) -> None:
    before = (await directory.pulse()).generation
    for _ in range(3):
        await control.context.publisher.reconcile()
    assert (await directory.pulse()).generation == before


async def test_of_keys_revoked_long_ago_nothing_is_left(
    control: Control, directory: ValkeyDirectory, valkey: ValkeyConnection
) -> None:
    """Else an org whose agents hand on parts of budgets by the thousand would publish all of their keys for ever."""

    async def records() -> int:
        return len(await valkey.execute("KEYS", "{@control}:key:*"))

    before = await records()
    made = [await control.ask("POST", "keys", {}) for _ in range(3)]
    assert await records() == before + 3
    async with control.postgres.transaction() as connection:  # two of them long ago, unknown to the gateways
        await connection.execute(
            "UPDATE keys SET revoked_at = now() - interval '3 days' WHERE key_id = ANY($1)",
            [each["key_id"] for each in made[:2]],
        )
    await control.ask("DELETE", f"keys/{made[2]['key_id']}")
    # The first two were revoked long before this process published last: it has published that, as far as it knows.
    assert [await find(control, each["key"]) is None for each in made] == [False, False, True]
    await control.context.publisher.publish("default")  # as after a restart, or when a hot state lacks something
    assert [await find(control, each["key"]) for each in made] == [None] * 3
    assert await records() == before + 1, "of the last it is remembered for a while that it is revoked"
    assert await find(control, control.agent_key) is not None


async def test_what_was_revoked_since_the_last_publication_is_published(
    control: Control, directory: ValkeyDirectory, valkey: ValkeyConnection
) -> None:
    """However many publications have failed in between."""
    made = [await control.ask("POST", "keys", {}) for _ in range(3)]
    publisher = control.context.publisher
    publisher._directory, there = Away(), publisher._directory  # type: ignore[assignment]
    for each in made[:2]:
        await control.ask("DELETE", f"keys/{each['key_id']}")
    assert await find(control, made[0]["key"]) is not None
    publisher._directory = there
    await control.ask("DELETE", f"keys/{made[2]['key_id']}")
    assert [await find(control, each["key"]) for each in made] == [None] * 3


async def test_a_new_process_publishes_all_that_was_ever_revoked(
    control: Control, directory: ValkeyDirectory, valkey: ValkeyConnection
) -> None:
    """The one before it may have ended between a commit and its publication."""
    made = await control.ask("POST", "keys", {})
    async with control.postgres.transaction() as connection:
        await connection.execute(
            "UPDATE keys SET revoked_at = now() - interval '1 year' WHERE key_id = $1", made["key_id"]
        )
    publisher = Publisher(control.postgres, control.context.prices, directory)
    await publisher.publish_soon("default")
    assert await find(control, made["key"]) is None


async def test_a_catalog_that_no_org_uses_goes_after_a_while(
    control: Control, directory: ValkeyDirectory, valkey: ValkeyConnection
) -> None:
    publisher, used = control.context.publisher, (await snapshot(directory)).catalog_version

    async def left_ms(version: str) -> int:
        left: int = await valkey.execute("PTTL", f"{{@control}}:catalog:{version}")
        return left

    async with control.postgres.transaction() as connection:
        await connection.execute("INSERT INTO price_catalogs (version, body) VALUES ('beef', 'a catalog')")
    await directory.publish_catalog("beef", b"a catalog")
    await publisher.tidy_catalogs()
    assert await left_ms(used) == -1
    assert 29 * DAY_MS < await left_ms("beef") <= 30 * DAY_MS
    before = await valkey.execute("PEXPIRETIME", "{@control}:catalog:beef")
    await publisher.tidy_catalogs()
    assert await valkey.execute("PEXPIRETIME", "{@control}:catalog:beef") == before, "it does not stay for ever"

    # An org goes back to it: it is there when the snapshot that names it is.
    async with control.postgres.transaction() as connection:
        await connection.execute("UPDATE orgs SET catalog_version = 'beef', config_version = config_version + 1")
    await publisher.reconcile()
    assert (await left_ms("beef"), await directory.catalog("beef")) == (-1, b"a catalog")
    await publisher.tidy_catalogs()
    assert await left_ms("beef") == -1
    assert 29 * DAY_MS < await left_ms(used) <= 30 * DAY_MS


async def test_a_catalog_in_use_that_was_lost_is_published_again(
    control: Control, directory: ValkeyDirectory, valkey: ValkeyConnection
) -> None:
    used = (await snapshot(directory)).catalog_version
    await valkey.execute("DEL", f"{{@control}}:catalog:{used}")
    await control.context.publisher.catch_up()
    catalog = await directory.catalog(used)
    assert catalog is not None
    assert decode_catalog(catalog).version == used


async def test_a_new_hold_time_is_a_change_like_any_other(control: Control, directory: ValkeyDirectory) -> None:
    object.__setattr__(control.boot_settings, "hold_ms", 60_000)
    await control.boot()
    await control.context.publisher.reconcile()
    assert ((await snapshot(directory)).hold_ms, (await snapshot(directory)).version) == (60_000, 2)
    entry = (await control.ask("GET", "audit"))["entries"][0]
    assert (entry["actor"], entry["action"], entry["config_version"]) == ("control", "org.update", 2)
    assert (entry["before"]["hold_ms"], entry["after"]["hold_ms"]) == (900_000, 60_000)
    await control.boot()
    assert (await control.ask("GET", "org"))["config_version"] == 2


async def test_a_database_older_than_the_gateways_is_not_published(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup was restored: what was revoked since does not come back to life by itself."""
    said = []
    monkeypatch.setattr("services.control.publish._log.error", lambda event, **_: said.append(event), raising=False)
    [agent] = [each for each in (await control.ask("GET", "keys"))["keys"] if each["role"] == "agent"]
    await control.ask("DELETE", f"keys/{agent['key_id']}")
    async with control.postgres.transaction() as connection:
        await connection.execute("UPDATE keys SET revoked_at = NULL")
        await connection.execute("UPDATE orgs SET config_version = 1")
    for _ in range(2):
        await control.context.publisher.reconcile()
    assert await find(control, control.agent_key) is None
    assert said == ["database_older_than_gateways"]
    status = await control.ask("GET", "status")
    assert (status["published"], status["config_version"], status["published_version"]) == (False, 1, 2)


# ---- the first keys -------------------------------------------------------------------------------------------------


async def test_the_first_keys_are_handed_over_once(control: Control, tmp_path: Path) -> None:
    assert (await control.call("GET", "org")).status_code == 200
    assert (await control.call("GET", "org", key=control.agent_key)).status_code == 403
    await control.boot()
    assert names(tmp_path) == []


async def test_keys_that_were_never_committed_are_never_shown(
    postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control dies between writing the keys and the commit."""
    with monkeypatch.context() as patch:
        patch.setattr(Handover, "prepare", interrupted_after(Handover.prepare))
        with pytest.raises(KeyboardInterrupt):
            await boot_once(postgres_dsn, tmp_path)
    assert names(tmp_path) == ["first-keys.json.pending"]
    lost = json.loads((tmp_path / "first-keys.json.pending").read_text())
    async with running_control(postgres_dsn, tmp_path, Away(), Away()) as control:
        assert (await control.call("GET", "org")).status_code == 200
        assert (await control.call("GET", "org", key=lost["admin_key"])).status_code == 401
        assert names(tmp_path) == []


async def test_keys_that_were_committed_are_never_lost(
    postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control dies between the commit and the hand-over."""
    with monkeypatch.context() as patch:
        patch.setattr(Handover, "complete", interrupted)
        with pytest.raises(KeyboardInterrupt):
            await boot_once(postgres_dsn, tmp_path)
    assert mode(tmp_path / "first-keys.json.pending") == 0o600
    async with running_control(postgres_dsn, tmp_path, Away(), Away()) as control:
        assert (await control.call("GET", "org")).status_code == 200
        assert names(tmp_path) == []


async def test_what_is_left_of_a_half_written_file_is_swept_away(postgres_dsn: str, tmp_path: Path) -> None:
    async with running_control(postgres_dsn, tmp_path, Away(), Away()) as control:
        (tmp_path / "first-keys.json.pending").write_text('{"admin_key": "fk_li')
        await control.boot()
        assert names(tmp_path) == []


async def test_another_master_key_is_refused(postgres_dsn: str, tmp_path: Path) -> None:
    await boot_once(postgres_dsn, tmp_path)
    with pytest.raises(BootError, match="not the one this database was made with"):
        await boot_once(postgres_dsn, tmp_path, master_key=bytes(32))


async def interrupted(*_arguments: object) -> None:
    raise KeyboardInterrupt


def interrupted_after(whole: Callable[..., None]) -> Callable[..., None]:
    def run(*arguments: object) -> None:
        whole(*arguments)
        raise KeyboardInterrupt

    return run


async def boot_once(dsn: str, state_dir: Path, *, master_key: bytes = MASTER_KEY) -> None:
    async with running_control(dsn, state_dir, Away(), Away(), master_key=master_key):
        pass


def names(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- the process ----------------------------------------------------------------------------------------------------


class ControlProcess:
    """Control as a cluster runs it."""

    def __init__(self, directory: Path, postgres_dsn: str, redis_url: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = directory / "control.log"
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("FARTHING_")} | {
            "FARTHING_PORT": self.url.rpartition(":")[2],
            "FARTHING_POSTGRES_DSN": postgres_dsn,
            "FARTHING_REDIS_URL": redis_url,
            "FARTHING_MASTER_KEY_FILE": str(directory / "secrets" / "master.key"),
            "FARTHING_STATE_DIR": str(directory),
            "FARTHING_BOOTSTRAP_ORG": "default",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        code = "from services.adapters.config import Settings; from services.control.app import run; run(Settings())"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], cwd=REPOSITORY, env=self._environment, stdout=log, stderr=log
            )

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    async def ready(self, expected: int = 200) -> httpx.Response:
        """Waits until readiness has a status."""
        async with httpx.AsyncClient() as client:
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    response = await client.get(self.url + "/readyz", timeout=10)
                    if response.status_code == expected:
                        return response
                assert self.process is not None
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                await asyncio.sleep(0.05)


@pytest.fixture
def process(tmp_path: Path, postgres_dsn: str, valkey_url: str) -> Iterator[ControlProcess]:
    process = ControlProcess(tmp_path, postgres_dsn, valkey_url)
    yield process
    if process.process is not None and process.process.poll() is None:
        process.process.kill()
        process.process.wait()


async def test_the_process_starts_stops_and_starts_again(
    process: ControlProcess, directory: ValkeyDirectory, tmp_path: Path
) -> None:
    process.start()
    await process.ready()
    # Ready means that the gateways have it, too.
    assert await directory.published_versions() == {"default": 1}
    path = tmp_path / "first-keys.json"
    assert mode(path) == 0o600
    keys = json.loads(path.read_text())
    path.unlink()
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {keys['admin_key']}"}) as client:
        made = (await client.post(process.url + "/api/v1/keys", json={"agent": "ada", "team": "ml"})).json()
        assert made["key"].startswith("fk_live_")
        assert process.end(signal.SIGTERM) == 0
        process.start()
        await process.ready()
        assert (await client.get(process.url + "/api/v1/org")).json()["config_version"] == 2
        assert not path.exists()
        assert process.end(signal.SIGINT) == 0
    log = process.log.read_text()
    assert [line for line in log.splitlines() if not line.startswith("{")] == []
    assert "fk_live_" not in log


async def test_the_process_refuses_a_database_of_another_master_key(process: ControlProcess, tmp_path: Path) -> None:
    process.start()
    await process.ready()
    assert process.end() == 0
    (tmp_path / "secrets" / "master.key").unlink()
    process.start()
    assert process.process is not None
    assert await asyncio.to_thread(process.process.wait, 20) == 70
    last = json.loads(process.log.read_text().splitlines()[-1])
    assert (last["event"], last["level"]) == ("control_can_not_run", "critical")
    assert "restore that file" in last["reason"]


async def test_the_process_says_when_its_port_is_taken(process: ControlProcess) -> None:
    port = int(process.url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        process.start()
        assert process.process is not None
        assert await asyncio.to_thread(process.process.wait, 20) == 70
    last = json.loads(process.log.read_text().splitlines()[-1])
    assert last["event"] == "control_can_not_run"
    assert str(port) in last["reason"]


async def test_losing_postgres_stops_changes_and_never_the_process(tmp_path: Path, valkey_url: str) -> None:
    server = PostgresServer(tmp_path / "postgres")
    process = ControlProcess(tmp_path, server.dsn, valkey_url)
    process.start()
    try:
        # It may well be there before its database.
        response = await process.ready(503)
        assert response.json()["status"] == "starting"
        server.start()
        await process.ready()
        key = json.loads((tmp_path / "first-keys.json").read_text())["admin_key"]
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=15) as client:
            server.kill()
            body = {"limit_usd": "1", "window": "day"}
            response = await client.put(process.url + "/api/v1/budgets", json=body)
            assert (response.status_code, response.json()["error"]) == (503, "unavailable")
            assert response.headers["retry-after"] == "1"
            assert (await process.ready(503)).json()["status"] == "unavailable"
            server.start()
            await process.ready()
            assert (await client.put(process.url + "/api/v1/budgets", json=body)).status_code == 200
        assert process.end() == 0
    finally:
        server.stop()
        assert process.process is not None
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()
