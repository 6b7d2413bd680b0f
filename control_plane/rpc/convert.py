"""Between proto messages and the domain's pydantic models, field by field, by name.

Nothing is coerced: pydantic's strict models judge what the wire carried, and their error locations become field paths.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeAlias, TypeVar

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet
from pydantic import BaseModel, TypeAdapter, ValidationError

from control_plane.errors import FieldViolation, invalid_field, invalid_fields
from control_plane.jobs.spec import PATTERN_MEANINGS, RuleError, shown_key

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_M = TypeVar("_M", bound=BaseModel)
_T = TypeVar("_T")

_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def to_fields(message: Message) -> dict[str, Any]:
    """The fields that were set, by name; messages inside as dicts, lists and maps as such.

    Enums are the lower-case rest of their name: `SAMPLER_TPE` is "tpe"; a number without name stays one.
    """
    return _reader(message.DESCRIPTOR)(message)


def to_known_fields(message: Message) -> dict[str, Any]:
    """As `to_fields`; fields of a newer contract, which this one has no names for, appear as "#" and their number.

    A closed model then refuses them. Without that they would be dropped without a word.
    """
    return _strict_reader(message.DESCRIPTOR)(message)


_Read: TypeAlias = Callable[[Message], dict[str, Any]]


class _Reader:
    """Reads messages of one type; what depends on the type alone is worked out once."""

    def __init__(self) -> None:
        self.fields: dict[FieldDescriptor, tuple[str, Callable[[Any], Any] | None]] = {}

    def read(self, message: Message) -> dict[str, Any]:
        known = self.fields
        result: dict[str, Any] = {}
        for descriptor, value in message.ListFields():
            name, convert = known[descriptor]
            result[name] = value if convert is None else convert(value)
        return result

    def read_strictly(self, message: Message) -> dict[str, Any]:
        result = self.read(message)
        unknown = UnknownFieldSet(message)
        if len(unknown):
            result.update({f"#{field.field_number}": None for field in unknown})
        return result


def _reader_of(descriptor: Descriptor, readers: dict[Descriptor, _Reader], *, strict: bool) -> _Read:
    reader = readers.get(descriptor)
    if reader is None:
        # Known before its fields are, so that a message may hold messages of its own type.
        reader = readers[descriptor] = _Reader()
        for field in descriptor.fields:
            reader.fields[field] = (field.name, _field_reader(field, readers, strict=strict))
    return reader.read_strictly if strict else reader.read


def _field_reader(field: FieldDescriptor, readers: dict[Descriptor, _Reader], *, strict: bool) -> Callable[[Any], Any] | None:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        of_value = _field_reader(entry.fields_by_name["value"], readers, strict=strict)
        return dict if of_value is None else lambda items: {key: of_value(value) for key, value in items.items()}
    of: Callable[[Any], Any] | None = None
    if entry is not None:
        of = _reader_of(entry, readers, strict=strict)
    elif field.enum_type is not None:
        words = enum_words(field.enum_type)
        of = lambda number: words.get(number, number)  # noqa: E731 - a closure over this field's words
    elif field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        # -0.0 is 0.0, and equal values are to be equal bytes.
        of = (0.0).__add__
    if not field.is_repeated:
        return of
    return list if of is None else lambda items: [of(item) for item in items]


@cache
def _reader(descriptor: Descriptor) -> _Read:
    return _reader_of(descriptor, {}, strict=False)


@cache
def _strict_reader(descriptor: Descriptor) -> _Read:
    return _reader_of(descriptor, {}, strict=True)


@cache
def enum_words(enum: EnumDescriptor) -> dict[int, str]:
    """The words of an enum's values, by number: lower case, without the prefix that all of them have."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix).lower() for value in enum.values}


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
        raise invalid_fields(violations_of(error, path)) from None


def validated_value(kind: Any, value: _T, path: str) -> _T:
    """`value`, held against an annotated type such as `ProjectName`.

    Raises:
        RefusedError: it breaks the type's limits.
    """
    try:
        _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise invalid_fields(violations_of(error, path)) from None
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # To build one costs a hundred times what it costs to use it.
    return TypeAdapter(kind)


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


def violations_of(error: ValidationError, path: str) -> list[FieldViolation]:
    """One violation for every fault, each by its field path below `path`."""
    return [_violation(fault, path) for fault in error.errors(include_url=False)]


def _violation(fault: Any, path: str) -> FieldViolation:
    location = path
    for part in fault["loc"]:
        location = _below(location, part)
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "missing":
        return FieldViolation(location, "is missing; expected a value")
    if fault["type"] == "extra_forbidden":
        return FieldViolation(location, "is not a field of this message; remove it")
    if fault["type"] == "value_error":
        cause = fault["ctx"]["error"]
        if isinstance(cause, RuleError) and cause.path:
            location = f"{location}.{cause.path}" if location else cause.path
        return FieldViolation(location, message)
    expected = f"{message[:1].lower()}{message[1:]}"
    if fault["type"] == "string_pattern_mismatch":
        expected = PATTERN_MEANINGS[fault["ctx"]["pattern"]]
    return FieldViolation(location, f"is {_shown(fault.get('input'))}; {expected}")


def _below(location: str, part: int | str) -> str:
    if isinstance(part, int):
        return f"{location}[{part}]"
    if _FIELD_NAME.fullmatch(part):
        return f"{location}.{part}" if location else part
    return f"{location}[{shown_key(part)}]"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def timestamp(moment: datetime | None) -> Timestamp | None:
    """The proto of a time, or None."""
    if moment is None:
        return None
    # As FromDatetime, at a third of its cost: a page has hundreds of times.
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


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
