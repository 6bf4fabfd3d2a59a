"""The first moments of every child of ``farthing up``: tie it to the supervisor's life, drop root if asked, exec.

Run as a script in a fresh interpreter (``python -I -S launch.py PARENT SIGNAL USER COMMAND…``), because code between
fork and exec would run inside a supervisor that has threads. Standard library only, and few of its modules: it is on
the way of every start.
"""

import ctypes
import os
import pwd
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_KEEPCAPS: Final = 8
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_CAP_DAC_OVERRIDE: Final = 1
_CAPABILITY_VERSION_3: Final = 0x20080522


def main(arguments: list[str]) -> None:
    """Becomes `arguments[3:]`, to be sent signal `arguments[1]` when the parent `arguments[0]` dies.

    As root, becomes user `arguments[2]` first unless that is empty. Ends with exit code 71 when it cannot.
    """
    parent, orphan_signal, user, *command = arguments
    if user:
        _become(user)
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, int(orphan_signal))
    if os.getppid() != int(parent):
        sys.exit(71)  # The supervisor died before the line above took effect.
    # What the supervisor ignores or blocks is inherited through exec; a child starts with a clean sheet.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(command[0], command)  # noqa: S606 - the command is the supervisor's own


def _become(user: str) -> None:
    """Switches to `user`, keeping on Linux the one capability that lets it reach its files below root's closed folders.

    PostgreSQL refuses to run as root, while its data and its program may lie under folders that only root can enter.
    The other way, opening those folders to everyone, would weaken what is not ours.
    """
    account = pwd.getpwnam(user)
    linux = sys.platform == "linux"
    if linux:
        _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    if linux:
        _keep_capability(_CAP_DAC_OVERRIDE)


def _keep_capability(capability: int) -> None:
    bits = 1 << capability
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(bits, bits, bits, 0, 0, 0)  # effective, permitted, inheritable; then the upper halves
    if _libc().capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def _prctl(option: int, *values: int) -> None:
    padded = (option, *values, 0, 0, 0, 0)[:5]
    if _libc().prctl(*(ctypes.c_ulong(value) for value in padded)) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} failed")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    main(sys.argv[1:])
