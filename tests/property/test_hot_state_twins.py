"""The hot state's two halves, `core` and the Lua scripts in a real Valkey, driven by the same machine, step by step.

After every step the complete state is read back from Valkey and compared with the pure one. How many runs there are is
the hypothesis profile's business; `test_hot_state_walk` takes the long way.
"""

import asyncio
from collections.abc import Sequence
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.support.twin_operations import OPERATIONS, Operation
from tests.support.twins import Twins

T = TypeVar("T")


class Drawn:
    """Chance that hypothesis shrinks."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def one_of(self, choices: Sequence[T]) -> T:
        return self._data.draw(st.sampled_from(choices))

    def number(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))


class TwinMachine(RuleBasedStateMachine):
    """The twins, with a rule for each operation."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.twins = Twins(url)
        self.runner.run(self.twins.begin())

    def teardown(self) -> None:
        self.runner.run(self.twins.close())
        self.runner.close()

    @initialize(has_large_amounts=st.booleans())
    def set_up(self, has_large_amounts: bool) -> None:
        self.twins.has_large_amounts = has_large_amounts

    @rule(data=st.data(), operation=st.sampled_from(OPERATIONS))
    def do(self, data: st.DataObject, operation: Operation) -> None:
        if self.twins.names or not operation.needs_names:
            self.runner.run(self.as_coroutine(operation, Drawn(data)))

    async def as_coroutine(self, operation: Operation, draw: Drawn) -> None:
        await operation.do(self.twins, draw)

    @invariant()
    def twins_are_alike(self) -> None:
        self.runner.run(self.twins.check())


@pytest.mark.timeout(600)  # a failing run is shrunk for minutes; a passing one takes seconds
def test_core_and_lua_end_in_equal_states(valkey_url: str) -> None:
    class Machine(TwinMachine):
        def __init__(self) -> None:
            super().__init__(valkey_url)

    run_state_machine_as_test(
        Machine, settings=settings(deadline=None, stateful_step_count=40, suppress_health_check=list(HealthCheck))
    )
