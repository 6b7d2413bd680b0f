"""Specs between the wire, the domain and the database: the one place that does it, and it is on every submit's path.

What depends on a message's type alone is worked out once. In between are plain dicts: pydantic's compiled validators take them,
and so do protobuf's constructors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from pydantic import ValidationError

from control_plane.errors import FieldViolation, invalid_fields
from control_plane.jobs.spec import SPEC_TYPES, JobSpec, canonical_json, canonical_sha256, stored_spec
from control_plane.jobs.specs import auto
from control_plane.rpc.convert import enum_words, to_known_fields, violations_of
from headway.jobs.v1 import job_spec_pb2

__all__ = ["canonical_json", "canonical_sha256", "forget_chosen", "spec_from_proto", "spec_to_proto", "stored_spec"]


def spec_from_proto(message: job_spec_pb2.JobSpec, path: str = "spec") -> JobSpec:
    """The spec on the wire, held against its limits, with defaults filled in and "auto" resolved.

    Args:
        message: what was sent.
        path: where it stands in the request; violations are named below it.

    Raises:
        RefusedError: with every field that breaks its limits.
    """
    kind = message.WhichOneof("type")
    if kind is None:
        known = ", ".join(SPEC_TYPES)
        raise invalid_fields([FieldViolation(path, f"has no type; expected exactly one to be set of: {known}")])
    content = to_known_fields(message)
    fields: dict[str, Any] = content.pop(kind)
    below = f"{path}.{kind}"
    violations = [FieldViolation(f'{path}["{name}"]', "is not a field of this message; remove it") for name in content]
    violations += _choose(kind, fields, below)
    try:
        # The compiled validator itself: `model_validate` costs a tenth more.
        spec = cast("JobSpec", SPEC_TYPES[kind].__pydantic_validator__.validate_python(fields))
    except ValidationError as error:
        raise invalid_fields(violations + violations_of(error, below)) from None
    if violations:
        raise invalid_fields(violations)
    return spec


def _choose(kind: str, fields: dict[str, Any], path: str) -> list[FieldViolation]:
    """Fills in what the platform chooses; a value given beside its name must be the one chosen."""
    violations: list[FieldViolation] = []
    for way, training, profile in auto.trainings(kind, fields):
        for name, value in auto.chosen(training, profile).items():
            given = training.setdefault(name, value)
            if given != value:
                violations.append(
                    FieldViolation(
                        f"{path}.{'.'.join(way)}.{name}",
                        f"is {given} and named in auto, which chooses {value}; expected one of the two: leave it out, or "
                        "remove its name from auto",
                    )
                )
    return violations


def forget_chosen(message: job_spec_pb2.JobSpec) -> None:
    """Takes the values out of a resolved spec that the platform chose, so that they are chosen anew if it is sent again.

    For a spec that is about to be changed: what was chosen for the old one need not be what is chosen for the new one.
    """
    kind = message.WhichOneof("type")
    if kind is None:
        return
    for way, training, _ in auto.trainings(kind, to_known_fields(getattr(message, kind))):
        target: Any = getattr(message, kind)
        for name in way:
            target = getattr(target, name)
        for name in auto.AUTO_FIELDS.intersection(training["auto"]):
            target.ClearField(name)


def spec_to_proto(content: Mapping[str, Any]) -> job_spec_pb2.JobSpec:
    """A stored spec for the wire.

    Args:
        content: the JSON of a resolved spec, as `jobs.spec` holds it; trusted, since only valid specs are stored.
    """
    kind: str = content["type"]
    return job_spec_pb2.JobSpec(**{kind: _type_writers()[kind](content)})


_Write: TypeAlias = Callable[[Any], Any]


@cache
def _type_writers() -> Mapping[str, _Write]:
    return {kind: writer for kind in SPEC_TYPES if (writer := _field_writer(_JOB_TYPES[kind])) is not None}


_JOB_TYPES: Mapping[str, FieldDescriptor] = job_spec_pb2.JobSpec.DESCRIPTOR.fields_by_name


@cache
def _writer(descriptor: Descriptor) -> _Write | None:
    """Makes of a message's JSON what its constructor takes; None if that is the same."""
    typed = any(field.message_type is descriptor for field in _JOB_TYPES.values())
    writers = {field.name: writer for field in descriptor.fields if (writer := _field_writer(field)) is not None}
    if not writers and not typed:
        return None

    def write(fields: Mapping[str, Any]) -> dict[str, Any]:
        result = dict(fields)
        if typed:
            # On the wire the type of a job is which field of the oneof is set.
            del result["type"]
        for name, writer in writers.items():
            if (value := result.get(name)) is not None:
                result[name] = writer(value)
        return result

    return write


def _field_writer(field: FieldDescriptor) -> _Write | None:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        of_value = _field_writer(entry.fields_by_name["value"])
        return None if of_value is None else lambda items: {key: of_value(value) for key, value in items.items()}
    of: _Write | None = None
    if entry is not None:
        of = _writer(entry)
    elif field.enum_type is not None:
        of = {word: number for number, word in enum_words(field.enum_type).items()}.__getitem__
    if of is None or not field.is_repeated:
        return of
    return lambda items: [of(item) for item in items]
