"""Which code and which environment this installation is, for the lineage of what it makes."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_LOCK = _ROOT / "requirements" / "all.lock"


@cache
def code_version() -> str:
    """The git commit of the checkout this runs from, with "-dirty" if its tree was changed; else the package's version."""
    if (_ROOT / ".git").exists():
        commit = _git("rev-parse", "HEAD")
        if commit:
            return commit + ("-dirty" if _git("status", "--porcelain") else "")
    return metadata.version("headway")


@cache
def environment_lock_sha256() -> str:
    """SHA-256 of the environment's lock file; of the names and versions of what is installed, where there is no lock file."""
    if _LOCK.is_file():
        return hashlib.sha256(_LOCK.read_bytes()).hexdigest()
    installed = sorted({f"{found.metadata['Name']}=={found.version}" for found in metadata.distributions()})
    return hashlib.sha256("\n".join(installed).encode()).hexdigest()


def _git(*arguments: str) -> str:
    """What git says; empty when there is no git, no commit yet, or it refuses."""
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
