"""The messages of a chat request, in the form that most vendors share."""

from collections.abc import Iterable, Iterator

from services.gateway.vendors.fields import Fields, invalid, objects


def messages_of(fields: Fields, most: int) -> list[Fields]:
    """The messages, which must be there; raises `RequestRefusedError`, also for more than `most`."""
    if not isinstance(fields.get("messages"), list):
        raise invalid("messages", "messages must be a list")
    return objects(fields, "messages", most)


def parts_of(messages: Iterable[Fields], most: int) -> Iterator[object]:
    """Each content part of all messages, whose content may be text, too.

    Raises `RequestRefusedError` for content that is neither, and for more than `most` parts.
    """
    count = 0
    for message in messages:
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise invalid("messages", "the content of a message must be text or a list of parts")
        count += len(content)
        if count > most:
            raise invalid("messages", f"messages has more than {most} content parts; send fewer")
        yield from content
