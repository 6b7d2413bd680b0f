"""The examples for other services, run as they are against a real control plane."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from headway.jobs.v1 import job_pb2
from headway.jobs.v1 import job_service_pb2 as jobs_pb
from tests.integration.control_plane.callers import PROJECT
from tests.integration.control_plane.conftest import Api, new_id

ROOT = Path(__file__).parents[3]


async def started(api: Api, name: str, *arguments: str) -> asyncio.subprocess.Process:
    """An example as a submitter of the project runs it."""
    caller = await api.acting_as("SUBMITTER")
    assert caller.token is not None
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "examples" / name), *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "HEADWAY_ADDRESS": f"127.0.0.1:{api.port}", "HEADWAY_TOKEN": caller.token},
    )


async def job_file(api: Api, folder: Path) -> str:
    """A job file whose inputs are there."""
    spec = (await api.inputs()).fine_tune
    path = folder / "job.yaml"
    path.write_text(
        f"project: {PROJECT}\nname: example\nspec:\n  fine_tune:\n    base_model: {spec.base_model}\n"
        f"    output_model: {spec.output_model}\n    dataset: {{name: {spec.dataset.name}}}\n"
    )
    return str(path)


async def test_the_blocking_example_follows_its_job_to_the_end(api: Api, tmp_path: Path) -> None:
    process = await started(api, "client_submit.py", await job_file(api, tmp_path))
    assert process.stdout is not None
    lines: list[str] = []
    async for line in process.stdout:
        lines.append(line.decode().strip())
        if lines[-1].startswith("submitted "):
            # No scheduler runs here, so somebody has to end it.
            job_id = lines[-1].removeprefix("submitted ")
            await api.jobs.CancelJob(jobs_pb.CancelJobRequest(request_id=new_id(), job_id=job_id))
    assert await process.wait() == 1, lines
    assert lines[-1].endswith("is JOB_STATE_CANCELLED")
    assert any(line.endswith("JOB_STATE_QUEUED") for line in lines)
    assert (await api.get(lines[-1].split()[0])).state == job_pb2.JOB_STATE_CANCELLED


async def test_the_asyncio_example_submits_follows_and_stops_a_sweep(api: Api, tmp_path: Path) -> None:
    process = await started(api, "client_batch.py", await job_file(api, tmp_path))
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    assert output.decode().splitlines()[-1] == "4 CANCELLED"
