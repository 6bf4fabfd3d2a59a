"""Callers of the reservation API and of delegation, and what they were told, to be asked for again (P2)."""

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tests.chaos.rounds.arena import Arena, usd
from tests.chaos.rounds.traffic import Round
from tests.support.burst import Hit, Shot, fire

RESERVATIONS: Final = "/v1/reservations"
# A gateway that dies leaves a claim that lapses after ten seconds; nobody here waits for that. It is asked again later.
_PATIENCE_S: Final = 3.0
_PATIENCE_ONCE_S: Final = 10.0
_TRIES: Final = 3
_PAUSE_S: Final = 0.2
# A second more than the shortest hold, and the reaper's turn.
_LATE_S: Final = 2.5
_PART_CALLS: Final = 8
# The shortest there is: what a gateway has held when it dies, before control knows of the part, is held for so long.
_PART_S: Final = 60


@dataclass(frozen=True, slots=True)
class Differing:
    """A question that was answered in two ways."""

    shot: Shot
    first: tuple[int, bytes]
    then: tuple[int, bytes]

    def __str__(self) -> str:
        asked = f"{self.shot.path} {self.shot.body!r} under {self.shot.headers.get('idempotency-key')}"
        return f"{asked} was answered {self.first}, and then {self.then}"


@dataclass
class Memory:
    """What was told first to each question, and all that was told otherwise when it was asked again.

    A question is who asks for what under which key, whichever gateway is asked. What was not decided is no answer.
    """

    answers: dict[tuple[str, bytes, str | None, str], tuple[int, bytes]] = field(default_factory=dict)
    questions: list[Shot] = field(default_factory=list)
    differing: list[Differing] = field(default_factory=list)
    compared: int = 0
    asked_later: int = 0

    def take(self, shot: Shot, hit: Hit) -> None:
        """What a question was answered."""
        if not is_decided(hit):
            return
        question = (shot.path, shot.body, shot.headers.get("idempotency-key"), shot.headers["authorization"])
        answer = (hit.status, hit.body)
        first = self.answers.get(question)
        if first is None:
            self.answers[question] = answer
            self.questions.append(shot)
            return
        self.compared += 1
        if first != answer:
            self.differing.append(Differing(shot, first, answer))


def is_decided(hit: Hit) -> bool:
    """Whether an answer is for ever: nothing was decided where there is none, or one that says so."""
    return hit.status != 0 and hit.status < 500


