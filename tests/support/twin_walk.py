"""Long seeded walks of the twins, in lives of a few hundred steps, each of which its own seed repeats exactly."""

from collections.abc import Callable
from typing import Final

from services.adapters.valkey import ValkeyHotState
from tests.support.twin_operations import next_operation
from tests.support.twin_steps import Seeded
from tests.support.twins import Twins

STEPS_A_LIFE: Final = 250
# Answers are compared at every step. Reading everything back takes longer than a step, so it is done every few.
CHECK_EVERY: Final = 8

Alter = Callable[[ValkeyHotState], None]


def unaltered(hot: ValkeyHotState) -> None:
    """Leaves the scripts as they are."""


async def walk(url: str, seed: int, steps: int, alter: Alter = unaltered) -> int:
    """Walks so many steps, in lives of the seeds `seed`, `seed` + 1, …; answers how many steps were taken.

    Raises `AssertionError` naming the life's seed, the step and the operation after which the twins first differed.
    """
    taken = life = 0
    while taken < steps:
        some = min(STEPS_A_LIFE, steps - taken)
        try:
            await _live(url, seed + life, some, CHECK_EVERY, alter)
        except AssertionError:
            await _live(url, seed + life, some, 1, alter)  # which checks after every step, and so names the first
            raise
        taken += some
        life += 1
    return taken


async def _live(url: str, seed: int, steps: int, check_every: int, alter: Alter) -> None:
    draw = Seeded(seed)
    twins = Twins(url, alter)
    twins.has_large_amounts = draw.number(0, 3) == 0
    try:
        await twins.begin()
        for number in range(1, steps + 1):
            operation = next_operation(twins, draw)
            try:
                await operation.do(twins, draw)
                if number % check_every == 0:
                    await twins.check()
            except Exception as error:  # whatever it is, it is worth its seed
                name = getattr(operation.do, "__name__", "?")
                raise AssertionError(f"seed {seed}, step {number} of {steps} ({name}): {error}") from error
        try:
            await twins.settle_all()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, step {steps} of {steps} (and a day of rest): {error}") from error
    finally:
        await twins.close()
