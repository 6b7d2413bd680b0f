"""No process outlives its parent or is left behind, whichever of them is killed. Every process here is real."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import Marked
from tests.waiting import until
from workers.child import Child, spawn

# Ignores SIGTERM and has children of every kind: in its session, in another one, and below one that has exited.
STUBBORN_TREE = """
trap '' TERM
sleep 1000 &
setsid sleep 1000 &
setsid sh -c 'sleep 1000 & setsid sleep 1000 & exit' &
echo ready
wait; wait; sleep 1000
"""
SLEEPERS = 4

PARENT = """
import asyncio, fcntl, os, sys
from workers.child import spawn

async def main():
    hold_fd = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
    fcntl.flock(hold_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    child = await spawn(["sh", "-c", sys.argv[1]], orphan_grace_seconds=0.2, hold_fd=hold_fd)
    os.write(1, b"pids %d %d\\n" % (child.pid, child.command_pid))  # In one piece, whoever else writes there.
    await child.wait()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@dataclass
class Family:
    """A parent process of its own, the guardian it started, and what runs below that."""

    parent: subprocess.Popen[bytes]
    guardian: int
    command: int
    lock: Path
    marked: Marked

    def inner_guardian(self) -> int:
        guardians = {pid for pid, line in self.marked.alive().items() if "guardian.py" in line}
        (inner,) = guardians - {self.guardian}
        return inner

    def sleepers(self) -> list[int]:
        return [pid for pid, line in self.marked.alive().items() if line == "sleep 1000"]

    def kill(self, victim: str) -> set[int]:
        """Kills the victim; returns who may live on."""
        pids = {
            "parent": self.parent.pid,
            "outer guardian": self.guardian,
            "inner guardian": self.inner_guardian(),
            "command": self.command,
            "guardian's group": -self.guardian,
            "command's group": -self.command,
        }
        os.kill(pids[victim], signal.SIGKILL)
        return set() if victim == "parent" else {self.parent.pid}

    async def only_left(self, pids: set[int]) -> None:
        await until(lambda: set(self.marked.alive()) == pids, self.marked.alive)

    def locked(self) -> bool:
        with self.lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False


@pytest.fixture
async def marked() -> AsyncGenerator[Marked]:
    """Whatever runs in its environment must be gone at the end."""
    marked = Marked()
    try:
        yield marked
        await until(lambda: not marked.alive(), marked.alive)
    finally:
        marked.kill()


def _start_parent(script: str, lock: Path, marked: Marked, stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PARENT, script, str(lock)], env=marked.env, stdout=stdout)


@contextlib.asynccontextmanager
async def family_of(script: str, marked: Marked, lock: Path, sleepers: int = SLEEPERS) -> AsyncGenerator[Family]:
    reader, writer = os.pipe()
    with (
        _start_parent(script, lock, marked, writer) as parent,
        os.fdopen(reader, "rb") as output,
    ):
        os.close(writer)
        try:
            # The parent and the command write to the same pipe, in no certain order.
            lines = [(await asyncio.to_thread(output.readline)).split() for _ in range(2)]
            words = {line[0]: line[1:] for line in lines}
            guardian, command = map(int, words[b"pids"])
            family = Family(parent, guardian, command, lock, marked)
            await until(lambda: len(family.sleepers()) == sleepers, marked.alive)
            yield family
        finally:
            parent.kill()


async def started(script: str, marked: Marked) -> Child:
    """A child running the shell script, which has said "ready"."""
    reader, writer = os.pipe()
    child = await spawn(["sh", "-c", script], env=marked.env, stdout=writer)
    os.close(writer)
    with os.fdopen(reader, "rb", 0) as output:
        assert await asyncio.to_thread(output.readline) == b"ready\n"
    return child


@pytest.mark.parametrize(
    "victim", ["parent", "outer guardian", "inner guardian", "command", "guardian's group", "command's group"]
)
async def test_kill_9_of_any_one_leaves_none_of_the_others(victim: str, marked: Marked, tmp_path: Path) -> None:
    async with family_of(STUBBORN_TREE, marked, tmp_path / "lock") as family:
        survivors = family.kill(victim)
        await family.only_left(survivors)


async def test_killing_what_is_below_the_command_is_the_commands_own_matter(marked: Marked) -> None:
    child = await started("sleep 1000 & setsid sleep 1000 & echo ready; wait; wait; exit 5", marked)
    await until(lambda: list(marked.alive().values()).count("sleep 1000") == 2, marked.alive)
    for pid, line in marked.alive().items():
        if line == "sleep 1000":
            os.kill(pid, signal.SIGKILL)
    assert await child.wait() == 5


async def test_a_stopped_inner_guardian_does_not_keep_the_tree_alive(marked: Marked, tmp_path: Path) -> None:
    async with family_of(STUBBORN_TREE, marked, tmp_path / "lock") as family:
        os.kill(family.inner_guardian(), signal.SIGSTOP)
        await family.only_left(family.kill("parent"))


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can change its uid")
@pytest.mark.parametrize("victim", ["parent", "inner guardian", "outer guardian"])
async def test_a_command_that_changed_its_uid_is_ended_too(victim: str, marked: Marked, tmp_path: Path) -> None:
    script = "echo ready; exec setpriv --reuid 65534 --regid 65534 --clear-groups sleep 1000"
    async with family_of(script, marked, tmp_path / "lock", sleepers=1) as family:
        await family.only_left(family.kill(victim))


