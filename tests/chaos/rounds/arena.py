"""Ten gateways, two aggregators and the rest, on a real Kafka, Valkey and PostgreSQL, with forty budgets over them."""

import asyncio
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from tests.support.burst import Shot
from tests.support.checker import nano
from tests.support.cluster import Cluster
from tests.support.kafka import KafkaBroker
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer

GATEWAYS: Final = ("gateway", *(f"gateway-{number}" for number in range(2, 11)))
AGGREGATORS: Final = ("aggregator", "aggregator-2")
TEAMS: Final = {"ml": ("ada", "bob"), "ops": ("eve", "dan"), "web": ("joe", "kim"), "lab": ("lea", "max")}
USERS: Final = tuple(f"user-{number}" for number in range(6))
PROJECTS: Final = ("apollo", "gemini", "vostok", "salyut")
TAGS: Final = ("nightly", "urgent", "batch", "canary")
SESSIONS: Final = tuple(f"run-{number}" for number in range(40))
HOLD_SECONDS: Final = 8
MOST_TOKENS: Final = 60
# About what a call of a burst holds, in nano-dollars: its tokens out at the sandbox's prices, and its input's bytes.
HOLD_NANO: Final = 500_000


@dataclass
class Arena:
    """All that runs, and what the rig knows of it."""

    directory: Path
    kafka: KafkaBroker
    valkey: ValkeyServer
    cluster: Cluster
    keys: dict[str, str] = field(default_factory=dict)
    budgets: list[str] = field(default_factory=list)

    def shots(self, rng: random.Random, count: int) -> list[Shot]:
        """A burst: every call from somewhere else, some slow, a few broken at the vendor."""
        return [self._shot(rng) for _ in range(count)]

    def _shot(self, rng: random.Random) -> Shot:
        agent = rng.choice(list(self.keys))
        headers = {
            "authorization": f"Bearer {self.keys[agent]}",
            "x-spend-user": rng.choice(USERS),
            "x-spend-project": rng.choice(PROJECTS),
            "x-spend-session": rng.choice(SESSIONS),
            "x-spend-environment": rng.choice(("prod", "test")),
            "x-spend-tags": ",".join(rng.sample(TAGS, 2)),
        }
        tokens = rng.randint(1, MOST_TOKENS)
        controls: dict[str, object] = {"output_tokens": rng.randint(1, tokens), "delay_ms": rng.randint(0, 300)}
        if rng.random() < 0.02:
            controls["fault"] = rng.choice(("error_500", "hang_up", "no_usage"))
        body = {
            "model": rng.choice(("sandbox-small", "sandbox-large")),
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": "How much is a farthing?"}],
            "sandbox": controls,
        }
        return Shot(self.cluster.url(rng.choice(GATEWAYS)), headers, json.dumps(body).encode())

    def standings(self) -> dict[str, dict[str, Any]]:
        """Every budget's standing, by id, through the management API."""
        answer = self.cluster.admin("GET", "/api/v1/budgets")
        return {each["budget_id"]: each for each in answer["budgets"]}

    def limits(self) -> dict[int, dict[str, int | None]]:
        """The limit of each budget at each version of the configuration, read off the audit."""
        entries: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = self.cluster.admin("GET", "/api/v1/audit?limit=500" + (f"&before={cursor}" if cursor else ""))
            entries += page["entries"]
            if len(page["entries"]) < 500:
                break
            cursor = str(page["entries"][-1]["entry_id"])
        state: dict[str, int | None] = {}
        found: dict[int, dict[str, int | None]] = {0: {}}
        for entry in sorted(entries, key=lambda each: each["entry_id"]):
            if entry["action"] in ("budget.create", "budget.update"):
                state = {**state, entry["target"]: nano(entry["after"]["limit_usd"])}
            elif entry["action"] == "budget.delete":
                state = {name: limit for name, limit in state.items() if name != entry["target"]}
            found[entry["config_version"]] = state
        # A version that changed no budget has the limits of the one before it.
        filled, last = {}, found[0]
        for version in range(max(found) + 1):
            last = found.get(version, last)
            filled[version] = last
        return filled


