"""`python -m benchmarks kill_anywhere`: jobs killed at any instant, again and again, whose models are the undisturbed ones.

Each variant of training runs once undisturbed, then again and again under SIGKILLs at instants uniform in that run's wall time:
of the runner, of its agent, or of both with all they started. Agents are those of production, on a real control plane, each
with a fenced attempt of its own, and on a real object store. Nothing is cleaned up in between. The trained weights must have
the same SHA-256, and each attempt's measurements must come once and in order.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any

import asyncpg
import psutil

from benchmarks import small_training
from benchmarks.agents import Row, World
from benchmarks.figure import Figure
from benchmarks.servers import object_store, servers
from headway.logs.v1 import log_record_pb2
from workers.child import Child
from workers.gpu.agent.spec import RESULT_NAME, AgentResult, AgentSpec, TrainStage
from workers.stored_files import read_file_set
from workers.workflows import contracts as c

# More kills of one job than this are no test of anything but patience.
_KILLS_PER_JOB = 6
_TAKEN_APART_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Variant:
    """A kind of training.

    Attributes:
        stage: as the runner's spec has it, apart from how long it trains.
        rows: makes the method's row of a supervised one.
        evaluated: whether an evaluation follows, which is killed too.
    """

    stage: Mapping[str, Any]
    rows: Callable[[Row], Row] = dict
    evaluated: bool = False


def _pair(row: Row) -> Row:
    prompt, answer = row["tokens"][: row["targets_from"]], row["tokens"][row["targets_from"] :]
    return {"line": row["line"], "prompt": prompt, "chosen": answer, "rejected": answer[::-1]}


def _single(row: Row) -> Row:
    pair = _pair(row)
    good = row["line"] % 2 == 0
    return {
        "line": row["line"],
        "prompt": pair["prompt"],
        "completion": pair["chosen"] if good else pair["rejected"],
        "label": good,
    }


_LORA = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.2}}
VARIANTS: Mapping[str, Variant] = {
    "sft_lora": Variant({"adaptation": _LORA}, evaluated=True),
    "sft_full": Variant({"adaptation": {"method": "full"}}),
    "sft_packed": Variant({"adaptation": _LORA, "pass_tokens": 96}),
    "dpo": Variant({"method": {"name": "dpo"}, "adaptation": _LORA}, rows=_pair),
    "kto": Variant({"method": {"name": "kto"}, "adaptation": _LORA}, rows=_single),
    "reward_model": Variant({"method": {"name": "reward_model"}, "adaptation": _LORA}, rows=_pair),
}


@dataclass
class Tally:
    """How it went."""

    runs: int = 0
    equal: int = 0
    places: Counter[str] = field(default_factory=Counter[str])
    """What the job was at when it was killed."""
    faults: list[str] = field(default_factory=list[str])


class Job:
    """One job from its first attempt to its end, as its workflow and the scheduler would drive it."""

    def __init__(
        self, world: World, name: str, job_id: uuid.UUID, rng: random.Random, kills: Sequence[float], steps: int
    ) -> None:
        """Args:
        world: what it runs on.
        name: its variant's.
        job_id: in state RUNNING.
        rng: decides who is killed.
        kills: after how many seconds of an attempt, one after the other; one that comes too late for its attempt is spent.
        steps: optimizer steps of the whole training.
        """
        self._world = world
        self._name = name
        self._id = job_id
        self._rng = rng
        self._kills = list(kills)
        self._steps = steps
        self._attempt = 0
        self.places: Counter[str] = Counter()
        """What the job was at when it was killed, and how often."""
        self.faults: list[str] = []

    async def finish(self) -> dict[str, str]:
        """Makes attempts until the job is through; returns the SHA-256 of what was trained, by file.

        Raises:
            RuntimeError: an attempt that was not killed did not do its work.
        """
        trained: c.TrainedModel | None = None
        while trained is None:
            result = await self._run(c.LeasedPhase.TRAIN, None)
            trained = None if result is None else result.trained
        if VARIANTS[self._name].evaluated:
            while await self._run(c.LeasedPhase.EVALUATE, trained) is None:
                pass
        self.faults += _out_of_order(await self._world.records(str(self._id)))
        files = read_file_set(self._world.store, trained.adapter).files
        return {file.name: file.sha256 for file in files if file.name.endswith(".safetensors")}

    async def _run(self, phase: c.LeasedPhase, trained: c.TrainedModel | None) -> AgentResult | None:
        """One attempt; None if it was killed."""
        self._attempt += 1
        training = {"steps": self._steps, "micro_batch_size": 4, "gradient_accumulation": 2, "checkpoint_every_steps": 3}
        stage = TrainStage.model_validate({"training": training, **VARIANTS[self._name].stage})
        spec = await self._world.attempt(self._id, self._attempt, phase, self._name, stage, trained)
        agent = await self._world.start(spec)
        killed = await self._kill_in_time(agent, spec)
        await agent.wait()
        if killed is not None:
            self.places[killed or await self._step_or_start()] += 1
        try:
            result = AgentResult.model_validate_json((spec.workdir / RESULT_NAME).read_bytes())
        except FileNotFoundError:
            result = AgentResult()
        if result.trained is not None or result.scores is not None:
            return result
        if killed is None:
            said = (spec.workdir / "agent.log").read_text()[-2_000:]
            raise RuntimeError(f"attempt {self._attempt} of a {self._name} job was not killed and came to {result}: {said}")
        return None

    async def _kill_in_time(self, agent: Child, spec: AgentSpec) -> str | None:
        """Waits for the next kill's time or the attempt's end; what the killed job was at, "" if only its log knows."""
        if not self._kills:
            return None
        done, _ = await asyncio.wait({ended := asyncio.ensure_future(agent.wait())}, timeout=self._kills.pop(0))
        if done:
            return None
        place = _place(spec)
        tree = psutil.Process(agent.pid).children(recursive=True)
        runners = [process for process in tree if _runs_program(process)]
        match self._rng.choice(("runner", "agent", "all")):
            case "runner" if runners:
                victims = runners
            case "all":
                victims = [psutil.Process(agent.pid), *tree]
            case _:
                victims = [psutil.Process(agent.command_pid)]
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(SIGKILL)
        await ended
        # The kernel takes a moment to take a large process apart; nobody who should end one is left where all were killed.
        _, alive = await asyncio.to_thread(psutil.wait_procs, tree, _TAKEN_APART_SECONDS)
        if alive:
            self.faults.append(f"processes {[process.pid for process in alive]} of attempt {self._attempt} outlived it")
        return place

    async def _step_or_start(self) -> str:
        records = await self._world.records(str(self._id))
        stepped = any(record.attempt == self._attempt and record.WhichOneof("body") == "progress" for record in records)
        return "step" if stepped else "start"


def _place(spec: AgentSpec) -> str:
    """What an attempt is at, as far as its files tell."""
    if spec.phase is c.LeasedPhase.EVALUATE:
        return "evaluation" if (spec.workdir / "evaluate").exists() else "start"
    names = [path.name for path in (spec.workdir / "train").glob("checkpoints/*")]
    if any(name.endswith(".partial") for name in names):
        return "save"
    if names or (spec.workdir / "train" / "result.json").exists():
        return "upload"
    return ""


def _runs_program(process: psutil.Process) -> bool:
    try:
        return any(part.startswith("workers.runner.") for part in process.cmdline()[1:3])
    except psutil.NoSuchProcess:
        return False


def _out_of_order(records: Sequence[log_record_pb2.LogRecord]) -> list[str]:
    """What is wrong with a job's measurements: within an attempt each step comes once, after the one before."""
    steps: defaultdict[int, list[int]] = defaultdict(list)
    for record in records:
        if record.WhichOneof("body") == "progress" and record.progress.phase == "train":
            steps[record.attempt].append(record.progress.step)
    return [
        f"attempt {attempt} measured the steps {found}"
        for attempt, found in steps.items()
        if found != list(range(found[0], found[0] + len(found)))
    ]


