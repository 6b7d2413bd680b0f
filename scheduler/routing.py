"""Which workflow runs which type of job, where, and how often: the only place that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.engine import RowMapping

from control_plane.jobs.states import PAUSE_STATES
from headway_client.telemetry import trace_id_of
from workers.workflows.contracts import JobInput


@dataclass(frozen=True, slots=True)
class Route:
    """How jobs of one type are run."""

    workflow: str
    task_queue: str
    """Where the workflow itself runs; its leased phases run on the queue of the worker they were granted."""
    runs: int
    """How often Temporal runs the workflow before it gives up. Phases and leases are retried inside, by their own rules."""


ROUTES: Mapping[str, Route] = {
    "fine_tune": Route(workflow="FineTuneWorkflow", task_queue="cpu", runs=1),
}


class UnroutableJobError(Exception):
    """The job cannot be given to any workflow, today or later."""


def route(job_type: str) -> Route:
    """The route of a job type.

    Raises:
        UnroutableJobError: there is none.
    """
    try:
        return ROUTES[job_type]
    except KeyError:
        known = ", ".join(sorted(ROUTES))
        raise UnroutableJobError(f"no workflow runs jobs of type {job_type!r}; expected one of: {known}") from None


def job_input(job: RowMapping) -> JobInput:
    """The workflow's input from a row of `jobs`.

    Raises:
        UnroutableJobError: what is stored is not a valid input.
    """
    try:
        return JobInput.model_validate(
            {
                "job_id": job["job_id"],
                "project": job["project"],
                "spec": job["spec"],
                "spec_sha256": job["spec_sha256"],
                "trace_id": trace_id_of(job["trace_parent"]),
                "attempt": job["attempt"],
                "pause": job["pauses"] if job["state"] in PAUSE_STATES else 0,
                **job["inputs"],
            }
        )
    except ValueError as error:
        raise UnroutableJobError(f"the stored job is not a valid input of its workflow: {error}") from error
