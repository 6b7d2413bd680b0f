"""The life of one component under the supervisor: wait, start, probe, watch, restart, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import IO

from deploy.one_machine.component import Component, Probe, State
from deploy.one_machine.errors import OneMachineError, Reason
from deploy.one_machine.probes import NotHealthyError
from workers.child import Child, spawn

_DEATHS_AT_START_MAX = 3
_PROBE_PAUSE_SECONDS = 0.05
_BACKOFF_FIRST_SECONDS = 0.2
_BACKOFF_MAX_SECONDS = 10.0
_CALM_SECONDS = 30.0
"""Who lived this long is restarted without backoff."""
_ORPHAN_GRACE_SECONDS = 5.0
_TAIL_BYTES = 2_000
_TAIL_LINES = 8


class _NotReadyError(Exception):
    """A start that came to nothing; the message says how it ended."""


class Supervised:
    """A component and the process that is it at the moment."""

    def __init__(
        self, component: Component, log: Path, hold_fd: int | None, on_change: Callable[[Supervised, str], None]
    ) -> None:
        self.component = component
        self.log = log
        self.state = State.WAITING
        self.restarts = 0
        self.ready = asyncio.Event()
        """Set when it has done its work once."""
        self._hold_fd = hold_fd
        self._on_change = on_change
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """The command's, while it runs."""
        return self._child.command_pid if self._child is not None else None

    def kill(self) -> None:
        """Ends it at once, without asking."""
        if self._child is not None:
            self._child.kill()

    async def run(self, needs: Iterable[asyncio.Event]) -> None:
        """Keeps the component running until cancelled, which stops it; a task is run to its end.

        Raises:
            OneMachineError: it could not be brought up even once.
        """
        try:
            for need in needs:
                await need.wait()
            self._to(State.STARTING)
            if self.component.prepare is not None:
                await self.component.prepare()
            await self._first_start()
            if self.component.probe is not None:
                await self._live(self.component.probe)
        except OneMachineError:
            self._to(State.FAILED)
            raise
        finally:
            if self.state not in {State.FAILED, State.DONE}:
                self._to(State.STOPPED)

    async def _first_start(self) -> None:
        backoff = _Backoff()
        ended, offset = "", 0
        for attempt in range(_DEATHS_AT_START_MAX):
            if attempt:
                self.restarts += 1
                self._to(State.RESTARTING, ended)
                await backoff.wait()
            offset = self._log_size()
            try:
                async with self._started() as child:
                    if self.component.probe is None:
                        await self._finish(child)
                    else:
                        await self._until_ready(child, self.component.probe)
                        await self._healthy(child)
                    return
            except _NotReadyError as error:
                ended = str(error)
            except OSError as error:
                raise self._failed(f"cannot be started: {error.strerror}: {error.filename}", offset) from error
        raise self._failed(f"{ended}, {_DEATHS_AT_START_MAX} times in a row", offset)

    async def _live(self, probe: Probe) -> None:
        """Restarts for as long as it takes: what has run once is expected to run again."""
        backoff = _Backoff()
        while True:
            self.restarts += 1
            started = time.monotonic()
            await backoff.wait()
            try:
                async with self._started() as child:
                    await self._until_ready(child, probe)
                    await self._healthy(child)
            except (_NotReadyError, OSError) as error:
                self._to(State.RESTARTING, str(error))
            if time.monotonic() - started > _CALM_SECONDS:
                backoff = _Backoff()

    async def _healthy(self, child: Child) -> None:
        """Returns when it has died."""
        self._to(State.HEALTHY)
        self.ready.set()
        code = await child.wait()
        self._child = None
        self._to(State.RESTARTING, _describe(code))

    async def _finish(self, child: Child) -> None:
        code = await child.wait()
        if code != 0:
            raise _NotReadyError(_describe(code))
        self._child = None
        self._to(State.DONE)
        self.ready.set()

    async def _until_ready(self, child: Child, probe: Probe) -> None:
        deadline = time.monotonic() + self.component.start_seconds_max
        while True:
            try:
                await probe()
            except NotHealthyError as error:
                said = str(error)
            else:
                return
            with contextlib.suppress(TimeoutError):
                raise _NotReadyError(_describe(await asyncio.wait_for(child.wait(), _PROBE_PAUSE_SECONDS)))
            if time.monotonic() > deadline:
                raise _NotReadyError(f"was not healthy after {self.component.start_seconds_max:.0f} s ({said})")

    @contextlib.asynccontextmanager
    async def _started(self) -> AsyncGenerator[Child]:
        """A fresh process; stopped at the end of the block, unless it has ended."""
        component = self.component
        with appending(self.log) as log:
            self._child = child = await spawn(
                component.command,
                env=component.env,
                cwd=component.cwd,
                stdout=log,
                stderr=log,
                hold_fd=self._hold_fd,
                stop_signal=component.stop_signal,
                orphan_grace_seconds=_ORPHAN_GRACE_SECONDS,
            )
        self._on_change(self, "")
        try:
            yield child
        finally:
            if child.exit_code is None and self.state in {State.HEALTHY, State.STARTING, State.RESTARTING}:
                await self._stop(child)
            self._child = None

    async def _stop(self, child: Child) -> None:
        self._to(State.STOPPING)
        await child.stop(self.component.stop_grace_seconds, self.component.stop_signal)

    def _to(self, state: State, detail: str = "") -> None:
        self.state = state
        self._on_change(self, detail)

    def _log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _failed(self, how: str, log_offset: int) -> OneMachineError:
        said = tail(self.log, log_offset)
        lines = "".join(f"\n  | {line}" for line in said) if said else " nothing"
        return OneMachineError(Reason.COMPONENT_FAILED, f"{self.component.name} {how}; its log, {self.log}, says:{lines}")


class _Backoff:
    """Waits longer each time."""

    def __init__(self) -> None:
        self._seconds = _BACKOFF_FIRST_SECONDS

    async def wait(self) -> None:
        await asyncio.sleep(self._seconds)
        self._seconds = min(self._seconds * 2, _BACKOFF_MAX_SECONDS)


def appending(log: Path) -> IO[bytes]:
    """The log, opened for a process to write to."""
    return open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", 0)  # noqa: PTH123 - only open() takes a descriptor.


def _describe(code: int) -> str:
    return f"was ended by signal {code - 128}" if code > 128 else f"exited with code {code}"


def tail(log: Path, offset: int = 0) -> list[str]:
    """The last lines of a log, of what was written from `offset` on."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(offset, size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()][-_TAIL_LINES:]
