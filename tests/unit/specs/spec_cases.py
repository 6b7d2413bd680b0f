"""Whole specs of every type, in which every field is set at least once, and ways to change one field of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from control_plane.errors import RefusedError
from control_plane.jobs.spec_wire import spec_from_proto
from headway.jobs.v1.job_spec_pb2 import JobSpec

PIN = "a" * 64
_TRAINING: dict[str, Any] = {
    "steps": 100,
    "micro_batch_size": 8,
    "gradient_accumulation": 2,
    "max_tokens": 512,
    "learning_rate": 0.001,
    "warmup_steps": 3,
    "weight_decay": 0.01,
    "max_grad_norm": 1.5,
    "seed": 4,
    "checkpoint_every_steps": 10,
}
_STAGE = {**_TRAINING, "learning_rate_schedule": "LEARNING_RATE_SCHEDULE_COSINE"}
_DATASET = {"name": "rows", "sha256": PIN, "eval_fraction": 0.25, "split_seed": 3}
_LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
_EVALUATION = {"batch_size": 4, "sample_prompts": ["Hello?", "Who?"], "max_new_tokens": 8}
_GATE = {"min_gain_standard_errors": 1.5}
_RESOURCES = {"accelerators": 2, "accelerator_kind": "h200", "max_run_seconds": 600}
_FINE_TUNE: dict[str, Any] = {
    "base_model": "base",
    "dataset": _DATASET,
    "output_model": "out",
    "lora": _LORA,
    "training": _TRAINING,
    "evaluation": _EVALUATION,
    "gate": _GATE,
    "resources": _RESOURCES,
}
_VERSION = {"model": "judge", "version": 3, "alias": "prod"}
_POLICY: dict[str, Any] = {
    "algorithm": "POLICY_ALGORITHM_RLOO",
    "prompts": {"name": "prompts", "sha256": PIN},
    "reward_model": {"train": {"dataset": _DATASET, "training": _STAGE}, "weight": 2.0},
    "reward_functions": [{"name": "length_penalty", "weight": 0.5}, {"name": "politeness", "weight": 1.5}],
    "kl_coefficient": 0.1,
    "num_generations": 4,
    "num_iterations": 2,
    "clip_range": 0.3,
    "generation": {"max_prompt_tokens": 64, "max_new_tokens": 32, "temperature": 0.7, "top_p": 0.9},
    "training": _STAGE,
}
_RLHF: dict[str, Any] = {
    "base_model": "base",
    "output_model": "out",
    "adaptation": {"method": "ADAPTATION_METHOD_QLORA", "lora": _LORA},
    "warm_up": {"dataset": _DATASET, "training": _STAGE},
    "evaluation": _EVALUATION,
    "gate": _GATE,
    "resources": _RESOURCES,
}
_EVALUATE: dict[str, Any] = {
    "baseline": {"model": "old", "version": 1, "alias": "prod"},
    "suites": [{"name": "safety", "version": 2}, {"name": "short"}],
    "datasets": [{"name": "rows", "sha256": PIN}, {"name": "more"}],
    "slices": [{"name": "german", "field": "language", "equals": "de"}],
    "batch_size": 4,
    "max_tokens": 128,
    "max_new_tokens": 16,
    "max_samples": 100,
    "seed": 9,
    "resources": _RESOURCES,
}

SPECS: dict[str, dict[str, Any]] = {
    "fine_tune": {"fine_tune": _FINE_TUNE},
    "hpo": {
        "hpo": {
            "trial": _FINE_TUNE,
            "search_space": {
                "training.learning_rate": {"real": {"low": 0.0001, "high": 0.01, "log": True}},
                "training.warmup_steps": {"whole": {"low": 0, "high": 50, "step": 5}},
                "lora.rank": {"choices": {"numbers": [4, 8, 16]}},
                "lora.alpha": {"whole": {"low": 4, "high": 64, "log": True}},
            },
            "sampler": "SAMPLER_RANDOM",
            "halving": {"eta": 4, "min_steps": 5},
            "max_trials": 30,
            "max_parallel_trials": 5,
            "objective": {"metric": "safety/refusals", "direction": "DIRECTION_MAXIMIZE"},
            "seed": 5,
            "max_run_seconds": 7200,
            "max_accelerator_seconds": 100_000,
        }
    },
    "retrain": {
        "retrain": {
            "fine_tune": {**_FINE_TUNE, "dataset": {**_DATASET, "sha256": ""}},
            "triggers": {
                "schedule": {"cron": "0 3 * * 1-5"},
                "new_data": {"min_new_rows": 100},
                "drift": {"monitor": "answers", "threshold": 0.2, "windows": 4},
            },
            "min_interval_seconds": 3_600,
            "max_runs_per_period": 7,
            "period_seconds": 604_800,
            "budget": {"max_accelerator_seconds": 10_000, "max_cost_micros": 5_000_000},
            "max_run_seconds": 8_000_000,
            "target_alias": "nightly",
        }
    },
    "rlhf by preference": {
        "rlhf": {
            **_RLHF,
            "preference": {
                "objective": "PREFERENCE_OBJECTIVE_KTO",
                "dataset": _DATASET,
                "beta": 0.2,
                "desirable_weight": 1.2,
                "undesirable_weight": 0.8,
                "training": _STAGE,
            },
        }
    },
    "rlhf by smoothed preference": {
        "rlhf": {**_RLHF, "preference": {"dataset": _DATASET, "label_smoothing": 0.1}},
    },
    "rlhf by policy": {"rlhf": {**_RLHF, "policy": _POLICY}},
    "rlhf by registered reward": {
        "rlhf": {**_RLHF, "policy": {**_POLICY, "reward_model": {"version": _VERSION, "weight": 2.0}}},
    },
    "evaluation of a version": {"evaluation": {**_EVALUATE, "model": _VERSION}},
    "evaluation of a base model": {"evaluation": {**_EVALUATE, "base_model": "base"}},
}


def message(name: str) -> JobSpec:
    """One of the whole specs, for the wire."""
    return json_format.ParseDict(SPECS[name], JobSpec())


@dataclass(frozen=True)
class Leaf:
    """One scalar of a message, by the way to it."""

    path: str
    field: FieldDescriptor
    steps: tuple[Any, ...]
    """Field names, indexes and keys, from the message down."""

    def set(self, root: Message, value: Any) -> None:
        """Gives it another value."""
        target: Any = root
        for step in self.steps[:-1]:
            target = target[step] if isinstance(step, int) or not hasattr(target, "DESCRIPTOR") else getattr(target, step)
        last = self.steps[-1]
        if isinstance(last, int):
            target[last] = value
        else:
            setattr(target, last, value)


def leaves(root: Message, path: str = "spec", steps: tuple[Any, ...] = ()) -> Iterator[Leaf]:
    """Every scalar that is set in a message."""
    for field, value in root.ListFields():
        here, way = f"{path}.{field.name}", (*steps, field.name)
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            for key in sorted(value):
                yield from leaves(value[key], f'{here}["{key}"]', (*way, key))
        elif field.is_repeated:
            for index, item in enumerate(value):
                if entry is None:
                    yield Leaf(f"{here}[{index}]", field, (*way, index))
                else:
                    yield from leaves(item, f"{here}[{index}]", (*way, index))
        elif entry is not None:
            yield from leaves(value, here, way)
        else:
            yield Leaf(here, field, way)


def refusal(spec: JobSpec) -> dict[str, str]:
    """What is said of a spec that must be refused, by field path."""
    try:
        spec_from_proto(spec)
    except RefusedError as refused:
        return {violation.path: violation.description for violation in refused.violations}
    raise AssertionError(f"accepted: {spec}")
