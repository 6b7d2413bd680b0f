"""Postgres refuses to run as root: then it runs as another user, wherever its files lie."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from pathlib import Path

from deploy.one_machine.errors import OneMachineError, Reason

_USERS = ("postgres", "nobody")
# Bits of the capability sets in /proc/self/status.
_CAPABILITIES = {"dac_read_search": 2, "dac_override": 1}


def user() -> pwd.struct_passwd | None:
    """Whom to run as; None if this process is not root and may do it itself.

    Raises:
        OneMachineError: root, and no other user.
    """
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in _USERS:
        if name in known and known[name].pw_uid != 0:
            return known[name]
    raise OneMachineError(
        Reason.NOT_INSTALLED,
        f"Postgres does not run as root, and there is no user {' or '.join(_USERS)} to run it as; "
        "add one of them, or run as another user",
    )


def prefix(paths: list[Path]) -> list[str]:
    """The start of a command line that runs the rest of it unprivileged, able to reach the paths.

    Root's folders are often closed to everybody else. The user is then given the one right to pass through them, and
    nothing else that root may.

    Raises:
        OneMachineError: it cannot be done.
    """
    other = user()
    if other is None:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise OneMachineError(
            Reason.NOT_INSTALLED,
            "Postgres does not run as root, and the program setpriv, which changes users, is missing; "
            "install util-linux, or run as another user",
        )
    command = [setpriv, f"--reuid={other.pw_uid}", f"--regid={other.pw_gid}", "--clear-groups", "--no-new-privs"]
    command.append("--pdeathsig=KILL")
    closed = [barrier for path in paths if (barrier := _first_closed(path, other)) is not None]
    if not closed:
        return [*command, "--bounding-set=-all", "--inh-caps=-all", "--"]
    right = _right_to_pass(closed[0], other.pw_name)
    # Without no_setuid_fixup the access() checks of initdb and postgres would not count the right.
    return [
        *command,
        "--securebits=+no_setuid_fixup",
        f"--bounding-set=-all,+{right}",
        f"--inh-caps=+{right}",
        f"--ambient-caps=+{right}",
        "--",
    ]


def _first_closed(path: Path, other: pwd.struct_passwd) -> Path | None:
    """The first directory on the way to the path that the user cannot pass."""
    for directory in reversed(path.absolute().parents):
        mode = directory.stat()
        if mode.st_uid == other.pw_uid:
            passes = mode.st_mode & stat.S_IXUSR
        elif mode.st_gid == other.pw_gid:
            passes = mode.st_mode & stat.S_IXGRP
        else:
            passes = mode.st_mode & stat.S_IXOTH
        if not passes:
            return directory
    return None


def _right_to_pass(closed: Path, name: str) -> str:
    status = Path("/proc/self/status").read_text()
    permitted = int(next(line for line in status.splitlines() if line.startswith("CapPrm")).split()[1], 16)
    for right, bit in _CAPABILITIES.items():
        if permitted >> bit & 1:
            return right
    raise OneMachineError(
        Reason.NOT_INSTALLED,
        f"Postgres does not run as root, and the user {name}, whom it would run as, cannot pass {closed}; "
        f"`chmod o+x {closed}`, or move Headway and its data directory, or run as another user",
    )
