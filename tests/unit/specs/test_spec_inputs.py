"""What specs name that was registered earlier: all of it is found, by path, and pinned."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from pydantic import ValidationError
from spec_cases import SPECS, message

from control_plane.errors import Reason, RefusedError
from control_plane.jobs.resolve import (
    Found,
    InputKind,
    Reference,
    inputs_of,
    locations,
    pinned,
    pinned_json,
    pinned_to,
    references_of,
)
from control_plane.jobs.spec import DatasetRef, FineTuneSpec, JobSpec, canonical_json
from control_plane.jobs.spec_wire import spec_from_proto
from headway.jobs.v1 import job_spec_pb2

PIN = "a" * 64
HASH = "b" * 64
DATASET = Reference(InputKind.DATASET, "rows", PIN)
OPEN_DATASET = Reference(InputKind.DATASET, "rows")
BASE = Reference(InputKind.BASE_MODEL, "base")

NAMED: dict[str, dict[str, Reference]] = {
    "fine_tune": {"spec.fine_tune.base_model": BASE, "spec.fine_tune.dataset": DATASET},
    "hpo": {"spec.hpo.trial.base_model": BASE, "spec.hpo.trial.dataset": DATASET},
    "retrain": {"spec.retrain.fine_tune.base_model": BASE, "spec.retrain.fine_tune.dataset": OPEN_DATASET},
    "rlhf by preference": {
        "spec.rlhf.base_model": BASE,
        "spec.rlhf.warm_up.dataset": DATASET,
        "spec.rlhf.preference.dataset": DATASET,
    },
    "rlhf by policy": {
        "spec.rlhf.base_model": BASE,
        "spec.rlhf.warm_up.dataset": DATASET,
        "spec.rlhf.policy.prompts": Reference(InputKind.DATASET, "prompts", PIN),
        "spec.rlhf.policy.reward_model.train.dataset": DATASET,
    },
    "rlhf by registered reward": {
        "spec.rlhf.base_model": BASE,
        "spec.rlhf.warm_up.dataset": DATASET,
        "spec.rlhf.policy.prompts": Reference(InputKind.DATASET, "prompts", PIN),
        "spec.rlhf.policy.reward_model.version": Reference(InputKind.MODEL_VERSION, "judge", version=3),
    },
    "evaluation of a version": {
        "spec.evaluation.model": Reference(InputKind.MODEL_VERSION, "judge", version=3),
        "spec.evaluation.baseline": Reference(InputKind.MODEL_VERSION, "old", version=1),
        "spec.evaluation.datasets[0]": DATASET,
        "spec.evaluation.datasets[1]": Reference(InputKind.DATASET, "more"),
    },
    "evaluation of a base model": {
        "spec.evaluation.base_model": BASE,
        "spec.evaluation.baseline": Reference(InputKind.MODEL_VERSION, "old", version=1),
        "spec.evaluation.datasets[0]": DATASET,
        "spec.evaluation.datasets[1]": Reference(InputKind.DATASET, "more"),
    },
}


def parsed(content: dict[str, Any]) -> JobSpec:
    return spec_from_proto(json_format.ParseDict(content, job_spec_pb2.JobSpec()))


def everything(spec: JobSpec) -> dict[Reference, Found]:
    return {item.reference: Found(HASH, f"s3://x/{item.reference.name}", 7) for item in inputs_of(spec)}


@pytest.mark.parametrize("name", NAMED)
def test_every_reference_is_found_by_its_path(name: str) -> None:
    assert {item.path: item.reference for item in inputs_of(spec_from_proto(message(name)))} == NAMED[name]


def test_every_whole_spec_is_looked_at() -> None:
    assert set(SPECS) - set(NAMED) == {"rlhf by smoothed preference"}


def test_what_is_open_is_pinned_and_what_is_pinned_stays() -> None:
    spec = parsed({
        "evaluation": {
            "model": {"model": "m", "alias": "prod"},
            "baseline": {"model": "m", "version": 2},
            "datasets": [{"name": "rows"}, {"name": "more", "sha256": PIN}],
        }
    })  # fmt: skip
    done = pinned("p", spec, everything(spec)).model_dump(mode="json")
    assert done["model"] == {"model": "m", "version": 7, "alias": "prod"}
    assert done["baseline"] == {"model": "m", "version": 2, "alias": "dev"}
    assert [dataset["sha256"] for dataset in done["datasets"]] == [HASH, PIN]


def test_a_pinned_spec_names_what_it_was_pinned_to() -> None:
    spec = parsed({"fine_tune": {"base_model": "base", "dataset": {"name": "rows"}, "output_model": "out"}})
    done = pinned("p", spec, everything(spec))
    assert isinstance(done, FineTuneSpec)
    assert done.dataset.sha256 == HASH
    assert {item.reference for item in inputs_of(done)} == {BASE, Reference(InputKind.DATASET, "rows", HASH)}
    assert pinned("p", done, everything(done)) == done


def test_a_retraining_stays_open_to_new_data() -> None:
    spec = spec_from_proto(message("retrain"))
    assert pinned("p", spec, everything(spec)) == spec
    with pytest.raises(RefusedError):
        pinned("p", spec, {})


def test_where_inputs_are() -> None:
    spec = spec_from_proto(message("fine_tune"))
    found = {DATASET: Found(PIN, "s3://d"), BASE: Found(HASH, "s3://b")}
    assert locations(spec, found) == {"dataset_uri": "s3://d", "base_model_uri": "s3://b", "base_model_sha256": HASH}
    evaluation = spec_from_proto(message("evaluation of a base model"))
    places = locations(evaluation, everything(evaluation))
    assert set(places) == set(NAMED["evaluation of a base model"])
    assert places["spec.evaluation.baseline"] == {"uri": "s3://x/old", "sha256": HASH, "version": 7}


@pytest.mark.parametrize(
    ("name", "lacking", "reason", "path"),
    [
        ("fine_tune", DATASET, Reason.DATASET_NOT_FOUND, "spec.fine_tune.dataset.name"),
        ("fine_tune", BASE, Reason.BASE_MODEL_NOT_FOUND, "spec.fine_tune.base_model"),
        ("hpo", DATASET, Reason.DATASET_NOT_FOUND, "spec.hpo.trial.dataset.name"),
        (
            "evaluation of a version",
            Reference(InputKind.MODEL_VERSION, "old", version=1),
            Reason.MODEL_NOT_FOUND,
            "spec.evaluation.baseline.model",
        ),
    ],
)
def test_what_is_missing_is_named(name: str, lacking: Reference, reason: Reason, path: str) -> None:
    spec = spec_from_proto(message(name))
    found = everything(spec)
    del found[lacking]
    with pytest.raises(RefusedError) as refused:
        pinned("red", spec, found)
    assert refused.value.reason is reason
    assert [violation.path for violation in refused.value.violations] == [path]
    assert str(refused.value).startswith(f"{path}: ")
    assert lacking.name in refused.value.metadata.values()


def test_everything_that_is_missing_is_named_at_once() -> None:
    spec = spec_from_proto(message("evaluation of a version"))
    with pytest.raises(RefusedError) as refused:
        pinned("red", spec, {}, "requests[3].spec")
    assert [violation.path for violation in refused.value.violations] == [
        "requests[3].spec.evaluation.model.model",
        "requests[3].spec.evaluation.baseline.model",
        "requests[3].spec.evaluation.datasets[0].name",
        "requests[3].spec.evaluation.datasets[1].name",
    ]
    listed = "; ".join(f"{one.path}: {one.description}" for one in refused.value.violations)
    assert str(refused.value) == f"the spec names what is not there: {listed}"


def test_a_replaced_spec_is_what_pydantics_own_copy_would_be() -> None:
    spec = FineTuneSpec(base_model="base", dataset=DatasetRef(name="data"), output_model="out")
    changes = {"base_model": "other", "dataset": DatasetRef(name="data", sha256="a" * 64)}
    copied, replaced = spec.model_copy(update=changes), spec.replaced(**changes)
    assert replaced == copied
    assert replaced.model_fields_set == copied.model_fields_set
    assert replaced.model_dump_json() == copied.model_dump_json()
    assert spec.base_model == "base"
    with pytest.raises(ValidationError):
        replaced.base_model = "third"  # pyright: ignore[reportAttributeAccessIssue] - that is what must fail


@pytest.mark.parametrize("case", SPECS, ids=str)
def test_the_short_ways_lead_where_the_walk_leads(case: str) -> None:
    spec = spec_from_proto(message(case))
    assert references_of(spec) == tuple(item.reference for item in inputs_of(spec))
    found = {reference: Found(sha256="b" * 64, uri="s3://headway/x", version=3) for reference in references_of(spec)}
    assert pinned_to(spec, found) == pinned("support", spec, found)
    assert pinned_json(spec, canonical_json(spec), found) == canonical_json(pinned("support", spec, found))


def test_a_fine_tuning_is_pinned_as_a_copy_of_it_would_be() -> None:
    spec = FineTuneSpec(base_model="base", dataset=DatasetRef(name="data", split_seed=3), output_model="out")
    found = everything(spec)
    pinned_dataset = spec.dataset.model_copy(update={"sha256": HASH})
    assert pinned_to(spec, found) == spec.model_copy(update={"dataset": pinned_dataset})
    expected = canonical_json(spec.model_copy(update={"dataset": pinned_dataset}))
    assert pinned_json(spec, canonical_json(spec), found) == expected
    already = spec.model_copy(update={"dataset": pinned_dataset})
    assert pinned_json(already, canonical_json(already), everything(already)) == expected
