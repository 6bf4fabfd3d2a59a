"""A gateway that dies when the log has taken its rows, before it has forgotten them, and comes back hours later."""

from collections.abc import Callable, Iterable
from random import Random

from tests.support.checker import Message, readable

# In how many seeds in a hundred of calls alone, and of others.
ABSENT, ABSENT_WITH_ERRANDS = 5, 25
_SETTLED = "spend.settlement.recorded.v1"
# The beginning of the producers that publish one event each: the ends of reservations, and of parts.
_ONCE = "expiry:"


class Absence:
    """The absence of one gateway. `seconds`: how long it is away once nothing else is left to be done.

    `restart` is there from its death on, until it is back. `is_over`: it is back.
    """

    def __init__(self, seed: int, gateways: int, *, has_errands: bool, is_possible: bool) -> None:
        rng = Random(f"outage:{seed}")
        is_drawn = is_possible and rng.randrange(100) < (ABSENT_WITH_ERRANDS if has_errands else ABSENT)
        self._gateway = f"gateway{rng.randrange(gateways)}" if is_drawn else ""
        self._producers = rng.choice((_ONCE, _ONCE, "")) if has_errands else ""
        self._left = rng.choice((1, 1, 1, 2))
        self.seconds = rng.uniform(1.5, 30) * 3_600
        self.restart: Callable[[], None] | None = None
        self.is_over = False

    @property
    def is_on(self) -> bool:
        """Whether it is away."""
        return self.restart is not None

    def begins(self, process: str, published: Iterable[Message]) -> bool:
        """Whether a process is to die now that the log has taken what it has published."""
        if process != self._gateway or self.is_on or self.is_over:
            return False
        endings = (readable(each) for each in published)
        self._left -= any(
            each is not None and each["type"] == _SETTLED and each["producer"].startswith(self._producers)
            for each in endings
        )
        return self._left <= 0

    def is_of(self, name: str) -> bool:
        """Whether a gateway is away now."""
        return self.is_on and name == self._gateway

    def keep(self, name: str, restart: Callable[[], None]) -> bool:
        """Whether a process that has died stays away; `restart` brings it back."""
        if name != self._gateway or self._left > 0 or self.is_on or self.is_over:
            return False
        self.restart = restart
        return True

    def end(self) -> None:
        """It is back."""
        assert self.restart is not None, "it is away"
        self.is_over, restart, self.restart = True, self.restart, None
        restart()
