"""What control has published of each org, each version decoded once."""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Final

import structlog

from services.core.ports import Directory, UnavailableError
from services.core.snapshot import Snapshot, decode_snapshot

_log = structlog.get_logger("farthing.aggregator")

MAX_KEPT: Final = 10_000
# A larger one takes so long to decode that the fold would wait for it.
LARGE_BYTES: Final = 65_536


class UnreadableSnapshotError(UnavailableError):
    """What control has published of an org can't be read: it is damaged, or a newer control's.

    Nothing but the next publication changes that. The other orgs are no worse off.
    """


@dataclass(frozen=True, slots=True)
class _Read:
    """A body that was read, by its digest: its snapshot, or why it has none."""

    digest: bytes
    snapshot: Snapshot | None
    reason: str = ""


class Snapshots:
    """Snapshots as the hot state has them, and the last one of each org kept."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._kept: dict[str, _Read] = {}
        # Of the orgs whose last one can't be read: why, and the generation that it was found at. The next has another.
        self._refused: dict[str, tuple[int, str]] = {}
        self._decoding = asyncio.Lock()

    async def at(self, org: str, version: int) -> Snapshot | None:
        """The org's snapshot, not asked for again where the one that is kept has this version. Raises as `latest`."""
        known = self._kept.get(org)
        if known is not None and known.snapshot is not None and known.snapshot.version == version:
            return known.snapshot
        return await self.latest(org)

    async def latest(self, org: str) -> Snapshot | None:
        """The org's snapshot as it is now; None when there is none.

        Raises `UnavailableError`, and `UnreadableSnapshotError` for one that can't be decoded, which is logged once.
        """
        refused = self._refused.get(org)
        if refused is not None and (await self._directory.pulse()).generation == refused[0]:
            raise _unreadable(org, refused[1])
        body = await self._directory.snapshot(org)
        if body is None:
            return None
        read = await self._read(org, body)
        if read.snapshot is not None:
            self._refused.pop(org, None)
            return read.snapshot
        # In this order: whatever takes the place of this body from here on changes the generation.
        generation = (await self._directory.pulse()).generation
        if generation is not None and await self._directory.snapshot(org) == body:
            self._refused[org] = generation, read.reason
        raise _unreadable(org, read.reason)

    async def _read(self, org: str, body: bytes) -> _Read:
        if len(body) <= LARGE_BYTES:
            return self._keep(org, _decoded(body, self._kept.get(org)))
        async with self._decoding:  # whoever asks for the same one meanwhile finds it decoded
            return self._keep(org, await asyncio.to_thread(_decoded, body, self._kept.get(org)))

    def _keep(self, org: str, read: _Read) -> _Read:
        before = self._kept.pop(org, None)
        if read.snapshot is None and (before is None or before.digest != read.digest):
            _log.error("snapshot_unreadable", org=org, reason=read.reason, digest=read.digest.hex()[:12])
        while len(self._kept) >= MAX_KEPT:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            self._refused.pop(oldest, None)
        self._kept[org] = read
        return read


def _decoded(body: bytes, known: _Read | None) -> _Read:
    digest = hashlib.sha256(body).digest()
    if known is not None and known.digest == digest:
        return known
    try:
        return _Read(digest, decode_snapshot(body))
    except ValueError as error:
        return _Read(digest, None, str(error))


def _unreadable(org: str, reason: str) -> UnreadableSnapshotError:
    return UnreadableSnapshotError(f"what control has published of org {org} can't be read: {reason}")
