"""The topics as `schemas/topics` declares them: the one place from which they are created."""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.adapters.schemas import schemas_folder
from services.core.alerts import ALERT_TYPES
from services.core.codec import MAX_EVENT_BYTES
from services.core.events import EVENT_TYPES
from services.core.ports import TopicDeclaration

Text = Annotated[str, Field(min_length=1)]

# Beside its value, a message carries its key, its headers and the log's own framing.
MESSAGE_ROOM_BYTES = 65_536


class TopicError(ValueError):
    """A topic declaration is wrong; the text names the file and the field."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class HeaderDocument(_Strict):
    """A header that messages of a topic carry."""

    name: Text
    required: bool
    description: Text


class TopicDocument(_Strict):
    """A file of `schemas/topics`. A dead-letter topic names the topic whose letters it takes instead of event types."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(\.[a-z0-9]+)*$", max_length=200)]
    description: Text
    key: Text
    partitions: Annotated[int, Field(ge=1, le=1024)]
    retention_ms: Annotated[int, Field(ge=60_000)]
    cleanup: Literal["delete"]
    max_message_bytes: Annotated[int, Field(ge=MAX_EVENT_BYTES + MESSAGE_ROOM_BYTES, le=1_048_576)]
    events: list[Text] = []
    dead_letters_of: Text | None = None
    headers: Annotated[list[HeaderDocument], Field(min_length=1)]

    def declaration(self) -> TopicDeclaration:
        """What a log needs to make the topic."""
        return TopicDeclaration(self.name, self.partitions, self.retention_ms, self.cleanup, self.max_message_bytes)


@cache
def load_topics() -> tuple[TopicDeclaration, ...]:
    """Every declared topic, by name; raises `TopicError`."""
    return tuple(document.declaration() for document in read_documents(schemas_folder("topics")))


def read_documents(folder: Path) -> tuple[TopicDocument, ...]:
    """The topic files of a folder, by name. Raises `TopicError` when one is wrong or they contradict each other."""
    documents = {path.stem: _read(path) for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}
    declared = sorted((kind, name) for name, document in documents.items() for kind in document.events)
    emitted = sorted((kind, event.TOPIC) for kind, event in {**EVENT_TYPES, **ALERT_TYPES}.items())
    if declared != emitted:
        raise TopicError(f"{folder}: field 'events' of the topics says {declared}, but Farthing emits {emitted}")
    for name, document in documents.items():
        _check_dead_letters(folder / f"{name}.yaml", document, documents)
    return tuple(documents.values())


def _check_dead_letters(path: Path, document: TopicDocument, documents: dict[str, TopicDocument]) -> None:
    if (document.dead_letters_of is None) == (not document.events):
        raise TopicError(f"{path}: a topic has either field 'events' or field 'dead_letters_of'")
    if document.dead_letters_of is None:
        if f"{document.name}.dlq" not in documents:
            raise TopicError(f"{path}: there is no {document.name}.dlq.yaml for what can't be read of it")
        return
    source = documents.get(document.dead_letters_of)
    if source is None or document.name != f"{source.name}.dlq":
        raise TopicError(f"{path}: field 'dead_letters_of' must name a topic, and this one be named after it")
    if document.max_message_bytes < source.max_message_bytes + MESSAGE_ROOM_BYTES:
        # A letter is longer than its message by the headers that say why it is there; one that did not fit would stop
        # its consumer for ever.
        raise TopicError(f"{path}: field 'max_message_bytes' must be {MESSAGE_ROOM_BYTES} above that of {source.name}")


def _read(path: Path) -> TopicDocument:
    try:
        document = TopicDocument.model_validate(yaml.safe_load(path.read_bytes()))
    except yaml.YAMLError as error:
        raise TopicError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise TopicError(f"{path}: field {field!r}: {first['msg']}") from error
    if document.name != path.stem:
        raise TopicError(f"{path}: field 'name' is {document.name!r}; a topic's file is named after it")
    return document
