"""YAML as nodes that know their lines, checked against a protobuf message before anything is made of them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

_INT_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
AUTO = "auto"
"""What stands for a number that the platform is to choose, and the field that lists those."""
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a file."""

    line: int
    """From 1; 0 when it is about the whole file."""
    path: str
    """Field path, such as "spec.fine_tune.training.steps"; empty at the top."""
    message: str
    """What was found, what was expected."""

    def __str__(self) -> str:
        place = f":{self.line}" if self.line else ""
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class YamlFaultError(Exception):
    """The text is not the YAML we read."""

    def __init__(self, line: int, message: str) -> None:
        self.fault = Fault(line, "", message)
        super().__init__(str(self.fault))


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases and tags, with YAML 1.2's plain scalars."""

    # Its own resolvers only: 1.1 reads `no` as false, 010 as eight, 1:30 as ninety, and 1e-3 as a word.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  the base class's attribute

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuses what no job file needs.

        A node that stands in two places can be endless, or grow beyond any memory; a tag asks for another type than the
        value shows.
        """
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise YamlFaultError(line, "has a YAML alias (*name); expected every value written out")
        if getattr(event, "tag", None) is not None:
            raise YamlFaultError(line, f"has a YAML tag ({event.tag}); expected plain values")
        return super().compose_node(parent, index)


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|)$", ["~", "n", ""]),
    ("bool", r"^(?:true|false)$", list("tf")),
    ("int", r"^[-+]?[0-9]{1,40}$", list("-+0123456789")),
    ("float", r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def compose(text: str) -> yaml.MappingNode:
    """The one document in `text`, a mapping.

    Raises:
        YamlFaultError: it is not YAML, not one document, or not a mapping.
    """
    try:
        loader = _Loader(text)
        node: yaml.Node | None = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise YamlFaultError(mark.line + 1 if mark else 0, f"is not valid YAML: {problem}") from error
    except yaml.YAMLError as error:
        raise YamlFaultError(0, f"is not valid YAML: {error}") from error
    except RecursionError as error:
        raise YamlFaultError(0, "is nested too deeply; expected a job file") from error
    if not isinstance(node, yaml.MappingNode):
        found = "nothing" if node is None else _kind(node)
        raise YamlFaultError(node.start_mark.line + 1 if node else 0, f"holds {found}; expected fields and their values")
    return node


def check_message(node: yaml.Node, descriptor: Descriptor, only: Iterable[str] = (), path: str = "") -> list[Fault]:
    """Every way in which `node` is not a message of the type.

    Args:
        node: what stands in the file.
        descriptor: the type expected.
        only: the fields allowed; empty means all.
        path: where the node is.
    """
    if not isinstance(node, yaml.MappingNode):
        return [_fault(node, path, f"is {_kind(node)}; expected fields and their values")]
    fields: dict[str, FieldDescriptor] = {f.name: f for f in descriptor.fields if not only or f.name in only}
    faults: list[Fault] = []
    lines: dict[str, int] = {}
    for key, name, value in _items(node):
        here = f"{path}.{name}" if path else name
        if name in lines:
            faults.append(_fault(key, here, f"stands here for the second time, first on line {lines[name]}"))
        elif name not in fields:
            faults.append(_fault(key, here, _unknown(name, fields)))
        else:
            faults += [] if is_auto(value, fields[name]) else _check_field(value, fields[name], here)
        lines.setdefault(name, key.start_mark.line + 1)
    for oneof in descriptor.oneofs:
        present = [field.name for field in oneof.fields if field.name in lines]
        if len(present) > 1 and len(oneof.fields) > 1:
            faults.append(_fault(node, path, f"has {' and '.join(present)}; expected exactly one of them"))
    return faults


def is_auto(node: yaml.Node, field: FieldDescriptor) -> bool:
    """Whether a number is left to the platform: the word "auto", in a message that lists such fields in its field `auto`."""
    numeric = field.cpp_type in _INT_RANGES or field.cpp_type in _FLOATS
    message = field.containing_type
    listed = message is not None and AUTO in message.fields_by_name
    return numeric and not field.is_repeated and listed and isinstance(node, yaml.ScalarNode) and construct(node) == AUTO


def _items(node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, str, yaml.Node]]:
    """Each field's key as a node, its name, and its value."""
    for key, value in node.value:
        yield key, key.value if isinstance(key, yaml.ScalarNode) else _kind(key), value


def _unknown(name: str, fields: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(fields), n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(sorted(fields))}"
    return f"is not a field here; {hint}"


def _check_field(node: yaml.Node, field: FieldDescriptor, path: str) -> list[Fault]:
    if not field.is_repeated:
        return _check_value(node, field, path)
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return _check_map(node, message, path)
    if not isinstance(node, yaml.SequenceNode):
        return [_fault(node, path, f"is {_kind(node)}; expected a list")]
    return [fault for i, item in enumerate(node.value) for fault in _check_value(item, field, f"{path}[{i}]")]


