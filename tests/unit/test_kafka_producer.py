"""How the producer is set up. One broker can't show by its behaviour what `acks` is for."""

from typing import Any

import pytest

from services.adapters import kafka


async def test_every_replica_acknowledges_and_nothing_is_written_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    class Producer:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        async def start(self) -> None:
            pass

        async def stop(self) -> None:
            pass

    monkeypatch.setattr(kafka, "AIOKafkaProducer", Producer)
    log = kafka.KafkaLog("127.0.0.1:1")
    await log._start_producer()
    await log.close()
    (options,) = made
    assert options["acks"] == "all"
    assert options["enable_idempotence"] is True
