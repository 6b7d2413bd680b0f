"""What "auto" becomes, that it is shown, and that nothing that was asked for is overruled in silence."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_cases import refusal

from control_plane.jobs.spec import FineTuneSpec, RlhfSpec, TrainingSpec
from control_plane.jobs.spec_wire import forget_chosen, spec_from_proto, spec_to_proto
from control_plane.jobs.specs.auto import AUTO_FIELDS, Profile, chosen
from control_plane.jobs.specs.rlhf import StageTraining
from headway.jobs.v1.job_spec_pb2 import JobSpec


def fine_tune(**training: Any) -> JobSpec:
    fields = {"base_model": "base", "dataset": {"name": "data"}, "output_model": "out", "training": training}
    return json_format.ParseDict({"fine_tune": fields}, JobSpec())


def resolved(spec: JobSpec) -> TrainingSpec:
    read = spec_from_proto(spec)
    assert isinstance(read, FineTuneSpec)
    return read.training


# Given beside `auto`, and what is chosen. The same table is in docs/reference/job-spec.md.
CHOICES: list[tuple[dict[str, Any], dict[str, int | float]]] = [
    ({"auto": ["max_tokens"]}, {"max_tokens": 1_024}),
    ({"auto": ["max_tokens"], "micro_batch_size": 64}, {"max_tokens": 256}),
    ({"auto": ["max_tokens"], "micro_batch_size": 1_024}, {"max_tokens": 16}),
    ({"auto": ["micro_batch_size"]}, {"micro_batch_size": 16}),
    ({"auto": ["micro_batch_size"], "max_tokens": 3_000}, {"micro_batch_size": 4}),
    ({"auto": ["micro_batch_size"], "max_tokens": 131_072}, {"micro_batch_size": 1}),
    ({"auto": ["max_tokens", "micro_batch_size"]}, {"max_tokens": 1_024, "micro_batch_size": 16}),
    ({"auto": ["gradient_accumulation"]}, {"gradient_accumulation": 2}),
    ({"auto": ["gradient_accumulation"], "micro_batch_size": 5}, {"gradient_accumulation": 4}),
    ({"auto": ["gradient_accumulation"], "micro_batch_size": 32}, {"gradient_accumulation": 1}),
    ({"auto": ["learning_rate"]}, {"learning_rate": 0.00014}),
    ({"auto": ["learning_rate", "gradient_accumulation"]}, {"learning_rate": 0.0002, "gradient_accumulation": 2}),
    ({"auto": ["learning_rate"], "micro_batch_size": 1_024, "gradient_accumulation": 1_024}, {"learning_rate": 0.002}),
    ({"auto": ["learning_rate"], "micro_batch_size": 1}, {"learning_rate": 0.00005}),
    ({"auto": ["warmup_steps"], "steps": 1}, {"warmup_steps": 1}),
    ({"auto": ["warmup_steps"], "steps": 101}, {"warmup_steps": 4}),
    ({"auto": ["warmup_steps"], "steps": 1_000_000}, {"warmup_steps": 1_000}),
    ({"auto": ["checkpoint_every_steps"], "steps": 5}, {"checkpoint_every_steps": 1}),
    ({"auto": ["checkpoint_every_steps"], "steps": 95}, {"checkpoint_every_steps": 10}),
    ({"auto": ["checkpoint_every_steps"], "steps": 1_000_000}, {"checkpoint_every_steps": 500}),
]


@pytest.mark.parametrize(("given_fields", "expected"), CHOICES)
def test_what_is_chosen(given_fields: dict[str, Any], expected: dict[str, int | float]) -> None:
    training = resolved(fine_tune(**given_fields))
    assert {name: getattr(training, name) for name in expected} == expected
    # What was chosen is on record, and what was given is as it was.
    assert training.auto == tuple(sorted(given_fields["auto"]))
    assert all(getattr(training, name) == value for name, value in given_fields.items() if name != "auto")


def test_the_echo_shows_what_was_chosen_and_is_accepted_as_it_is() -> None:
    spec = spec_from_proto(fine_tune(auto=["learning_rate", "warmup_steps"], steps=200))
    echoed = spec_to_proto(spec.model_dump(mode="json"))
    assert list(echoed.fine_tune.training.auto) == ["learning_rate", "warmup_steps"]
    assert echoed.fine_tune.training.warmup_steps == 6
    assert spec_from_proto(echoed) == spec


def test_a_value_that_is_not_the_chosen_one_is_refused_and_not_overruled() -> None:
    told = refusal(fine_tune(auto=["learning_rate"], learning_rate=0.5))
    assert told == {
        "spec.fine_tune.training.learning_rate": "is 0.5 and named in auto, which chooses 0.00014; expected one of the two: "
        "leave it out, or remove its name from auto"
    }


def test_a_changed_copy_is_chosen_for_anew() -> None:
    echoed = spec_to_proto(spec_from_proto(fine_tune(auto=["warmup_steps"], steps=200, seed=3)).model_dump(mode="json"))
    echoed.fine_tune.training.steps = 1_000
    assert "spec.fine_tune.training.warmup_steps" in refusal(echoed)
    forget_chosen(echoed)
    training = resolved(echoed)
    assert (training.warmup_steps, training.seed, training.auto) == (30, 3, ("warmup_steps",))


def rlhf(method: str, **policy: Any) -> RlhfSpec:
    auto = {"auto": ["learning_rate", "gradient_accumulation"]}
    stage = {"dataset": {"name": "pairs"}, "training": auto}
    fields = {
        "base_model": "base",
        "output_model": "out",
        "adaptation": {"method": method},
        "warm_up": stage,
        "policy": {"prompts": {"name": "p"}, "reward_model": {"train": stage}, "training": auto, **policy},
    }
    read = spec_from_proto(json_format.ParseDict({"rlhf": fields}, JobSpec()))
    assert isinstance(read, RlhfSpec)
    return read


@pytest.mark.parametrize(
    ("method", "rates"),
    [("ADAPTATION_METHOD_LORA", (2e-4, 1e-4, 1e-5)), ("ADAPTATION_METHOD_FULL", (2e-5, 1e-5, 1e-6))],
)
def test_each_stage_has_its_own_rate(method: str, rates: tuple[float, float, float]) -> None:
    spec = rlhf(method)
    assert spec.warm_up is not None
    assert spec.policy is not None
    assert spec.policy.reward_model is not None
    assert spec.policy.reward_model.train is not None
    stages = (spec.warm_up.training, spec.policy.reward_model.train.training, spec.policy.training)
    assert tuple(stage.learning_rate for stage in stages) == rates


@pytest.mark.parametrize("generations", range(2, 65))
def test_a_policys_batch_holds_whole_groups_of_answers(generations: int) -> None:
    spec = rlhf("ADAPTATION_METHOD_LORA", num_generations=generations)
    assert spec.policy is not None
    training = spec.policy.training
    sequences = training.micro_batch_size * training.gradient_accumulation
    assert sequences % generations == 0
    assert 16 <= sequences < 16 + training.micro_batch_size * generations


@settings(max_examples=300, deadline=None)
@given(
    st.sets(st.sampled_from(sorted(AUTO_FIELDS)), min_size=1),
    st.sampled_from((TrainingSpec, StageTraining)),
    st.integers(1, 64),
    st.fixed_dictionaries(
        {},
        optional={
            "steps": st.integers(1, 1_000_000),
            "micro_batch_size": st.integers(1, 1_024),
            "gradient_accumulation": st.integers(1, 1_024),
            "max_tokens": st.integers(8, 131_072),
        },
    ),
)
def test_whatever_is_chosen_is_legal_and_chosen_again(
    names: set[str], kind: type[TrainingSpec], multiple: int, others: dict[str, int]
) -> None:
    fields = {name: value for name, value in others.items() if name not in names} | {"auto": sorted(names)}
    profile = Profile(kind, 2e-4, multiple)
    values = chosen(fields, profile)
    assert set(values) == names
    if "warmup_steps" not in names:
        fields["warmup_steps"] = 0
    whole = kind.model_validate({**fields, **values})
    assert all(getattr(whole, name) == value for name, value in values.items())
    assert chosen(whole.model_dump(), profile) == values


@pytest.mark.parametrize("field", ["steps", "micro_batch_size", "gradient_accumulation", "max_tokens"])
@pytest.mark.parametrize("value", [0, -1, -(2**31), 2**31 - 1])
def test_illegal_neighbours_are_refused_as_such(field: str, value: int) -> None:
    others = AUTO_FIELDS - {field}
    assert f"spec.fine_tune.training.{field}" in refusal(fine_tune(auto=sorted(others), **{field: value}))
