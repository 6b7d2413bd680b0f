"""`python -m benchmarks kill_anywhere`: jobs killed at any instant, again and again, whose models are the undisturbed ones.

Each variant of training runs once undisturbed, then again and again under SIGKILLs at instants uniform in that run's wall time:
of the runner, of its agent, or of both with all they started. Agents are those of production, on a real control plane, each
with a fenced attempt of its own, and on a real object store. Nothing is cleaned up in between. The trained weights must have
the same SHA-256, and each attempt's measurements must come once and in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
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
from pydantic import SecretStr

from benchmarks import small_training
from benchmarks.checkpoint_mutations import job_of
from benchmarks.decisions_durable import running_jobs
from benchmarks.figure import Figure
from benchmarks.servers import PROJECT, Servers, bearer, object_store, own_channel, servers
from control_plane.settings import S3Settings
from headway.logs.v1 import log_record_pb2, log_service_pb2, log_service_pb2_grpc
from workers.child import Child, spawn
from workers.gpu.agent.spec import RESULT_NAME, AgentResult, AgentSpec, TrainStage
from workers.storage import ObjectStore
from workers.stored_files import project_prefix, read_file_set, upload
from workers.workflows import contracts as c

_STEPS = 24
# More kills of one job than this are no test of anything but patience.
_KILLS_PER_JOB = 6
_TAKEN_APART_SECONDS = 5.0

Row = Mapping[str, Any]


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


@dataclass(frozen=True)
class World:
    """What jobs run on, and what each variant of them is given."""

    address: str
    token: str
    connection: asyncpg.Connection
    store: ObjectStore
    folder: Path
    prepared: Mapping[str, c.PreparedData]

    @classmethod
    async def of(
        cls, running: Servers, s3: S3Settings, connection: asyncpg.Connection, folder: Path, inputs: small_training.Inputs
    ) -> World:
        """Stores the base model and each variant's rows, and writes down for agents where the servers are."""
        store, prefix = ObjectStore(s3), project_prefix(PROJECT)
        base_model = await asyncio.to_thread(upload, store, inputs.base_model, prefix)
        prepared: dict[str, c.PreparedData] = {}
        for name, variant in VARIANTS.items():
            data = folder / "data" / name
            data.mkdir(parents=True)
            for part in ("train.jsonl", "eval.jsonl"):
                rows = [json.loads(line) for line in (inputs.data / part).read_text().splitlines()]
                (data / part).write_text("".join(json.dumps(variant.rows(row)) + "\n" for row in rows))
            dataset = await asyncio.to_thread(upload, store, data, prefix)
            prepared[name] = c.PreparedData(
                dataset=dataset, base_model=base_model, train_rows=1, eval_rows=1, train_tokens=1, eval_tokens=1
            )
        settings = {
            "control_plane": {"address": running.address},
            "worker": {"token": running.worker_token},
            "s3": {
                "endpoint_url": s3.endpoint_url,
                "bucket": s3.bucket,
                "access_key_id": _revealed(s3.access_key_id),
                "secret_access_key": _revealed(s3.secret_access_key),
            },
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        return cls(running.address, running.token, connection, store, folder, prepared)

    async def records(self, job_id: str) -> list[log_record_pb2.LogRecord]:
        """Everything that the log service has of a job."""
        async with own_channel(self.address) as channel:
            stub: Any = log_service_pb2_grpc.LogServiceStub(channel)
            request = log_service_pb2.TailLogsRequest(job_id=job_id)
            return [record async for answer in stub.TailLogs(request, metadata=bearer(self.token)) for record in answer.records]


class Job:
    """One job from its first attempt to its end, as its workflow and the scheduler would drive it."""

    def __init__(self, world: World, name: str, job_id: uuid.UUID, rng: random.Random, kills: Sequence[float]) -> None:
        """Args:
        world: what it runs on.
        name: its variant's.
        job_id: in state RUNNING.
        rng: decides who is killed.
        kills: after how many seconds of an attempt, one after the other; one that comes too late for its attempt is spent.
        """
        self._world = world
        self._name = name
        self._id = job_id
        self._rng = rng
        self._kills = list(kills)
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
        spec = await self._spec(phase, trained)
        path = spec.workdir / "agent_spec.json"
        path.write_text(spec.model_dump_json())
        with (spec.workdir / "agent.log").open("wb") as log:
            agent = await spawn(
                [sys.executable, "-m", "workers.gpu.agent", str(path)],
                env={**os.environ, "HEADWAY_SETTINGS": str(self._world.folder / "settings.json")},
                stdout=log,
                stderr=log,
            )
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

    async def _spec(self, phase: c.LeasedPhase, trained: c.TrainedModel | None) -> AgentSpec:
        lease_id = await self._next_lease(phase)
        workdir = self._world.folder / "attempts" / f"{self._id}-{self._attempt}"
        workdir.mkdir(parents=True)
        training = {"steps": _STEPS, "micro_batch_size": 4, "gradient_accumulation": 2, "checkpoint_every_steps": 3}
        return AgentSpec(
            phase=phase,
            context=c.PhaseContext(job=job_of(str(self._id), PROJECT), attempt=self._attempt),
            grant=c.LeaseGrant(
                lease_id=str(lease_id), attempt=self._attempt, worker="w", accelerators=1, accelerator_kind="cpu"
            ),
            prepared=self._world.prepared[self._name],
            stage=TrainStage.model_validate({"training": training, **VARIANTS[self._name].stage}),
            trained=trained,
            run_seconds_left=3_600.0,
            workdir=workdir,
            cache_dir=self._world.folder / "cache",
            threads=1,
            stop_grace_seconds=10.0,
        )

    async def _next_lease(self, phase: c.LeasedPhase) -> uuid.UUID:
        """Grants the job's next lease, as the scheduler does."""
        self._attempt += 1
        lease_id = uuid.uuid4()
        statements: list[tuple[str, tuple[Any, ...]]] = [
            ("UPDATE leases SET state = 'ENDED', ended_at = now() WHERE job_id = $1", (self._id,)),
            ("UPDATE jobs SET attempt = $2 WHERE job_id = $1", (self._id, self._attempt)),
            (
                "INSERT INTO leases (lease_id, job_id, project, phase, state, accelerators, accelerator_kind, priority,"
                " max_run_seconds, attempt, worker, granted_kind, granted_at, expires_at) VALUES"
                " ($1, $2, $3, $4, 'GRANTED', 1, 'any', 500, 3600, $5, 'w', 'cpu', now(), now() + interval '1 hour')",
                (lease_id, self._id, PROJECT, phase.value, self._attempt),
            ),
        ]
        async with _one_at_a_time, self._world.connection.transaction():
            for statement, values in statements:
                await self._world.connection.execute(statement, *values)
        return lease_id


_one_at_a_time = asyncio.Lock()
"""Jobs share a connection."""


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


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


async def campaign(world: World, names: Sequence[str], kills: int, seed: int = 0) -> tuple[Tally, Mapping[str, float]]:
    """Runs each variant undisturbed, then all of them in turn until so many kills have hit; two jobs at a time.

    Returns:
        How it went, and the seconds that each variant takes undisturbed.
    """
    tally = Tally()
    expected: dict[str, dict[str, str]] = {}
    seconds: dict[str, float] = {}

    async def undisturbed(name: str) -> None:
        began = time.monotonic()
        [job_id] = await _new_job(world)
        expected[name] = await Job(world, name, job_id, random.Random(seed), ()).finish()  # noqa: S311 - not a secret
        seconds[name] = time.monotonic() - began

    async def disturbed(name: str, rng: random.Random) -> None:
        [job_id] = await _new_job(world)
        instants = [rng.uniform(0.0, seconds[name]) for _ in range(_KILLS_PER_JOB)]
        job = Job(world, name, job_id, rng, instants)
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


async def _new_job(world: World) -> list[uuid.UUID]:
    async with _one_at_a_time:
        return await running_jobs(world.connection, 1, PROJECT)


async def run(quick: bool) -> Figure:
    """Jobs whose model is the undisturbed one's, of those killed."""
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        inputs = await small_training.inputs(root)
        async with object_store(root / "s3") as s3, servers() as running:
            connection = await asyncpg.connect(running.dsn)
            world = await World.of(running, s3, connection, root, inputs)
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
