"""One log line a minute from Kafka's clients, which write hundreds in an outage."""

import logging
import time
from collections.abc import Callable
from typing import Final

_CLIENTS: Final = ("aiokafka", "faust", "mode")
HELD_BACK_S: Final = 60.0


class OneLineAMinute(logging.Filter):
    """Lets one warning or error of Kafka's client libraries through, and then none for a while.

    What matters to us of an outage we log ourselves. Everything else passes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._passed_s: float | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.levelno < logging.WARNING or record.name.partition(".")[0] not in _CLIENTS:
            return True
        now_s = self._clock()
        if self._passed_s is not None and now_s - self._passed_s < HELD_BACK_S:
            return False
        self._passed_s = now_s
        record.msg = f"{record.getMessage()} (more such lines are held back for {HELD_BACK_S:g} s)"
        record.args = ()
        return True
