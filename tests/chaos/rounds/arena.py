"""Ten gateways, two aggregators and the rest, on a real Kafka, Valkey and PostgreSQL, with forty budgets over them."""

import asyncio
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

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
SESSIONS: Final = 40
HOLD_SECONDS: Final = 8
# As long as a service may take on a machine that does much else, too.
READY_S: Final = 180.0
# About what a call of a burst holds, in nano-dollars: its tokens out at the sandbox's prices, and its input's bytes.
HOLD_NANO: Final = 500_000
# How many of the budgets are brought close to what they have spent, before each burst; and of those that have calls go
# on in another way when they are full.
TIGHT_SHARE: Final = 0.12
TIGHT_SHARE_YIELDING: Final = 0.4
PLENTY_USD: Final = "1000.000000000"
# Room for some of the calls of a session, and for one step of a stream.
SESSION_USD: Final = "0.06"
# Cells of the cap matrix: of calls that bring a vendor's key, and of what is reserved for a tool on a shared plan.
CAPS: Final[Mapping[str, Mapping[str, str | None]]] = {
    "byok.sandbox": {"daily": "1.00", "perSession": "0.0015"},
    "shared.tavily": {"daily": "0.50", "monthly": "900.00"},
    "metered.sandbox": {"daily": None},
}


@dataclass
class Arena:
    """All that runs, and what the rig knows of it. `budgets` by id, as they were asked for."""

    directory: Path
    kafka: KafkaBroker
    valkey: ValkeyServer
    cluster: Cluster
    keys: dict[str, str] = field(default_factory=dict)
    budgets: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    # Whose limit was brought close to what they have spent.
    tight: set[str] = field(default_factory=set)

    def standings(self) -> dict[str, dict[str, Any]]:
        """Every budget's standing, by id, through the management API."""
        answer = self.cluster.admin("GET", "/api/v1/budgets?limit=500")
        return {each["budget_id"]: each for each in answer["budgets"]}

    def parents(self) -> dict[str, str | None]:
        """Each budget's parent; of none it ever changes."""
        return {name: each.get("parent_id") for name, each in self.budgets.items()}

    def watching(self) -> set[str]:
        """The budgets that stop nothing when they are full."""
        return {name for name, each in self.budgets.items() if each.get("when_full") == "alert"}


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
        cluster.start("control", seconds=READY_S)
        cluster.take_first_keys()
        # A few at a time: two cores load five services as fast as fourteen.
        for some in (("ledger", "sandbox", *AGGREGATORS), GATEWAYS[:5], GATEWAYS[5:]):
            cluster.start(*some, seconds=READY_S)
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
    named: dict[str, str] = {}
    for budget in _budgets():
        wanted = {"limit_usd": PLENTY_USD, "extend": True, **budget}
        name, parent = wanted.pop("name", None), wanted.pop("parent", None)
        if parent is not None:
            wanted["parent_id"] = named[parent]
        budget_id = str(made.cluster.admin("PUT", "/api/v1/budgets", wanted)["budget_id"])
        if name is not None:
            named[name] = budget_id
        made.budgets[budget_id] = wanted
    assert len(made.budgets) == 40
    made.cluster.admin("PATCH", "/api/admin/billing/cap-policy/default", {"caps": CAPS})


def _budgets() -> Iterator[dict[str, Any]]:
    def of(kind: str, value: str, window: str, **more: Any) -> dict[str, Any]:
        return {"scope": {"kind": kind, "value": value}, "window": window, **more}

    yield {"window": "month"}
    yield {"window": "3h"}
    for team, (first, second) in TEAMS.items():
        yield of("team", team, "day", zone="Europe/Berlin", name=team)
        # One draws on its team when it is full, the other does not.
        yield of("agent", first, "3h", parent=team, child_mode="fallback")
        yield of("agent", second, "3h", parent=team)
    for user in USERS[::2]:
        yield of("user", user, "week", when_full="downgrade", downgrade_to="sandbox-small")
    yield from (of("user", user, "week") for user in USERS[1::2])
    yield of("user", "*", "day")
    yield from (of("project", project, "year") for project in PROJECTS)
    yield of("tag", TAGS[0], "3h", when_full="alert")
    yield from (of("tag", tag, "3h") for tag in TAGS[1:])
    yield of("session", "*", "session", limit_usd=SESSION_USD)
    yield of("model", "sandbox-small", "month")
    yield of("model", "sandbox-large", "month", when_full="downgrade", downgrade_to="sandbox-small")
    yield from (of("environment", name, "lifetime") for name in ("prod", "test"))
    yield of("vendor", "sandbox", "quarter")
    yield of("billing_class", "metered.sandbox", "month")
    yield {
        "scope": {"kind": "cel", "value": "urgent-ml", "expression": 'team == "ml" && "urgent" in tags'},
        "window": "day",
    }
    yield {"scope": {"kind": "cel", "value": "large", "expression": 'model == "sandbox-large"'}, "window": "hour"}
    yield of("team", "ml", "month")
    yield of("org", "default", "day", name="org")


async def tighten(made: Arena, rng: random.Random, holds: int) -> None:
    """Gives some budgets room for about `holds` more calls, narrow ones for a sixth of that, and the rest plenty."""
    standings = await asyncio.to_thread(made.standings)
    wanted: dict[str, int] = {}
    for budget_id in made.budgets:
        spent = standings[budget_id]["standing"]["spent_usd"]
        share, most = (TIGHT_SHARE_YIELDING, holds // 6) if _yields(made.budgets[budget_id]) else (TIGHT_SHARE, holds)
        if spent and rng.random() < share:
            wanted[budget_id] = nano(spent) + rng.randint(most // 2, most) * HOLD_NANO
        elif budget_id in made.tight:
            wanted[budget_id] = nano(PLENTY_USD)
    made.tight = {name for name, limit in wanted.items() if limit != nano(PLENTY_USD)}
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {made.cluster.admin_key}"}, timeout=20) as client:
        for budget_id, limit in wanted.items():
            answer = await client.patch(
                f"{made.cluster.url()}/api/v1/budgets/{budget_id}", json={"limit_usd": usd(limit)}
            )
            assert answer.status_code == 200, answer.text


def _yields(budget: Mapping[str, Any]) -> bool:
    return budget.get("when_full") in ("downgrade", "alert") or budget.get("child_mode") == "fallback"


def usd(amount_nano: int) -> str:
    """Dollars with nine decimals."""
    return f"{amount_nano // 10**9}.{amount_nano % 10**9:09d}"
