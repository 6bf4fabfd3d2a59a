"""The outbox: what it has taken it has, in order, under numbers that it never gives twice."""

import multiprocessing
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from services.adapters import outbox as module
from services.adapters.outbox import SKIPPED_SEQUENCES, OutboxFileError, SqliteOutbox
from services.core.codec import cloud_event_headers, decode, encode
from services.core.events import Event, Stamped
from services.core.ports import OutboxEvent, OutboxFullError, OutboxRow, UnavailableError
from tests.support.examples import DENIAL, EXPIRY, RESERVATION, SETTLEMENT

TRACE = (("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "outbox.sqlite"


@pytest.fixture
def outbox(path: Path) -> Iterator[SqliteOutbox]:
    with closing(SqliteOutbox(path, 100)) as outbox:
        yield outbox


def wrapped(*events: Event) -> list[OutboxEvent]:
    return [OutboxEvent(event) for event in events]


def sequences(outbox: SqliteOutbox) -> list[int]:
    return [row.sequence for row in outbox.oldest(1000)]


def test_events_come_back_as_messages_in_order(outbox: SqliteOutbox) -> None:
    outbox.append([OutboxEvent(RESERVATION, TRACE)])
    outbox.append(wrapped(SETTLEMENT, DENIAL))
    events: tuple[Event, ...] = (RESERVATION, SETTLEMENT, DENIAL)
    stamped = [Stamped(event, outbox.producer, sequence) for sequence, event in enumerate(events, 1)]
    rows = outbox.oldest(10)
    assert [row.sequence for row in rows] == [1, 2, 3]
    assert [row.message.value for row in rows] == [encode(each) for each in stamped]
    assert [row.message.topic for row in rows] == [
        "spend.reservations.v1",
        "spend.settlements.v1",
        "spend.decisions.v1",
    ]
    assert {row.message.key for row in rows} == {b"default"}
    assert rows[0].message.headers == cloud_event_headers(stamped[0]) + TRACE
    assert rows[1].message.headers == cloud_event_headers(stamped[1])


def test_an_event_that_may_be_recorded_again_has_a_producer_of_its_own_and_leaves_the_others_in_order(
    outbox: SqliteOutbox,
) -> None:
    ending = OutboxEvent(SETTLEMENT, producer="expiry:end:rsv_1")
    outbox.append([OutboxEvent(RESERVATION), ending, OutboxEvent(DENIAL)])
    outbox.append([ending])
    stamped = [decode(row.message.value) for row in outbox.oldest(10)]
    own, place = outbox.producer, ("expiry:end:rsv_1", 1)
    assert [(each.producer, each.sequence) for each in stamped] == [(own, 1), place, (own, 3), place]
    assert sequences(outbox) == [1, 2, 3, 4]


def test_the_oldest_come_first_and_no_more_than_asked(outbox: SqliteOutbox) -> None:
    for _ in range(5):
        outbox.append(wrapped(RESERVATION))
    assert [row.sequence for row in outbox.oldest(2)] == [1, 2]
    outbox.forget(2)
    assert [row.sequence for row in outbox.oldest(2)] == [3, 4]
    assert outbox.size() == 3


def test_forgetting_what_is_forgotten_changes_nothing(outbox: SqliteOutbox) -> None:
    outbox.append(wrapped(RESERVATION, SETTLEMENT))
    for _ in range(2):
        outbox.forget(1)
        assert (outbox.size(), sequences(outbox)) == (1, [2])


def test_an_event_that_can_not_be_encoded_takes_the_whole_append_with_it(outbox: SqliteOutbox) -> None:
    with pytest.raises(ValueError):
        outbox.append(wrapped(RESERVATION, replace(DENIAL, reason="x" * 300_000)))
    assert (outbox.size(), sequences(outbox)) == (0, [])
    outbox.append(wrapped(RESERVATION))
    assert sequences(outbox) == [1]


def test_appending_nothing_is_nothing(outbox: SqliteOutbox) -> None:
    outbox.append([])
    assert outbox.size() == 0


def test_everything_is_there_after_a_restart(path: Path) -> None:
    with closing(SqliteOutbox(path, 100)) as outbox:
        outbox.append(wrapped(RESERVATION, SETTLEMENT))
        before = (outbox.producer, list[OutboxRow](outbox.oldest(10)))
    with closing(SqliteOutbox(path, 100)) as outbox:
        assert (outbox.producer, list(outbox.oldest(10))) == before
        assert outbox.size() == 2


def test_a_producer_is_made_once_with_its_file(path: Path, tmp_path: Path) -> None:
    with closing(SqliteOutbox(path, 100)) as outbox, closing(SqliteOutbox(tmp_path / "other", 100)) as other:
        assert outbox.producer != other.producer
        assert outbox.producer.startswith("gw_")
        assert len(outbox.producer) == 29


def test_sequences_never_go_back_even_when_all_is_forgotten(path: Path) -> None:
    last = 0
    for _ in range(3):
        with closing(SqliteOutbox(path, 100)) as outbox:
            outbox.append(wrapped(RESERVATION, SETTLEMENT))
            first, second = sequences(outbox)
            assert last < first == second - 1
            last = second
            outbox.forget(second)


def test_sequences_are_not_given_twice_when_the_disk_has_lost_the_last_commits(path: Path, tmp_path: Path) -> None:
    """A machine that loses its power takes commits with it, of which the log may have the events."""
    with closing(SqliteOutbox(path, 100)) as outbox:
        with closing(sqlite3.connect(path)) as live, closing(sqlite3.connect(tmp_path / "older")) as copy:
            live.backup(copy)
        outbox.append(wrapped(RESERVATION, SETTLEMENT))
        producer, published = outbox.producer, sequences(outbox)
    with closing(SqliteOutbox(tmp_path / "older", 100)) as outbox:
        outbox.append(wrapped(RESERVATION))
        assert outbox.producer == producer
        assert sequences(outbox) == [SKIPPED_SEQUENCES + 1]
        assert published == [1, 2]


def test_the_limit_refuses_new_calls_but_keeps_what_ends_calls(path: Path) -> None:
    with closing(SqliteOutbox(path, 2)) as outbox:
        outbox.append(wrapped(RESERVATION))
        assert not outbox.is_full()
        with pytest.raises(OutboxFullError, match="1 events wait for the log; at most 2 may"):
            outbox.append(wrapped(RESERVATION, RESERVATION))
        outbox.append(wrapped(RESERVATION))
        assert outbox.is_full()
        for opening in (RESERVATION, DENIAL):
            with pytest.raises(OutboxFullError):
                outbox.append(wrapped(opening))
        for ending in (SETTLEMENT, EXPIRY):
            outbox.append(wrapped(ending))
        assert outbox.size() == 4
        outbox.forget(3)
        assert not outbox.is_full()
        outbox.append(wrapped(RESERVATION))


def test_denials_leave_half_of_the_room_to_calls(path: Path) -> None:
    with closing(SqliteOutbox(path, 4)) as outbox:
        outbox.append(wrapped(DENIAL, DENIAL))
        with pytest.raises(OutboxFullError, match="2 events wait for the log; at most 2 may"):
            outbox.append(wrapped(DENIAL))
        outbox.append(wrapped(RESERVATION, RESERVATION))
        assert outbox.is_full()


def test_a_full_outbox_is_full_after_a_restart(path: Path) -> None:
    with closing(SqliteOutbox(path, 1)) as outbox:
        outbox.append(wrapped(RESERVATION))
    with closing(SqliteOutbox(path, 1)) as outbox:
        assert outbox.is_full()


def test_a_disk_that_refuses_is_unavailable_and_changes_nothing(outbox: SqliteOutbox, path: Path) -> None:
    outbox.append(wrapped(RESERVATION))
    pages = outbox._database.execute("PRAGMA page_count").fetchone()[0]
    outbox._database.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(UnavailableError, match="the outbox's disk refuses: database or disk is full"):
        outbox.append(wrapped(*[SETTLEMENT] * 20))
    assert (outbox.size(), sequences(outbox)) == (1, [1])
    outbox._database.execute("PRAGMA max_page_count=1000000")
    outbox.append(wrapped(SETTLEMENT))
    assert sequences(outbox) == [1, 2]


def test_a_file_that_is_damaged(path: Path) -> None:
    with closing(SqliteOutbox(path, 100)) as outbox:
        outbox.append(wrapped(*[SETTLEMENT] * 50))
        outbox.checkpoint()
    whole = path.read_bytes()
    for damaged in (
        b"not a database at all, but long enough to be looked at" * 30,
        whole[:4096] + bytes(len(whole) - 4096),
    ):
        path.write_bytes(damaged)
        with pytest.raises(
            OutboxFileError, match=r"outbox\.sqlite is damaged: .*; move it away to start with a new one"
        ):
            SqliteOutbox(path, 100)
    path.write_bytes(whole)
    with closing(SqliteOutbox(path, 100)) as outbox:
        assert outbox.size() == 50


def test_a_file_of_another_format(path: Path) -> None:
    SqliteOutbox(path, 100).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version=2")
    with pytest.raises(OutboxFileError, match="has format 2, and this release knows 1; let the release that wrote it"):
        SqliteOutbox(path, 100)


def test_a_file_of_another_program(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as database:
        database.execute("CREATE TABLE something (x)")
    with pytest.raises(OutboxFileError, match="is not an outbox of Farthing; set FARTHING_OUTBOX_PATH to another file"):
        SqliteOutbox(tmp_path / "other.sqlite", 100)


def test_a_path_that_can_not_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "outbox.sqlite", tmp_path):
        with pytest.raises(OutboxFileError, match="can't be opened"):
            SqliteOutbox(path, 100)


def test_only_its_owner_may_read_it(outbox: SqliteOutbox, path: Path) -> None:
    outbox.append(wrapped(RESERVATION))
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_second_process_is_refused_until_the_first_lets_go(outbox: SqliteOutbox, path: Path) -> None:
    with pytest.raises(OutboxFileError, match=r"outbox\.sqlite is in use by another process; set FARTHING_OUTBOX_PATH"):
        SqliteOutbox(path, 100)
    outbox.close()
    SqliteOutbox(path, 100).close()


def append_and_die(path: Path, count: int) -> None:
    outbox = SqliteOutbox(path, 1_000_000)
    for _ in range(count):
        outbox.append(wrapped(RESERVATION, SETTLEMENT))
    outbox.forget(outbox.oldest(1)[0].sequence)
    os._exit(9)


def test_what_was_appended_survives_the_death_of_the_process(path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=append_and_die, args=(path, 300))
    process.start()
    process.join()
    assert process.exitcode == 9
    with closing(SqliteOutbox(path, 100)) as outbox:
        assert sequences(outbox) == list(range(2, 601))
        assert [decode(row.message.value).sequence for row in outbox.oldest(1000)] == list(range(2, 601))


def test_a_start_gives_back_the_room_of_an_outage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FREE_PAGES", 16)
    with closing(SqliteOutbox(path, 1_000)) as outbox:
        producer = outbox.producer
        outbox.append(wrapped(*[SETTLEMENT] * 400))
        outbox.forget(390)
        outbox.checkpoint()
        waiting = outbox.oldest(100)
        large = path.stat().st_size
    with closing(SqliteOutbox(path, 1_000)) as outbox:
        assert path.stat().st_size < large / 4
        assert (outbox.producer, outbox.size(), outbox.oldest(100)) == (producer, 10, waiting)
        outbox.forget(400)
        outbox.append(wrapped(SETTLEMENT))
        assert sequences(outbox) == [400 + SKIPPED_SEQUENCES + 1]


def test_a_disk_without_room_to_give_any_back_is_no_reason_not_to_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FREE_PAGES", 16)
    with closing(SqliteOutbox(path, 1_000)) as outbox:
        outbox.append(wrapped(*[SETTLEMENT] * 400))
        outbox.forget(390)
    reader = sqlite3.connect(path)
    # Whoever reads the file keeps it from being made smaller, as a full disk does, by the same error.
    reader.execute("BEGIN IMMEDIATE")
    with closing(reader), closing(sqlite3.connect(path, timeout=0.01, isolation_level=None)) as database:
        module._give_back(database)
    with closing(SqliteOutbox(path, 1_000)) as outbox:
        assert outbox.size() == 10


def test_a_checkpoint_empties_the_write_ahead_log(outbox: SqliteOutbox, path: Path) -> None:
    for _ in range(200):
        outbox.append(wrapped(SETTLEMENT))
    log = path.with_name(path.name + "-wal")
    grown = log.stat().st_size
    assert grown > 100_000
    outbox.checkpoint()
    for _ in range(20):
        outbox.append(wrapped(*[SETTLEMENT] * 20))
        outbox.forget(sequences(outbox)[0] + 19)
        outbox.checkpoint()
    assert log.stat().st_size <= grown


def test_the_write_ahead_log_is_bounded_while_a_writer_never_rests(
    outbox: SqliteOutbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint beside the writer can't begin the log anew when there is always something after what it moved."""
    monkeypatch.setattr(module, "MAX_WAL_PAGES", 400)
    stop = threading.Event()

    def checkpoint() -> None:
        while not stop.wait(0.005):
            outbox.checkpoint()

    thread = threading.Thread(target=checkpoint)
    thread.start()
    try:
        for sequence in range(1, 3001):
            outbox.append(wrapped(SETTLEMENT))
            outbox.forget(sequence - 20)
    finally:
        stop.set()
        thread.join()
    # Of 48 MB that were written. How far it is below that depends on how often the thread gets its turn.
    assert path.with_name(path.name + "-wal").stat().st_size < 9000 * 4096
    assert sequences(outbox) == list(range(2981, 3001))
