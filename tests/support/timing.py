"""The clock by which the gateway times its calls, moved on by a test."""

import time
from collections.abc import Callable

import pytest


class CallClock:
    """`time.perf_counter_ns`, and so many seconds more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real: Callable[[], int] = time.perf_counter_ns
        self._moved_ns = 0
        monkeypatch.setattr(time, "perf_counter_ns", lambda: real() + self._moved_ns)

    def move(self, seconds: float) -> None:
        """Lets so many seconds pass."""
        self._moved_ns += int(seconds * 10**9)
