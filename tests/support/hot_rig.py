"""A hot state with its directory, on Valkey or in memory, on a clock that the test turns; and parts to fill it."""

from dataclasses import dataclass

from services.adapters.memory import MemoryHotState
from services.adapters.valkey_connection import ValkeyConnection
from services.core.budgets import Charge, Proposal
from services.core.hotstate import (
    FoldStep,
    HoldRequest,
    OrgImage,
    OrgState,
)
from services.core.ports import Directory, HotState, TopicPartition
from services.core.windows import CalendarSpan, Span
from tests.support.hot_state import read_state, turn_clock

ORG = "acme"
NOW_MS = 4_000_000_000_000  # in 2096: nothing expires by the real clock meanwhile
SPAN = CalendarSpan(NOW_MS - 1_000, NOW_MS + 1_000)
CHARGE = Charge("bud_1", "team:ml", SPAN.key())
PLACE = TopicPartition("spend.settlements.v1", 0)
EMPTY = OrgImage({}, {}, {}, {})


@dataclass
class Rig:
    """A hot state and directory over one store, on a clock that the test turns."""

    hot: HotState
    directory: Directory
    connection: ValkeyConnection | None
    now_ms: int = NOW_MS

    async def state(self, org: str = ORG) -> OrgState:
        """All that is kept of an org."""
        if self.connection is not None:
            return await read_state(self.connection, org)
        assert isinstance(self.hot, MemoryHotState)
        return self.hot.store.state(org)

    async def go_cold(self) -> None:
        """Loses the org's epoch, and with it the proof of all the rest."""
        if self.connection is not None:
            await self.connection.execute("DEL", f"{{{ORG}}}:epoch")
        else:
            (await self.state()).epoch = None

    async def turn_to(self, now_ms: int) -> None:
        self.now_ms = now_ms
        if self.connection is not None:
            await turn_clock(self.connection, now_ms)


def proposal(limit_nano: int, name: str = "bud_1", span: Span = SPAN) -> Proposal:
    return Proposal(name, "team:ml", span, limit_nano)


def request_of(amount_nano: int, *proposals: Proposal, name: str = "txn_1", org: str = ORG) -> HoldRequest:
    return HoldRequest(org, name, amount_nano, proposals, 5_000, '{"é": "\\n"}')


def settle(offset: int, amount_nano: int, name: str = "txn_x", charges: tuple[Charge, ...] = (CHARGE,)) -> FoldStep:
    return FoldStep("settle", offset, "gw_1", offset + 1, name, amount_nano, charges)
