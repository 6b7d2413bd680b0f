"""Submits a sweep as one batch with asyncio, follows the whole job set, and stops what is left of it.

    python examples/client_batch.py examples/fine_tune.yaml

The set is watched from its first event on, and cancelled when half of its jobs have been seen.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path

from headway.jobs.v1 import job_pb2, job_spec_pb2
from headway.jobs.v1.job_service_pb2 import BatchItem, JobSelection
from headway_client.aio_client import AsyncClient
from headway_client.connection import resolve
from headway_client.job_file import read_job_file

RATES = (1e-4, 2e-4, 5e-4, 1e-3)
FINAL = {job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED}


def variant(spec: job_spec_pb2.JobSpec, rate: float) -> BatchItem:
    """The same job with another learning rate."""
    item = BatchItem(name=f"rate {rate:g}", spec=spec)
    item.spec.fine_tune.training.learning_rate = rate
    return item


async def main(path: Path) -> int:
    """Returns 0 once every job of the set is final."""
    request = read_job_file(path)
    name = f"sweep-{uuid.uuid4().hex[:8]}"
    async with AsyncClient.of(resolve(None)) as client:
        # All or none: a fault in one of them stores nothing.
        batch = await client.batch_submit_jobs(request.project, [variant(request.spec, rate) for rate in RATES], job_set=name)
        print(f"{batch.accepted_count} jobs in the set {name}", flush=True)
        left = {result.job_id for result in batch.results}
        seen: set[str] = set()
        async for message in client.watch_events(job_set=(request.project, name)):
            for event in message.events:
                seen.add(event.job_id)
                if event.state in FINAL:
                    left.discard(event.job_id)
            if len(seen) >= len(RATES) // 2 and left:
                selection = JobSelection(project=request.project, job_set=name)
                await client.cancel_jobs(selection, reason="the example is over")
            if not left:
                break
        counts = (await client.get_job_set(request.project, name)).states
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items()) if count))
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]))))
