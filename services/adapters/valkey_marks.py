"""Two small things of an org in Valkey beside its figures: which budgets are backfilled, which thresholds are told of.

``{org}:bf`` is a hash of budget ids, each with the version it is backfilled for, and ``@token``, another one after
every change. ``{org}:t:<budget>:<window or ring>`` is a set of percents. The open holds are read here as well, for
whoever backfills.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.adapters.valkey_connection import Argument, HotConnection
from services.adapters.valkey_scripts import Call, Script, charges_json, org_key, parse_charges
from services.core.hotstate import Backfill, Marks, OpenHold
from services.core.ports import TopicPartition

MARKS: Final = "bf"
MARKED: Final = "@token"
_OPEN_HOLD: Final = ("phase", "charges", "context", "admitted", "resized", "implied")
_PIPELINED: Final = 1000
_ASKED_FOR: Final = 1_000


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

    async def filled(self, org: str, budget_ids: Sequence[str]) -> Mapping[str, int] | None:
        """See the port. Many budgets are asked for in several commands, so that other callers get their turn."""
        found: dict[str, int] = {}
        for first in range(0, max(len(budget_ids), 1), _ASKED_FOR):
            some = budget_ids[first : first + _ASKED_FOR]
            # In this order: a mark that is read is one of a state that is there, or of a later one.
            asked: list[list[Argument]] = [["GET", org_key(org, "epoch")]]
            asked += [["HMGET", org_key(org, MARKS), *some]] if some else []
            epoch, *answers = await self._connection.execute_all(asked)
            if epoch is None:
                return None
            versions = answers[0] if answers else []
            found |= {name: int(version) for name, version in zip(some, versions, strict=True) if version is not None}
        return found

    async def backfill(self, org: str, fill: Backfill) -> bool:
        """See the port."""
        known = "-" if fill.known is None else f"={fill.known}"
        call = Call(org, [org_key(org, "epoch"), org_key(org, MARKS)], [fill.token, org_key(org, ""), known])
        for (topic, partition), fence in fill.fences.items():
            call.add("fence", call.number(_fence(TopicPartition(topic, partition))), fence)
        for (budget_id, window), spent_nano in fill.spent_nano.items():
            call.add("spent", call.figures_number(budget_id, window), window, spent_nano)
        for budget_id, version in fill.filled.items():
            call.add("filled", budget_id, version)
        for name, held in fill.holds.items():
            call.add("held", call.number(f"h:{name}"), held.changed_at_ms, len(held.charges))
            for each in held.charges:
                call.add(call.figures_number(each.budget_id, each.window), each.window, charges_json([each])[1:-1])
        for budget_id in fill.gone:
            call.add("gone", budget_id)
        return bool(await self._scripts["backfill"].run(self._connection, call.keys, call.arguments))

    async def open_holds(self, org: str, names: Sequence[str] | None = None) -> Mapping[str, OpenHold]:
        """See the port."""
        if names is None:
            names = [name.decode() for name in await self._connection.execute("ZRANGE", org_key(org, "hx"), 0, -1)]
        found: dict[str, OpenHold] = {}
        for first in range(0, len(names), _PIPELINED):
            some = names[first : first + _PIPELINED]
            answers = await self._connection.execute_all(
                [("HMGET", org_key(org, f"h:{name}"), *_OPEN_HOLD) for name in some]
            )
            for name, (phase, charges, context, admitted, resized, implied) in zip(some, answers, strict=True):
                if phase == b"held":
                    found[name] = OpenHold(
                        *(parse_charges(charges), context.decode(), int(admitted), int(resized or admitted)),
                        parse_charges(implied or b"[]"),
                    )
        return found

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
