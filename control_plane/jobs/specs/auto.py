"""What "auto" becomes: the values that the platform chooses when a spec asks it to.

A function of the spec alone, so that the same request always gives the same job. docs/reference/job-spec.md tells the rules in
words. They run once, when a job is submitted; what they chose is stored, and later rules change no job that is there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from control_plane.jobs.specs.fine_tune import AutoField, TrainingSpec
from control_plane.jobs.specs.rlhf import PolicyStage, StageTraining

AUTO_FIELDS: frozenset[str] = frozenset(get_args(AutoField))

BATCH_SEQUENCES = 16
"""Sequences in one optimizer step."""
PASS_TOKENS = 16_384
"""Most tokens in one forward and backward pass."""
LENGTH_TOKENS = 1_024
"""Longest sequence, unless a large micro-batch leaves less room."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What the rules need to know of the training beyond its own fields."""

    training: type[TrainingSpec]
    """Whose defaults hold for what is not given."""
    learning_rate: float
    """Peak learning rate at a batch of `BATCH_SEQUENCES` sequences."""
    batch_multiple: int = 1
    """The sequences of one optimizer step are a multiple of this."""


_SUPERVISED = 2e-4
"""For adapters. QLoRA's own (Dettmers et al. 2023, arXiv:2305.14314)."""
_REWARD = 1e-4
_ALIGNMENT = 1e-5
_FULL_SHARE = 0.1
"""Of the adapters' rate, when every weight is trained."""


_FINE_TUNE = Profile(TrainingSpec, _SUPERVISED)
_FINE_TUNES: Mapping[str, tuple[str, ...]] = {
    "fine_tune": ("training",),
    "hpo": ("trial", "training"),
    "retrain": ("fine_tune", "training"),
}
"""Where the one training of these types of job is."""


def trainings(job_type: str, fields: Mapping[str, Any]) -> list[tuple[tuple[str, ...], dict[str, Any], Profile]]:
    """Every training in the fields of a spec that asks for a choice: its way below the spec, its own fields, and its profile.

    The fields need not be valid; what does not look like a training is left to validation.
    """
    if (way := _FINE_TUNES.get(job_type)) is not None:
        places = [(way, _FINE_TUNE)]
    elif job_type == "rlhf":
        places = _stages(fields)
    else:
        places = []
    found = ((way, _get(fields, way), profile) for way, profile in places)
    return [(way, training, profile) for way, training, profile in found if isinstance(training, dict) and "auto" in training]


def _stages(fields: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Profile]]:
    share = _FULL_SHARE if _get(fields, ("adaptation", "method")) == "full" else 1.0
    generations = _get(fields, ("policy", "num_generations"))
    multiple = generations if isinstance(generations, int) else PolicyStage.model_fields["num_generations"].default
    return [
        (("warm_up", "training"), Profile(StageTraining, _SUPERVISED * share)),
        (("preference", "training"), Profile(StageTraining, _ALIGNMENT * share)),
        (("policy", "reward_model", "train", "training"), Profile(StageTraining, _REWARD * share)),
        (("policy", "training"), Profile(StageTraining, _ALIGNMENT * share, max(1, min(64, multiple)))),
    ]


def _get(fields: Mapping[str, Any], way: tuple[str, ...]) -> Any:
    value: Any = fields
    for name in way:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def chosen(training: Mapping[str, Any], profile: Profile) -> dict[str, int | float]:
    """The values for the fields that `training` names in `auto`.

    What is given keeps its value, what is neither given nor named its default; both are taken to be legal, since validation
    says so if they are not. Every value chosen is within its field's limits.
    """
    wanted = AUTO_FIELDS.intersection(training.get("auto", ()))

    def known(name: str) -> int:
        return max(1, int(training.get(name, profile.training.model_fields[name].default)))

    result: dict[str, int | float] = {}
    if "max_tokens" in wanted:
        room = PASS_TOKENS if "micro_batch_size" in wanted else PASS_TOKENS // min(known("micro_batch_size"), 1_024)
        result["max_tokens"] = min(LENGTH_TOKENS, room // 8 * 8)
    max_tokens = int(result.get("max_tokens") or known("max_tokens"))
    if "micro_batch_size" in wanted:
        fitting = max(1, min(BATCH_SEQUENCES, PASS_TOKENS // max_tokens))
        # The largest power of two that fits.
        result["micro_batch_size"] = 1 << (fitting.bit_length() - 1)
    micro_batch = int(result.get("micro_batch_size") or known("micro_batch_size"))
    if "gradient_accumulation" in wanted:
        # The fewest passes with which the step has enough sequences, and a multiple of what it must.
        passes = max(1, math.ceil(BATCH_SEQUENCES / micro_batch))
        whole = profile.batch_multiple // math.gcd(profile.batch_multiple, micro_batch)
        result["gradient_accumulation"] = math.ceil(passes / whole) * whole
    batch = micro_batch * int(result.get("gradient_accumulation") or known("gradient_accumulation"))
    if "learning_rate" in wanted:
        # With Adam the rate grows as the square root of the batch (Malladi et al. 2022, arXiv:2205.10287).
        factor = min(10.0, max(0.1, math.sqrt(batch / BATCH_SEQUENCES)))
        result["learning_rate"] = float(f"{profile.learning_rate * factor:.1e}")
    steps = min(known("steps"), 1_000_000)
    if "warmup_steps" in wanted:
        result["warmup_steps"] = min(1_000, math.ceil(steps * 3 / 100))
    if "checkpoint_every_steps" in wanted:
        result["checkpoint_every_steps"] = min(500, math.ceil(steps / 10))
    return result
