"""One job for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from google.protobuf.message import Message
from rich.console import Console

from headway.jobs.v1.job_pb2 import Job
from headway.jobs.v1.job_service_pb2 import JobCost
from headway.jobs.v1.job_spec_pb2 import DatasetPin, DatasetRef, JobSpec, ModelVersionRef
from headway_client.cli.output import print_facts
from headway_client.text import hours, local_time, money
from headway_client.watching.render import render_outcome
from headway_client.watching.view import FINAL_STATES, phase_name, state_name


def print_job(job: Job, cost: JobCost) -> None:
    """Where it stands and what it cost; once it is final, how it ended and what it produced."""
    print_facts(
        [
            ("job", job.job_id),
            ("name", job.name),
            ("project", job.project),
            ("type", job.spec.WhichOneof("type")),
            ("state", state_name(job.state)),
            ("phase", phase_name(job.phase) if job.phase else ""),
            ("waits for", job.waiting_reason),
            ("priority", job.priority),
            ("attempt", job.attempt),
            ("checkpoint", f"step {job.checkpoint_step}" if job.checkpoint_step else ""),
            *models_and_data(job.spec),
            ("created", local_time(job.create_time, with_date=True)),
            ("updated", local_time(job.update_time, with_date=True)),
            ("cost", _cost_words(cost)),
            ("trace", job.trace_id),
        ]
    )
    if job.state in FINAL_STATES:
        print(flush=True)
        Console().print(render_outcome(job))


def _cost_words(cost: JobCost) -> str:
    """What it was charged, what it may still be, and how that compares with the estimate."""
    if not (cost.HasField("estimated_held_ms") or cost.held_ms or cost.open_leases):
        return ""
    said = f"{money(cost.charged_micros)} for {hours(cost.held_ms)} accelerator-hours"
    if cost.open_leases:
        said += f", at most {money(cost.reserved_micros)} more"
    if cost.HasField("estimated_micros"):
        said += f"; estimated {money(cost.estimated_micros.low)} to {money(cost.estimated_micros.high)}"
    if cost.HasField("variance_micros") and not cost.open_leases:
        said += (
            f", {money(abs(cost.variance_micros))} {'above' if cost.variance_micros > 0 else 'below'}"
            if (cost.variance_micros)
            else ", within it"
        )
    return said


def models_and_data(spec: JobSpec) -> list[tuple[str, str]]:
    """A label and a name for each model and dataset that a spec of any type names, however deep in a job within the job."""
    named = list(_named(spec, ()))
    labels = [label for label, _, _ in named]
    # Where it stands tells those of one kind apart; the type of the job, which it begins with, says nothing.
    return [(label, f"{name}, {'.'.join(path[1:])}" if labels.count(label) > 1 else name) for label, name, path in named]


def _named(message: Message, path: tuple[str, ...]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for field, value in message.ListFields():
        here = (*path, field.name)
        if field.name in ("base_model", "output_model"):
            yield field.name.replace("_", " "), value, here
            continue
        if field.message_type is None:
            continue
        for item in value if isinstance(value, Sequence) else [value]:
            if isinstance(item, DatasetRef | DatasetPin):
                yield "dataset", f"{item.name} (sha256 {item.sha256[:12]}…)" if item.sha256 else item.name, here
            elif isinstance(item, ModelVersionRef):
                label = "baseline" if field.name == "baseline" else "model"
                yield label, f"{item.model}:{item.version}" if item.version else f"{item.model}@{item.alias}", here
            elif isinstance(item, Message):
                yield from _named(item, here)
