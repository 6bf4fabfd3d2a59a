"""What becomes of a message that can't be read: it is kept, unchanged, before its offset moves."""

from services.core.ports import Incoming, Outgoing


def dead_letter(message: Incoming, consumer: str, reason: str) -> Outgoing:
    """The message, unchanged, for its topic's dead-letter topic, with who could not read it, where it was, and why."""
    told = (
        ("farthing-consumer", consumer.encode()),
        ("farthing-reason", reason.encode()),
        ("farthing-topic", message.topic.encode()),
        ("farthing-partition", str(message.partition).encode()),
        ("farthing-offset", str(message.offset).encode()),
    )
    return Outgoing(f"{message.topic}.dlq", message.key, message.value, (*message.headers, *told))
