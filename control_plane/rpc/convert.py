"""Between proto messages and the domain's pydantic models, field by field, by name.

Nothing is coerced: pydantic's strict models judge what the wire carried, and their error locations become field paths.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, TypeAdapter, ValidationError

from control_plane.errors import FieldViolation, invalid_field, invalid_fields
from control_plane.jobs.spec import PATTERN_MEANINGS

_M = TypeVar("_M", bound=BaseModel)
_T = TypeVar("_T")


def to_fields(message: Message) -> dict[str, Any]:
    """The fields that were set, by name; messages inside as dicts, lists and maps as such."""
    fields: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        fields[descriptor.name] = _to_value(descriptor, value)
    return fields


def _to_value(descriptor: FieldDescriptor, value: Any) -> Any:
    entry = descriptor.message_type
    if entry is not None and entry.GetOptions().map_entry:
        return dict(value)
    if entry is not None:
        return [to_fields(item) for item in value] if descriptor.is_repeated else to_fields(value)
    return list(value) if descriptor.is_repeated else value


def fill(message: Message, model: BaseModel) -> None:
    """Sets the message's fields from the model's of the same name; None stays unset."""
    for name in message.DESCRIPTOR.fields_by_name:
        value = getattr(model, name)
        if value is None:
            continue
        if isinstance(value, BaseModel):
            inner = getattr(message, name)
            inner.SetInParent()
            fill(inner, value)
        elif isinstance(value, list | tuple):
            getattr(message, name).extend(value)
        elif isinstance(value, Mapping):
            getattr(message, name).update(value)
        else:
            setattr(message, name, value)


def validated(model: type[_M], fields: Mapping[str, Any], path: str) -> _M:
    """The model of these fields.

    Args:
        model: what they must be.
        fields: from `to_fields`.
        path: where they stand in the request, such as "spec.fine_tune"; violations are named below it.

    Raises:
        RefusedError: with one violation for every fault, each by its field path.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid_fields([_violation(fault, path) for fault in error.errors(include_url=False)]) from None


def validated_value(kind: Any, value: _T, path: str) -> _T:
    """`value`, held against an annotated type such as `ProjectName`.

    Raises:
        RefusedError: it breaks the type's limits.
    """
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise invalid_fields([_violation(fault, path) for fault in error.errors(include_url=False)]) from None
    return value


def identifier(value: str, path: str) -> str:
    """A UUID in its canonical form.

    Raises:
        RefusedError: it is not one.
    """
    try:
        parsed = str(uuid.UUID(value))
    except ValueError:
        raise invalid_field(path, f"is {_shown(value)}; expected a UUID") from None
    if parsed != value.lower():
        raise invalid_field(path, f"is {_shown(value)}; expected a UUID as 8-4-4-4-12 hex digits")
    return parsed


def _violation(fault: Any, path: str) -> FieldViolation:
    location = path
    for part in fault["loc"]:
        location += f"[{part}]" if isinstance(part, int) else f".{part}" if location else str(part)
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "missing":
        return FieldViolation(location, "is missing; expected a value")
    if fault["type"] == "extra_forbidden":
        return FieldViolation(location, "is not a field of this message; remove it")
    if fault["type"] == "value_error":
        return FieldViolation(location, message)
    expected = f"{message[:1].lower()}{message[1:]}"
    if fault["type"] == "string_pattern_mismatch":
        expected = PATTERN_MEANINGS[fault["ctx"]["pattern"]]
    return FieldViolation(location, f"is {_shown(fault.get('input'))}; {expected}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def timestamp(moment: datetime | None) -> Timestamp | None:
    """The proto of a time, or None."""
    if moment is None:
        return None
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def struct(values: Mapping[str, Any]) -> Struct:
    """The proto of a JSON object."""
    result = Struct()
    result.update(dict(values))
    return result


def plain(value: Struct) -> dict[str, Any]:
    """The JSON object of a proto Struct; whole numbers come back as int."""

    def of(item: Any) -> Any:
        kind = item.WhichOneof("kind")
        match kind:
            case "struct_value":
                return {name: of(inner) for name, inner in item.struct_value.fields.items()}
            case "list_value":
                return [of(inner) for inner in item.list_value.values]
            case "number_value":
                number = item.number_value
                return int(number) if number.is_integer() and abs(number) < 2**53 else number
            case "null_value" | None:
                return None
            case _:
                return getattr(item, kind)

    return {name: of(inner) for name, inner in value.fields.items()}
