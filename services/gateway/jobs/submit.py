"""A batch as it is submitted: its input file, had from the vendor with the call's key, and what its lines can cost."""

import asyncio
from collections.abc import Callable
from typing import Final
from urllib.parse import quote
from weakref import WeakValueDictionary

from services.core.jobs import JobKind
from services.core.ports import UnavailableError
from services.core.usage.openai_batch import BatchShape
from services.gateway.connect import Choice, Connector
from services.gateway.jobs.access import (
    Access,
    Fetcher,
    TooLargeError,
    VendorSaysNoError,
    lasting_query,
    scoping_headers,
)
from services.gateway.jobs.lines import read_input
from services.gateway.jobs.states import kind_of
from services.gateway.refusal import RefusedError
from services.gateway.snapshots import OrgView
from services.gateway.table import Candidate
from services.gateway.vendors import RequestFacts, RequestRefusedError, RouteRequest
from services.gateway.vendors.openai_batch import read_batch
from services.gateway.vendors.openai_routes import BATCHES, RESPONSES

_SHAPE: Final = BatchShape()
_DIALECTS: Final = ("openai", "azure")
# So many input files are in memory at a time, each of them at most `max_bytes` and of another org.
_AT_A_TIME: Final = 8
# So long a batch waits for those before it.
_BUSY_S: Final = 10.0
_RETRY_AFTER: Final = ((b"retry-after", b"10"),)


class Submissions:
    """Reads what is submitted. `max_bytes` bounds an input file, `timeout_s` the wait for it."""

    def __init__(self, fetcher: Fetcher, connector: Connector, *, max_bytes: int, timeout_s: float) -> None:
        self._fetcher = fetcher
        self._connector = connector
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._slots = _Slots()

    def job_of(self, candidate: Candidate, facts: RequestFacts) -> JobKind | None:
        """The kind of job that a request asks for; None for one that its answer ends."""
        route = candidate.route
        if route.billing == "submitted":
            return kind_of(candidate.dialect.name, route.name)
        return "openai.response" if route.name == RESPONSES.name and facts.in_background else None

    def has_input_file(self, candidate: Candidate) -> bool:
        """Whether only a file that the vendor has tells what a request can cost."""
        return candidate.route.name == BATCHES.name and candidate.dialect.name in _DIALECTS

    def vendor_of(self, choice: Choice) -> str:
        """The vendor of a batch, which names no model that could decide it."""
        return choice.vendor or self._connector.default_vendor

    async def read(self, request: RouteRequest, choice: Choice, view: OrgView, own_key: str | None) -> RequestFacts:
        """The facts of a batch, its lines' among them. Raises `RefusedError`."""
        access = self._access(request, choice, view, own_key)
        try:
            batch = read_batch(request.body)
            path = request.route.path.rpartition("/")[0] + f"/files/{quote(batch.input_file_id, safe='')}/content"
            free = await self._slots.take(view.snapshot.org)
            reading: asyncio.Future[RequestFacts] | None = None
            try:
                async with asyncio.timeout(self._timeout_s):
                    content = await self._fetcher.file(access, path, self._max_bytes)
                    reading = asyncio.ensure_future(asyncio.to_thread(read_input, batch, content, _SHAPE, request.body))
                    return await asyncio.shield(reading)
            finally:
                # A thread can't be stopped: until it ends, the file is in memory and its org has its slot.
                if reading is None or reading.done():
                    free()
                else:
                    reading.add_done_callback(lambda _: free())
        except RequestRefusedError as error:
            raise RefusedError(400, error.code, str(error), param=error.param) from error
        except TooLargeError as error:
            message = f"the input file is larger than the {self._max_bytes} bytes read here; submit it in parts"
            raise RefusedError(413, "request_too_large", message, param="input_file_id") from error
        except VendorSaysNoError as error:
            message = f"the input file can't be had, so the batch's cost has no bound: {error}; upload it first"
            raise RefusedError(400, "invalid_request", message, param="input_file_id") from error
        except UnavailableError as error:
            message = f"the input file can't be had from the vendor, so the batch was not submitted: {error}"
            raise RefusedError(502, "vendor_unreachable", message) from error
        except TimeoutError as error:
            message = f"the input file was not read within {self._timeout_s:g} s, so the batch was not submitted"
            raise RefusedError(504, "vendor_timeout", message) from error

    def _access(self, request: RouteRequest, choice: Choice, view: OrgView, own_key: str | None) -> Access:
        vendor, dialect = self.vendor_of(choice), choice.candidate.dialect
        connection = self._connector.connection(view.snapshot, vendor, brings_key=own_key is not None)
        if connection is None or connection.dialect != dialect.name:
            message = f"no connection to vendor {vendor!r}; make one: farthing connections set {vendor} --key-env NAME"
            raise RefusedError(400, "no_vendor_connection", message)
        try:
            target = self._connector.target(view.snapshot.org, connection, own_key)
        except ValueError as error:
            raise RefusedError(400, "no_vendor_connection", str(error)) from error
        return Access(dialect, target, scoping_headers(request.headers), lasting_query(request.query))


class _Slots:
    """One batch of an org at a time is read, and `_AT_A_TIME` of all orgs."""

    def __init__(self) -> None:
        self._of_all = asyncio.Semaphore(_AT_A_TIME)
        self._of_org: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def take(self, org: str) -> Callable[[], None]:
        """A slot of the org's, by what frees it. Raises `RefusedError` when those before take too long."""
        lock = self._of_org.setdefault(org, asyncio.Lock())
        await self._wait(
            lock,
            RefusedError(
                429,
                "too_many_requests",
                "another batch of this org is still being read; submit them one at a time, or try again in 10 seconds",
                headers=_RETRY_AFTER,
            ),
        )
        try:
            await self._wait(
                self._of_all,
                RefusedError(
                    503,
                    "too_many_requests",
                    f"{_AT_A_TIME} batches are being read in this gateway; try again in 10 seconds",
                    headers=_RETRY_AFTER,
                ),
            )
        except BaseException:
            lock.release()
            raise

        def free() -> None:
            self._of_all.release()
            lock.release()

        return free

    @staticmethod
    async def _wait(slot: asyncio.Lock | asyncio.Semaphore, refusal: RefusedError) -> None:
        try:
            async with asyncio.timeout(_BUSY_S):
                await slot.acquire()
        except TimeoutError as error:
            raise refusal from error
