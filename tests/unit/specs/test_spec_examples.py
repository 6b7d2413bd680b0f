"""Every example is a job file of another type, legal as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from control_plane.jobs.planning import plan, to_proto
from control_plane.jobs.resolve import inputs_of
from control_plane.jobs.spec import SPEC_TYPES, ProjectName, default_name
from control_plane.jobs.spec_wire import spec_from_proto, spec_to_proto
from control_plane.jobs.specs.auto import AUTO_FIELDS
from control_plane.jobs.specs.hpo import SEARCHABLE
from control_plane.jobs.workflows import RUN_TYPES
from control_plane.rpc.convert import validated_value
from headway_client.job_file import read_job_file

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def test_there_is_one_of_every_type() -> None:
    assert {path.stem for path in EXAMPLES} == set(SPEC_TYPES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_legal_and_can_be_planned(path: Path) -> None:
    request = read_job_file(path)
    spec = spec_from_proto(request.spec)
    assert spec.type == path.stem
    assert spec_from_proto(spec_to_proto(spec.model_dump(mode="json"))) == spec
    validated_value(ProjectName, request.project, "project")
    assert request.name
    assert default_name(spec).startswith(f"{spec.type} support-assistant")
    assert to_proto(plan(spec, {}, None)).phases


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_what_an_example_needs_to_be_registered_is_said_beside_it(path: Path) -> None:
    text = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    for _, reference in inputs_of(spec_from_proto(read_job_file(path).spec)):
        assert f"`{reference.name}`" in text
        assert not reference.alias or f"alias `{reference.alias}`" in text


def test_the_reference_names_every_type_every_choice_and_everything_that_can_be_searched() -> None:
    text = (ROOT / "docs/reference/job-spec.md").read_text(encoding="utf-8")
    for kind in SPEC_TYPES:
        has_workflow = "yes" if kind in RUN_TYPES else "not yet"
        assert re.search(rf"^\| `{kind}` \|.*\| {has_workflow} \|$", text, re.MULTILINE), kind
    assert not [name for name in AUTO_FIELDS if f"| `{name}` |" not in text]
    assert not [path for path in SEARCHABLE if f"`{path}`" not in text]
