"""The topic declarations: what is shipped, and every way in which a declaration can be wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.adapters.schemas import schemas_folder
from services.adapters.topics import TopicError, load_topics, read_documents
from services.core.events import EVENT_TYPES

SOURCE = "spend.settlements.v1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(schemas_folder("topics"), tmp_path / "topics")
    return tmp_path / "topics"


def change(folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / f"{name}.yaml"
    fields = yaml.safe_load(path.read_bytes())
    edit(fields)
    path.write_text(yaml.safe_dump(fields))


def test_what_is_shipped() -> None:
    topics = {topic.name: topic for topic in load_topics()}
    assert list(topics) == sorted(topics)
    for name in {event.TOPIC for event in EVENT_TYPES.values()}:
        assert (topics[name].partitions, topics[name].retention_ms) == (4, 7 * 86_400_000)
        assert (topics[f"{name}.dlq"].partitions, topics[f"{name}.dlq"].retention_ms) == (4, 30 * 86_400_000)
        assert topics[name].cleanup == "delete"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda fields: fields.pop("partitions"), "field 'partitions': Field required"),
        (lambda fields: fields.update(partitions=0), "field 'partitions': Input should be greater"),
        (lambda fields: fields.update(partitions="4"), "field 'partitions': Input should be a valid integer"),
        (lambda fields: fields.update(retention_ms=1), "field 'retention_ms'"),
        (lambda fields: fields.update(cleanup="compact"), "field 'cleanup': Input should be 'delete'"),
        (lambda fields: fields.update(max_message_bytes=262_144), "field 'max_message_bytes'"),
        (lambda fields: fields.update(retention=1), "field 'retention': Extra inputs are not permitted"),
        (lambda fields: fields["headers"][0].pop("required"), "field 'headers.0.required': Field required"),
        (lambda fields: fields.update(headers=[]), "field 'headers'"),
        (lambda fields: fields.update(name="other"), "field 'name' is 'other'; a topic's file is named after it"),
        (lambda fields: fields.update(events=[]), "field 'events' of the topics says"),
        (lambda fields: fields["events"].append("spend.other.v1"), "field 'events' of the topics says"),
        (lambda fields: fields["events"].append("spend.decision.denied.v1"), "field 'events' of the topics says"),
        (lambda fields: fields.update(dead_letters_of="x"), "either field 'events' or field 'dead_letters_of'"),
        (lambda fields: fields.update(max_message_bytes=1_048_576), "field 'max_message_bytes' must be 65536 above"),
    ],
)
def test_a_wrong_declaration_is_named(folder: Path, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    change(folder, SOURCE, edit)
    with pytest.raises(TopicError) as caught:
        read_documents(folder)
    assert message in str(caught.value)


def test_a_dead_letter_topic_names_its_source(folder: Path) -> None:
    change(folder, f"{SOURCE}.dlq", lambda fields: fields.update(dead_letters_of="spend.decisions.v1"))
    with pytest.raises(TopicError, match="field 'dead_letters_of' must name a topic, and this one be named after it"):
        read_documents(folder)


def test_a_topic_without_a_dead_letter_topic(folder: Path) -> None:
    (folder / f"{SOURCE}.dlq.yaml").unlink()
    with pytest.raises(TopicError, match=r"there is no spend\.settlements\.v1\.dlq\.yaml"):
        read_documents(folder)


@pytest.mark.parametrize("text", ["a: [", "- a", "", "a: 1\n---\nb: 1"])
def test_a_file_that_is_no_declaration(folder: Path, text: str) -> None:
    (folder / f"{SOURCE}.yaml").write_text(text)
    with pytest.raises(TopicError, match=r"spend\.settlements\.v1\.yaml"):
        read_documents(folder)
