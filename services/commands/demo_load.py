"""The calls of ``farthing demo``: a few agents in two teams, all at once, until one team's budget is exhausted."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from services.commands.errors import CommandError

MAX_SECONDS: Final = 25.0
MAX_CALLS: Final = 1200
_CALLERS_PER_AGENT: Final = 2
_REFUSALS_ENOUGH: Final = 2
_QUESTIONS: Final = (
    "How much is a farthing?",
    "Summarise the open tickets of the last week, by product.",
    "Which of these three plans is the cheapest for forty agents, and why?",
)


@dataclass(slots=True)
class Agent:
    """One agent and what it has seen so far."""

    name: str
    team: str
    model: str
    key: str
    calls: int = 0
    refused: int = 0
    last_refusal: str = ""


@dataclass(slots=True)
class Load:
    """Calls under way. `exhausted` is the team whose budget has refused a call, once one has."""

    base_url: str
    agents: Sequence[Agent]
    randomness: random.Random
    exhausted: str | None = None
    _calls: int = 0
    _ends_at: float = field(default_factory=lambda: time.monotonic() + MAX_SECONDS)

    async def run(self) -> None:
        """Calls until each agent of some team has been refused, and never longer than `MAX_SECONDS` or `MAX_CALLS`.

        Raises `CommandError` on an answer that is neither a success nor a refusal by a demo budget.
        """
        async with httpx.AsyncClient(base_url=self.base_url, timeout=30.0) as client, asyncio.TaskGroup() as group:
            for agent in self.agents:
                for _ in range(_CALLERS_PER_AGENT):
                    group.create_task(self._caller(client, agent))

    def _goes_on(self) -> bool:
        if time.monotonic() >= self._ends_at or self._calls >= MAX_CALLS:
            return False
        refused = [agent for agent in self.agents if agent.team == self.exhausted]
        return not refused or any(agent.refused < _REFUSALS_ENOUGH for agent in refused)

    async def _caller(self, client: httpx.AsyncClient, agent: Agent) -> None:
        while self._goes_on():
            self._calls += 1
            answered = await self._call(client, agent)
            await asyncio.sleep(self.randomness.uniform(0.02, 0.12) if answered else self.randomness.uniform(0.4, 0.8))

    async def _call(self, client: httpx.AsyncClient, agent: Agent) -> bool:
        """One call; whether it was answered rather than refused."""
        try:
            answer = await client.post(
                "/v1/chat/completions", json=self._body(agent.model), headers={"Authorization": f"Bearer {agent.key}"}
            )
        except httpx.HTTPError as error:
            raise CommandError(
                f"a call broke off ({str(error) or type(error).__name__}); is Farthing running?"
            ) from error
        if answer.status_code == 200:
            agent.calls += 1
            return True
        refusal = _refusal(answer)
        if refusal.get("code") == "state_rebuilding":
            return False  # A moment's matter: the caller's next turn asks again.
        scope = str(refusal.get("scope"))
        if refusal.get("code") != "budget_exhausted" or scope.startswith("org:"):
            raise CommandError(f"a call was refused: {refusal.get('message')}", str(refusal.get("code")))
        agent.refused += 1
        agent.last_refusal = str(refusal["message"])
        if scope.startswith("team:"):
            self.exhausted = agent.team
        return False

    def _body(self, model: str) -> dict[str, Any]:
        length = self.randomness.randint(20, 300)
        return {
            "model": model,
            "messages": [{"role": "user", "content": self.randomness.choice(_QUESTIONS)}],
            "max_tokens": length + 20,
            "stream": self.randomness.random() < 1 / 3,
            "sandbox": {"output_tokens": length, "delay_ms": self.randomness.randint(20, 250)},
        }


def _refusal(answer: httpx.Response) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = answer.json()["error"]
        return {**fields, "message": str(fields["message"])}
    except (ValueError, KeyError, TypeError):
        return {"code": "unexpected", "message": f"{answer.status_code} {answer.text[:200]}"}
