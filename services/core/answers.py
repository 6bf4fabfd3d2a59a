"""Answers that are given once and then for ever: what an idempotency key or a reservation has been told (GW-10, P2).

An answer is claimed before the deed and finished after it, both under the name of the deed. A claim lapses soon: what
its holder has left undone, or done and not told, is then claimed anew and the deed repeated, which changes nothing
where it was done already.
"""

import json
from dataclasses import dataclass
from typing import Final, Protocol

# How long answers are kept beside the hot state; after that the ledger knows them.
ANSWER_MS: Final = 48 * 3_600_000
# How long a claim keeps others from the same deed: longer than a deed of the reservation API takes whose every question
# times out, so that two are never at it at once. A part of a budget may take longer, when control is slow
# (`gateway.delegations.once`).
CLAIM_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered. `status` is 0 while it is only claimed, and rises; `body` is the answer's JSON.

    `request_hash` tells the request, so that another one under the same name is noticed.
    """

    request_hash: str
    status: int = 0
    body: str = ""


class Answers(Protocol):
    """Answers by org and name, each kept for a time."""

    async def claim(self, org: str, name: str, request_hash: str, keep_ms: int) -> Answer | None:
        """None when the name is now claimed for that request, else the answer or claim that is there.

        Raises `UnavailableError`.
        """

    async def finish(self, org: str, name: str, answer: Answer, keep_ms: int) -> Answer:
        """Keeps an answer under a name that was claimed, and says what is kept there now. Raises `UnavailableError`.

        It gives way to one of a higher status alone: a try that was given up may still come to its end, and must not
        take the place of what was told since.
        """

    async def find(self, org: str, name: str) -> Answer | None:
        """What is kept under a name. Raises `UnavailableError`."""

    async def drop(self, org: str, name: str, request_hash: str) -> None:
        """Forgets that request's claim, whose deed is at its end; what is answered stays. Raises `UnavailableError`.

        So does another's claim: who was too slow takes none from whoever has come after it.
        """


def encode_answer(answer: Answer) -> bytes:
    """The answer as JSON."""
    return json.dumps([answer.request_hash, answer.status, answer.body], separators=(",", ":")).encode()


def decode_answer(value: bytes) -> Answer:
    """The answer of `encode_answer` bytes."""
    request_hash, status, body = json.loads(value)
    return Answer(request_hash, status, body)
