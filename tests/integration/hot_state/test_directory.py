"""What control publishes, and what gateways find of it, whatever is cut short."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from services.adapters.valkey import ValkeyDirectory, key_key
from services.adapters.valkey_connection import ValkeyConnection
from services.core.hotstate import (
    Admitted,
)
from services.core.identity import KeyRecord
from services.core.ports import UnavailableError
from tests.support.hot_rig import ORG, Rig, proposal, request_of

RECORD = KeyRecord("key_1", ORG, "agent", {"team": "ml"})
ADMIN = KeyRecord("key_2", ORG, "org_admin", {})


async def test_what_is_published_is_found(rig: Rig) -> None:
    assert await rig.directory.publish_org(ORG, 3, b'{"version":3}', {"hash-1": RECORD, "hash-2": ADMIN}, [])
    assert await rig.directory.find_key("hash-1") == RECORD
    assert await rig.directory.find_key("hash-2") == ADMIN
    assert await rig.directory.find_key("hash-3") is None
    assert await rig.directory.snapshot(ORG) == b'{"version":3}'
    assert await rig.directory.snapshot("other") is None
    assert await rig.directory.orgs() == (ORG,)
    assert await rig.directory.published_versions() == {ORG: 3}


async def test_a_key_of_a_newer_control_is_found(connection: ValkeyConnection) -> None:
    directory = ValkeyDirectory(connection)
    await directory.publish_org(ORG, 1, b"{}", {"hash-1": RECORD}, [])
    body = json.loads(await connection.execute("HGET", key_key("hash-1"), "body"))
    await connection.execute("HSET", key_key("hash-1"), "body", json.dumps({**body, "added_later": 1}))
    assert await directory.find_key("hash-1") == RECORD


async def test_every_reserve_answer_carries_the_version(rig: Rig) -> None:
    for version in (1, 2):
        await rig.directory.publish_org(ORG, version, b"{}", {}, [])
        answer = await rig.hot.reserve(request_of(1, proposal(100), name=f"txn_{version}"))
        assert isinstance(answer, Admitted)
        assert answer.config_version == version


async def test_a_bare_hot_state_knows_no_key_and_says_so(rig: Rig) -> None:
    assert (await rig.directory.pulse()).generation is None
    with pytest.raises(UnavailableError, match="bare"):
        await rig.directory.find_key("hash-1")
    await rig.directory.publish_org(ORG, 1, b"{}", {"hash-1": RECORD}, [], announce=False)
    with pytest.raises(UnavailableError, match="bare"):
        await rig.directory.find_key("hash-1")
    await rig.directory.publish_org("other", 1, b"{}", {}, [])
    assert await rig.directory.find_key("hash-1") == RECORD


async def test_every_publication_is_noticed(rig: Rig) -> None:
    generations = []
    for version in (1, 2, 2):
        await rig.directory.publish_org(ORG, version, b"{}", {}, [])
        generations.append((await rig.directory.pulse()).generation or 0)
    assert generations[0] < generations[1] < generations[2]


async def test_a_server_that_was_wiped_and_filled_again_is_noticed(valkey_url: str) -> None:
    connection = ValkeyConnection(valkey_url)
    directory = ValkeyDirectory(connection)
    await directory.publish_org(ORG, 1, b"{}", {}, [])
    before = await directory.pulse()
    await connection.execute("FLUSHALL")
    assert (await directory.pulse()).generation is None
    await asyncio.sleep(0.002)
    await directory.publish_org(ORG, 1, b"{}", {}, [])
    after = await directory.pulse()
    assert (before.generation or 0) < (after.generation or 0)
    await connection.close()


async def test_an_older_version_changes_nothing(rig: Rig) -> None:
    await rig.directory.publish_org(ORG, 5, b"five", {"hash-1": RECORD}, [])
    generation = (await rig.directory.pulse()).generation
    assert not await rig.directory.publish_org(ORG, 4, b"four", {"hash-2": ADMIN}, ["hash-1"])
    assert await rig.directory.snapshot(ORG) == b"five"
    assert await rig.directory.find_key("hash-1") == RECORD
    assert await rig.directory.find_key("hash-2") is None
    assert (await rig.directory.pulse()).generation == generation


async def test_a_revoked_key_is_gone_and_may_come_back(rig: Rig) -> None:
    await rig.directory.publish_org(ORG, 1, b"{}", {"hash-1": RECORD}, [])
    await rig.directory.publish_org(ORG, 2, b"{}", {}, ["hash-1", "never-known"])
    assert await rig.directory.find_key("hash-1") is None
    await rig.directory.publish_org(ORG, 3, b"{}", {"hash-1": RECORD}, [])
    assert await rig.directory.find_key("hash-1") == RECORD


async def test_nothing_is_kept_of_a_forgotten_key(rig: Rig) -> None:
    await rig.directory.publish_org(ORG, 1, b"{}", {"hash-1": RECORD, "hash-2": RECORD}, [])
    await rig.directory.publish_org(ORG, 2, b"{}", {"hash-2": RECORD}, [], forgotten=["hash-1", "never-known"])
    assert await rig.directory.find_key("hash-1") is None
    assert await rig.directory.find_key("hash-2") == RECORD
    if rig.connection is not None:
        assert await rig.connection.execute("EXISTS", key_key("hash-1")) == 0


async def test_a_catalog_that_is_let_go_is_there_for_a_while_and_can_be_kept(rig: Rig) -> None:
    assert not await rig.directory.keep_catalog("abc")
    await rig.directory.publish_catalog("abc", b"one")
    await rig.directory.let_catalogs_go(["abc", "never-known"])
    assert await rig.directory.catalog("abc") == b"one"
    assert await rig.directory.keep_catalog("abc")
    if rig.connection is not None:
        assert await rig.connection.execute("PTTL", "{@control}:catalog:abc") == -1


async def test_a_catalog_is_never_published_with_other_bytes(rig: Rig) -> None:
    assert await rig.directory.catalog("abc") is None
    await rig.directory.publish_catalog("abc", b"one")
    await rig.directory.publish_catalog("abc", b"two")
    assert await rig.directory.catalog("abc") == b"one"


class CutConnection(ValkeyConnection):
    """A connection that breaks after so many commands."""

    def __init__(self, url: str, commands: int) -> None:
        super().__init__(url)
        self._left = commands

    async def execute(self, *command: str | bytes | int) -> Any:
        if self._left == 0:
            raise UnavailableError("cut")
        self._left -= 1
        return await super().execute(*command)

    async def execute_all(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        return [await self.execute(*command) for command in commands]


async def test_a_publication_cut_short_anywhere_is_made_whole_by_the_next(
    valkey_url: str, connection: ValkeyConnection
) -> None:
    whole = ValkeyDirectory(connection)
    keys = {f"hash-{number}": RECORD for number in range(3)}
    await whole.publish_org(ORG, 1, b"one", keys | {"old": RECORD}, [])
    for commands in range(7):
        version = commands + 2
        cut = CutConnection(valkey_url, commands)
        changed = {f"hash-{number}": replace(RECORD, key_id=f"key_{version}") for number in range(3)}
        generation = (await whole.pulse()).generation
        with pytest.raises(UnavailableError):
            await ValkeyDirectory(cut).publish_org(ORG, version, b"%d" % version, changed, ["old"])
        await cut.close()
        assert await whole.published_versions() == {ORG: version - 1}, "control sees that it has to publish again"
        assert await whole.publish_org(ORG, version, b"%d" % version, changed, ["old"])
        assert await whole.snapshot(ORG) == b"%d" % version
        assert [await whole.find_key(name) for name in keys] == list(changed.values())
        assert await whole.find_key("old") is None
        assert ((await whole.pulse()).generation or 0) > (generation or 0)


async def test_an_older_publication_still_under_way_revives_no_revoked_key(connection: ValkeyConnection) -> None:
    directory = ValkeyDirectory(connection)
    await directory.publish_org(ORG, 1, b"{}", {"hash-1": RECORD}, [])
    await directory.publish_org(ORG, 3, b"{}", {}, ["hash-1"])
    assert not await directory._publish(key_key("hash-1"), 2, b'{"stale":1}')
    assert await directory.find_key("hash-1") is None
