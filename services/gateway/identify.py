"""Who is calling: an API key to its record, through a cache that also remembers what is unknown (ID-1)."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from services.core.identity import (
    Identity,
    IdentityError,
    IdentityMismatchError,
    KeyRecord,
    hash_key,
    is_key_text,
    is_name,
    resolve_identity,
)
from services.core.ports import Directory, UnavailableError
from services.gateway.headers import CallHeaders
from services.gateway.refusal import RefusedError, rebuilding

CACHE_S: Final = 60.0
CACHE_ENTRIES: Final = 10_000


class Authenticator:
    """Finds the identity of a call. Answers are kept for `CACHE_S`, or until `forget`; good ones longer, where there is
    nobody to ask.
    """

    def __init__(
        self, directory: Directory, pepper: bytes, prefix: str, *, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory = directory
        self._pepper = pepper
        self._prefix = prefix
        self._session_header = prefix + "session"
        self._monotonic_s = monotonic_s
        self._records: OrderedDict[str, tuple[float, KeyRecord | None]] = OrderedDict()
        self._era = 0

    def forget(self) -> None:
        """Drops every cached answer, those still on their way included: keys have changed."""
        self._records.clear()
        self._era += 1

    async def identify(self, headers: CallHeaders) -> Identity:
        """The identity of a call with these headers. What a client calls its session stands in where nothing else says.

        Raises `RefusedError`: 401 ``invalid_key``, 403 ``identity_mismatch``, 400 for a malformed header, 503 when keys
        can't be looked up.
        """
        record = await self._record(headers.key)
        spend: Mapping[str, str] = headers.spend
        if headers.client_session is not None and "session" not in record.pins and is_name(headers.client_session):
            spend = {self._session_header: headers.client_session, **spend}
        try:
            return resolve_identity(record, spend, self._prefix)
        except IdentityMismatchError as error:
            raise RefusedError(403, error.code, str(error), param=error.field) from error
        except IdentityError as error:
            raise RefusedError(400, "invalid_request", str(error), param=error.field) from error

    async def key(self, headers: CallHeaders) -> KeyRecord:
        """What is known of the key of a call with these headers: its role and pins. Raises as `identify` does."""
        return await self._record(headers.key)

    async def _record(self, key: str | None) -> KeyRecord:
        if key is None:
            message = f"no API key; send it as 'Authorization: Bearer fk_live_…' or in {self._prefix}key"
            raise RefusedError(401, "invalid_key", message)
        record = await self._look_up(hash_key(key, self._pepper)) if is_key_text(key) else None
        if record is None:
            message = "this API key is unknown or revoked; make one with: farthing keys create"
            raise RefusedError(401, "invalid_key", message)
        return record

    async def _look_up(self, key_hash: str) -> KeyRecord | None:
        now = self._monotonic_s()
        cached = self._records.get(key_hash)
        if cached is not None and cached[0] > now:
            self._records.move_to_end(key_hash)
            return cached[1]
        era = self._era
        try:
            record = await self._directory.find_key(key_hash)
        except UnavailableError as error:
            # A key that was good when it was last looked up stays good while nobody can say otherwise: the calls of
            # routes that pass without the spend state are the only ones that come further than this.
            if cached is not None and cached[1] is not None and era == self._era:
                return cached[1]
            raise rebuilding("API keys can't be looked up right now; try again in a second") from error
        if era == self._era:  # else the answer may be older than the change that emptied the cache
            self._records[key_hash] = (now + CACHE_S, record)
            self._records.move_to_end(key_hash)
            if len(self._records) > CACHE_ENTRIES:
                self._records.popitem(last=False)
        return record
