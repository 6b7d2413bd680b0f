"""Which types of job this deployment has workflows for.

The scheduler's routing table is the truth; a test holds this list against it. It is told apart here because the control plane
says at submit what the scheduler will find.
"""

from __future__ import annotations

RUN_TYPES: frozenset[str] = frozenset({"fine_tune"})
"""The types of job that a workflow runs."""


def waiting_without_workflow(job_type: str) -> str:
    """What keeps a job of this type waiting, in the words of its `waiting_reason`; empty if a workflow runs it."""
    if job_type in RUN_TYPES:
        return ""
    known = ", ".join(sorted(RUN_TYPES))
    return f"no workflow: no workflow in this deployment runs jobs of type {job_type}; it has workflows for {known}"
