"""How far the ledger has come, asked of ClickHouse itself: nothing is kept beside the rows that could contradict them.

Every offset of the log leaves one row, in `events` or in `skipped`, and rows are inserted in offset order. So the
highest offset of both tables, plus one, is the fence: everything below it is accounted for.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from services.core.ports import LedgerStore, Query, TopicPartition, UnavailableError

NEXT_OFFSETS: Final = Query(
    "SELECT topic, partition, max(last) + 1 AS next_offset FROM ("
    " SELECT topic, partition, max(offset) AS last FROM events GROUP BY topic, partition"
    " UNION ALL SELECT topic, partition, max(offset) AS last FROM skipped GROUP BY topic, partition"
    ") GROUP BY topic, partition"
)
_INSERTS_UNDER_WAY: Final = Query(
    "SELECT count() AS inserts FROM system.processes"
    " WHERE query_kind = 'Insert' AND current_database = currentDatabase()"
)
_LAST_SEQUENCES: Final = (
    "SELECT producer, max(sequence) AS sequence FROM events"
    " WHERE topic = {topic:String} AND partition = {partition:UInt32} AND producer IN {producers:Array(String)}"
    " GROUP BY producer"
)


def read_next_offsets(rows: Iterable[Mapping[str, Any]]) -> dict[TopicPartition, int]:
    """The answer to `NEXT_OFFSETS`: the next offset of each partition that has rows."""
    return {TopicPartition(row["topic"], row["partition"]): row["next_offset"] for row in rows}


async def next_offsets(store: LedgerStore) -> dict[TopicPartition, int]:
    """The next offset of each partition that has rows. Raises `UnavailableError`."""
    (rows,) = await store.query(NEXT_OFFSETS)
    return read_next_offsets(rows)


async def settled_next_offsets(store: LedgerStore) -> dict[TopicPartition, int]:
    """`next_offsets`, once no insert is under way: a server may still be at one whose sender was killed or gave up.

    Raises `UnavailableError` while one is.
    """
    under_way, rows = await store.query(_INSERTS_UNDER_WAY, NEXT_OFFSETS)
    if under_way[0]["inserts"]:
        raise UnavailableError("an earlier insert is still under way")
    return read_next_offsets(rows)


async def last_sequences(store: LedgerStore, place: TopicPartition, producers: Iterable[str]) -> dict[str, int]:
    """The last sequence that the ledger has of each producer in a partition; 0 for one it does not know.

    Raises `UnavailableError`.
    """
    wanted = list(producers)
    parameters = {"topic": place.topic, "partition": place.partition, "producers": wanted}
    (rows,) = await store.query(Query(_LAST_SEQUENCES, parameters))
    return dict.fromkeys(wanted, 0) | {row["producer"]: row["sequence"] for row in rows}