@contextmanager
def arena(directory: Path) -> Iterator[Arena]:
    """Everything started and ready, with keys and budgets; ended, by pid, with the block."""
    with ExitStack() as stack:
        kafka = stack.enter_context(KafkaBroker(directory / "kafka"))
        # Nothing that it has answered is lost when it is killed.
        valkey = stack.enter_context(ValkeyServer(directory / "valkey", appendonly="always"))
        postgres = stack.enter_context(PostgresServer(directory / "postgres"))
        cluster = Cluster(
            directory,
            redis_url=valkey.url,
            postgres_dsn=postgres.dsn,
            kafka=kafka.bootstrap,
            hold_seconds=HOLD_SECONDS,
            extra={"FARTHING_VENDOR_TIMEOUT_S": "4"},
        )
        stack.callback(cluster.stop)
        cluster.start("control")
        cluster.take_first_keys()
        # A few at a time: two cores load two services as fast as fourteen.
        for some in (("ledger", "sandbox"), AGGREGATORS, *zip(GATEWAYS[::2], GATEWAYS[1::2], strict=True)):
            cluster.start(*some)
        made = Arena(directory, kafka, valkey, cluster)
        _make_keys(made)
        _make_budgets(made)
        yield made


def _make_keys(made: Arena) -> None:
    for team, agents in TEAMS.items():
        for agent in agents:
            made.keys[agent] = made.cluster.make_agent(team, agent)


def _make_budgets(made: Arena) -> None:
    """Forty of every kind of scope and window; a call falls under about a dozen of them."""
    for budget in _budgets():
        answer = made.cluster.admin("PUT", "/api/v1/budgets", {"limit_usd": "1000.00", **budget})
        made.budgets.append(str(answer["budget_id"]))
    assert len(made.budgets) == len(set(made.budgets)) == 40


def _budgets() -> Iterator[Mapping[str, Any]]:
    def of(kind: str, value: str, window: str, **more: Any) -> Mapping[str, Any]:
        return {"scope": {"kind": kind, "value": value}, "window": window, **more}

    yield {"window": "month"}
    yield {"window": "3h"}
    for team in TEAMS:
        yield of("team", team, "day", zone="Europe/Berlin")
        yield from (of("agent", agent, "3h") for agent in TEAMS[team])
    yield from (of("user", user, "week") for user in USERS)
    yield of("user", "*", "day")
    yield from (of("project", project, "year") for project in PROJECTS)
    yield from (of("tag", tag, "3h") for tag in TAGS)
    yield of("session", "*", "session")
    yield from (of("model", model, "month") for model in ("sandbox-small", "sandbox-large"))
    yield from (of("environment", name, "lifetime") for name in ("prod", "test"))
    yield of("vendor", "sandbox", "quarter")
    yield of("billing_class", "metered.sandbox", "month")
    yield {
        "scope": {"kind": "cel", "value": "urgent-ml", "expression": 'team == "ml" && "urgent" in tags'},
        "window": "day",
    }
    yield {"scope": {"kind": "cel", "value": "large", "expression": 'model == "sandbox-large"'}, "window": "hour"}
    yield of("team", "ml", "month")
    yield of("org", "default", "day")


async def tighten(made: Arena, rng: random.Random, holds: int) -> None:
    """Gives some budgets room for about `holds` more calls, and the rest plenty."""
    standings = await asyncio.to_thread(made.standings)
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {made.cluster.admin_key}"}, timeout=20) as client:
        for budget_id in made.budgets:
            spent = standings[budget_id]["standing"]["spent_usd"]
            room = rng.randint(holds // 2, holds) * HOLD_NANO if rng.random() < 0.15 and spent else 10**12
            limit = (nano(spent) if spent else 0) + room
            answer = await client.patch(
                f"{made.cluster.url()}/api/v1/budgets/{budget_id}", json={"limit_usd": _usd(limit)}
            )
            assert answer.status_code == 200, answer.text


def _usd(amount_nano: int) -> str:
    return f"{amount_nano // 10**9}.{amount_nano % 10**9:09d}"
