"""The proto and the pydantic model of a spec are the same contract, field by field, default by default, limit by limit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from control_plane.errors import RefusedError
from control_plane.jobs import convert
from control_plane.jobs.spec import (
    DatasetRef,
    EvaluationSpec,
    FineTuneSpec,
    GateSpec,
    LoraSpec,
    ResourceSpec,
    TrainingSpec,
    canonical_sha256,
)
from headway.jobs.v1 import job_spec_pb2

PAIRS: list[tuple[type[BaseModel], Descriptor]] = [
    (FineTuneSpec, job_spec_pb2.FineTuneSpec.DESCRIPTOR),
    (DatasetRef, job_spec_pb2.DatasetRef.DESCRIPTOR),
    (LoraSpec, job_spec_pb2.LoraSpec.DESCRIPTOR),
    (TrainingSpec, job_spec_pb2.TrainingSpec.DESCRIPTOR),
    (EvaluationSpec, job_spec_pb2.EvaluationSpec.DESCRIPTOR),
    (GateSpec, job_spec_pb2.GateSpec.DESCRIPTOR),
    (ResourceSpec, job_spec_pb2.ResourceSpec.DESCRIPTOR),
]
MINIMAL = job_spec_pb2.JobSpec(
    fine_tune=job_spec_pb2.FineTuneSpec(base_model="base", dataset=job_spec_pb2.DatasetRef(name="data"), output_model="out")
)
PROTO = (Path(__file__).parents[2] / "protos/headway/jobs/v1/job_spec.proto").read_text(encoding="utf-8")


def _comment(descriptor: Descriptor, field: FieldDescriptor) -> str:
    """The comment above a field in the proto file, on one line."""
    message = re.search(rf"^message {descriptor.name} \{{(.*?)^\}}", PROTO, re.MULTILINE | re.DOTALL)
    assert message is not None
    found = re.search(rf"((?:^ *//[^\n]*\n)+)^ *[a-z][\w ]* {field.name} = \d+;", message.group(1), re.MULTILINE)
    assert found is not None, f"{descriptor.name}.{field.name} has no comment"
    return re.sub(r"\s*//\s*", " ", found.group(1)).strip()


@pytest.mark.parametrize(("model", "descriptor"), PAIRS, ids=lambda value: getattr(value, "name", ""))
def test_same_fields(model: type[BaseModel], descriptor: Descriptor) -> None:
    assert set(model.model_fields) - {"type"} == set(descriptor.fields_by_name)


@pytest.mark.parametrize(("model", "descriptor"), PAIRS, ids=lambda value: getattr(value, "name", ""))
def test_comments_state_the_default_and_the_limits_that_are_enforced(model: type[BaseModel], descriptor: Descriptor) -> None:
    for name, info in model.model_fields.items():
        if name == "type" or not isinstance(info.default, int | float):
            continue
        comment = _comment(descriptor, descriptor.fields_by_name[name]).replace("2^31 - 1", str(2**31 - 1))
        numbers = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", comment)]
        assert float(info.default) in numbers, f"{descriptor.name}.{name}: default {info.default} is not in {comment!r}"
        for bound in _bounds(info):
            assert bound in numbers, f"{descriptor.name}.{name}: limit {bound} is not in {comment!r}"


def _bounds(info: FieldInfo) -> list[float]:
    found: list[float] = []
    for rule in info.metadata:
        limit: Any = rule.ge if isinstance(rule, Ge) else rule.gt if isinstance(rule, Gt) else None
        limit = rule.le if isinstance(rule, Le) else limit
        if limit is not None:
            found.append(float(limit))
    return found


def test_defaults_are_filled_in_and_survive_the_way_back() -> None:
    spec = convert.spec_from_proto(MINIMAL)
    assert spec == FineTuneSpec(base_model="base", dataset=DatasetRef(name="data"), output_model="out")
    echoed = convert.spec_to_proto(spec)
    assert echoed.fine_tune.training.steps == 10
    assert convert.spec_from_proto(echoed) == spec
    assert canonical_sha256(convert.spec_from_proto(echoed)) == canonical_sha256(spec)


@settings(max_examples=200, deadline=None)
@given(
    st.builds(
        FineTuneSpec,
        base_model=st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?", fullmatch=True),
        output_model=st.just("out"),
        dataset=st.builds(DatasetRef, name=st.just("data"), sha256=st.just(""), eval_fraction=st.floats(0.01, 0.5)),
        lora=st.builds(LoraSpec, rank=st.integers(1, 256), dropout=st.floats(0, 0.9)),
        training=st.one_of(
            st.builds(TrainingSpec, steps=st.integers(1, 3), seed=st.integers(0, 2**31 - 1)),
            st.builds(TrainingSpec, steps=st.integers(4, 1_000_000), warmup_steps=st.integers(0, 4)),
        ),
        evaluation=st.builds(
            EvaluationSpec,
            sample_prompts=st.lists(
                st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20), max_size=8
            ).map(tuple),
        ),
        resources=st.builds(ResourceSpec, accelerators=st.integers(1, 4096)),
    )
)
def test_any_legal_spec_survives_wire_and_storage(spec: FineTuneSpec) -> None:
    wire = job_spec_pb2.JobSpec.FromString(convert.spec_to_proto(spec).SerializeToString())
    assert convert.spec_from_proto(wire) == spec
    assert convert.stored_spec(spec.model_dump(mode="json")) == spec


def _changed(**changes: Any) -> job_spec_pb2.JobSpec:
    message = job_spec_pb2.JobSpec()
    message.CopyFrom(MINIMAL)
    for path, value in changes.items():
        target: Any = message.fine_tune
        *parents, field = path.split("__")
        for parent in parents:
            target = getattr(target, parent)
        if isinstance(value, list):
            getattr(target, field).extend(value)
        else:
            setattr(target, field, value)
    return message


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"base_model": ""}, "spec.fine_tune.base_model"),
        ({"base_model": "Base"}, "spec.fine_tune.base_model"),
        ({"base_model": "base\n"}, "spec.fine_tune.base_model"),
        ({"base_model": "bаse"}, "spec.fine_tune.base_model"),  # noqa: RUF001 - a Cyrillic look-alike is the point
        ({"base_model": "a" * 65}, "spec.fine_tune.base_model"),
        ({"output_model": "../x"}, "spec.fine_tune.output_model"),
        ({"dataset__name": "-x"}, "spec.fine_tune.dataset.name"),
        ({"dataset__sha256": "AB"}, "spec.fine_tune.dataset.sha256"),
        ({"dataset__eval_fraction": 0.6}, "spec.fine_tune.dataset.eval_fraction"),
        ({"dataset__eval_fraction": float("nan")}, "spec.fine_tune.dataset.eval_fraction"),
        ({"lora__rank": 0}, "spec.fine_tune.lora.rank"),
        ({"training__steps": -1}, "spec.fine_tune.training.steps"),
        ({"training__learning_rate": 0.0}, "spec.fine_tune.training.learning_rate"),
        ({"training__learning_rate": float("inf")}, "spec.fine_tune.training.learning_rate"),
        ({"training__steps": 5, "training__warmup_steps": 6}, "spec.fine_tune.training"),
        ({"training__seed": 2**31}, "spec.fine_tune.training.seed"),
        ({"evaluation__sample_prompts": ["ok", "a\x00b"]}, "spec.fine_tune.evaluation.sample_prompts[1]"),
        ({"evaluation__sample_prompts": ["x"] * 9}, "spec.fine_tune.evaluation.sample_prompts"),
        ({"evaluation__sample_prompts": [""]}, "spec.fine_tune.evaluation.sample_prompts[0]"),
        ({"gate__min_gain_standard_errors": 101.0}, "spec.fine_tune.gate.min_gain_standard_errors"),
        ({"resources__accelerators": 4097}, "spec.fine_tune.resources.accelerators"),
        ({"resources__accelerator_kind": "GPU!"}, "spec.fine_tune.resources.accelerator_kind"),
    ],
)
def test_every_broken_limit_is_named_by_its_path(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(RefusedError) as refused:
        convert.spec_from_proto(_changed(**changes))
    assert [violation.path for violation in refused.value.violations] == [path]


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(RefusedError) as refused:
        convert.spec_from_proto(_changed(base_model="", lora__rank=0, training__steps=0))
    assert {violation.path for violation in refused.value.violations} == {
        "spec.fine_tune.base_model",
        "spec.fine_tune.lora.rank",
        "spec.fine_tune.training.steps",
    }


def test_a_spec_without_type_is_refused() -> None:
    with pytest.raises(RefusedError, match="no type"):
        convert.spec_from_proto(job_spec_pb2.JobSpec())
