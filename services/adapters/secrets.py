"""The master key and all it gives: the key pepper, the internal token, and one sealing key a tenant (VA-1).

Nothing derived is stored. Losing the master key file means new API keys and new vendor connections; nothing else.
"""

import base64
import binascii
import contextlib
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_SEALED_PREFIX: Final = "v1."
_KEY_TEXT: Final = re.compile(r"[0-9a-f]{64}\n?")


class MasterKeyError(RuntimeError):
    """The master key file can't be used; the text says why and how to fix it."""


class SealError(ValueError):
    """A sealed text was made for another tenant or vendor, under another master key, or has been changed."""


def load_or_create_master_key(path: Path) -> bytes:
    """The 32 bytes in `path`, which is made (mode 0600) when it is missing. Raises `MasterKeyError`."""
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(path)
    except OSError as error:
        raise MasterKeyError(f"master key file {path} can't be made: {error.strerror}") from error
    return load_master_key(path)


def load_master_key(path: Path) -> bytes:
    """The 32 bytes in `path`. Raises `MasterKeyError` when it is missing, open to others, or not a key."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise MasterKeyError(
                f"master key file {path} is open to other users (mode {mode:04o}); run: chmod 600 {path}"
            )
        text = path.read_text("ascii", errors="replace")
    except FileNotFoundError as error:
        raise MasterKeyError(
            f"there is no master key file {path}; the control service makes it at its first start"
        ) from error
    except OSError as error:
        raise MasterKeyError(f"master key file {path} can't be read: {error.strerror}") from error
    if _KEY_TEXT.fullmatch(text) is None:
        raise MasterKeyError(f"master key file {path} does not hold 64 lower-case hex digits; restore it from a backup")
    return bytes.fromhex(text.strip())


def _create(path: Path) -> None:
    """Makes the file with all its content in one step, so that no other process ever reads half a key."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first: its key is the key
            path.hardlink_to(draft)
    finally:
        draft.unlink()


class Secrets:
    """What a master key gives. Keys of different purposes and tenants are independent of each other (HKDF-SHA256)."""

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) != KEY_BYTES:
            raise MasterKeyError(f"a master key has {KEY_BYTES} bytes, not {len(master_key)}")
        self._master_key = master_key
        self.pepper: Final = self._derive("farthing/key-pepper")
        self.internal_token: Final = self._derive("farthing/internal-api").hex()
        # Says which master key this is without telling anything of it: a database remembers whose secrets it holds.
        self.fingerprint: Final = self._derive("farthing/fingerprint").hex()[:16]

    def seal(self, org: str, vendor: str, plaintext: str) -> str:
        """`plaintext` encrypted for one org and vendor (AES-256-GCM), as ASCII text."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        ciphertext = self._cipher(org).encrypt(nonce, plaintext.encode(), _bound_to(org, vendor))
        return _SEALED_PREFIX + base64.urlsafe_b64encode(nonce + ciphertext).decode()

    def open(self, org: str, vendor: str, sealed: str) -> str:
        """The plaintext of `seal` with the same org and vendor; raises `SealError` for anything else."""
        if not sealed.startswith(_SEALED_PREFIX):
            raise SealError("not a sealed text of a known version")
        try:
            content = base64.b64decode(sealed.removeprefix(_SEALED_PREFIX), altchars=b"-_", validate=True)
            plaintext = self._cipher(org).decrypt(
                content[:_NONCE_BYTES], content[_NONCE_BYTES:], _bound_to(org, vendor)
            )
        except (InvalidTag, ValueError, binascii.Error) as error:
            raise SealError(f"the stored key of vendor {vendor!r} can't be opened; set the connection again") from error
        return plaintext.decode()

    def _cipher(self, org: str) -> AESGCM:
        return AESGCM(self._derive(f"farthing/tenant/{org}"))

    def _derive(self, purpose: str) -> bytes:
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose.encode()).derive(self._master_key)


def _bound_to(org: str, vendor: str) -> bytes:
    # Neither name can contain a NUL, so no two pairs share these bytes.
    return f"{org}\0{vendor}".encode()
