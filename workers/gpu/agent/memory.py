"""Whether the kernel killed for want of memory in this process's control group, and what its limit is."""

from __future__ import annotations

from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")


def out_of_memory_kills() -> int:
    """How many processes of this control group the kernel has killed for want of memory; 0 where it does not say."""
    for line in _read("memory.events").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return 0


def memory_limit_bytes() -> int | None:
    """This control group's memory limit; None without one."""
    content = _read("memory.max").strip()
    return int(content) if content.isdecimal() else None


def _read(name: str) -> str:
    try:
        own = Path("/proc/self/cgroup").read_text().strip().splitlines()[-1].split("::", 1)[-1]
        return (_MOUNT / own.lstrip("/") / name).read_text()
    except (OSError, IndexError):
        return ""
