"""What a round's calls are: whole answers and streams, with and without a session, a vendor key or an output limit."""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.chaos.rounds.arena import GATEWAYS, PROJECTS, SESSIONS, TAGS, USERS, Arena
from tests.support.burst import Hit, Shot

MOST_TOKENS: Final = 60
# Of a thousand: what is made one by one. The rest are whole answers.
STREAMS: Final = 0.10
GROWING: Final = 0.016
_FAULTY: Final = 0.02
_WITHOUT_SESSION: Final = 0.10
_WITH_VENDOR_KEY: Final = 0.06
# More than half a step is what a stream is held at is written, so that it asks for the next.
_LONG_WORDS: Final = (300, 1_800)


@dataclass(frozen=True, slots=True)
class Round:
    """What the calls of a round have in common: which it is, and who is asked."""

    arena: Arena
    number: int
    rng: random.Random

    def gateway(self, *others: str) -> str:
        """The address of any gateway, but for `others`."""
        return self.rng.choice([url for name in GATEWAYS if (url := self.arena.cluster.url(name)) not in others])

    def key(self) -> str:
        """Any agent's key."""
        return self.rng.choice(list(self.arena.keys.values()))

    def who(self, key: str) -> dict[str, str]:
        """Headers of a caller: all of the identity that the key leaves open, the session with one exception in ten."""
        rng = self.rng
        headers = {
            "authorization": f"Bearer {key}",
            "x-spend-user": rng.choice(USERS),
            "x-spend-project": rng.choice(PROJECTS),
            "x-spend-environment": rng.choice(("prod", "test")),
            "x-spend-tags": ",".join(rng.sample(TAGS, 2)),
        }
        if rng.random() >= _WITHOUT_SESSION:
            headers["x-spend-session"] = f"run-{self.number}-{rng.randrange(SESSIONS)}"
        return headers

    def call(self, key: str) -> Shot:
        """A call that is answered whole: some slow, a few broken at the vendor, some on the caller's own vendor key."""
        rng, headers = self.rng, self.who(key)
        if rng.random() < _WITH_VENDOR_KEY:
            headers["x-vendor-key"] = "sk-of-the-caller"
        tokens = rng.randint(1, MOST_TOKENS)
        controls: dict[str, object] = {"output_tokens": rng.randint(1, tokens), "delay_ms": rng.randint(0, 300)}
        if rng.random() < _FAULTY:
            controls["fault"] = rng.choice(("error_500", "hang_up", "no_usage"))
        return self._shot(headers, controls, max_tokens=tokens)

    def stream(self) -> Shot:
        """A stream with a limit: some are left by their client, some by their vendor."""
        rng = self.rng
        tokens = rng.randint(1, MOST_TOKENS)
        controls: dict[str, object] = {"output_tokens": tokens, "chunk_delay_ms": rng.choice((0, 0, 5))}
        if rng.random() < 0.1:
            controls |= {"fault": "hang_up", "fault_after_chunks": rng.randint(0, tokens)}
        leaves_after = rng.randint(1, 2_000) if rng.random() < 0.2 else None
        return self._shot(self.who(self.key()), controls, leaves_after, max_tokens=tokens, stream=True)

    def growing(self) -> Shot:
        """A stream without a limit, held a step at a time, of which most outgrow their first step."""
        controls = {"output_tokens": self.rng.randint(*_LONG_WORDS), "delay_ms": self.rng.randint(0, 300)}
        return self._shot(self.who(self.key()), controls, model="sandbox-large", stream=True)

    def _shot(
        self,
        headers: Mapping[str, str],
        controls: Mapping[str, object],
        leaves_after: int | None = None,
        **fields: Any,
    ) -> Shot:
        model = self.rng.choice(("sandbox-small", "sandbox-large"))
        messages = [{"role": "user", "content": "How much is a farthing?"}]
        body = {"model": model, "messages": messages, "sandbox": controls, **fields}
        return Shot(self.gateway(), headers, json.dumps(body).encode(), leaves_after=leaves_after)


def shots(this: Round, count: int) -> list[Shot]:
    """A burst of `count`: every call from somewhere else."""
    streams, growing = round(count * STREAMS), round(count * GROWING)
    made = [this.stream() for _ in range(streams)] + [this.growing() for _ in range(growing)]
    made += [this.call(this.key()) for _ in range(count - streams - growing)]
    this.rng.shuffle(made)
    return made


def tell(hits: Sequence[Hit]) -> Counter[str]:
    """What became of calls, each in one of a few words."""
    return Counter(map(_word, hits))


def _word(hit: Hit) -> str:
    if hit.left:
        return "left by the client"
    if hit.status == 0:
        return "broken off" if hit.transaction_id else "not answered"
    if hit.status < 300:
        return "answered" if hit.code is None else "cut off"
    if hit.status == 402:
        return "refused"
    return f"{hit.status} {hit.code}"
