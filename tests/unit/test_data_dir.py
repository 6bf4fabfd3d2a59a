"""The data directory: locked, closed to others, and refused with one sentence when it can't be used."""

import fcntl
import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from services.embedded.data_dir import DataDir, Instance, UpError, read_admin_key, read_instance

INSTANCE = Instance("http://127.0.0.1:1", "http://127.0.0.1:2", os.getpid(), "0.1.0", {"control": "http://127.0.0.1:3"})


def test_is_made_closed_to_others_and_opens_again(tmp_path: Path) -> None:
    for _ in range(2):
        data = DataDir.open(tmp_path / "deep" / "data")
        assert data.path.stat().st_mode & 0o777 == 0o700
        assert (data.path / ".gitignore").read_text() == "*\n"
        assert (data.path / "VERSION").read_text() == "1\n"
        data.close()


def test_an_empty_folder_that_was_open_is_closed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    DataDir.open(tmp_path / "data").close()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text("7\n")
    with pytest.raises(
        UpError, match=r"has format '7', and this Farthing reads format '1'. Use the Farthing that made it"
    ):
        DataDir.open(tmp_path)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    tmp_path.chmod(0o755)
    with pytest.raises(UpError, match="is not empty and not a Farthing data directory"):
        DataDir.open(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_path_that_can_not_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UpError, match=r"Can't use the data directory .*: not a directory. Pick another with --data-dir."
    ):
        DataDir.open(tmp_path / "file" / "data")


def _hold(path: Path, pipe: "multiprocessing.connection.Connection") -> None:
    data = DataDir.open(path)
    data.announce(INSTANCE)
    pipe.send("held")
    pipe.recv()


def test_a_second_instance_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path / "data", theirs))
    holder.start()
    try:
        assert ours.poll(20)
        with pytest.raises(UpError, match=rf"already runs on .* \(process {holder.pid}\)\. Stop it first"):
            DataDir.open(tmp_path / "data")
    finally:
        holder.kill()
        holder.join()
        holder.close()
    DataDir.open(tmp_path / "data").close()


def test_passwords_are_made_once_and_kept_private(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "data")
    passwords = data.engine_passwords()
    assert data.engine_passwords() == passwords
    assert len(set(passwords.values())) == 3
    assert all(len(password) == 48 for password in passwords.values())
    assert (data.path / "secrets" / "engines.json").stat().st_mode & 0o777 == 0o600
    data.close()


def test_engines_that_belong_together_stay_together(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "data")
    data.require_same_engines({"--kafka": True, "--postgres": False})
    data.require_same_engines({"--kafka": True, "--postgres": False})
    with pytest.raises(UpError, match=r"was made with --kafka, .* Give --kafka, or pick another with --data-dir"):
        data.require_same_engines({"--kafka": False, "--postgres": False})
    with pytest.raises(UpError, match=r"was made without --postgres, .* Leave out --postgres, or pick another"):
        data.require_same_engines({"--kafka": True, "--postgres": True})
    data.close()


def test_first_keys_are_there_until_they_were_shown(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "data")
    assert data.first_keys() is None
    assert read_admin_key(data.path) is None
    keys = {"admin_key": "fk_live_a", "agent_key": "fk_live_b"}
    data.first_keys_file.write_text(json.dumps(keys))
    assert data.first_keys() == keys
    assert data.first_keys() == keys  # A start that was killed before it had shown them leaves them to the next.
    data.forget_first_keys()
    assert data.first_keys() is None
    assert read_admin_key(data.path) == "fk_live_a"
    assert (data.path / "secrets" / "admin.key").stat().st_mode & 0o777 == 0o600
    data.close()


def test_an_instance_is_found_while_it_runs(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "data")
    assert read_instance(data.path) is None
    data.announce(INSTANCE)
    assert read_instance(data.path) == INSTANCE
    data.close()
    assert read_instance(data.path) is None


def test_a_process_id_alone_is_no_instance(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path / "data")
    data.announce(INSTANCE)
    os.close(data._lock)  # What a kill leaves: the file, and maybe soon another process with its number.
    assert read_instance(data.path) is None
    next_start = DataDir.open(tmp_path / "data")
    assert read_instance(data.path) is None, "it has yet to say where it answers"
    next_start.announce(INSTANCE)
    assert read_instance(data.path) == INSTANCE
    next_start.close()


def test_a_look_at_the_lock_keeps_no_start_away(tmp_path: Path) -> None:
    DataDir.open(tmp_path / "data").close()
    lock = os.open(tmp_path / "data" / "lock", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    looked = threading.Timer(0.03, os.close, (lock,))
    looked.start()
    DataDir.open(tmp_path / "data").close()
    looked.join()
