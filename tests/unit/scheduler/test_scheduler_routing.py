"""Every route leads to a workflow that exists, and jobs without a route wait and are told why."""

from __future__ import annotations

import pytest

from control_plane.jobs.spec import SPEC_TYPES
from control_plane.jobs.workflows import RUN_TYPES, waiting_without_workflow
from scheduler.routing import ROUTES, UnroutableJobError, route
from workers.workflows.fine_tune import FineTuneWorkflow
from workers.workflows.steps import CPU_QUEUE


def test_every_route_has_a_job_type_and_the_control_plane_knows_them() -> None:
    assert set(ROUTES) <= set(SPEC_TYPES)
    assert set(ROUTES) == RUN_TYPES


@pytest.mark.parametrize("job_type", sorted(set(SPEC_TYPES) - set(ROUTES)))
def test_a_job_without_workflow_is_told_so_at_submit(job_type: str) -> None:
    assert job_type in waiting_without_workflow(job_type)
    assert not waiting_without_workflow("fine_tune")


def test_routes_lead_to_workflows_that_exist() -> None:
    known = {vars(FineTuneWorkflow)["__temporal_workflow_definition"].name}
    assert {target.workflow for target in ROUTES.values()} == known
    assert {target.task_queue for target in ROUTES.values()} == {CPU_QUEUE}


def test_an_unknown_type_is_named_with_what_was_expected() -> None:
    with pytest.raises(UnroutableJobError, match="type 'astrology'; expected one of: fine_tune"):
        route("astrology")
