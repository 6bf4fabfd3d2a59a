"""Answers that tell how a job stands: passed on as they are, and read for its end, which settles it."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog

from services.core.ports import UnavailableError
from services.core.usage.openai_responses import ResponsesShape
from services.core.usage.reading import StreamReader
from services.core.vendor_port import VendorResponse
from services.gateway.body import Receive, Send
from services.gateway.connect import Choice, Target
from services.gateway.free import FreeCalls
from services.gateway.headers import CallHeaders
from services.gateway.jobs.access import Access, lasting_query, scoping_headers
from services.gateway.jobs.addresses import Rewrite
from services.gateway.jobs.keeper import Keeper
from services.gateway.jobs.states import Ending, ending_of, kind_of, response_ending, status_path
from services.gateway.meter import Decoder
from services.gateway.refusal import RefusedError
from services.gateway.respond import ResponseHeaders, send_whole
from services.gateway.snapshots import OrgView

log = structlog.get_logger()

# How long an answer waits for the settlement that it brings about, which goes on after that.
SETTLE_WAIT_S: Final = 10.0
_LAST_STATUS: Final = 599
_RESPONSE: Final = ResponsesShape()


@dataclass(frozen=True, slots=True)
class Watched:
    """A call that asks how jobs stand, as it was sent on. `rewrite` changes what must not reach the client as it is."""

    org: str
    choice: Choice
    target: Target
    access: Access
    rewrite: Rewrite | None

    @property
    def submit_path(self) -> str:
        """Where jobs of this kind are submitted."""
        return self.choice.candidate.route.path.partition("/{id}")[0]

    @property
    def job_id(self) -> str:
        """The job that the path names; empty for a list of them."""
        return self.choice.candidate.params.get("id", "")


class Watch:
    """Passes such calls on. An answer that is longer than `max_bytes` is passed on unread."""

    def __init__(self, free: FreeCalls, keeper: Keeper, names: ResponseHeaders, max_bytes: int) -> None:
        self._free = free
        self._keeper = keeper
        self._names = names
        self._max_bytes = max_bytes
        self._tasks: set[asyncio.Task[None]] = set()

    async def finish_tasks(self, timeout_s: float) -> None:
        """Waits for settlements that their calls did not wait for, at the end of the gateway."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def serve(
        self,
        method: str,
        receive: Receive,
        send: Send,
        view: OrgView,
        choice: Choice,
        headers: CallHeaders,
        query: str,
        rewrite: Rewrite | None,
    ) -> None:
        """Passes one call on. Raises `RefusedError` and `ClientGoneError` while nothing has been answered."""
        request, target = await self._free.prepare(method, receive, view, choice, headers, query)
        access = Access(choice.candidate.dialect, target, scoping_headers(headers.forwarded), lasting_query(query))
        watched = Watched(view.snapshot.org, choice, target, access, rewrite)
        response = await self._free.send(request)
        try:
            if not 200 <= response.status < 300:
                await self._free.pass_on(response, send)
            elif choice.candidate.route.name.endswith(".results"):
                path = status_path(watched.submit_path, watched.job_id)
                await self._settle(watched, [Ending(watched.job_id, None, (f"{path}/results",))])
                await self._free.pass_on(response, send)
            elif _media_type(response) == b"text/event-stream":
                await self._pass_stream(watched, response, send)
            else:
                await self._pass_whole(watched, response, send)
        finally:
            await response.close()

    async def _pass_whole(self, watched: Watched, response: VendorResponse, send: Send) -> None:
        """Holds the answer back until what it ends is settled: its client may delete the results next."""
        parts: list[bytes] = []
        size = 0
        async with aclosing(response.chunks()) as chunks:
            try:
                async for chunk in chunks:
                    parts.append(chunk)
                    size += len(chunk)
                    if size > self._max_bytes:
                        await self._free.pass_on(response, send, parts, chunks)
                        return
            except UnavailableError as error:
                message = f"vendor {watched.target.vendor!r} broke off in its answer; ask again"
                raise RefusedError(502, "vendor_unreachable", message) from error
        body = b"".join(parts)
        plain: list[bytes] = []
        decoder = Decoder({name.lower(): value for name, value in response.headers}, plain.append)
        decoder.feed(body)
        text = b"".join(plain)
        await self._settle(watched, endings_in(watched, text))
        headers = self._names.of_vendor(response.headers)
        if watched.rewrite is not None and not decoder.unread_bytes:
            body = watched.rewrite(text)
            headers = [each for each in headers if each[0] != b"content-encoding"]
        try:
            await send_whole(send, min(response.status, _LAST_STATUS), headers, body)
        except OSError:
            return

    async def _pass_stream(self, watched: Watched, response: VendorResponse, send: Send) -> None:
        """A stream of a response that was begun before, taken up again."""
        reader = StreamReader(_RESPONSE, "sse", orjson.loads)
        decoder = Decoder({name.lower(): value for name, value in response.headers}, reader.feed)
        async with aclosing(response.chunks()) as chunks:
            await self._free.pass_on(response, send, (), chunks, decoder.feed)
        _, _, reading = reader.finish()
        ending = response_ending(watched.job_id, reading) if reading.complete else None
        if ending is not None:
            await self._settle(watched, [ending])

    async def _settle(self, watched: Watched, endings: list[Ending]) -> None:
        """Settles what has ended. Goes on by itself when that takes long, or when its client leaves."""
        if not endings:
            return
        task = asyncio.create_task(self._settle_all(watched, endings))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task}, timeout=SETTLE_WAIT_S)

    async def _settle_all(self, watched: Watched, endings: list[Ending]) -> None:
        for ending in endings:
            try:
                claim = await self._keeper.claim(watched.org, watched.target.vendor, ending.job_id)
                if claim is not None:
                    await self._keeper.finish(claim, ending, watched.access)
            except UnavailableError as error:
                log.warning("job_not_settled", job_id=ending.job_id, reason=str(error))


def endings_in(watched: Watched, body: bytes) -> list[Ending]:
    """The jobs that an answer says have ended: the one it is about, or those of a list."""
    kind = kind_of(watched.choice.candidate.dialect.name, watched.choice.candidate.route.name)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    if kind is None or not isinstance(value, dict):
        return []
    items: list[Mapping[str, Any]] = [value]
    if not watched.job_id and isinstance(value.get("data"), list):
        items = [each for each in value["data"] if isinstance(each, dict)]
    found = (ending_of(kind, watched.submit_path, each) for each in items)
    return [each for each in found if each is not None]


def _media_type(response: VendorResponse) -> bytes:
    head = {name.lower(): value for name, value in response.headers}
    return head.get(b"content-type", b"").partition(b";")[0].strip().lower()
