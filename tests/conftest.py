"""Fixtures of every suite: real engines, started once a session and stopped with it."""

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

# How long an example takes says how busy the machine is, not whether the code is right. The same examples every time:
# whether a commit is good must not hang on luck. New ones are looked for by `make explore`.
settings.register_profile(
    "farthing", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("farthing"), derandomize=False)
settings.load_profile("farthing")

# Valkey first: others import from it, and a plug-in must be registered before it is imported.
pytest_plugins = [
    "tests.support.valkey",
    "tests.support.clickhouse",
    "tests.support.kafka",
    "tests.support.postgres",
    "tests.support.vendors",
]


# Those that take longest, so that the last to end is a short one. What they wait for are engines and clients: beside
# them goes what needs a processor of its own (unit, property), which is taken from the other end.
FIRST = (
    "tests/chaos",
    "tests/contract",
    "tests/integration/test_ledger_service.py",
    "tests/integration/test_up.py",
    "tests/integration/test_spine.py",
    "tests/integration/test_aggregator",
    "tests/integration/test_backfill_whole.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest is first; all else stays where it is, by its name."""

    def rank(item: pytest.Item) -> int:
        return next((place for place, each in enumerate(FIRST) if item.nodeid.startswith(each)), len(FIRST))

    items.sort(key=rank)


class FromBothEnds(LoadScopeScheduling):
    """Every second process takes its modules from the end, so that what waits and what computes go side by side.

    Tests of a module stay in one process, and so do those of the clients' suites, for whom each client runs once.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "clients" if "/test_clients_" in module else module

    def _assign_work_unit(self, node: WorkerController) -> None:
        if self.nodes.index(node) % 2:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """How tests are spread over processes."""
    return FromBothEnds(config, log)
