"""What the platform costs a training: the same steps bare, under an agent, and under one that saves checkpoints.

The three train at once and take turns of seconds: while one goes on, the others with all they started are stopped (SIGSTOP), so
that what changes on the machine in the meantime changes all. Of each turn the mean time of the steps that lie wholly within it
counts; a round of turns gives one ratio, and all rounds a mean with its confidence interval (Student's t, 95 %).
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGSTOP, Signals
from statistics import fmean, stdev
from typing import Any

import asyncpg
import psutil

from benchmarks import small_training
from benchmarks.agents import World
from benchmarks.figure import Figure
from benchmarks.servers import Servers, object_store, servers
from workers.child import Child, spawn
from workers.gpu.agent.spec import AgentSpec, TrainStage
from workers.runner.specs import TrainSpec
from workers.workflows import contracts as c

_TURN_SECONDS = 4.0
_LOAD_SECONDS = 180.0
_SAVE_EVERY_STEPS = 50
# More than it ever comes to.
_STEPS = 100_000
_LORA = {"lora": {"rank": 8, "alpha": 16, "dropout": 0.1}}
# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond the last the normal's.
_T = {5: 2.571, 7: 2.365, 9: 2.262, 11: 2.201, 14: 2.145, 19: 2.093, 24: 2.064, 29: 2.045}


@dataclass(frozen=True, slots=True)
class Contestant:
    """One of those that take turns."""

    child: Child
    step_ends: Callable[[], Awaitable[Sequence[float]]]
    """When its steps ended, in seconds since the epoch: some of them while it trains, all once it has ended."""

    def signal(self, signum: Signals) -> None:
        """Sends a signal to all it started."""
        root = psutil.Process(self.child.pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signum)


@dataclass(frozen=True, slots=True)
class Turns:
    """What each contestant did in its turns, in the order of rounds: seconds a step, and processor seconds a step."""

    step_seconds: Mapping[str, Sequence[float]]
    platform_cpu_seconds: float
    """Of agents and servers, in all turns under an agent."""
    seconds: float
    """In all turns under an agent."""


async def _measured(rounds: int) -> Turns:
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        inputs = await small_training.inputs(root)
        async with object_store(root / "s3") as s3, servers() as running:
            connection = await asyncpg.connect(running.dsn)
            world = await World.of(running, s3, connection, root, inputs, {"sft": dict})
            contestants = {
                "bare": await _bare(root, inputs),
                "agent": await _under_agent(world, _STEPS),
                "saving": await _under_agent(world, _SAVE_EVERY_STEPS),
            }
            turns = await _take_turns(contestants, rounds, running)
            await connection.close()
    return turns


def _training(save_every_steps: int) -> dict[str, Any]:
    return {
        "steps": _STEPS,
        "micro_batch_size": 4,
        "checkpoint_every_steps": save_every_steps,
        "learning_rate": 1e-4,
    }


async def _bare(folder: Path, inputs: small_training.Inputs) -> Contestant:
    spec = TrainSpec.model_validate(
        {
            "base_model_dir": inputs.base_model,
            "train_path": inputs.data / "train.jsonl",
            "output_dir": folder / "bare",
            "adaptation": _LORA,
            "training": _training(_STEPS),
            "threads": 1,
            "max_run_seconds": 36_000,
        }
    )
    path, times = folder / "bare.json", folder / "bare-times.json"
    path.write_text(spec.model_dump_json())
    # As the runner's own environment: see workers.runner.program.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    child = await spawn([sys.executable, "-m", "benchmarks.bare_trainer", str(path), str(times)], env=environment)

    async def step_ends() -> Sequence[float]:
        return json.loads(times.read_text()) if times.exists() else ()

    return Contestant(child, step_ends)


async def _under_agent(world: World, save_every_steps: int) -> Contestant:
    stage = TrainStage.model_validate({"training": _training(save_every_steps), "adaptation": _LORA})
    job_id = await world.new_job()
    spec: AgentSpec = await world.attempt(job_id, 1, c.LeasedPhase.TRAIN, "sft", stage)
    child = await world.start(spec)

    async def step_ends() -> Sequence[float]:
        records = await world.records(str(job_id))
        measured = [record for record in records if record.WhichOneof("body") == "progress"]
        if [record.progress.step for record in measured] != list(range(1, len(measured) + 1)):
            raise RuntimeError("the log service has not every step's measurement once and in order")
        return [record.time.ToNanoseconds() / 1e9 for record in measured]

    return Contestant(child, step_ends)


async def _take_turns(contestants: Mapping[str, Contestant], rounds: int, running: Servers) -> Turns:
    """Lets all load, then each train by itself, in an order that turns with the rounds."""
    for contestant in contestants.values():
        async with asyncio.timeout(_LOAD_SECONDS):
            while not await contestant.step_ends():  # noqa: ASYNC110 - another process begins, and tells nobody
                await asyncio.sleep(0.5)
    for contestant in contestants.values():
        contestant.signal(SIGSTOP)
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    platform = seconds = 0.0
    names = list(contestants)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            contestant = contestants[name]
            busy = _platform_cpu(contestant, running)
            contestant.signal(SIGCONT)
            began = time.time()
            await asyncio.sleep(_TURN_SECONDS)
            spans[name].append((began, time.time()))
            contestant.signal(SIGSTOP)
            if name != "bare":
                platform += _platform_cpu(contestant, running) - busy
                seconds += _TURN_SECONDS
    for contestant in contestants.values():
        contestant.signal(SIGCONT)
    codes = await asyncio.gather(*(contestant.child.stop(60.0) for contestant in contestants.values()))
    if any(code not in (0, 75) for code in codes):
        raise RuntimeError(f"the trainings ended with {codes}; expected 0 and 75")
    times = {name: _by_turn(await contestant.step_ends(), spans[name]) for name, contestant in contestants.items()}
    return Turns(times, platform, seconds)


def _by_turn(ends: Sequence[float], spans: Sequence[tuple[float, float]]) -> list[float]:
    """Seconds a step in each turn: of the steps that begin and end within it."""
    found: list[float] = []
    for began, ended in spans:
        within = [end for end in ends if began < end < ended]
        if len(within) < 3:
            raise RuntimeError(f"only {len(within)} steps ended in a turn of {ended - began:.1f} s; expected 3 at least")
        found.append((within[-1] - within[0]) / (len(within) - 1))
    return found


def _platform_cpu(contestant: Contestant, running: Servers) -> float:
    """Processor seconds that the agent without its runner, and the servers, have used so far."""
    root = psutil.Process(contestant.child.pid)
    tree = [root, *root.children(recursive=True)]
    agents = [process for process in tree if not _is_runner(process)]
    control_plane = [psutil.Process(running.pid)]
    databases = [process for process in psutil.process_iter() if _name(process).startswith(("postgres", "weed"))]
    return sum(_seconds(process) for process in (*agents, *control_plane, *databases))


def _is_runner(process: psutil.Process) -> bool:
    try:
        return any(part.startswith("workers.runner.") for part in process.cmdline()[1:3])
    except psutil.Error:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of paired ratios, minus 1, and the half of its confidence interval's width."""

    mean: float
    half: float