async def campaign(
    world: World, names: Sequence[str], kills: int, *, steps: int = 24, seed: int = 0
) -> tuple[Tally, Mapping[str, float]]:
    """Runs each variant undisturbed, then all of them in turn until so many kills have hit; two jobs at a time.

    Returns:
        How it went, and the seconds that each variant takes undisturbed.
    """
    tally = Tally()
    expected: dict[str, dict[str, str]] = {}
    seconds: dict[str, float] = {}

    async def undisturbed(name: str) -> None:
        began = time.monotonic()
        job_id = await world.new_job()
        expected[name] = await Job(world, name, job_id, random.Random(seed), (), steps).finish()  # noqa: S311 - not a secret
        seconds[name] = time.monotonic() - began

    async def disturbed(name: str, rng: random.Random) -> None:
        job_id = await world.new_job()
        instants = [rng.uniform(0.0, seconds[name]) for _ in range(_KILLS_PER_JOB)]
        job = Job(world, name, job_id, rng, instants, steps)
        weights = await job.finish()
        tally.runs += 1
        tally.places += job.places
        if weights != expected[name]:
            job.faults.append(f"weights are {weights}; expected {expected[name]}")
        tally.equal += not job.faults
        tally.faults += [f"{name} {job_id}: {fault}" for fault in job.faults]

    for first in range(0, len(names), 2):
        await asyncio.gather(*(undisturbed(name) for name in names[first : first + 2]))
    number = 0
    while tally.places.total() < kills:
        pair = [names[(number + place) % len(names)] for place in range(2)]
        rngs = [random.Random(f"{seed} {number + place}") for place in range(2)]  # noqa: S311 - not a secret
        await asyncio.gather(*(disturbed(name, rng) for name, rng in zip(pair, rngs, strict=True)))
        number += 2
    return tally, seconds


async def run(quick: bool) -> Figure:
    """Jobs whose model is the undisturbed one's, of those killed."""
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        inputs = await small_training.inputs(root)
        async with object_store(root / "s3") as s3, servers() as running:
            connection = await asyncpg.connect(running.dsn)
            world = await World.of(
                running, s3, connection, root, inputs, {name: variant.rows for name, variant in VARIANTS.items()}
            )
            names = ["sft_lora", "sft_full"] if quick else list(VARIANTS)
            tally, seconds = await campaign(world, names, 8 if quick else 200)
            await connection.close()
    for fault in tally.faults:
        print(fault)
    details = {
        "runs": tally.runs,
        "kills": tally.places.total(),
        **{f"killed_at_{place}": count for place, count in sorted(tally.places.items())},
        **{f"{name}_undisturbed_s": took for name, took in seconds.items()},
    }
    return Figure("kill_anywhere", tally.equal, "jobs equal", tally.runs, "jobs killed", details)
