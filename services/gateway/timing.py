"""Where the time of one call went, on the monotonic clock."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Timing:
    """Marks of one call in nanoseconds; `vendor_ns` is from sending it to the last byte so far, retries included.

    `tried_ns` is when it was last sent, `text_ns` when the first text of the answer came, 0 for not yet.
    """

    # Asked for by name when a call begins, so that a simulation's clock is asked, too.
    started_wall_ns: int = field(default_factory=lambda: time.time_ns())
    started_ns: int = field(default_factory=lambda: time.perf_counter_ns())
    identified_ns: int = 0
    read_ns: int = 0
    decided_ns: int = 0
    held_ns: int = 0
    sent_ns: int = 0
    vendor_ns: int = 0
    tried_ns: int = 0
    text_ns: int = 0

    def mark_vendor(self) -> None:
        """Counts the time since `sent_ns` as the vendor's."""
        self.vendor_ns = time.perf_counter_ns() - self.sent_ns

    def unseen_ms(self) -> int:
        """How long the answering vendor wrote nothing to be seen, in milliseconds, rounded up.

        It is from the last try to the first text, or to the last mark of the vendor when none came.
        """
        until_ns = self.text_ns or self.sent_ns + self.vendor_ns
        return max(0, -(-(until_ns - (self.tried_ns or self.sent_ns)) // 1_000_000))

    def overhead_ns(self) -> int:
        """What Farthing has added so far: neither waiting for the caller's body nor for the vendor counts."""
        return time.perf_counter_ns() - self.started_ns - (self.read_ns - self.identified_ns) - self.vendor_ns

    def latency_us(self) -> Mapping[str, int]:
        """The breakdown that a settlement carries, in microseconds."""
        return {
            "auth": (self.identified_ns - self.started_ns) // 1000,
            "policy": (self.decided_ns - self.read_ns) // 1000,
            "reserve": (self.held_ns - self.decided_ns) // 1000,
            "vendor": self.vendor_ns // 1000,
            "total": (time.perf_counter_ns() - self.started_ns) // 1000,
        }
