"""The master key file, and what is derived from it."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.adapters.secrets import MasterKeyError, SealError, Secrets, load_master_key, load_or_create_master_key

MASTER = bytes(range(32))


@pytest.fixture
def secrets() -> Secrets:
    return Secrets(MASTER)


def test_the_file_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "master.key"
    key = load_or_create_master_key(path)
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_or_create_master_key(path) == load_master_key(path) == key
    assert [each.name for each in path.parent.iterdir()] == ["master.key"]


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    with ThreadPoolExecutor(16) as threads:
        keys = set(threads.map(lambda _: load_or_create_master_key(path), range(64)))
    assert keys == {load_master_key(path)}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_open_to_others_is_refused_and_the_text_says_what_to_do(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    load_or_create_master_key(path)
    path.chmod(mode)
    with pytest.raises(MasterKeyError, match=r"chmod 600"):
        load_or_create_master_key(path)


@pytest.mark.parametrize(
    "content", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 32 + "\n" + "0" * 32, "0" * 64 + "\n\n"]
)
def test_a_file_that_is_no_key_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "master.key"
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(MasterKeyError, match="64 lower-case hex digits"):
        load_or_create_master_key(path)
    assert path.read_text() == content


def test_loading_never_makes_a_file(tmp_path: Path) -> None:
    with pytest.raises(MasterKeyError, match="control service makes it"):
        load_master_key(tmp_path / "master.key")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MasterKeyError, match="can't be made"):
        load_or_create_master_key(tmp_path / "file" / "master.key")


def test_what_is_derived_never_changes() -> None:
    # Known answers of RFC 5869 with these inputs; other values would lock every installation out of its own data.
    secrets = Secrets(MASTER)
    assert secrets.pepper.hex() == "2e7ef8f99e8d5109cd93ba1f3428c9c8eaae7129a06a3cfdedd5983784a2a0ce"
    assert secrets.internal_token == "28d74dfe36860cc41a2543b85d07f892b011dc07d2ee23311c397cf23c1db64f"
    assert secrets.fingerprint == "c0c5a3988f058bd9"
    assert secrets.open("acme", "openai", "v1.AAAAAAAAAAAAAAAAKXPiimcym8UzLCgepSg_0ggaB9DdMyA=") == "sk-test"


def test_every_purpose_and_every_master_key_gives_other_secrets(secrets: Secrets) -> None:
    other = Secrets(bytes(32))
    values = {each for one in (secrets, other) for each in (one.pepper.hex(), one.internal_token, one.fingerprint)}
    assert len(values) == 6


def test_a_master_key_of_another_length_is_refused() -> None:
    with pytest.raises(MasterKeyError, match="32 bytes"):
        Secrets(b"short")


def test_what_is_sealed_opens_again_and_never_looks_the_same(secrets: Secrets) -> None:
    sealed = {secrets.seal("acme", "openai", "sk-secret-ü") for _ in range(100)}
    assert len(sealed) == 100
    assert {secrets.open("acme", "openai", each) for each in sealed} == {"sk-secret-ü"}
    assert not any("secret" in each for each in sealed)


@pytest.mark.parametrize(("org", "vendor"), [("other", "openai"), ("acme", "mistral"), ("acme\0open", "ai"), ("", "")])
def test_another_tenant_or_vendor_can_not_open_it(secrets: Secrets, org: str, vendor: str) -> None:
    sealed = secrets.seal("acme", "openai", "sk-secret")
    with pytest.raises(SealError, match="set the connection again"):
        secrets.open(org, vendor, sealed)


def test_another_master_key_can_not_open_it(secrets: Secrets) -> None:
    with pytest.raises(SealError):
        Secrets(bytes(32)).open("acme", "openai", secrets.seal("acme", "openai", "sk-secret"))


def test_every_changed_character_is_noticed(secrets: Secrets) -> None:
    sealed = secrets.seal("acme", "openai", "sk-secret-1")
    for place in range(len(sealed)):
        changed = sealed[:place] + ("A" if sealed[place] != "A" else "B") + sealed[place + 1 :]
        with pytest.raises(SealError):
            secrets.open("acme", "openai", changed)


@pytest.mark.parametrize("sealed", ["", "v1.", "v2.AAAA", "v1.AAAA", "v1.not base64!", "v1.ü", "sk-secret"])
def test_other_texts_are_refused(secrets: Secrets, sealed: str) -> None:
    with pytest.raises(SealError):
        secrets.open("acme", "openai", sealed)
