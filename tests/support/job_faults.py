"""Jobs in a gateway on twins in memory: submitted, looked at and polled for, with faults at any point."""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.adapters.memory_jobs import MemoryJobs
from services.core.events import Settlement
from services.core.jobs import Claim, Job
from tests.support.asgi import Client, request
from tests.support.gateway import AWAY, ScriptedAnswer, World, world
from tests.support.jobs import BATCH_INPUT_NANO, BATCH_OUTPUT_NANO, CHAT, jsonl, line
from tests.support.vendors import openai as answers

NOW_MS = 1_795_000_000_000  # in November 2026: the shipped batch prices hold
SUBMITTED = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h"}
BATCH = json.dumps(answers.batch("batch_1", "validating")).encode()
ENDED = json.dumps(answers.batch("batch_1", output_file="file-2", counts=(1, 1, 0)))
OUTPUT = answers.batch_output([answers.batch_line("line-1", answers.completion(used=answers.usage(13, 9)))])
COST_NANO = 13 * BATCH_INPUT_NANO + 9 * BATCH_OUTPUT_NANO


class FailingJobs(MemoryJobs):
    """Jobs of a hot state that is away for the next calls of the methods in `fails`."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.fails: list[str] = []

    def _fail(self, name: str) -> None:
        if name in self.fails:
            self.fails.remove(name)
            raise AWAY

    async def keep(self, job: Job, next_ms: int, *, again: bool = False) -> None:
        self._fail("keep")
        await super().keep(job, next_ms, again=again)
        self._fail("kept")  # it is kept, and the answer that says so is lost

    async def end(self, claim: Claim) -> bool:
        self._fail("end")
        return await super().end(claim)


@dataclass
class There:
    """A world and its jobs."""

    world: World
    jobs: FailingJobs

    async def submit(self, *lines: dict[str, Any], answer: Any = None, **fields: Any) -> Client:
        """A batch submitted: its input file is fetched, then it goes to the vendor, which answers."""
        content = ScriptedAnswer([jsonl(*(lines or (line(1),)))])
        self.world.answer(content, answer or ScriptedAnswer([BATCH]))
        return await self.world.call({**SUBMITTED, **fields}, path="/v1/batches")

    async def look(self, *answers: Any, path: str = "/v1/batches/batch_1") -> Client:
        """A client's look at the batch."""
        self.world.answer(*(each if isinstance(each, Exception) else ScriptedAnswer([each]) for each in answers))
        return await request(self.world.assembly.app, path, headers=self.world.headers(), method="GET")

    async def poll(self, *answers: Any) -> None:
        """The gateway's own look."""
        self.world.answer(
            *(each if isinstance(each, (Exception, ScriptedAnswer)) else ScriptedAnswer([each]) for each in answers)
        )
        await self.world.assembly.poller.look()

    def wait(self, wait_ms: int) -> None:
        """Time passes."""
        self.world.clock.now_ms += wait_ms

    def settlements(self) -> list[Settlement]:
        return [each for each in self.world.events() if isinstance(each, Settlement)]


@contextlib.asynccontextmanager
async def job_faults(tmp_path: Path) -> AsyncIterator[There]:
    """A world with a budget of a dollar, at a time when the shipped batch prices hold."""
    made: There
    jobs = FailingJobs(lambda: made.world.clock())
    async with world(tmp_path, jobs=jobs) as inner:
        made = There(inner, jobs)
        inner.clock.now_ms = NOW_MS
        await inner.org.set_budget("1.00")
        await inner.sync()
        yield made