async def test_the_held_lock_is_free_only_when_the_whole_tree_is_gone(marked: Marked, tmp_path: Path) -> None:
    async with family_of(STUBBORN_TREE, marked, tmp_path / "lock") as family:
        os.kill(family.inner_guardian(), signal.SIGSTOP)  # So that the end takes a while.
        family.kill("parent")
        family.parent.wait()
        assert family.locked()
        assert marked.alive()
        await until(lambda: not family.locked(), marked.alive)
        assert not marked.alive()


async def test_a_tree_that_keeps_forking_is_ended(marked: Marked) -> None:
    script = "echo ready; while :; do setsid sleep 1000 & setsid sh -c 'sleep 1000 & exit'; sleep 0.01; done"
    child = await started(script, marked)
    await until(lambda: len(marked.alive()) > 20, marked.alive)
    child.kill()
    assert await child.wait() == 128 + signal.SIGKILL
    assert not marked.alive()


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 75", 75), ("kill -9 $$", 137), ("kill -15 $$", 143)])
async def test_exit_codes(script: str, code: int, marked: Marked) -> None:
    child = await spawn(["sh", "-c", script], env=marked.env)
    assert await child.wait() == code
    assert await child.wait() == code
    assert child.exit_code == code
    child.signal(signal.SIGTERM)
    child.kill()
    assert await child.stop(1) == code


async def test_what_the_command_leaves_behind_is_gone_when_wait_returns(marked: Marked) -> None:
    child = await spawn(["sh", "-c", "setsid sleep 1000 & setsid setsid sleep 1000 & exit 3"], env=marked.env)
    assert await child.wait() == 3
    assert not marked.alive()


async def test_wait_returns_only_when_all_is_gone_even_if_the_guardian_is_killed(marked: Marked) -> None:
    child = await started(STUBBORN_TREE, marked)
    os.kill(child.pid, signal.SIGKILL)
    assert await child.wait() == 137
    assert not marked.alive()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
async def test_a_forwarded_signal_reaches_the_command_and_only_it(signum: signal.Signals, marked: Marked) -> None:
    name = signum.name.removeprefix("SIG")
    child = await started(f"trap 'exit 42' {name}; sleep 1000 & echo ready; wait", marked)
    child.signal(signum)
    assert await child.wait() == 42


async def test_other_signals_are_refused(marked: Marked) -> None:
    child = await spawn(["sleep", "1000"], env=marked.env)
    with pytest.raises(ValueError, match="cannot forward signal 1 "):
        child.signal(signal.SIGHUP)
    assert await child.stop(10) == 143


async def test_stop_lets_the_command_end_its_own_way(marked: Marked) -> None:
    child = await started("trap 'exit 75' TERM; sleep 1000 & setsid sleep 1000 & echo ready; wait", marked)
    assert await child.stop(10) == 75
    assert not marked.alive()


async def test_stop_kills_the_whole_tree_after_the_grace(marked: Marked) -> None:
    child = await started(STUBBORN_TREE, marked)
    assert await child.stop(0.1) == 137
    assert not marked.alive()


async def test_a_cancelled_wait_leaves_the_child_running(marked: Marked) -> None:
    child = await spawn(["sleep", "1000"], env=marked.env)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(child.wait(), 0.01)
    assert child.command_pid in marked.alive()
    assert await child.stop(10) == 143


@pytest.mark.parametrize("turns", [1, 2, 5, 20, 100])
async def test_a_cancelled_spawn_leaves_nothing(turns: int, marked: Marked) -> None:
    spawning = asyncio.create_task(spawn(["sh", "-c", STUBBORN_TREE], env=marked.env, stdout=subprocess.DEVNULL))
    for _ in range(turns):
        await asyncio.sleep(0)
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    assert not marked.alive()


@pytest.mark.parametrize(("command", "error"), [("/does/not/exist", FileNotFoundError), ("/", PermissionError)])
async def test_a_command_that_cannot_start_is_named(command: str, error: type[OSError], marked: Marked) -> None:
    with pytest.raises(error) as caught:
        await spawn([command], env=marked.env)
    assert caught.value.filename == command


async def test_a_missing_working_directory_is_named(marked: Marked, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        await spawn(["true"], env=marked.env, cwd=tmp_path / "absent")


async def test_the_command_gets_its_descriptors_and_no_other(marked: Marked) -> None:
    reader, writer = os.pipe()
    child = await spawn(["ls", "/proc/self/fd"], env=marked.env, stdout=writer, pass_fds=[reader], hold_fd=writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as output:
        seen = set(map(int, output.read().split()))
    assert await child.wait() == 0
    assert {0, 1, 2, reader} <= seen
    assert len(seen) == 5  # With the listing's own.


async def test_a_passed_pipe_ends_with_the_command(marked: Marked) -> None:
    reader, writer = os.pipe()
    script = f"import os; os.write({writer}, b'line')"
    child = await spawn([sys.executable, "-c", script], env=marked.env, pass_fds=[writer])
    os.close(writer)
    with os.fdopen(reader, "rb") as output:
        assert await asyncio.to_thread(output.read) == b"line"
    assert await child.wait() == 0


async def test_the_command_starts_with_default_signal_dispositions(marked: Marked) -> None:
    # This interpreter ignores SIGPIPE; had the command inherited that, `yes` would report an error instead of dying.
    child = await spawn(["sh", "-c", "(yes; echo $? >&2) | head -n 1"], env=marked.env, stdout=subprocess.DEVNULL)
    assert await child.wait() == 0
    ignored = await spawn(["sh", "-c", "kill -PIPE $$"], env=marked.env)
    assert await ignored.wait() == 128 + signal.SIGPIPE


async def test_many_children_at_once(marked: Marked) -> None:
    children = await asyncio.gather(*(spawn(["true"], env=marked.env) for _ in range(50)))
    assert [await child.wait() for child in children] == [0] * len(children)
