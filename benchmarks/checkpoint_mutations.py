"""A thousand kinds of damage to real checkpoints: is each noticed before the first step, and the last good one found?

A checkpoint is damaged in the object store, in the catalogue, or on the machine that fetched it. Then a new attempt resumes as
in production: the agent's `Resumption` against a real control plane and object store, the runner's `read_state` on what it got.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import structlog
from pydantic import SecretStr

from benchmarks import small_training
from benchmarks.decisions_durable import running_jobs
from benchmarks.figure import Figure
from benchmarks.servers import PROJECT, object_store, servers
from control_plane.jobs.spec import FineTuneSpec
from control_plane.settings import ControlPlaneSettings, S3Settings, Settings, WorkerSettings
from deploy.one_machine.probes import s3_client
from workers.control_plane import CommittedCheckpoint, ControlPlane
from workers.gpu.agent.resumption import ResumePoint, Resumption
from workers.gpu.agent.spec import AgentSpec
from workers.manifest import MANIFEST_NAME, checkpoint_name
from workers.runner.failures import RunnerError
from workers.storage import ObjectStore
from workers.stored_files import FileSet, StoredFile, project_prefix, read_file_set, upload
from workers.workflows import contracts as c


@dataclass(frozen=True, slots=True)
class Committed:
    """A checkpoint in the store and in the catalogue."""

    step: int
    files: c.StoredFiles
    content: FileSet


@dataclass
class Tally:
    """How it went."""

    mutations: int = 0
    noticed: int = 0
    """Before the first step."""
    fell_back: int = 0
    """Training would have gone on from the last good one, and an event or a line of the log said so."""
    kinds: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])
    """What went wrong, with the seed of the mutation that did."""


class Campaign:
    """Damages the checkpoints of one job, resumes, and mends them again."""

    def __init__(
        self, control_plane: ControlPlane, s3: S3Settings, connection: asyncpg.Connection, job: c.JobInput, workdir: Path
    ) -> None:
        self._control_plane = control_plane
        self._store = ObjectStore(s3)
        self._bucket = s3.bucket
        self._s3 = s3_client(s3)
        self._connection = connection
        self._job = job
        self._workdir = workdir
        self._lease_id = uuid.uuid4()
        self._attempt = 0
        self._checkpoints: list[Committed] = []
        self._originals: dict[str, bytes] = {}

    async def commit(self, directories: Sequence[Path]) -> None:
        """Uploads and commits checkpoints as the agent does, in the order of their steps."""
        await self._next_attempt()
        for step, directory in enumerate(directories, start=1):
            files = await asyncio.to_thread(upload, self._store, directory, project_prefix(self._job.project))
            await self._control_plane.commit_checkpoint(self._job.job_id, self._attempt, CommittedCheckpoint(step, files))
            self._checkpoints.append(Committed(step, files, read_file_set(self._store, files)))
        for checkpoint in self._checkpoints:
            for uri in (checkpoint.files.manifest_uri, *(file.uri for file in checkpoint.content.files)):
                self._originals[uri] = self._store.get_bytes(uri)

    async def run(self, mutations: int, seed: int = 0) -> Tally:
        """Makes so many mutations, each by a random generator of its own."""
        tally = Tally()
        for number in range(seed, seed + mutations):
            rng = random.Random(number)  # noqa: S311 - which damage, not a secret
            place = rng.choices((self._in_store, self._in_catalogue, self._on_machine), (5, 1, 4))[0]
            kind, noticed, fell_back = await place(rng)
            tally.mutations += 1
            tally.noticed += noticed
            tally.fell_back += fell_back
            tally.kinds[kind] += 1
            if not (noticed and fell_back):
                tally.faults.append(f"seed {number}: {kind}, noticed {noticed}, fell back {fell_back}")
        return tally

    async def _in_store(self, rng: random.Random) -> tuple[str, bool, bool]:
        """Damages objects of the newest checkpoint, or of the two newest; those before them are good."""
        kinds: list[str] = []
        damaged = self._checkpoints[-rng.choice((1, 1, 1, 2)) :]
        others = self._checkpoints[: -len(damaged)]
        # What other checkpoints have too, such as the adapter's configuration, is not this one's alone to lose.
        shared = {file.sha256 for checkpoint in others for file in checkpoint.content.files}
        for checkpoint in damaged:
            own = [file for file in checkpoint.content.files if file.sha256 not in shared]
            kinds.append(self._damage_object(rng, checkpoint, own, rng.choice(others)))
        result = await self._resumes([one.step for one in reversed(damaged)])
        for uri, content in self._originals.items():
            self._put(uri, content)
        await self._recommit()
        return "store: " + kinds[-1], *result

    def _damage_object(self, rng: random.Random, checkpoint: Committed, own: list[StoredFile], other: Committed) -> str:
        if rng.random() < 0.3:
            uri, stand_in, what = checkpoint.files.manifest_uri, other.files.manifest_uri, "manifest"
        else:
            file = rng.choice(own)
            named = {found.name: found.uri for found in other.content.files}
            uri, stand_in, what = file.uri, named[file.name], "file"
        kind = rng.choice((*_BYTES, "dropped", "swapped"))
        if kind == "dropped":
            self._s3.delete_object(Bucket=self._bucket, Key=self._key(uri))
        else:
            content = self._originals[uri]
            self._put(uri, self._originals[stand_in] if kind == "swapped" else _BYTES[kind](rng, content))
        return f"{what} {kind}"

    async def _in_catalogue(self, rng: random.Random) -> tuple[str, bool, bool]:
        """The newest row names what another one names, in whole or in part."""
        newest, other = self._checkpoints[-1], rng.choice(self._checkpoints[:-1])
        kind = rng.choice(("manifests swapped", "URIs swapped", "hashes swapped", "URI of nothing", "URI elsewhere"))
        uri, sha256 = other.files.manifest_uri, other.files.manifest_sha256
        if kind in {"hashes swapped"}:
            uri = newest.files.manifest_uri
        elif kind != "manifests swapped":
            sha256 = newest.files.manifest_sha256
        if kind == "URI of nothing":
            uri = self._store.uri("projects/none")
        elif kind == "URI elsewhere":
            uri = "s3://elsewhere/manifest.json"
        await self._connection.execute(
            "UPDATE checkpoints SET manifest_uri = $3, manifest_sha256 = $4 WHERE job_id = $1 AND step = $2",
            *(uuid.UUID(self._job.job_id), newest.step, uri, sha256),
        )
        result = await self._resumes([newest.step])
        await self._recommit()
        return "catalogue: " + kind, *result

    async def _on_machine(self, rng: random.Random) -> tuple[str, bool, bool]:
        """Damages the newest checkpoint after it was fetched; the store has it whole, so it is fetched again."""
        said: list[str] = []
        resumption = await self._resumption(said)
        found = await resumption.point()
        if found is None:
            return "machine: no checkpoint was found", False, False
        kind = self._damage_directory(rng, found)
        noticed = not _usable(found)
        await resumption.refuse(found)
        again = await resumption.point()
        told = any("fetched again" in line for line in said)
        fell_back = again is not None and again.step == self._checkpoints[-1].step and _usable(again) and told
        await self._recommit()
        return "machine: " + kind, noticed, fell_back

    def _damage_directory(self, rng: random.Random, found: ResumePoint) -> str:
        folder, other = found.directory, self._workdir / "checkpoints" / checkpoint_name(rng.randint(1, found.step - 1))
        # What is equal in both is not damaged by a swap.
        names = [path.name for path in folder.iterdir() if path.read_bytes() != (other / path.name).read_bytes()]
        path = folder / rng.choice(names)
        kind = rng.choice((*_BYTES, "dropped", "swapped", "extra file", "extra folder", "link", "whole checkpoint swapped"))
        match kind:
            case "dropped":
                path.unlink()
            case "swapped":
                shutil.copy(other / path.name, path)
            case "extra file":
                (folder / rng.choice(("optimizer.pt", "x.safetensors", "a.py"))).write_bytes(rng.randbytes(8))
            case "extra folder":
                (folder / "nested").mkdir()
                (folder / "nested/state.json").write_text("{}")
            case "link":
                moved = path.rename(self._workdir / "moved")
                path.symlink_to(moved)
            case "whole checkpoint swapped":
                shutil.rmtree(folder)
                shutil.copytree(other, folder)
            case _:
                path.write_bytes(_BYTES[kind](rng, path.read_bytes()))
        return f"{'manifest' if path.name == MANIFEST_NAME else 'file'} {kind}" if kind in {*_BYTES, "dropped"} else kind

    async def _resumes(self, damaged: list[int]) -> tuple[bool, bool]:
        """Whether a new attempt notices exactly these, and goes on from the newest of the others with an event that says so."""
        good = [one.step for one in self._checkpoints if one.step not in damaged]
        found = await (await self._resumption([])).point()
        rows = await self._connection.fetch(
            "SELECT detail FROM job_events WHERE job_id = $1 AND attempt = $2 AND type = 'RESUMED'",
            *(uuid.UUID(self._job.job_id), self._attempt),
        )
        events = [json.loads(row["detail"]) for row in rows]
        noticed = found is None or found.step not in damaged
        fell_back = found is not None and found.step == good[-1] and _usable(found)
        return noticed, fell_back and events == [{"step": good[-1], "damaged_steps": damaged}]

    async def _resumption(self, said: list[str]) -> Resumption:
        await self._next_attempt()
        shutil.rmtree(self._workdir / "attempt", ignore_errors=True)
        grant = c.LeaseGrant(
            lease_id=str(self._lease_id), attempt=self._attempt, worker="w", accelerators=1, accelerator_kind="cpu"
        )
        none = c.StoredFiles(manifest_uri="", manifest_sha256="")
        spec = AgentSpec(
            phase=c.LeasedPhase.TRAIN,
            context=c.PhaseContext(job=self._job, attempt=self._attempt),
            grant=grant,
            prepared=c.PreparedData(dataset=none, base_model=none, train_rows=1, eval_rows=1, train_tokens=1, eval_tokens=1),
            run_seconds_left=60.0,
            workdir=self._workdir / "attempt",
            cache_dir=self._workdir / "cache",
            threads=1,
            stop_grace_seconds=1.0,
        )
        return Resumption(spec, self._control_plane, self._store, lambda text, _level: said.append(text))

    async def _next_attempt(self) -> None:
        """Grants the job's next lease, as the scheduler does."""
        self._attempt += 1
        self._lease_id = uuid.uuid4()
        job_id = uuid.UUID(self._job.job_id)
        async with self._connection.transaction():
            await self._connection.execute("UPDATE leases SET state = 'ENDED', ended_at = now() WHERE job_id = $1", job_id)
            await self._connection.execute("UPDATE jobs SET attempt = $2 WHERE job_id = $1", job_id, self._attempt)
            await self._connection.execute(
                "INSERT INTO leases (lease_id, job_id, project, phase, state, accelerators, accelerator_kind, priority,"
                " max_run_seconds, attempt, worker, granted_kind, granted_at, expires_at)"
                " VALUES"
                " ($1, $2, $3, 'TRAIN', 'GRANTED', 1, 'any', 500, 3600, $4, 'w', 'cpu', now(), now() + interval '1 hour')",
                *(self._lease_id, job_id, self._job.project, self._attempt),
            )

    async def _recommit(self) -> None:
        """Puts the catalogue back as it was."""
        job_id = uuid.UUID(self._job.job_id)
        await self._connection.execute("DELETE FROM checkpoints WHERE job_id = $1", job_id)
        await self._connection.executemany(
            "INSERT INTO checkpoints (job_id, step, attempt, manifest_uri, manifest_sha256) VALUES ($1, $2, 0, $3, $4)",
            [(job_id, one.step, one.files.manifest_uri, one.files.manifest_sha256) for one in self._checkpoints],
        )

    def _put(self, uri: str, content: bytes) -> None:
        self._s3.put_object(Bucket=self._bucket, Key=self._key(uri), Body=content)

    def _key(self, uri: str) -> str:
        return uri.removeprefix(f"s3://{self._bucket}/")


