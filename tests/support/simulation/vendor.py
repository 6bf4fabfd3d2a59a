"""The vendors of a simulation: answers whole or in a stream, late, broken, or not at all."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from random import Random

from services.core.ports import NotSentError, TimedOutError, UnavailableError
from services.core.vendor_port import VendorRequest
from tests.support import openai_answers
from tests.support.simulation.loop import Process
from tests.support.simulation.network import Network, alive

JSON = ((b"content-type", b"application/json"),)
EVENTS = ((b"content-type", b"text/event-stream"),)


class SimAnswer:
    """`vendor_port.VendorResponse`: pieces, each after a while; it may break off."""

    def __init__(self, status: int, pieces: Sequence[bytes], pauses_s: Sequence[float], breaks: bool) -> None:
        self.status = status
        self.headers = EVENTS if len(pieces) > 1 else JSON
        self._pieces = pieces
        self._pauses_s = pauses_s
        self._breaks = breaks

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for piece, pause_s in zip(self._pieces, self._pauses_s, strict=True):
            await asyncio.sleep(pause_s)
            yield piece
        if self._breaks:
            raise UnavailableError("the vendor broke off")

    async def close(self) -> None:
        return None


class SimVendor:
    """`vendor_port.VendorTransport` of one process. `moods` are the chances in a hundred of each kind of failure."""

    def __init__(self, process: Process, network: Network, rng: Random, hold_ms: int, moods: dict[str, int]) -> None:
        self._process = process
        self._network = network
        self._rng = rng
        self._hold_s = hold_ms / 1000
        self._moods = moods

    async def send(self, request: VendorRequest) -> SimAnswer:
        alive(self._process)
        draw, rng = self._rng.randrange(100), self._rng
        await asyncio.sleep(rng.uniform(0.001, 0.3))
        for mood, chance in self._moods.items():
            draw -= chance
            if draw < 0:
                return await self._fail(mood, request)
        return self._answer(request, breaks=False)

    async def _fail(self, mood: str, request: VendorRequest) -> SimAnswer:
        if mood == "unsent":
            raise NotSentError("no connection")
        if mood == "timeout":
            await asyncio.sleep(request.timeout_s)
            raise TimedOutError("no answer in time")
        if mood == "hangs_up":
            raise UnavailableError("the line broke")
        if mood == "error":
            return SimAnswer(500, [b'{"error":{"message":"sorry"}}'], [0.001], breaks=False)
        return self._answer(request, breaks=True)

    def _answer(self, request: VendorRequest, *, breaks: bool) -> SimAnswer:
        asked, rng = json.loads(request.body), self._rng
        prompt, completion = rng.randint(1, 12), rng.randint(0, asked.get("max_tokens", 9_000))
        used = openai_answers.usage(prompt, completion)
        if not asked.get("stream"):
            answer = openai_answers.completion(asked["model"], text="fine", used=used)
            body = openai_answers.dump(answer)
            return SimAnswer(200, [body[: len(body) // 2] if breaks else body], [rng.uniform(0, 0.2)], breaks)
        count = rng.randint(1, 6)
        words = openai_answers.text_deltas(*["word " * max(1, completion // count)] * count)
        pieces = openai_answers.events(openai_answers.chunks(words, asked["model"], used))
        if breaks:
            pieces = pieces[: rng.randint(1, len(pieces))]
        # Some streams go on for longer than their hold lives.
        longest_s = self._hold_s / 2 if rng.randrange(5) == 0 else 0.1
        return SimAnswer(200, pieces, [rng.uniform(0, longest_s) for _ in pieces], breaks)

    async def close(self) -> None:
        return None
