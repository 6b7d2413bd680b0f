"""Rules over several fields, each by the path of the field at fault; and what the defaults are."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from google.protobuf import json_format
from spec_cases import SPECS, refusal

from control_plane.jobs.spec import FineTuneSpec, HpoSpec
from control_plane.jobs.spec_wire import spec_from_proto
from control_plane.jobs.specs import cron
from control_plane.jobs.specs.hpo import grid_size
from headway.jobs.v1.job_spec_pb2 import FineTuneSpec as FineTuneMessage
from headway.jobs.v1.job_spec_pb2 import HpoSpec as HpoMessage
from headway.jobs.v1.job_spec_pb2 import JobSpec
from headway.jobs.v1.job_spec_pb2 import RetrainSpec as RetrainMessage

GONE = object()

# Which whole spec, what is changed in it by path, the path at fault, and how the words begin.
BROKEN: list[tuple[str, dict[str, Any], str, str]] = [
    ("fine_tune", {"training.warmup_steps": 101}, "training.warmup_steps", "is 101; expected at most steps, which is 100"),
    (
        "fine_tune",
        {"training.auto": ["max_tokens", "max_tokens"], "training.max_tokens": GONE},
        "training.auto",
        "names a field for the second time",
    ),
    ("fine_tune", {"training.auto": ["steps"]}, "training.auto[0]", "is 'steps'; input should be"),
    ("hpo", {"max_parallel_trials": 31}, "max_parallel_trials", "is 31; expected at most max_trials, which is 30"),
    ("hpo", {"halving.min_steps": 101}, "halving.min_steps", "is 101; expected at most trial.training.steps, which is 100"),
    ("hpo", {"search_space": {}}, "search_space", "is missing"),
    ("hpo", {"search_space": {"lora.rank": {}}}, 'search_space["lora.rank"]', "is incomplete; expected exactly one of real"),
    (
        "hpo",
        {"search_space": {"dataset.name": {"choices": {"numbers": [1]}}}},
        'search_space["dataset.name"]',
        "cannot be searched",
    ),
    (
        "hpo",
        {"search_space": {"lora.rank": {"whole": {"low": 8, "high": 8}}}},
        'search_space["lora.rank"].whole.high',
        "is 8; expected more than low, which is 8",
    ),
    (
        "hpo",
        {"search_space": {"lora.rank": {"whole": {"low": 8, "high": 512}}}},
        'search_space["lora.rank"].whole.high',
        "is 512; expected at most 256, as lora.rank demands",
    ),
    (
        "hpo",
        {"search_space": {"lora.rank": {"choices": {"numbers": [4, 8.5]}}}},
        'search_space["lora.rank"].choices.numbers[1]',
        "is 8.5; expected a whole number, as lora.rank demands",
    ),
    (
        "hpo",
        {"search_space": {"lora.rank": {"choices": {"numbers": [4, 8, 4]}}}},
        'search_space["lora.rank"].choices.numbers[2]',
        "is 4.0 for the second time",
    ),
    (
        "hpo",
        {"search_space": {"lora.rank": {"real": {"low": 1, "high": 8}}}},
        'search_space["lora.rank"].real',
        "is of real numbers; expected whole or choices",
    ),
    (
        "hpo",
        {"search_space": {"training.learning_rate": {"real": {"low": 0, "high": 0.1, "log": True}}}},
        'search_space["training.learning_rate"].real.low',
        "is 0.0; expected more than 0, or log left out",
    ),
    (
        "hpo",
        {"search_space": {"training.learning_rate": {"real": {"low": 0, "high": 0.1}}}},
        'search_space["training.learning_rate"].real.low',
        "is 0; expected more than 0",
    ),
    (
        "hpo",
        {"search_space": {"training.warmup_steps": {"whole": {"low": 0, "high": 101}}}},
        'search_space["training.warmup_steps"].whole.high',
        "is 101; expected at most trial.training.steps, which is 100",
    ),
    (
        "hpo",
        {"search_space": {"lora.rank": {"whole": {"low": 1, "high": 8, "step": 2, "log": True}}}},
        'search_space["lora.rank"].whole.step',
        "is 2; expected 1, or log left out",
    ),
    (
        "hpo",
        {"sampler": "SAMPLER_GRID", "search_space": {"lora.dropout": {"real": {"low": 0, "high": 0.1}}}},
        'search_space["lora.dropout"].real',
        "has no end of numbers; expected whole or choices for a grid",
    ),
    (
        "hpo",
        {"trial.training.auto": ["learning_rate"], "trial.training.learning_rate": GONE},
        'search_space["training.learning_rate"]',
        "is chosen by the platform (trial.training.auto)",
    ),
    (
        "hpo",
        {
            "max_accelerator_seconds": 0,
            "trial.resources": {"accelerators": 4096, "max_run_seconds": 2_592_000},
            "max_trials": 100,
        },
        "max_trials",
        "is 100: together the trials may use 2,123,366,400,000 accelerator-seconds",
    ),
    ("retrain", {"triggers": {}}, "triggers", "has no trigger; expected schedule, new_data or drift"),
    ("retrain", {"budget": {}}, "budget", "limits nothing"),
    ("retrain", {"budget": GONE}, "budget", "is missing"),
    ("retrain", {"fine_tune.dataset.sha256": "a" * 64}, "fine_tune.dataset.sha256", "pins bytes that never grow"),
    ("retrain", {"triggers.schedule.cron": "0 3 * *  1"}, "triggers.schedule.cron", "is '0 3 * *  1', which has 6 fields"),
    (
        "retrain",
        {"triggers.schedule.cron": "60 3 * * *"},
        "triggers.schedule.cron",
        "has '60' as minute; expected values from 0 to 59",
    ),
    (
        "retrain",
        {"triggers.schedule.cron": "0 0 31 2,4 *"},
        "triggers.schedule.cron",
        "is '0 0 31 2,4 *', which never comes to pass",
    ),
    ("rlhf by policy", {"policy": GONE}, "", "is incomplete; expected exactly one of preference, policy"),
    (
        "rlhf by policy",
        {"policy.reward_model": {}},
        "policy.reward_model",
        "is incomplete; expected exactly one of train, version",
    ),
    (
        "rlhf by policy",
        {"policy.reward_model": GONE, "policy.reward_functions": GONE},
        "policy",
        "has nothing that gives rewards; expected reward_model or reward_functions",
    ),
    (
        "rlhf by policy",
        {"policy.reward_functions": [{"name": "same"}, {"name": "same"}]},
        "policy.reward_functions[1]",
        "is 'same' for the second time",
    ),
    (
        "rlhf by policy",
        {"policy.num_generations": 1},
        "policy.num_generations",
        "is 1; expected at least 2, since RLOO compares",
    ),
    (
        "rlhf by policy",
        {"policy.num_generations": 3},
        "policy.num_generations",
        "is 3; expected a divisor of training.micro_batch_size times training.gradient_accumulation, which is 16",
    ),
    ("rlhf by policy", {"policy.training.warmup_steps": 101}, "policy.training.warmup_steps", "is 101; expected at most steps"),
    ("rlhf by preference", {"preference.label_smoothing": 0.1}, "preference.label_smoothing", "is 0.1; expected 0, since KTO"),
    (
        "rlhf by preference",
        {"preference.objective": "PREFERENCE_OBJECTIVE_DPO"},
        "preference.desirable_weight",
        "is 1.2; expected 1, since DPO",
    ),
    ("evaluation of a base model", {"base_model": GONE}, "", "is incomplete; expected exactly one of base_model, model"),
    ("evaluation of a base model", {"suites": GONE, "datasets": GONE, "slices": GONE}, "", "has nothing to evaluate on"),
    ("evaluation of a base model", {"datasets": GONE}, "slices", "are parts of datasets, of which there are none"),
    ("evaluation of a base model", {"suites": [{"name": "a"}, {"name": "a"}]}, "suites[1]", "is 'a' for the second time"),
    ("evaluation of a base model", {"datasets": [{"name": "a"}, {"name": "a"}]}, "datasets[1]", "is 'a' for the second time"),
]


def changed(name: str, changes: dict[str, Any]) -> tuple[str, JobSpec]:
    """A whole spec with other values at some paths; its type, and it."""
    # Written out, so that what two fields share is changed in one of them.
    content = json.loads(json.dumps(SPECS[name]))
    (kind,) = content
    for path, value in changes.items():
        *above, last = path.split(".")
        target = content[kind]
        for step in above:
            target = target[step]
        if value is GONE:
            del target[last]
        else:
            target[last] = value
    return kind, json_format.ParseDict(content, JobSpec())


@pytest.mark.parametrize(
    ("name", "changes", "path", "words"), BROKEN, ids=[f"{name}: {path} {words[:30]}" for name, _, path, words in BROKEN]
)
def test_every_rule_names_the_field_at_fault(name: str, changes: dict[str, Any], path: str, words: str) -> None:
    kind, spec = changed(name, changes)
    told = refusal(spec)
    where = f"spec.{kind}.{path}" if path else f"spec.{kind}"
    assert list(told) == [where]
    assert told[where].startswith(words)


def test_all_faults_are_reported_at_once() -> None:
    _, spec = changed("hpo", {"trial.base_model": "", "trial.lora.rank": 0, "max_trials": 0, "halving.eta": 1})
    assert set(refusal(spec)) == {
        "spec.hpo.trial.base_model",
        "spec.hpo.trial.lora.rank",
        "spec.hpo.max_trials",
        "spec.hpo.halving.eta",
    }


def test_what_is_required_and_missing_is_named() -> None:
    assert set(refusal(JobSpec(fine_tune=FineTuneMessage()))) == {
        f"spec.fine_tune.{name}" for name in ("base_model", "dataset", "output_model")
    }
    assert set(refusal(JobSpec(retrain=RetrainMessage()))) == {
        f"spec.retrain.{name}" for name in ("fine_tune", "triggers", "budget")
    }
    assert set(refusal(JobSpec(hpo=HpoMessage()))) == {"spec.hpo.trial", "spec.hpo.search_space"}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_defaults_never_make_a_short_job_illegal(steps: int) -> None:
    content = {"base_model": "b", "dataset": {"name": "d"}, "output_model": "o", "training": {"steps": steps}}
    spec = spec_from_proto(json_format.ParseDict({"fine_tune": content}, JobSpec()))
    assert isinstance(spec, FineTuneSpec)
    assert spec.training.warmup_steps == min(2, steps)
    search = {"trial": content, "search_space": {"lora.rank": {"choices": {"numbers": [4]}}}, "max_trials": steps}
    hpo = spec_from_proto(json_format.ParseDict({"hpo": search}, JobSpec()))
    assert isinstance(hpo, HpoSpec)
    assert hpo.max_parallel_trials == steps


def test_a_grid_has_so_many_points() -> None:
    space = {"lora.rank": {"choices": {"numbers": [4, 8]}}, "training.seed": {"whole": {"low": 0, "high": 10, "step": 5}}}
    _, spec = changed("hpo", {"sampler": "SAMPLER_GRID", "search_space": space})
    hpo = spec_from_proto(spec)
    assert isinstance(hpo, HpoSpec)
    assert grid_size(hpo) == 2 * 3


def test_the_reward_registry_takes_names_and_no_paths() -> None:
    for name in ("os.system", "trl.rewards.think", "a-b", "_x", "Length", "builtins:eval", "1st"):
        _, spec = changed("rlhf by policy", {"policy.reward_functions": [{"name": name}]})
        assert list(refusal(spec)) == ["spec.rlhf.policy.reward_functions[0].name"]


CRON = {
    "* * * * *": (60, 24, 31, 12, 7),
    "*/15 0-6 * * *": (4, 7, 31, 12, 7),
    "0 3 * * 1-5": (1, 1, 31, 12, 5),
    "5,10,5 0 1-7/2 */3 0,7": (2, 1, 4, 4, 1),
    "30/10 0 29 2 *": (3, 1, 1, 1, 7),
}


@pytest.mark.parametrize(("expression", "sizes"), CRON.items(), ids=CRON)
def test_cron_expressions(expression: str, sizes: tuple[int, ...]) -> None:
    read = cron.parse(expression)
    assert tuple(map(len, (read.minutes, read.hours, read.days, read.months, read.weekdays))) == sizes
    assert math.prod(sizes) > 0


@pytest.mark.parametrize(
    "expression",
    ["* * * *", "* * * * * *", "a * * * *", "-1 * * * *", "5-1 * * * *", "*/0 * * * *", "1, * * * *", "* 24 * * *", "* * 0 * *",
     "* * * 13 *", "* * * * 8", "@daily", "1-2-3 * * * *", "", "0 0 30 2 *", "٣ * * * *"],
)  # fmt: skip
def test_what_is_no_cron_expression(expression: str) -> None:
    with pytest.raises(ValueError, match=r"expected|never comes to pass"):
        cron.parse(expression)


def test_a_weekday_makes_an_impossible_day_possible() -> None:
    assert cron.parse("0 0 31 2 1").weekdays == {1}
