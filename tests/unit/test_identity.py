"""Identity: what a key pins, and what headers may fill in."""

import hashlib
import hmac

import pytest

from services.core.identity import (
    DIMENSIONS,
    MAX_TAGS,
    Identity,
    IdentityError,
    IdentityMismatchError,
    KeyRecord,
    check_name,
    hash_key,
    is_key_text,
    parse_tags,
    resolve_identity,
)

OPEN = KeyRecord("key_1", "acme", "agent", {})
PINNED = KeyRecord("key_2", "acme", "agent", {"team": "ml", "agent": "crawler"})


def test_headers_fill_in_what_a_key_leaves_open() -> None:
    headers = {f"x-spend-{name}": f"the-{name}" for name in DIMENSIONS} | {"x-spend-tags": "nightly, eu ,nightly,"}
    assert resolve_identity(OPEN, headers) == Identity(
        org="acme",
        key_id="key_1",
        team="the-team",
        agent="the-agent",
        user="the-user",
        project="the-project",
        session="the-session",
        environment="the-environment",
        tags=("nightly", "eu"),
    )


def test_a_pin_needs_no_header_and_may_be_repeated_by_one() -> None:
    expected = Identity(org="acme", key_id="key_2", team="ml", agent="crawler")
    assert resolve_identity(PINNED, {}) == expected
    assert resolve_identity(PINNED, {"x-spend-team": "ml"}) == expected


def test_a_header_never_overrides_a_pin() -> None:
    with pytest.raises(IdentityMismatchError, match="pinned to team 'ml'") as caught:
        resolve_identity(PINNED, {"x-spend-team": "web"})
    assert caught.value.field == "x-spend-team"
    assert caught.value.code == "identity_mismatch"


def test_the_org_is_the_keys_alone() -> None:
    assert resolve_identity(OPEN, {"x-spend-org": "other"}).org == "acme"


def test_another_prefix_is_another_set_of_headers() -> None:
    headers = {"x-reins-team": "web", "x-spend-team": "ml"}
    assert resolve_identity(OPEN, headers, "x-reins-").team == "web"


@pytest.mark.parametrize("text", ["a", "A9", "ml", "user@example.com", "eu/west-1", "v1.2_3:x+y", "x" * 128])
def test_names_that_are_fine(text: str) -> None:
    assert check_name("team", text) == text


@pytest.mark.parametrize("text", ["", " ml", "ml ", "-ml", "m l", "ml\n", "m\x00l", "é", "x" * 129, "m{l}", "m*"])
def test_names_that_are_not(text: str) -> None:
    with pytest.raises(IdentityError) as caught:
        resolve_identity(OPEN, {"x-spend-agent": text})
    assert caught.value.field == "x-spend-agent"
    assert not isinstance(caught.value, IdentityMismatchError)


def test_tags_are_few_and_well_formed() -> None:
    assert parse_tags("x-spend-tags", "") == ()
    assert len(parse_tags("x-spend-tags", ",".join(f"t{n}" for n in range(MAX_TAGS)))) == MAX_TAGS
    for text in (",".join(f"t{n}" for n in range(MAX_TAGS + 1)), "good,b ad"):
        with pytest.raises(IdentityError):
            parse_tags("x-spend-tags", text)


def test_a_key_is_known_by_its_shape() -> None:
    assert is_key_text("fk_live_" + "aB3" * 13 + "x")
    for text in (
        "",
        "fk_live_",
        "sk-" + "a" * 45,
        "fk_live_" + "a" * 39,
        "fk_live_" + "a" * 41,
        "fk_live_" + "a" * 40 + "\n",
    ):
        assert not is_key_text(text)


def test_a_key_is_stored_as_its_keyed_hash() -> None:
    digest = hash_key("fk_live_x", b"pepper")
    assert digest == hmac.new(b"pepper", b"fk_live_x", hashlib.sha256).hexdigest()
    assert digest != hash_key("fk_live_x", b"other pepper")
