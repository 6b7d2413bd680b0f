"""Submits a job file from Python and follows the job until it ends.

    python examples/client_submit.py examples/fine_tune.yaml

Where the control plane is and who calls is found as the command line finds it: HEADWAY_ADDRESS and HEADWAY_TOKEN, or what
`headway up` wrote into .headway.
"""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

from headway.jobs.v1 import job_pb2
from headway_client.client import Client
from headway_client.connection import resolve
from headway_client.errors import HeadwayError
from headway_client.job_file import read_job_file


def main(path: Path) -> int:
    """Returns 0 only if the job succeeds."""
    request = read_job_file(path)
    with Client.of(resolve(None)) as client:
        try:
            # Checked first: this stores nothing, and says what the job would do.
            checked = client.submit(request.project, request.spec, name=request.name, validate_only=True)
            print(f"{len(checked.plan.phases)} phases, {checked.plan.steps} steps")
            # Whoever keeps the request id can repeat the call as often as they like: it is one job.
            request_id = str(uuid.uuid4())
            job = client.submit_job(request.project, request.spec, name=request.name, request_id=request_id)
            print(f"submitted {job.job_id}", flush=True)
            # The stream takes itself up again after every lost connection, and ends after the job's last event.
            for batch in client.watch_events(job_id=job.job_id):
                for event in batch.events:
                    print(f"{event.sequence:>4}  {job_pb2.JobState.Name(event.state)}")
            job = client.get_job(job.job_id)
        except HeadwayError as error:
            # A reason is an enum of the contract, so programs need not read the sentence.
            print(f"{error.reason}: {error}", file=sys.stderr)
            return 2
    print(f"{job.job_id} is {job_pb2.JobState.Name(job.state)}")
    return 0 if job.state == job_pb2.JOB_STATE_SUCCEEDED else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
