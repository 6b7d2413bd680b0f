"""From arguments to messages: what a message cannot hold is refused here, by the name of the argument, and nothing is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from headway_client.errors import ArgumentError

_P = ParamSpec("_P")
_MessageT = TypeVar("_MessageT", bound=Message)

_SHOWN_MAX = 80
_EXPECTED = {
    FieldDescriptor.CPPTYPE_STRING: "text",
    FieldDescriptor.CPPTYPE_BOOL: "True or False",
    FieldDescriptor.CPPTYPE_INT32: "a whole number of 32 bits",
    FieldDescriptor.CPPTYPE_INT64: "a whole number of 64 bits",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
}


def build(kind: Callable[_P, _MessageT], *args: _P.args, **fields: _P.kwargs) -> _MessageT:
    """A message of these fields; one that is None is left out.

    Raises:
        ArgumentError: a field cannot hold what it was given.
    """
    try:
        return kind(*args, **fields)
    except (TypeError, ValueError) as error:
        raise _fault(kind, fields, error) from error


def unfit(argument: str, value: object, expected: str) -> ArgumentError:
    """The error of an argument that is something else than expected."""
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN_MAX else f"{shown[:_SHOWN_MAX]}…"
    return ArgumentError(argument, f"is {shown}; expected {expected}")


def _fault(kind: Any, fields: Mapping[str, object], error: Exception) -> ArgumentError:
    """Protobuf does not say which field its error is about; so each is tried by itself."""
    descriptor: Descriptor = kind.DESCRIPTOR
    for name, value in fields.items():
        try:
            kind(**{name: value})
        except UnicodeEncodeError as own:
            found = own.object[own.start]
            return ArgumentError(name, f"has {found!r} at position {own.start}, which is no character; expected text")
        except (TypeError, ValueError):
            return unfit(name, value, _expected(descriptor.fields_by_name[name]))
    # Such as an iterator that failed, and now is empty.
    return ArgumentError(", ".join(fields), f"make no {descriptor.name}: {error}")


def _expected(field: FieldDescriptor) -> str:
    of = field.message_type or field.enum_type
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return f"a mapping to {_expected(field.message_type.fields_by_name['value'])}"
    expected = f"a {of.name}" if of is not None else _EXPECTED.get(field.cpp_type, "another type")
    return f"an iterable, each {expected}" if field.is_repeated else expected
