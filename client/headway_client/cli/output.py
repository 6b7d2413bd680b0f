"""Printing answers: aligned columns for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import Message


def as_dict(message: Message) -> dict[str, Any]:
    """The message in proto3's JSON mapping, with the contract's field names."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


def as_plain(message: Message) -> dict[str, Any]:
    """The message as it would stand in a job file: unlike proto3's JSON, a 64-bit number is a number and an enum a word."""
    return {field.name: _plain_field(value, field) for field, value in message.ListFields()}


def _plain_field(value: Any, field: FieldDescriptor) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {key: _plain(item, field.message_type.fields_by_name["value"]) for key, item in value.items()}
    return [_plain(item, field) for item in value] if field.is_repeated else _plain(value, field)


def _plain(value: Any, field: FieldDescriptor) -> Any:
    from headway_client.yaml_nodes import enum_word

    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    return as_plain(value) if field.message_type is not None else value


def print_json(content: Mapping[str, Any]) -> None:
    """One document on one line."""
    print(json.dumps(content, ensure_ascii=False), flush=True)


def print_notice(text: str) -> None:
    """A remark beside the answer, to standard error."""
    print(f"headway: {text}", file=sys.stderr, flush=True)


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Columns under a header; `empty` when there are no rows."""
    from headway_client.text import one_line

    lines = [tuple(one_line(str(cell)) or "-" for cell in row) for row in rows]
    if not lines:
        print(empty)
        return
    lines.insert(0, tuple(header))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """A line for each name and value; empty values are left out."""
    from headway_client.text import printable

    shown = [(name, printable(str(value))) for name, value in facts if value not in ("", None)]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name.ljust(width)}  {value}")
