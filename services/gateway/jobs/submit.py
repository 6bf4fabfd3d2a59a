"""A batch as it is submitted: its input file, had from the vendor with the call's key, and what its lines can cost."""

import asyncio
from typing import Final
from urllib.parse import quote

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
from services.gateway.vendors.openai_responses import runs_in_background
from services.gateway.vendors.openai_routes import BATCHES, RESPONSES

_SHAPE: Final = BatchShape()
_DIALECTS: Final = ("openai", "azure")
# So many input files are in memory at a time, each of them at most `max_bytes`.
_AT_A_TIME: Final = 2


class Submissions:
    """Reads what is submitted. `max_bytes` bounds an input file, `timeout_s` the wait for it."""

    def __init__(self, fetcher: Fetcher, connector: Connector, *, max_bytes: int, timeout_s: float) -> None:
        self._fetcher = fetcher
        self._connector = connector
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._room = asyncio.Semaphore(_AT_A_TIME)

    def job_of(self, candidate: Candidate, body: bytes) -> JobKind | None:
        """The kind of job that a request asks for; None for one that its answer ends."""
        route = candidate.route
        if route.billing == "submitted":
            return kind_of(candidate.dialect.name, route.name)
        return "openai.response" if route.name == RESPONSES.name and runs_in_background(body) else None

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
            async with asyncio.timeout(self._timeout_s), self._room:
                content = await self._fetcher.file(access, path, self._max_bytes)
                return await asyncio.to_thread(read_input, batch, content, _SHAPE, request.body)
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