def _flipped(rng: random.Random, content: bytes) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def _zeroed(rng: random.Random, content: bytes) -> bytes:
    # From a byte on that is not zero already.
    place = rng.choice([place for place in range(min(len(content), 4_096)) if content[place]])
    return content[:place] + bytes(len(content) - place)


_BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "flipped": _flipped,
    "cut": lambda rng, content: content[: rng.randrange(len(content))],
    "grown": lambda rng, content: content + rng.randbytes(rng.randint(1, 64)),
    "zeroed": _zeroed,
}


def _usable(found: ResumePoint) -> bool:
    """Whether the runner would go on from it: its first act, before the model is touched."""
    from workers.runner.training.checkpoint import read_state  # noqa: PLC0415 - torch, only once there is something to read

    try:
        return read_state(found.directory).step == found.step
    except RunnerError:
        return False


def job_of(job_id: str, project: str) -> c.JobInput:
    """What the agent is told of the job; only its id and its project matter here."""
    spec = FineTuneSpec.model_validate({"base_model": "base", "dataset": {"name": "data"}, "output_model": "model"})
    return c.JobInput(
        job_id=job_id,
        project=project,
        spec=spec,
        spec_sha256="",
        dataset_uri="",
        base_model_uri="",
        base_model_sha256="",
        trace_id="",
    )


