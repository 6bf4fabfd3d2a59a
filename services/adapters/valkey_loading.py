"""Bringing a cold org back into Valkey, in pages: the server does nothing else while a script runs.

Until the last page has set the epoch the org is cold, and nobody looks at what the others have brought. Of several who
load at once one does, and pages of two never mix: ``{org}:loading`` says who it is and which step was the last, and a
step goes on from the one before it or is refused. So it is when a server has lost its last writes in between.
"""

import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Final

from services.adapters.valkey_connection import Argument, HotConnection
from services.adapters.valkey_marks import MARKED, MARKS
from services.adapters.valkey_scripts import Call, Script, org_key
from services.core.fold import lasting_producers
from services.core.hotstate import OrgImage

# A page ends with the entry that brings it to so many arguments: 3 ms of the server's time (ended holds) to 10 (rings).
PAGE_ARGUMENTS: Final = 4_000
# Who loads and is not heard of for so long has failed: another may begin.
LOADING_MS: Final = 10_000
_RENEWED_S: Final = 1.0
_SCANNED: Final = 1_000


class ValkeyLoading:
    """The part of `ports.HotState` that loads a cold org."""

    _connection: HotConnection
    _scripts: Mapping[str, Script]

    async def load(self, org: str, image: OrgImage, epoch: str) -> bool:
        """See the port. What an org that went cold has left behind goes first.

        False, the org still cold, when another loads it, or failed to a moment ago.
        """
        steps = _Steps(self._connection, epoch)
        head: list[Argument] = [org_key(org, name) for name in ("epoch", "loading")]
        if not await steps.take(self._scripts["clear"], head) or not await self._clear(org, steps, head):
            return False
        page = Call(org, [*map(str, head), org_key(org, "hx")], [])
        for is_last in _fill(page, image, epoch):
            if not await steps.take(self._scripts["load"], page.keys, int(is_last), *page.arguments):
                return False
        return True

    async def _clear(self, org: str, steps: "_Steps", head: list[Argument]) -> bool:
        """Clears what a state or a load before has left; false when the org is not this one's to load any more.

        The server is looked through until nothing is found: one look may miss what is written behind it (the release of
        a hold that was left), and what is left on a server that the org's slot has moved to.
        """
        while True:
            server, is_clean = self._connection.server_of(org_key(org, "cfg").encode()), True
            async for left in self._left_by(org):
                is_clean = is_clean and not left
                if (left or steps.age_s > _RENEWED_S) and not await steps.take(self._scripts["clear"], [*head, *left]):
                    return False
            if not await steps.take(self._scripts["clear"], head):  # this one is told where the slot is by now
                return False
            if is_clean and server == self._connection.server_of(org_key(org, "cfg").encode()):
                return True

    async def _left_by(self, org: str) -> AsyncIterator[list[bytes]]:
        """Every key of an org but its configuration, which is control's, and the one that says who loads it."""
        kept = [org_key(org, name).encode() for name in ("cfg", "loading")]
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", org_key(org, "")) + "*"
        cursor, server = b"0", ""
        while True:
            cursor, keys = await self._connection.execute("SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED)
            yield [key for key in keys if key not in kept]
            if cursor == b"0":
                return
            # A cursor means nothing to another server of a cluster, to which the slot may have moved meanwhile.
            now_at = self._connection.server_of(kept[0])
            cursor, server = (b"0" if server not in ("", now_at) else cursor), now_at


class _Steps:
    """The steps of one try to load an org, one after the other."""

    def __init__(self, connection: HotConnection, token: str) -> None:
        self._connection = connection
        self._token = token
        self._number = 0
        self._began_s = 0.0

    @property
    def age_s(self) -> float:
        """How long ago the last one began."""
        return time.monotonic() - self._began_s

    async def take(self, script: Script, keys: Sequence[Argument], *arguments: Argument) -> bool:
        """Whether the next one was taken; if not, the org is not (or no longer) this one's to load."""
        self._number += 1
        self._began_s = time.monotonic()
        head = (self._token, self._number, LOADING_MS)
        return bool(await script.run(self._connection, keys, [*head, *arguments]))


def _fill(page: Call, image: OrgImage, epoch: str) -> Iterator[bool]:
    """Fills the page again and again, each time to be sent, and tells whether it is the last."""
    for _ in _entries(page, image, epoch):
        if len(page.arguments) >= PAGE_ARGUMENTS:
            yield False
            page.begin_anew()
    yield True


def _entries(page: Call, image: OrgImage, epoch: str) -> Iterator[None]:
    """Adds one entry after the other to the page. The order matters to those who do not ask whether the org is cold.

    Marks without their token are refused, and fences are compared by those who read holds before: they come last.
    """
    for (budget_id, window), spent_nano in image.spent_nano.items():
        page.add("spent", page.figures_number(budget_id, window), window, spent_nano)
        yield
    for name, hold in image.holds.items():
        page.add_hold(name, hold)
        yield
    for (topic, partition, producer), sequence in lasting_producers(image.producers).items():
        page.add("producer", page.number(f"p:{topic}:{partition}"), producer, sequence)
        yield
    for budget_id, version in image.filled.items():
        page.add("filled", page.number(MARKS), budget_id, version)
        yield
    if image.filled:
        page.add("filled", page.number(MARKS), MARKED, epoch)
        yield
    for (topic, partition), next_offset in image.fences.items():
        page.add("fence", page.number(f"f:{topic}:{partition}"), next_offset)
        yield