def interval(of: Sequence[float], against: Sequence[float]) -> Interval:
    """By how much one is longer than the other, pair by pair."""
    ratios = [one / other - 1 for one, other in zip(of, against, strict=True)]
    freedom = len(ratios) - 1
    quantile = next((value for degrees, value in _T.items() if degrees >= freedom), 1.96)
    return Interval(fmean(ratios), quantile * stdev(ratios) / math.sqrt(len(ratios)))


_TURNS: dict[int, Turns] = {}
"""Both figures are of the same turns."""


async def _once(rounds: int) -> Turns:
    if rounds not in _TURNS:
        _TURNS[rounds] = await _measured(rounds)
    return _TURNS[rounds]


def _rounds(quick: bool) -> int:
    return 6 if quick else 25


async def overhead(quick: bool) -> Figure:
    """A step's time under the platform, saving checkpoints, over the same step's bare."""
    turns = await _once(_rounds(quick))
    found = interval(turns.step_seconds["saving"], turns.step_seconds["bare"])
    bare, under = fmean(turns.step_seconds["bare"]), fmean(turns.step_seconds["saving"])
    details = {
        "overhead_percent": found.mean * 100,
        "interval_percent": found.half * 100,
        "rounds": float(_rounds(quick)),
        "platform_cpu_ms_a_second": turns.platform_cpu_seconds / turns.seconds * 1_000,
    }
    return Figure("training_overhead", under * 1_000, "ms a step", bare * 1_000, "ms a step of the bare trainer", details)


async def saving(quick: bool) -> Figure:
    """A step's time under the platform with a checkpoint every fifty steps, over the same without."""
    turns = await _once(_rounds(quick))
    found = interval(turns.step_seconds["saving"], turns.step_seconds["agent"])
    without, under = fmean(turns.step_seconds["agent"]), fmean(turns.step_seconds["saving"])
    details = {
        "stall_percent": found.mean * 100,
        "interval_percent": found.half * 100,
        "rounds": float(_rounds(quick)),
        "save_every_steps": float(_SAVE_EVERY_STEPS),
    }
    return Figure("async_save", under * 1_000, "ms a step", without * 1_000, "ms a step without checkpoints", details)