async def run(quick: bool) -> Figure:
    """Mutations noticed, of those made."""
    mutations = 100 if quick else 1_000
    # Every fault is a warning, and they are what this is about.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        directories = await small_training.checkpoints(root, 3)
        shutil.copytree(directories[0].parent, root / "checkpoints")
        async with object_store(root / "s3") as s3, servers() as running:
            connection = await asyncpg.connect(running.dsn)
            [job_id] = await running_jobs(connection, 1, PROJECT)
            settings = Settings(
                control_plane=ControlPlaneSettings(address=running.address),
                worker=WorkerSettings(token=SecretStr(running.worker_token)),
            )
            control_plane = ControlPlane.of(settings, "the benchmark")
            campaign = Campaign(control_plane, s3, connection, job_of(str(job_id), PROJECT), root)
            await campaign.commit(directories)
            began, busy = time.monotonic(), time.process_time()
            tally = await campaign.run(mutations)
            seconds, cpu_seconds = time.monotonic() - began, time.process_time() - busy
            await control_plane.close()
            await connection.close()
    for fault in tally.faults:
        print(fault)
    details = {
        "mutations": tally.mutations,
        "fell_back": tally.fell_back,
        "kinds": len(tally.kinds),
        "each_ms": seconds / mutations * 1_000,
        "each_cpu_ms": cpu_seconds / mutations * 1_000,
    }
    return Figure("checkpoint_mutations", tally.noticed, "noticed", mutations, "mutations made", details)
