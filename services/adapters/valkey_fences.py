"""How far the log is folded, in Valkey.

``fold:<topic>:<partition>`` is the fence of all orgs together, ``{org}:f:<topic>:<partition>`` the own one of each. Of
a cluster each server has one for all orgs: it is lost, or set back, with the orgs that the server has.
"""

from collections.abc import Mapping, Sequence

from services.adapters.valkey_connection import Argument, HotConnection
from services.adapters.valkey_scripts import Script, org_key
from services.core.ports import TopicPartition


class ValkeyFences:
    """The part of `ports.HotState` that is about fences."""

    _connection: HotConnection
    _scripts: Mapping[str, Script]

    async def fold_fences(self, places: Sequence[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        """See the port."""
        tags = await self._connection.tags()
        keys = [_fold_key(place, tag) for place in places for tag in tags]
        answers = await self._connection.execute_all([("GET", key) for key in keys])
        fences: dict[TopicPartition, int | None] = {}
        for number, place in enumerate(places):
            own = answers[number * len(tags) : (number + 1) * len(tags)]
            fences[place] = None if None in own else min(map(int, own))
        return fences

    async def move_fold_fence(
        self, place: TopicPartition, next_offset: int, above: int = 0, orgs: Sequence[str] = ()
    ) -> bool:
        """See the port. Of a cluster each server has a fence of its own, lost or set back with the orgs that it has.

        There the orgs' fences are read just before it moves: a script can't see keys of several slots.
        """
        own: list[Argument] = []
        if not self._connection.is_cluster:
            own = [key for org in orgs for key in _own_keys(org, place)]
        elif any(each is not None and each < next_offset for each in (await self.org_fences(orgs, place)).values()):
            return False
        moved = [
            await self._scripts["forward"].run(self._connection, [_fold_key(place, tag), *own], [next_offset, above])
            for tag in await self._connection.tags()
        ]
        return all(moved)

    async def org_fences(self, orgs: Sequence[str], place: TopicPartition) -> Mapping[str, int | None]:
        """See the port."""
        answers = await self._connection.execute_all([("MGET", *_own_keys(org, place)) for org in orgs])
        return {
            org: None if epoch is None else int(fence or 0) for org, (epoch, fence) in zip(orgs, answers, strict=True)
        }


def _own_keys(org: str, place: TopicPartition) -> tuple[str, str]:
    return org_key(org, "epoch"), org_key(org, f"f:{place.topic}:{place.partition}")


def _fold_key(place: TopicPartition, tag: str) -> str:
    return f"fold:{place.topic}:{place.partition}{tag and ':' + tag}"
