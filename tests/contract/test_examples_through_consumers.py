"""The published examples are what the consumers really read: each runs, as it is, through the fold and the sink."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.adapters.clickhouse import ClickHouse
from services.adapters.schemas import schemas_folder
from services.core.ports import Outgoing
from services.ledger import sink as sink_module
from tests.support.aggregation import Parts, World
from tests.support.history import TOPICS
from tests.support.ledger import SOURCES, Rig, new_log

EXAMPLES = schemas_folder("examples")


def examples(topics: Sequence[str]) -> list[Outgoing]:
    """The examples of the topics as messages, in their producers' order."""
    values = [(topic, Path(str(path)).read_bytes()) for topic in topics for path in (EXAMPLES / topic / "1").iterdir()]
    values.sort(key=lambda each: json.loads(each[1])["sequence"])
    return [Outgoing(topic, b"default", value) for topic, value in values]


def test_every_source_topic_has_examples() -> None:
    assert {message.topic for message in examples(SOURCES)} == set(SOURCES)


async def test_the_fold_applies_every_example() -> None:
    world = World()
    await world.publish_org()
    messages = examples(TOPICS)
    # The org is loaded from an empty log first, so that the examples are folded one by one and not by the rebuild.
    parts: Parts = world.parts()
    await parts.rebuilder.rebuild(["default"])
    await world.publish(*messages)
    await parts.fold_all()
    assert parts.told.results["applied"] == len(messages)
    assert parts.told.results["duplicate"] == 0
    assert not parts.told.letters


async def test_the_sink_keeps_every_example_as_it_is(ledger_store: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "BATCH_WAIT_S", 0.01)
    rig = Rig(ledger_store, new_log(1))
    messages = examples(SOURCES)
    await rig.log.publish(messages)
    await rig.catch_up()
    assert sorted(row["raw"].encode() for row in await rig.events()) == sorted(message.value for message in messages)
    assert await rig.skipped() == []
