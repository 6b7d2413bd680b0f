"""Every type of job has a route, and the route's workflow exists."""

from __future__ import annotations

from typing import get_args

import pytest

from control_plane.jobs.spec import JobSpec
from scheduler.routing import ROUTES, UnroutableJobError, route
from workers.workflows.fine_tune import FineTuneWorkflow
from workers.workflows.steps import CPU_QUEUE


def test_every_job_type_has_a_route_and_every_route_a_job_type() -> None:
    specs = get_args(JobSpec) or (JobSpec,)
    assert {spec.model_fields["type"].default for spec in specs} == set(ROUTES)


def test_routes_lead_to_workflows_that_exist() -> None:
    known = {vars(FineTuneWorkflow)["__temporal_workflow_definition"].name}
    assert {target.workflow for target in ROUTES.values()} == known
    assert {target.task_queue for target in ROUTES.values()} == {CPU_QUEUE}


def test_an_unknown_type_is_named_with_what_was_expected() -> None:
    with pytest.raises(UnroutableJobError, match="type 'astrology'; expected one of: fine_tune"):
        route("astrology")
