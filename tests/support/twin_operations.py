"""Every operation of the walks of the twins, and which one comes next."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from tests.support.twin_parts import change_budget, delegate, end_part, spend_part
from tests.support.twin_steps import (
    Draw,
    admit,
    admit_again,
    admit_for_another_instant,
    backfill,
    claim,
    fold_again,
    fold_late_reservation,
    fold_new,
    fold_published_twice,
    go_cold,
    leave,
    let_keys_expire,
    peek,
    rebuild,
    release,
    resize,
    turn_clock,
    turn_clock_to_an_edge,
)
from tests.support.twins import Twins


@dataclass(frozen=True)
class Operation:
    """One thing to do, and how often a walk does it beside the others."""

    do: Callable[[Twins, Draw], Awaitable[None]]
    weight: int
    needs_names: bool = False


OPERATIONS: Final = (
    Operation(admit, 20),
    Operation(admit_for_another_instant, 2),
    Operation(admit_again, 3, needs_names=True),
    Operation(resize, 14, needs_names=True),
    Operation(leave, 6, needs_names=True),
    Operation(release, 3, needs_names=True),
    Operation(claim, 5),
    Operation(peek, 3),
    Operation(fold_new, 16),
    Operation(fold_late_reservation, 1),
    Operation(backfill, 4),
    Operation(fold_again, 2),
    Operation(fold_published_twice, 2),
    Operation(turn_clock, 6),
    Operation(turn_clock_to_an_edge, 8),
    Operation(let_keys_expire, 3),
    Operation(go_cold, 1),
    Operation(rebuild, 2),
    Operation(delegate, 3),
    Operation(spend_part, 5),
    Operation(end_part, 4),
    Operation(change_budget, 2),
)
_WEIGHTED: Final = tuple(each for each in OPERATIONS for _ in range(each.weight))


def next_operation(twins: Twins, draw: Draw) -> Operation:
    """What a walk does next; a cold org is soon rebuilt, for most of what is done to it is refused alike."""
    if twins.state.epoch is None and draw.number(0, 2) == 0:
        return Operation(rebuild, 0)
    while True:
        operation = draw.one_of(_WEIGHTED)
        if twins.names or not operation.needs_names:
            return operation
