"""Fixtures of every suite: real engines, started once a session and stopped with it."""

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

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


class ByModule(LoadScopeScheduling):
    """Tests of a module stay in one process, and so do those of the clients' suites, for whom each client runs once."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "clients" if "/test_clients_" in module else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """How tests are spread over processes."""
    return ByModule(config, log)
