"""The supervisor on stand-in commands: order, restarts, failures, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.one_machine.component import Component, Probe, Progress, State
from deploy.one_machine.errors import OneMachineError, Reason
from deploy.one_machine.probes import NotHealthyError
from deploy.one_machine.supervisor import Supervisor
from tests.processes import Marked
from tests.waiting import until

SERVES = 'trap \'rm "$0"; exit 0\' TERM; sleep 1000 & : >"$0"; wait'
"""A server: healthy while its file is there."""


@pytest.fixture
async def marked() -> AsyncGenerator[Marked]:
    marked = Marked()
    try:
        yield marked
        await until(lambda: not marked.alive(), marked.alive)
    finally:
        marked.kill()


class World:
    """Components over a temporary directory, and what their supervisor told."""

    def __init__(self, directory: Path, marked: Marked) -> None:
        self.directory = directory
        self.marked = marked
        self.told: list[tuple[str, State]] = []
        self.details: list[str] = []

    def component(self, name: str, script: str = SERVES, needs: Sequence[str] = (), **more: Any) -> Component:
        file = self.directory / name
        component = Component(
            name=name,
            command=["sh", "-c", script, str(file)],
            env=self.marked.env,
            cwd=self.directory,
            needs=frozenset(needs),
            probe=exists(file),
        )
        return replace(component, **more)

    def supervisor(self, *components: Component) -> Supervisor:
        return Supervisor(components, self.directory, None, self._observe)

    @contextlib.asynccontextmanager
    async def running(self, *components: Component) -> AsyncGenerator[Supervisor]:
        supervisor = self.supervisor(*components)
        await supervisor.start()
        try:
            yield supervisor
        finally:
            await supervisor.stop()

    def _observe(self, progress: Progress) -> None:
        if (progress.component, progress.state) not in self.told[-1:]:
            self.told.append((progress.component, progress.state))
        self.details.append(progress.detail)

    def index(self, name: str, state: State) -> int:
        return self.told.index((name, state))


def exists(file: Path) -> Probe:
    async def probe() -> None:
        if not os.access(file, os.F_OK):
            raise NotHealthyError("no file yet")

    return probe


@pytest.fixture
def world(tmp_path: Path, marked: Marked) -> World:
    return World(tmp_path, marked)


async def test_starts_after_what_it_needs_and_stops_before_it(world: World) -> None:
    a = world.component("a")
    b = world.component("b", needs=["a", "task"])
    task = world.component("task", "test -e a", needs=["a"], probe=None)
    async with world.running(b, task, a) as supervisor:
        assert [one.state for one in supervisor.supervised.values()] == [State.HEALTHY, State.DONE, State.HEALTHY]
        assert world.index("a", State.HEALTHY) < world.index("task", State.STARTING)
        assert world.index("task", State.DONE) < world.index("b", State.STARTING)
    assert world.index("b", State.STOPPED) < world.index("a", State.STOPPING)
    assert not world.marked.alive()


async def test_what_is_used_is_not_waited_for_but_stops_last(world: World) -> None:
    go = world.directory / "go"
    late = world.component("late", f"while ! test -e {go}; do sleep 0.01; done; {SERVES}")
    supervisor = world.supervisor(late, world.component("user", uses=frozenset({"late"})))
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: ("user", State.HEALTHY) in world.told, lambda: world.told)
    assert supervisor.supervised["late"].state is State.STARTING
    await asyncio.to_thread(go.touch)
    await starting
    await supervisor.stop()
    assert world.index("user", State.STOPPED) < world.index("late", State.STOPPING)


async def test_what_needs_nothing_starts_at_once(world: World) -> None:
    # Each of the two becomes healthy only when the other one has been started.
    started = (
        'trap \'rm "$0"; exit 0\' TERM; : >"$0.up"; while ! test -e {}.up; do sleep 0.01; done; : >"$0"; sleep 1000 & wait'
    )
    x = world.component("x", started.format(world.directory / "y"))
    y = world.component("y", started.format(world.directory / "x"))
    async with world.running(x, y):
        pass


async def test_a_component_that_dies_at_start_is_named_with_what_it_said(world: World) -> None:
    good = world.component("good")
    bad = world.component("bad", "echo cannot open the thing >&2; exit 3")
    with pytest.raises(OneMachineError) as caught:
        await world.supervisor(good, bad).start()
    assert caught.value.reason is Reason.COMPONENT_FAILED
    message = caught.value.message
    assert message.startswith("bad exited with code 3, 3 times in a row")
    assert str(world.directory / "bad.log") in message
    assert message.endswith("| cannot open the thing")
    assert not world.marked.alive()


async def test_a_component_that_never_gets_healthy_is_named(world: World) -> None:
    slow = world.component("slow", "sleep 1000", start_seconds_max=0.1)
    with pytest.raises(OneMachineError, match=r"slow was not healthy after 0 s \(no file yet\), 3 times in a row"):
        await world.supervisor(slow).start()
    assert not world.marked.alive()


async def test_a_task_that_fails_is_named(world: World) -> None:
    task = world.component("task", "echo no such table; exit 1", probe=None)
    with pytest.raises(OneMachineError, match=r"task exited with code 1(.|\n)*no such table"):
        await world.supervisor(task, world.component("never", needs=["task"])).start()
    assert ("never", State.STARTING) not in world.told


async def test_a_command_that_is_not_there_is_named(world: World) -> None:
    absent = Component("absent", ["/no/such/program"], {}, world.directory, probe=exists(world.directory / "x"))
    with pytest.raises(OneMachineError, match="absent cannot be started: No such file or directory: /no/such/program"):
        await world.supervisor(absent).start()


async def test_a_preparation_that_fails_is_named(world: World) -> None:
    async def prepare() -> None:
        raise OneMachineError(Reason.DAMAGED_STATE, "the cluster is damaged")

    with pytest.raises(OneMachineError, match="the cluster is damaged"):
        await world.supervisor(world.component("a", prepare=prepare), world.component("b")).start()
    assert ("a", State.FAILED) in world.told
    assert not world.marked.alive()


async def test_who_dies_is_restarted_and_nothing_else(world: World) -> None:
    async with world.running(world.component("a"), world.component("b", needs=["a"])) as supervisor:
        a, b = supervisor.supervised["a"], supervisor.supervised["b"]
        before, untouched = a.pid, b.pid
        assert before is not None
        (world.directory / "a").unlink()
        os.kill(before, signal.SIGKILL)
        await until(lambda: a.state is State.HEALTHY and a.pid not in {None, before}, lambda: world.told)
        assert a.restarts == 1
        assert "was ended by signal 9" in world.details
        assert b.pid == untouched
        assert b.restarts == 0


async def test_what_has_run_once_is_restarted_until_it_runs_again(world: World) -> None:
    broken = world.directory / "broken"
    async with world.running(world.component("a", f"test -e {broken} && exit 9; {SERVES}")) as supervisor:
        a = supervisor.supervised["a"]
        assert a.pid is not None
        broken.touch()
        (world.directory / "a").unlink()
        os.kill(a.pid, signal.SIGKILL)
        await until(lambda: a.restarts >= 4, lambda: world.told)
        assert "exited with code 9" in world.details
        broken.unlink()
        await until(lambda: a.state is State.HEALTHY, lambda: world.told)


async def test_a_stop_while_it_starts_leaves_nothing(world: World) -> None:
    slow = world.component("slow", "trap '' TERM; echo up; sleep 1000", stop_grace_seconds=0.1)
    supervisor = world.supervisor(world.component("a"), slow)
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: supervisor.supervised["slow"].pid is not None, lambda: world.told)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not world.marked.alive()
    assert {one.state for one in supervisor.supervised.values()} == {State.STOPPED}


async def test_kill_shortens_a_stop_that_is_under_way(world: World) -> None:
    stubborn = world.component("stubborn", 'trap "" TERM; : >"$0"; sleep 1000; sleep 1000', stop_grace_seconds=300)
    supervisor = world.supervisor(stubborn)
    await supervisor.start()
    stopping = asyncio.create_task(supervisor.stop())
    await until(lambda: ("stubborn", State.STOPPING) in world.told, lambda: world.told)
    supervisor.kill()
    await asyncio.wait_for(stopping, 20)
    assert not world.marked.alive()
