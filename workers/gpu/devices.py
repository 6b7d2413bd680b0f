"""What accelerators this machine has, found without importing torch, and which of them a phase holds."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

KIND_CPU = "cpu"
"""The kind of a machine without GPU; never counted as GPU-hours."""
_KIND_CHARACTERS_MAX = 32


@dataclass(frozen=True, slots=True)
class Accelerators:
    """What a worker offers."""

    kind: str
    count: int


def detect(configured: int | None) -> Accelerators:
    """The machine's GPUs as `nvidia-smi` lists them; without any, the machine itself as one accelerator of kind "cpu".

    Args:
        configured: offer so many instead of all.
    """
    names = _gpu_names()
    if not names:
        return Accelerators(KIND_CPU, 1 if configured is None else configured)
    return Accelerators(kind_of(names[0]), len(names) if configured is None else min(configured, len(names)))


def kind_of(name: str) -> str:
    """A GPU's product name as a kind: lower case, [a-z0-9.-], at most 32 characters, without the maker's name."""
    kind = re.sub(r"[^a-z0-9.]+", "-", name.lower().removeprefix("nvidia").strip())
    return kind.strip("-.")[:_KIND_CHARACTERS_MAX].strip("-.") or "gpu"


def _gpu_names() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


class Devices:
    """The accelerators of one worker. The scheduler grants no more than there are; this says which ones."""

    def __init__(self, accelerators: Accelerators) -> None:
        self._kind = accelerators.kind
        self._free = list(range(accelerators.count))
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def held(self, count: int) -> AsyncGenerator[dict[str, str]]:
        """Environment that shows a runner `count` accelerators, which nobody else gets inside the block.

        A predecessor that is still being stopped is waited for.
        """
        async with self._freed:
            await self._freed.wait_for(lambda: len(self._free) >= count)
            taken, self._free = self._free[:count], self._free[count:]
        try:
            shown = "" if self._kind == KIND_CPU else ",".join(map(str, taken))
            yield {"CUDA_VISIBLE_DEVICES": shown}
        finally:
            async with self._freed:
                self._free = sorted([*self._free, *taken])
                self._freed.notify_all()