def _check_map(node: yaml.Node, entry: Descriptor, path: str) -> list[Fault]:
    if not isinstance(node, yaml.MappingNode):
        return [_fault(node, path, f"is {_kind(node)}; expected names and their values")]
    seen: set[str] = set()
    faults: list[Fault] = []
    for key, name, value in _items(node):
        here = f'{path}["{name}"]'
        if name in seen:
            faults.append(_fault(key, here, "stands here for the second time"))
        seen.add(name)
        faults += _check_value(value, entry.fields_by_name["value"], here)
    return faults


def _check_value(node: yaml.Node, field: FieldDescriptor, path: str) -> list[Fault]:
    if field.message_type is not None:
        return check_message(node, field.message_type, path=path)
    problem = _scalar_problem(node, field)
    return [_fault(node, path, problem)] if problem else []


def _scalar_problem(node: yaml.Node, field: FieldDescriptor) -> str:
    value = construct(node) if isinstance(node, yaml.ScalarNode) else None
    found = _kind(node)
    if field.cpp_type in _INT_RANGES:
        return _int_problem(value, found, *_INT_RANGES[field.cpp_type])
    if field.cpp_type in _FLOATS:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return "" if number else f"is {found}; expected a finite number"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "" if isinstance(value, bool) else f"is {found}; expected true or false"
    if field.enum_type is not None:
        words = enum_words(field.enum_type)
        known = value in words or value in words.values()
        return "" if known else f"is {found}; expected one of {', '.join(words)}"
    if isinstance(value, str):
        return ""
    quote = "; put it in quotes to make it text" if isinstance(node, yaml.ScalarNode) and value is not None else ""
    return f"is {found}; expected text{quote}"


def _int_problem(value: object, found: str, lowest: int, highest: int) -> str:
    if not isinstance(value, int) or isinstance(value, bool):
        return f"is {found}; expected a whole number"
    return "" if lowest <= value <= highest else f"is {found}; expected {lowest:,} to {highest:,}"


def _kind(node: yaml.Node) -> str:
    """What stands there, in words."""
    if isinstance(node, yaml.MappingNode):
        return "a set of fields"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    text = str(node.value)
    shown = text if len(text) <= 40 else f"{text[:40]}…"
    kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
    names = {"str": f'the text "{shown}"', "null": "empty", "bool": f"the truth value {shown}"}
    return names.get(kind, f"the number {shown}" if kind in ("int", "float") else f"a value of YAML type {node.tag}")


def _fault(node: yaml.Node, path: str, message: str) -> Fault:
    return Fault(node.start_mark.line + 1, path, message)


def enum_words(enum: EnumDescriptor) -> dict[str, str]:
    """The names of an enum's values by the words that a file has for them: `tpe` for SAMPLER_TPE."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.name.removeprefix(prefix).lower(): value.name for value in enum.values if value.number != 0}


def enum_word(enum: EnumDescriptor, number: int) -> str | int:
    """The word that a file has for a value of an enum; the number if it is none that this client knows."""
    known = enum.values_by_number.get(number)
    return next((word for word, name in enum_words(enum).items() if known is not None and name == known.name), number)


def construct_message(node: yaml.Node, descriptor: Descriptor) -> Any:
    """What `json_format` makes a message of the type from.

    Args:
        node: a node in which `check_message` found no fault.
        descriptor: the type.
    """
    if not isinstance(node, yaml.MappingNode):
        return construct(node)
    content: dict[str, Any] = {}
    chosen: list[str] = []
    for _, name, value in _items(node):
        field = descriptor.fields_by_name[name]
        if is_auto(value, field):
            chosen.append(name)
        else:
            content[name] = _construct_field(value, field)
    if chosen:
        content[AUTO] = [*content.get(AUTO, []), *chosen]
    return content


def _construct_field(node: yaml.Node, field: FieldDescriptor) -> Any:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry and isinstance(node, yaml.MappingNode):
        of_value = message.fields_by_name["value"]
        return {key: _construct_field(value, of_value) for _, key, value in _items(node)}
    if field.is_repeated and isinstance(node, yaml.SequenceNode):
        return [_construct_value(item, field) for item in node.value]
    return _construct_value(node, field)


def _construct_value(node: yaml.Node, field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        return construct_message(node, field.message_type)
    value = construct(node)
    return enum_words(field.enum_type).get(value, value) if field.enum_type is not None else value


def construct(node: yaml.Node) -> Any:
    """The plain Python value of a node: dict, list, str, int, float, bool or None."""
    if isinstance(node, yaml.MappingNode):
        return {name: construct(value) for _, name, value in _items(node)}
    if isinstance(node, yaml.SequenceNode):
        return [construct(item) for item in node.value]
    convert = _SCALARS.get(str(node.tag).removeprefix("tag:yaml.org,2002:"), str)
    return convert(str(node.value))


_SCALARS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "bool": lambda text: text == "true",
    "null": lambda _: None,
}
