"""Fixtures of every suite: real engines, started once a session and stopped with it."""

from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("farthing", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("farthing")

# Valkey first: others import from it, and a plug-in must be registered before it is imported.
pytest_plugins = [
    "tests.support.valkey",
    "tests.support.clickhouse",
    "tests.support.kafka",
    "tests.support.postgres",
    "tests.support.vendors",
]
