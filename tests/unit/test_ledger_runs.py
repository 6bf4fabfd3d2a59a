"""Messages into runs: what one insert may take."""

from dataclasses import replace

import pytest

from services.core.codec import to_message
from services.core.codec_fields import parse_time
from services.core.dead_letters import dead_letter
from services.core.events import Event, Settlement, Stamped
from services.core.ports import Incoming
from services.ledger import runs as runs_module
from services.ledger.rows import event_row, trace_id
from services.ledger.runs import Run, read_messages, split_runs
from tests.support.examples import DENIAL, EXPIRY, RESERVATION, SETTLEMENT

DAY_1, DAY_2 = "2026-03-01T23:59:59.999Z", "2026-03-02T00:00:00.000Z"


def incoming(offset: int, value: bytes) -> Incoming:
    return Incoming(Settlement.TOPIC, 3, offset, b"default", value, (), 0)


def message(offset: int, sequence: int, time: str = DAY_1, producer: str = "gw_1") -> Incoming:
    stamped = Stamped(replace(SETTLEMENT, time_ms=parse_time(time)), producer, sequence)
    return incoming(offset, to_message(stamped).value)


def split(*messages: Incoming, known: int = 0) -> list[Run]:
    return list(split_runs(read_messages(messages), {"gw_1": known, "gw_2": 0}))


def shape(runs: list[Run]) -> list[tuple[str, list[int]]]:
    return [(run.table, [each.read.message.offset for each in run.placed]) for run in runs]


def test_one_day_is_one_run_whatever_the_producers() -> None:
    runs = split(message(5, 1), message(6, 1, producer="gw_2"), message(7, 2))
    assert shape(runs) == [("events", [5, 6, 7])]
    assert runs[0].token == "spend.settlements.v1/3/5-7"


def test_runs_break_where_the_day_changes_and_keep_the_order() -> None:
    runs = split(message(0, 1, DAY_1), message(1, 2, DAY_2), message(2, 3, DAY_1), message(3, 4, DAY_1))
    assert shape(runs) == [("events", [0]), ("events", [1]), ("events", [2, 3])]


def test_what_gives_no_event_breaks_a_run_in_its_place() -> None:
    runs = split(message(0, 1), message(1, 1), incoming(2, b"{"), message(3, 2))
    assert shape(runs) == [("events", [0]), ("skipped", [1, 2]), ("events", [3])]
    assert [each.row["reason"] for each in runs[1].placed] == ["duplicate", "quarantined"]
    assert [each.kind for each in runs[1].placed] == ["duplicate", "quarantined"]
    assert [letter.value for letter in runs[1].letters()] == [b"{"]
    assert runs[0].letters() == []


def test_sequences_at_or_below_the_last_are_duplicates() -> None:
    runs = split(message(0, 4), message(1, 5), message(2, 7), message(3, 6), known=4)
    assert shape(runs) == [("skipped", [0]), ("events", [1, 2]), ("skipped", [3])]


def test_sequences_move_on() -> None:
    sequences = {"gw_1": 0}
    list(split_runs(read_messages([message(0, 1), message(1, 2)]), sequences))
    assert sequences == {"gw_1": 2}


def test_a_run_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = message(0, 1)
    monkeypatch.setattr(runs_module, "RUN_BYTES", 2 * len(one.value))
    runs = split(*(message(number, number + 1) for number in range(5)))
    assert shape(runs) == [("events", [0, 1]), ("events", [2, 3]), ("events", [4])]


def test_a_dead_letter_says_where_it_came_from_and_keeps_what_it_was() -> None:
    bad = Incoming("spend.x.v1", 2, 9, b"key", b"value", (("a", b"b"),), 0)
    letter = dead_letter(bad, "ledger", "größe")
    assert (letter.topic, letter.key, letter.value) == ("spend.x.v1.dlq", b"key", b"value")
    assert letter.headers == (
        ("a", b"b"),
        ("farthing-consumer", b"ledger"),
        ("farthing-reason", "größe".encode()),
        ("farthing-topic", b"spend.x.v1"),
        ("farthing-partition", b"2"),
        ("farthing-offset", b"9"),
    )


@pytest.mark.parametrize("event", [RESERVATION, SETTLEMENT, EXPIRY, DENIAL], ids=lambda event: event.TYPE)
def test_rows_keep_the_bytes_and_the_facts(event: Event) -> None:
    read = incoming(0, to_message(Stamped(event, "gw_1", 7)).value)
    row = event_row(read, Stamped(event, "gw_1", 7))
    assert str(row["raw"]).encode() == read.value
    assert (row["type"], row["sequence"], row["org"], row["team"], row["user"]) == (event.TYPE, 7, "default", "ml", "")


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", "a" * 32),
        (b"00-short-" + b"b" * 16 + b"-01", ""),
        (b"\xff\xfe", ""),
        (b"", ""),
    ],
)
def test_trace_ids(traceparent: bytes, expected: str) -> None:
    assert trace_id((("traceparent", traceparent),)) == expected
    assert trace_id(()) == ""
