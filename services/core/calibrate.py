"""Estimates learned from settled calls (`calibrated`, PR-5): of calls alike, what share of their bound did they cost?

For each key (org, vendor, model, route) the last `SAMPLES` shares are kept, in thousandths of the bound, rounded up. An
estimate is the bound times a high quantile of them, times a margin, and never more than the bound itself. Unlike the
bound it can be too low: how often it was is counted by whoever settles (a cost above its hold).
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

SAMPLES: Final = 500
# Until this many calls were seen, nothing is known of their kind, and the bound holds.
LEAST_SAMPLES: Final = 30
MAX_KEYS: Final = 4096
QUANTILE_THOUSANDTHS: Final = 990
MARGIN_THOUSANDTHS: Final = 1250

# How many new samples make the quantile worth finding again.
_REFRESH: Final = 16

# Org, vendor, model, route: what one org's calls cost is nobody else's business, and says nothing of theirs.
Key = tuple[str, str, str, str]


@dataclass(slots=True)
class _Seen:
    shares: deque[int] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    quantile: int | None = None
    new: int = 0


class Calibration:
    """What was learned, for as long as the process lives; keys not used for longest are forgotten first."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Key, _Seen] = OrderedDict()

    def learn(self, key: Key, bound_nano: int, cost_nano: int) -> None:
        """Takes a settled call in: what it could have cost at most, and what it did cost."""
        if bound_nano <= 0:
            return
        seen = self._seen.setdefault(key, _Seen())
        self._seen.move_to_end(key)
        seen.shares.append(-(-cost_nano * 1000 // bound_nano))
        seen.new += 1
        if len(self._seen) > MAX_KEYS:
            self._seen.popitem(last=False)

    def estimate(self, key: Key, bound_nano: int) -> int | None:
        """What a call with that bound is likely to cost at most; None when too little is known."""
        seen = self._seen.get(key)
        if seen is None or len(seen.shares) < LEAST_SAMPLES:
            return None
        if seen.quantile is None or seen.new >= _REFRESH:
            ordered = sorted(seen.shares)
            seen.quantile = ordered[-(-len(ordered) * QUANTILE_THOUSANDTHS // 1000) - 1]
            seen.new = 0
        return min(bound_nano, -(-bound_nano * seen.quantile * MARGIN_THOUSANDTHS // 1_000_000))