@dataclass
class Desk:
    """Makes the calls of one round that come in several steps. `hits` are all of them."""

    this: Round
    memory: Memory
    hits: list[Hit] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    # Reservations that were told to be held, and how they were told to have ended.
    held: set[str] = field(default_factory=set)

    async def ask(self, shot: Shot, *, tries: int = _TRIES) -> Hit:
        """Asks until it is decided, each time somewhere else, but not for ever."""
        shot = replace(shot, timeout_s=_PATIENCE_S if tries > 1 else _PATIENCE_ONCE_S)
        for _ in range(tries):
            hit = await fire(shot)
            self.hits.append(hit)
            if is_decided(hit):
                return hit
            await asyncio.sleep(_PAUSE_S)
            shot = replace(shot, url=self.this.gateway(shot.url))
        return hit

    async def ask_twice(self, shot: Shot) -> Hit:
        """The same at two gateways, at once or one after the other: they must say the same."""
        other = replace(shot, url=self.this.gateway(shot.url))
        if self.this.rng.random() < 0.5:
            hit, again = await asyncio.gather(self.ask(shot), self.ask(other))
        else:
            hit = await self.ask(shot)
            again = await self.ask(other)
        self.memory.take(shot, hit)
        self.memory.take(other, again)
        return hit if is_decided(hit) else again

    # ---- reservations -----------------------------------------------------------------------------------------------

    async def reserve(self, number: int) -> None:
        """Reserves, and then settles, extends, releases, or lets it expire; everything asked for twice."""
        rng = self.this.rng
        who = self.this.who(self.this.key())
        headers = {**who, "idempotency-key": f"order-{self.this.number}-{number}"}
        amount_nano = rng.randint(100_000, 2_000_000)
        ends = rng.choice(("settle", "settle", "extend", "release", "expire", "settle late"))
        body: dict[str, Any] = {"hold_seconds": 1 if ends in ("expire", "settle late") else 6}
        if rng.random() < 0.3:
            body |= {"usage": {"output_tokens": rng.randint(1, 200)}, "vendor": "sandbox", "model": "sandbox-large"}
        else:
            body |= {"amount_usd": usd(amount_nano), "vendor": "tavily"}
            body |= {"auth_mode": "shared"} if rng.random() < 0.4 else {}
        told = await self.ask_twice(Shot(self.this.gateway(), headers, json.dumps(body).encode(), RESERVATIONS))
        self.seen[f"reserve {told.status}"] += 1
        if told.status != 201:
            return
        fields = json.loads(told.body)
        self.held.add(fields["reservation_id"])
        await self._end(ends, headers, fields["reservation_id"], fields["held_usd"])

    async def _end(self, ends: str, headers: dict[str, str], reservation_id: str, held_usd: str) -> None:
        rng, path = self.this.rng, f"{RESERVATIONS}/{reservation_id}"
        self.seen[ends] += 1
        if ends == "expire":
            return
        if ends == "settle late":
            await asyncio.sleep(_LATE_S)
        cost = {"cost_usd": usd(int(rng.random() * int(held_usd.replace(".", ""))))}
        if ends == "extend":
            more = {"amount_usd": usd(int(held_usd.replace(".", "")) + rng.randint(1, 500_000)), "hold_seconds": 6}
            shot = Shot(self.this.gateway(), headers, json.dumps(more).encode(), f"{path}/extend")
            self.seen[f"extend {(await self.ask_twice(shot)).status}"] += 1
        deed, asked = ("release", {}) if ends == "release" else ("settle", cost)
        told = await self.ask_twice(Shot(self.this.gateway(), headers, json.dumps(asked).encode(), f"{path}/{deed}"))
        self.seen[f"{deed} {told.status}"] += 1

    async def ask_later(self, shot: Shot) -> None:
        """A question of an earlier round, at any gateway: the same answer; and with another body none but a 409."""
        shot = replace(shot, url=self.this.gateway())
        hit = await self.ask(shot)
        self.memory.take(shot, hit)
        self.memory.asked_later += is_decided(hit)
        if shot.path == RESERVATIONS:
            other = replace(shot, body=json.dumps({"amount_usd": "0.000000007"}).encode())
            told = await self.ask(other)
            if is_decided(told) and (told.status, told.code) != (409, "idempotency_conflict"):
                self.memory.differing.append(Differing(other, (409, b"idempotency_conflict"), (told.status, told.body)))

    # ---- parts of budgets -------------------------------------------------------------------------------------------

    async def hand_on(self) -> None:
        """Carves a part of the org's budget, spends of it by its key at many gateways, and ends it."""
        rng, arena = self.this.rng, self.this.arena
        key = self.this.key()
        headers = {"authorization": f"Bearer {key}"}
        asked = {"amount_usd": usd(rng.randint(1_000_000, 4_000_000)), "expires_in_seconds": _PART_S}
        path = f"/v1/budgets/{rng.choice(orgs_own(arena))}/delegate"
        # Not asked again: what is asked twice is two parts.
        carved = await self.ask(Shot(self.this.gateway(), headers, json.dumps(asked).encode(), path), tries=1)
        self.seen[f"delegate {carved.status}"] += 1
        if carved.status != 201:
            return
        part = json.loads(carved.body)
        calls = [self.this.call(part["key"]) for _ in range(_PART_CALLS)]
        spent = await asyncio.gather(*(self.ask(each, tries=2) for each in calls))
        self.seen.update(f"part's call {each.status}" for each in spent)
        ended = await self.ask(Shot(self.this.gateway(), headers, b"{}", f"/v1/budgets/{part['budget_id']}/end"))
        self.seen[f"end {ended.status}"] += 1


def orgs_own(arena: Arena) -> list[str]:
    """The budgets that every call is charged to."""
    return [name for name, each in arena.budgets.items() if "scope" not in each]


def scripts(desk: Desk, reservations: int, parts: int, asked_again: int) -> Iterable[Coroutine[Any, Any, None]]:
    """All that a round's desk has to do, at once."""
    known = desk.memory.questions
    yield from (desk.reserve(number) for number in range(reservations))
    yield from (desk.hand_on() for _ in range(parts))
    yield from (desk.ask_later(shot) for shot in desk.this.rng.sample(known, min(asked_again, len(known))))
