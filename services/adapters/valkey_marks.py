"""Two small things of an org in Valkey beside its figures: which budgets are backfilled, which thresholds are told of.

``{org}:bf`` is a hash of budget ids, each with the version it is backfilled for, and ``@token``, another one after
every change. ``{org}:t:<budget>:<window or ring>`` is a set of percents.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.adapters.valkey_connection import Argument, HotConnection
from services.adapters.valkey_scripts import Call, Script, org_key
from services.core.hotstate import Backfill, Marks
from services.core.ports import TopicPartition

MARKS: Final = "bf"
MARKED: Final = "@token"


class ValkeyMarks:
    """The part of `ports.HotState` that is about marks."""

    _connection: HotConnection
    _scripts: Mapping[str, Script]

    async def marks(self, org: str, places: Sequence[TopicPartition]) -> Marks:
        """See the port."""
        keys = [org_key(org, MARKS), *(org_key(org, _fence(each)) for each in places)]
        fields, fences = await self._run_marks(keys)
        filled = _texts(fields)
        token = filled.pop(MARKED, "")
        return Marks(
            token,
            {budget_id: int(version) for budget_id, version in filled.items()},
            {(each.topic, each.partition): int(fence) for each, fence in zip(places, fences, strict=True)},
        )

    async def filled(self, org: str) -> Mapping[str, int]:
        """See the port."""
        return (await self.marks(org, ())).filled

    async def backfill(self, org: str, fill: Backfill) -> bool:
        """See the port."""
        call = Call(org, [org_key(org, "epoch"), org_key(org, MARKS)], [fill.token])
        for (topic, partition), fence in fill.fences.items():
            call.add("fence", call.number(_fence(TopicPartition(topic, partition))), fence)
        for (budget_id, window), spent_nano in fill.spent_nano.items():
            call.add("spent", call.figures_number(budget_id, window), window, spent_nano)
        for budget_id, version in fill.filled.items():
            call.add("filled", budget_id, version)
        for budget_id in fill.gone:
            call.add("gone", budget_id)
        return bool(await self._scripts["backfill"].run(self._connection, call.keys, call.arguments))

    async def crossed(self, org: str, slots: Sequence[tuple[str, str]]) -> Sequence[frozenset[int]]:
        """See the port."""
        answers = await self._connection.execute_all([("SMEMBERS", _slot_key(org, slot)) for slot in slots])
        return [frozenset(int(percent) for percent in answer) for answer in answers]

    async def set_crossed(
        self, org: str, slot: tuple[str, str], percents: Sequence[int], forget_at_ms: int | None
    ) -> None:
        """See the port."""
        key = _slot_key(org, slot)
        # In one script: cut short in between, the set would stay for ever, or be gone and its percents told again.
        until = "" if forget_at_ms is None else forget_at_ms
        await self._scripts["crossed"].run(self._connection, [key], [until, *percents])

    async def _run_marks(self, keys: Sequence[Argument]) -> tuple[list[bytes], list[Any]]:
        # In one script, so that marks and fences are of one instant.
        fields, *fences = await self._scripts["marks"].run(self._connection, keys, [])
        return fields, fences


def _fence(place: TopicPartition) -> str:
    return f"f:{place.topic}:{place.partition}"


def _slot_key(org: str, slot: tuple[str, str]) -> str:
    budget_id, window = slot
    return org_key(org, f"t:{budget_id}:{window}")


def _texts(flat: Sequence[bytes]) -> dict[str, str]:
    return {name.decode(): text.decode() for name, text in zip(flat[::2], flat[1::2], strict=True)}
