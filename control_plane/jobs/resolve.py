"""What a spec names that was registered earlier, as data.

So that whoever submits many jobs looks each distinct reference up once: collect `inputs_of` every spec, look the references up
together, then pin each spec to what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple, TypeAlias, TypeVar, get_args

from control_plane.errors import FieldViolation, Reason, RefusedError
from control_plane.jobs.spec import (
    DatasetPin,
    DatasetRef,
    FineTuneSpec,
    HpoSpec,
    JobSpec,
    ModelVersionRef,
    ResourceSpec,
    RetrainSpec,
    canonical_json,
)
from control_plane.jobs.specs.values import SpecModel

_S = TypeVar("_S", bound=SpecModel)


class InputKind(StrEnum):
    """What can be named."""

    DATASET = "DATASET"
    BASE_MODEL = "BASE_MODEL"
    MODEL_VERSION = "MODEL_VERSION"


# Tuples, since they are made and hashed for every job of a batch.
class Reference(NamedTuple):
    """Something registered earlier, as a spec names it. Equal references mean the same thing within a project."""

    kind: InputKind
    name: str
    sha256: str = ""
    """Of a dataset: its hash; empty for what the name means now."""
    version: int = 0
    """Of a model: its version; 0 for the one that the alias points to now."""
    alias: str = ""
    """Of a model whose version is 0."""


class Input(NamedTuple):
    """A reference and where it stands."""

    path: str
    """Of the message, or the field, that holds it: "spec.fine_tune.dataset"."""
    reference: Reference


@dataclass(frozen=True, slots=True)
class Found:
    """What a reference means now."""

    sha256: str
    """Of a dataset or base model: of its bytes; of a model version: of its manifest."""
    uri: str
    version: int = 0
    """Of a model."""


def inputs_of(spec: JobSpec, path: str = "spec") -> tuple[Input, ...]:
    """Everything the spec names, in the order of its fields.

    Args:
        spec: the spec.
        path: where it stands in the request.
    """
    return tuple(_inputs(spec, f"{path}.{spec.type}"))


def references_of(spec: JobSpec) -> tuple[Reference, ...]:
    """The references of `inputs_of`, without their places."""
    # Most jobs of a batch are of this type, and the walk over its fields would be a tenth of what it costs to submit one.
    if type(spec) is FineTuneSpec:
        dataset = spec.dataset
        return (
            Reference(InputKind.BASE_MODEL, spec.base_model),
            Reference(InputKind.DATASET, dataset.name, dataset.sha256),
        )
    return tuple(item.reference for item in inputs_of(spec))


def resources_of(spec: JobSpec, path: str = "spec") -> tuple[str, ResourceSpec]:
    """Where the spec says what each of its leases holds, and what it says.

    Args:
        spec: the spec.
        path: where it stands in the request.
    """
    match spec:
        case HpoSpec():
            return f"{path}.{spec.type}.trial.resources", spec.trial.resources
        case RetrainSpec():
            return f"{path}.{spec.type}.fine_tune.resources", spec.fine_tune.resources
        case _:
            return f"{path}.{spec.type}.resources", spec.resources


def pinned(project: str, spec: JobSpec, found: Mapping[Reference, Found], path: str = "spec") -> JobSpec:
    """The spec with its datasets pinned to hashes and its models to versions.

    What a retraining runs on stays open: each of its runs takes what the name means then.

    Args:
        project: whose names they are.
        spec: the spec.
        found: what its references mean; what is missing here does not exist.
        path: where the spec stands in the request.

    Raises:
        RefusedError: with every reference that was not found; its reason is the first one's.
    """
    missing = [item for item in inputs_of(spec, path) if item.reference not in found]
    if missing:
        raise _not_found(project, missing)
    return pinned_to(spec, found)


def pinned_json(spec: JobSpec, content: bytes, found: Mapping[Reference, Found]) -> bytes:
    """The canonical JSON of a spec, pinned; all of its references are known to have been found.

    Args:
        spec: the spec.
        content: its own canonical JSON.
        found: what its references mean.
    """
    # Most jobs of a batch are of this type, and to copy and serialise each once more is a sixth of what it costs to submit one.
    # The first empty hash is the dataset's: what stands before it are names, whose pattern knows no quotation mark.
    if type(spec) is FineTuneSpec:
        dataset = spec.dataset
        if dataset.sha256:
            return content
        pin = found[Reference(InputKind.DATASET, dataset.name)].sha256.encode()
        return content.replace(b'"sha256":""', b'"sha256":"' + pin + b'"', 1)
    return canonical_json(pinned_to(spec, found))


def pinned_to(spec: JobSpec, found: Mapping[Reference, Found]) -> JobSpec:
    """As `pinned`, for a spec all of whose references are known to have been found."""
    return spec if isinstance(spec, RetrainSpec) else _pinned(spec, found)


def locations(spec: JobSpec, found: Mapping[Reference, Found]) -> dict[str, Any]:
    """Where the inputs of a spec are, as `jobs.inputs` holds them: what its workflow needs beyond the spec.

    Args:
        spec: the spec as it was before it was pinned, by whose references things were found.
        found: what its references mean.
    """
    if isinstance(spec, FineTuneSpec):
        dataset = found[Reference(InputKind.DATASET, spec.dataset.name, spec.dataset.sha256)]
        base_model = found[Reference(InputKind.BASE_MODEL, spec.base_model)]
        return {"dataset_uri": dataset.uri, "base_model_uri": base_model.uri, "base_model_sha256": base_model.sha256}
    found_at = {item.path: found[item.reference] for item in inputs_of(spec)}
    return {path: {"uri": at.uri, "sha256": at.sha256, "version": at.version} for path, at in found_at.items()}


def _inputs(spec: SpecModel, path: str) -> Iterator[Input]:
    for name in _carriers(type(spec)):
        for where, value in _each(getattr(spec, name), f"{path}.{name}"):
            if (reference := _reference(name, value)) is not None:
                yield Input(where, reference)
            elif isinstance(value, SpecModel):
                yield from _inputs(value, where)


def _each(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple):
        yield from ((f"{path}[{index}]", item) for index, item in enumerate(value))
    elif value is not None:
        yield path, value


def _reference(field: str, value: Any) -> Reference | None:
    match value:
        case DatasetRef() | DatasetPin():
            return Reference(InputKind.DATASET, value.name, value.sha256)
        case ModelVersionRef():
            return Reference(InputKind.MODEL_VERSION, value.model, "", value.version, "" if value.version else value.alias)
        case str() if field == "base_model":
            return Reference(InputKind.BASE_MODEL, value)
        case _:
            return None


def _pinned(spec: _S, found: Mapping[Reference, Found]) -> _S:
    changes: dict[str, Any] = {}
    for name in _carriers(type(spec)):
        value = getattr(spec, name)
        if isinstance(value, tuple):
            new: Any = tuple(_pinned_value(item, found) for item in value)
        else:
            new = _pinned_value(value, found)
        if new is not value:
            changes[name] = new
    return spec.replaced(**changes) if changes else spec


def _pinned_value(value: Any, found: Mapping[Reference, Found]) -> Any:
    match value:
        case DatasetRef() | DatasetPin() if not value.sha256:
            return value.replaced(sha256=found[Reference(InputKind.DATASET, value.name)].sha256)
        case ModelVersionRef() if not value.version:
            reference = Reference(InputKind.MODEL_VERSION, value.model, alias=value.alias)
            return value.replaced(version=found[reference].version)
        case SpecModel():
            return _pinned(value, found)
        case _:
            return value


@cache
def _carriers(model: type[SpecModel]) -> tuple[str, ...]:
    """The fields of a model in which references are."""
    if model in (DatasetRef, DatasetPin, ModelVersionRef):
        return ()
    return tuple(name for name, info in model.model_fields.items() if name == "base_model" or _carries(info.annotation))


def _carries(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, SpecModel):
        return annotation in (DatasetRef, DatasetPin, ModelVersionRef) or bool(_carriers(annotation))
    return any(_carries(argument) for argument in get_args(annotation))


def _not_found(project: str, missing: list[Input]) -> RefusedError:
    faults = [_FAULTS[item.reference.kind](project, item) for item in missing]
    violations = [violation for _, _, violation in faults]
    listed = "; ".join(f"{violation.path}: {violation.description}" for violation in violations)
    reason, metadata, _ = faults[0]
    return RefusedError(
        reason, f"the spec names what is not there: {listed}" if len(faults) > 1 else listed, metadata, violations
    )


_Fault: TypeAlias = tuple[Reason, Mapping[str, str], FieldViolation]
"""Why, what varies in it, and where."""


def _no_dataset(project: str, item: Input) -> _Fault:
    reference = item.reference
    pin = f" with sha256 {reference.sha256}" if reference.sha256 else ""
    found = (
        f"is {reference.name!r}{pin}, which project {project} does not have; add it with `headway dataset add`, or list what "
        "there is with `headway dataset list`"
    )
    metadata = {"dataset": reference.name, "project": project}
    return Reason.DATASET_NOT_FOUND, metadata, FieldViolation(f"{item.path}.name", found)


def _no_base_model(project: str, item: Input) -> _Fault:
    del project
    name = item.reference.name
    found = (
        f"is {name!r}, which is no base model here; register it with `headway base-model add`, or list what there is with "
        "`headway base-model list`"
    )
    return Reason.BASE_MODEL_NOT_FOUND, {"base_model": name}, FieldViolation(item.path, found)


def _no_model(project: str, item: Input) -> _Fault:
    reference = item.reference
    which = f"version {reference.version}" if reference.version else f"alias {reference.alias!r}"
    found = (
        f"is {reference.name!r} with {which}, which project {project} does not have; list what there is with `headway models`"
    )
    return Reason.MODEL_NOT_FOUND, {"model": reference.name}, FieldViolation(f"{item.path}.model", found)


_FAULTS: Mapping[InputKind, Callable[[str, Input], _Fault]] = {
    InputKind.DATASET: _no_dataset,
    InputKind.BASE_MODEL: _no_base_model,
    InputKind.MODEL_VERSION: _no_model,
}
