"""The domain's job specs: what `protos/headway/jobs/v1/job_spec.proto` says, enforced.

A resolved spec is a value: defaults are filled in and its canonical JSON has one SHA-256, which lineage records. The same
models are stored as JSONB, travel through Temporal, and reach the training process as a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias, get_args

from pydantic import BaseModel, Field, TypeAdapter

from control_plane.jobs.specs.evaluation import EvaluationJobSpec, SliceSpec
from control_plane.jobs.specs.fine_tune import (
    DatasetRef,
    EvaluationSpec,
    FineTuneSpec,
    GateSpec,
    LoraSpec,
    ResourceSpec,
    TrainingSpec,
)
from control_plane.jobs.specs.hpo import HpoSpec
from control_plane.jobs.specs.references import DatasetPin, ModelVersionRef, SuiteRef
from control_plane.jobs.specs.retrain import RetrainSpec
from control_plane.jobs.specs.rlhf import RlhfSpec, StageTraining
from control_plane.jobs.specs.values import (
    PATTERN_MEANINGS,
    AcceleratorKind,
    ProjectName,
    ResourceName,
    RuleError,
    Sha256Hex,
    Text,
    shown_key,
)

__all__ = [
    "PATTERN_MEANINGS",
    "SPEC_TYPES",
    "AcceleratorKind",
    "DatasetPin",
    "DatasetRef",
    "EvaluationJobSpec",
    "EvaluationSpec",
    "FineTuneSpec",
    "GateSpec",
    "HpoSpec",
    "JobSpec",
    "LoraSpec",
    "ModelVersionRef",
    "ProjectName",
    "ResourceName",
    "ResourceSpec",
    "RetrainSpec",
    "RlhfSpec",
    "RuleError",
    "Sha256Hex",
    "SliceSpec",
    "StageTraining",
    "SuiteRef",
    "Text",
    "TrainingSpec",
    "canonical_json",
    "canonical_sha256",
    "default_name",
    "shown_key",
    "stored_spec",
]

JobSpec: TypeAlias = FineTuneSpec | HpoSpec | RetrainSpec | RlhfSpec | EvaluationJobSpec
"""What a job is asked to do, told apart by `type`."""

SPEC_TYPES: Mapping[str, type[JobSpec]] = {kind.model_fields["type"].default: kind for kind in get_args(JobSpec)}
"""The model of each job type."""

_STORED: TypeAdapter[JobSpec] = TypeAdapter(Annotated[JobSpec, Field(discriminator="type")])


def stored_spec(content: Mapping[str, Any]) -> JobSpec:
    """The spec in a row of `jobs`. JSON has one kind of number, so 1 may stand for 1.0 there.

    Raises:
        pydantic.ValidationError: it is not a spec.
    """
    return _STORED.validate_python(content, strict=False)


def default_name(spec: JobSpec) -> str:
    """What a job is called that was given no name: its type and the model it is about."""
    return f"{spec.type} {spec.subject}"


def canonical_json(value: BaseModel | Mapping[str, object]) -> bytes:
    """JSON in which equal values are equal bytes, without white space.

    A model's fields come in their order of definition, and its maps sort themselves; a plain mapping's keys are sorted.
    """
    if isinstance(value, BaseModel):
        return value.__pydantic_serializer__.to_json(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def canonical_sha256(value: BaseModel | Mapping[str, object]) -> str:
    """SHA-256 in hex of the canonical JSON of `value`: no order in which things were given can matter."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
