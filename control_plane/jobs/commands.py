"""What can be asked of jobs, as values: what the servicer makes of a request and the repository acts on."""

from __future__ import annotations

from dataclasses import dataclass

from control_plane.jobs.spec import JobSpec, canonical_sha256

JOB_NAME_MAX = 128
PRIORITY_DEFAULT = 500


@dataclass(frozen=True, slots=True)
class SubmitJob:
    """A request for a job, valid in itself."""

    request_id: str
    project: str
    name: str
    spec: JobSpec
    priority: int
    trace_parent: str

    def sha256(self) -> str:
        """Identifies the request's content: defaults spelled out or left out make no difference."""
        return canonical_sha256(
            {
                "method": "SubmitJob",
                "project": self.project,
                "name": self.name,
                "priority": self.priority,
                "spec": self.spec.model_dump(mode="json"),
            }
        )


@dataclass(frozen=True, slots=True)
class CancelJob:
    """A request that a job ends."""

    request_id: str
    job_id: str
    reason: str

    def sha256(self) -> str:
        """Identifies the request's content."""
        return canonical_sha256({"method": "CancelJob", "job_id": self.job_id, "reason": self.reason})
