"""One job for people."""

from __future__ import annotations

from rich.console import Console

from headway.jobs.v1.job_pb2 import Job
from headway_client.cli.output import print_facts
from headway_client.text import local_time
from headway_client.watching.render import render_outcome
from headway_client.watching.view import FINAL_STATES, phase_name, state_name


def print_job(job: Job) -> None:
    """Where it stands; once it is final, how it ended and what it produced."""
    spec = job.spec.fine_tune
    print_facts(
        [
            ("job", job.job_id),
            ("name", job.name),
            ("project", job.project),
            ("state", state_name(job.state)),
            ("phase", phase_name(job.phase) if job.phase else ""),
            ("waits for", job.waiting_reason),
            ("priority", job.priority),
            ("attempt", job.attempt),
            ("checkpoint", f"step {job.checkpoint_step}" if job.checkpoint_step else ""),
            ("base model", spec.base_model),
            ("dataset", f"{spec.dataset.name} (sha256 {spec.dataset.sha256[:12]}…)"),
            ("output model", spec.output_model),
            ("created", local_time(job.create_time, with_date=True)),
            ("updated", local_time(job.update_time, with_date=True)),
            ("trace", job.trace_id),
        ]
    )
    if job.state in FINAL_STATES:
        print(flush=True)
        Console().print(render_outcome(job))
