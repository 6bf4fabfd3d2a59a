"""`core.answers.Answers` in memory, for tests and simulation."""

from collections.abc import Callable

from services.core.answers import Answer


class MemoryAnswers:
    """The twin of `valkey_answers.ValkeyAnswers`. `clock` gives Unix milliseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._kept: dict[tuple[str, str], tuple[int, Answer]] = {}

    async def claim(self, org: str, name: str, request_hash: str, keep_ms: int) -> Answer | None:
        """See the port."""
        there = await self.find(org, name)
        if there is None:
            self._kept[org, name] = (self._clock() + keep_ms, Answer(request_hash))
        return there

    async def finish(self, org: str, name: str, answer: Answer, keep_ms: int) -> Answer:
        """See the port."""
        there = await self.find(org, name)
        if there is not None and there.status >= answer.status:
            return there
        self._kept[org, name] = (self._clock() + keep_ms, answer)
        return answer

    async def find(self, org: str, name: str) -> Answer | None:
        """See the port."""
        until_ms, answer = self._kept.get((org, name), (0, None))
        return answer if self._clock() < until_ms else None

    async def drop(self, org: str, name: str, request_hash: str) -> None:
        """See the port."""
        if await self.find(org, name) == Answer(request_hash):
            del self._kept[org, name]
