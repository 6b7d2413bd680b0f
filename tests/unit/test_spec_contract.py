"""The protos and the pydantic models of the specs are the same contract: field by field, default by default, limit by limit.

Everything is found by walking from `JobSpec`, so that nothing new can be forgotten.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from pydantic import BaseModel, StringConstraints, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from control_plane.jobs.spec import PATTERN_MEANINGS, SPEC_TYPES
from control_plane.jobs.specs.auto import AUTO_FIELDS
from control_plane.rpc.convert import enum_words
from headway.jobs.v1 import job_spec_pb2

PROTO = (Path(__file__).parents[2] / "protos/headway/jobs/v1/job_spec.proto").read_text(encoding="utf-8")
DEPTH_MAX = 8


@dataclass(frozen=True)
class Shape:
    """What an annotation says: the kind of container, and what is in it."""

    container: Literal["one", "list", "map"]
    kind: Any
    """int, float, bool, str, a Literal or a model."""
    rules: tuple[Any, ...]
    """Limits of one value."""
    sizes: tuple[Any, ...]
    """Limits of the container."""


def shape_of(info: FieldInfo) -> Shape:
    kind, rules = _plain(info.annotation, tuple(info.metadata))
    if get_origin(kind) is tuple:
        item, of_item = _plain(get_args(kind)[0], ())
        return Shape("list", item, of_item, rules)
    if get_origin(kind) is dict:
        item, of_item = _plain(get_args(kind)[1], ())
        return Shape("map", item, of_item, rules)
    return Shape("one", kind, rules, ())


def _plain(annotation: Any, rules: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """The type without `Annotated` and `| None`, and the rules found on the way."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _plain(inner, (*rules, *more))
    arguments = get_args(annotation)
    if NoneType in arguments:
        return _plain(next(argument for argument in arguments if argument is not NoneType), rules)
    flat: list[Any] = []
    for rule in rules:
        flat += rule.metadata if isinstance(rule, FieldInfo) else [rule]
    return annotation, tuple(flat)


@dataclass(frozen=True)
class Case:
    """One field on both sides."""

    model: type[BaseModel]
    info: FieldInfo
    field: FieldDescriptor

    @property
    def message(self) -> str:
        """Name of the message that the field is in."""
        assert self.field.containing_type is not None
        return self.field.containing_type.name

    def __str__(self) -> str:
        return f"{self.message}.{self.field.name}"


def _pairs() -> dict[Descriptor, type[BaseModel]]:
    found: dict[Descriptor, type[BaseModel]] = {}

    def walk(descriptor: Descriptor, model: type[BaseModel], above: tuple[str, ...]) -> None:
        assert descriptor.name not in above, f"{descriptor.name} holds itself: a spec could be nested without end"
        assert len(above) < DEPTH_MAX, f"{' > '.join(above)} > {descriptor.name} is nested too deeply"
        assert found.setdefault(descriptor, model) is model, f"{descriptor.name} has two models"
        assert model.__name__ == descriptor.name
        assert set(model.model_fields) - {"type"} == set(descriptor.fields_by_name), descriptor.name
        for field in descriptor.fields:
            inner = _message_of(field)
            kind = shape_of(model.model_fields[field.name]).kind
            is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
            assert (inner is not None) == is_model, f"{descriptor.name}.{field.name} is a message on one side only"
            if inner is not None:
                walk(inner, kind, (*above, descriptor.name))

    types = job_spec_pb2.JobSpec.DESCRIPTOR.oneofs_by_name["type"].fields
    assert {field.name for field in types} == set(SPEC_TYPES)
    for field in types:
        assert field.message_type is not None
        walk(field.message_type, SPEC_TYPES[field.name], ())
    return found


def _message_of(field: FieldDescriptor) -> Descriptor | None:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return message.fields_by_name["value"].message_type
    return message


PAIRS = _pairs()
CASES = [
    Case(model, model.model_fields[field.name], field) for descriptor, model in PAIRS.items() for field in descriptor.fields
]


def _comment(case: Case) -> str:
    """The comment above a field in the proto file, on one line."""
    message = re.search(rf"^message {case.message} \{{(.*?)^\}}", PROTO, re.MULTILINE | re.DOTALL)
    assert message is not None
    declared = rf"((?:^ *//[^\n]*\n)+)^ *[a-zA-Z][\w <>,]* {case.field.name} = \d+;"
    found = re.search(declared, message.group(1), re.MULTILINE)
    assert found is not None, f"{case} has no comment"
    return re.sub(r"\s*//\s*", " ", found.group(1)).strip()


COMMENTS = {str(case): _comment(case) for case in CASES}
by_field = pytest.mark.parametrize("case", CASES, ids=str)
_NUMBER = r"-?\d(?:[\d,]*\d)?(?:\.\d+)?"
_RANGE = rf"(?<![\w.-])((?:above )?)({_NUMBER}) to ({_NUMBER})"


def _problems(case: Case, comment: str) -> list[str]:
    """Where the comment and what is enforced differ."""
    comment = comment.replace("2^31 - 1", f"{2**31 - 1:,}")
    shape = shape_of(case.info)
    problems = [
        f"the comment lacks {words!r}" for words in _expected_words(case, shape) if words.lower() not in comment.lower()
    ]
    ranges = [(above != "", _number(low), _number(high)) for above, low, high in re.findall(_RANGE, comment.lower())]
    allowed = _ranges(shape)
    problems += [f"the comment has {found}; enforced is {allowed}" for found in ranges if found not in allowed]
    problems += [f"the comment lacks {wanted}" for wanted in allowed if wanted not in ranges]
    sizes = [int(_number(size)) for size in re.findall(rf"\bat most ({_NUMBER})\b", comment, re.IGNORECASE)]
    most = [rule.max_length for rule in (*shape.sizes, *shape.rules) if isinstance(rule, MaxLen)] + [
        rule.max_length
        for rule in shape.rules
        if isinstance(rule, StringConstraints) and rule.max_length and not rule.min_length
    ]
    if sizes != most:
        problems.append(f"the comment says at most {sizes}; enforced is {most}")
    defaults = re.findall(rf'\bDefault ("[^"]*"|[A-Z][A-Z_]+|false|true|{_NUMBER})', comment)
    if defaults != _default_words(case, shape):
        problems.append(f"the comment says default {defaults}; enforced is {_default_words(case, shape)}")
    return problems


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _highest(rule: Le) -> float:
    return float(getattr(rule, "le"))  # noqa: B009 - its type has no numbers


def _ranges(shape: Shape) -> list[tuple[bool, float, float]]:
    """Each as: whether the lower end is excluded, lower end, upper end."""
    low = [
        (isinstance(rule, Gt), float(getattr(rule, "gt" if isinstance(rule, Gt) else "ge")))
        for rule in shape.rules
        if isinstance(rule, Ge | Gt)
    ]
    high = [_highest(rule) for rule in shape.rules if isinstance(rule, Le)]
    found = [(above, bottom, top) for (above, bottom), top in zip(low, high, strict=True)]
    for rule in shape.rules:
        if isinstance(rule, StringConstraints) and rule.min_length and rule.max_length:
            found.append((False, float(rule.min_length), float(rule.max_length)))
        meaning = PATTERN_MEANINGS.get(str(rule.pattern), "") if isinstance(rule, StringConstraints) else ""
        found += [(False, _number(low), _number(high)) for _, low, high in re.findall(_RANGE, meaning)]
    return found


def _expected_words(case: Case, shape: Shape) -> Iterator[str]:
    info = case.info
    if info.is_required():
        yield "Required."
    elif info.default is None and case.field.containing_oneof is None:
        yield "Default: absent"
    elif isinstance(info.default, BaseModel):
        assert info.default == type(info.default)(), f"{case}: the default is not every field's default"
        yield "Default: LoRA with its defaults" if "LoRA" in COMMENTS[str(case)] else "Default: every field's default"
    for rule in shape.rules:
        if isinstance(rule, StringConstraints) and rule.pattern:
            meaning = PATTERN_MEANINGS[str(rule.pattern)].removeprefix("expected ")
            yield meaning.removeprefix("text ")
    if any(isinstance(rule, MinLen) for rule in shape.sizes):
        yield "at least 1"
    if case.field.name == "auto":
        yield ", ".join(sorted(AUTO_FIELDS))


def _default_words(case: Case, shape: Shape) -> list[str]:
    default = case.info.default
    if case.info.is_required() or default is None or isinstance(default, BaseModel | tuple):
        return []
    if isinstance(default, bool):
        return [str(default).lower()]
    if isinstance(default, int | float):
        text = f"{default:,}" if isinstance(default, int) or default >= 1 else f"{default:.10f}".rstrip("0")
        return [text.removesuffix(".0").removesuffix(".")]
    if case.field.enum_type is not None:
        return [
            next(
                value.name for value in case.field.enum_type.values if enum_words(case.field.enum_type)[value.number] == default
            )
        ]
    return [] if case.field.name == "sha256" else [f'"{default}"']


@by_field
def test_comments_state_what_is_enforced(case: Case) -> None:
    assert _problems(case, COMMENTS[str(case)]) == []


@by_field
def test_another_number_in_a_comment_would_be_noticed(case: Case) -> None:
    comment = COMMENTS[str(case)]
    stated = rf"(?:above )?{_NUMBER} to {_NUMBER}|at most {_NUMBER}|Default {_NUMBER}"
    changed = 0
    for found in re.finditer(stated, comment, re.IGNORECASE):
        for number in re.finditer(_NUMBER, found.group()):
            at = found.start() + number.start()
            if comment[at - 1] == "^" or comment[at:].startswith("2^31"):
                continue
            other = comment[:at] + "7" + comment[at:]
            assert _problems(case, other), f"{case}: {comment[at - 10 : at + 10]!r} with a 7 in it is not noticed"
            changed += 1
    kind = shape_of(case.info).kind
    assert changed or kind not in {int, float} or "2^31 - 1" in comment


@by_field
def test_everything_has_a_limit(case: Case) -> None:
    shape = shape_of(case.info)
    rules = shape.rules
    if shape.container != "one":
        assert any(isinstance(rule, MaxLen) for rule in shape.sizes), f"{case} has no largest size"
    if shape.kind in {int, float}:
        assert any(isinstance(rule, Ge | Gt) for rule in rules), f"{case} has no least value"
        assert any(isinstance(rule, Le) for rule in rules), f"{case} has no largest value"
    if shape.kind is str:
        with pytest.raises(ValidationError):
            TypeAdapter(Annotated[str, *rules]).validate_python("a" * 100_000)
        with pytest.raises(ValidationError):
            TypeAdapter(Annotated[str, *rules]).validate_python("a\x00b")


@by_field
def test_types_are_the_same(case: Case) -> None:
    field, shape = case.field, shape_of(case.info)
    entry = field.message_type
    is_map = entry is not None and entry.GetOptions().map_entry
    assert shape.container == ("map" if is_map else "list" if field.is_repeated else "one")
    value = entry.fields_by_name["value"] if entry is not None and is_map else field
    wire = {
        int: (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64),
        float: (FieldDescriptor.CPPTYPE_DOUBLE,),
        bool: (FieldDescriptor.CPPTYPE_BOOL,),
        str: (FieldDescriptor.CPPTYPE_STRING,),
    }
    if get_origin(shape.kind) is Literal:
        words = set(get_args(shape.kind))
        if value.enum_type is None:
            assert words == AUTO_FIELDS
        else:
            assert {"unspecified", *words} == set(enum_words(value.enum_type).values())
    elif shape.kind in wire:
        assert value.cpp_type in wire[shape.kind]
    if shape.kind is int:
        widest = 2**31 - 1 if value.cpp_type == FieldDescriptor.CPPTYPE_INT32 else 2**63 - 1
        assert all(_highest(rule) <= widest for rule in shape.rules if isinstance(rule, Le))
    if shape.container == "one" and shape.kind in {int, float}:
        assert field.has_presence, f"{case}: 0 could not be told from nothing"


@pytest.mark.parametrize("pattern", PATTERN_MEANINGS)
def test_patterns_mean_what_they_say(pattern: str) -> None:
    meaning = PATTERN_MEANINGS[pattern]
    checked: TypeAdapter[str] = TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])

    def legal(text: str) -> bool:
        try:
            checked.validate_python(text)
        except ValidationError:
            return False
        return True

    assert not legal("a\x00b")
    found = re.search(r"(\d+) to (\d+) characters of \[(.*)\](, a letter)?", meaning)
    if found is None:
        return
    least, most, letters, anchored = int(found[1]), int(found[2]), found[3], found[4]
    ranges = {
        "a-z": string.ascii_lowercase,
        "A-Z": string.ascii_uppercase,
        "0-9": string.digits,
    }
    named = set(re.sub(r"a-z|A-Z|0-9", "", letters)).union(*(ranges[name] for name in ranges if name in letters))
    if "SUITE/" in meaning:
        named.add("/")
    some = "a" if "a" in named else "0"
    assert legal(some * least)
    assert legal(some * most)
    assert not legal(some * (least - 1))
    assert not legal(some * (most + 1))
    tail = some * least
    for character in [chr(code) for code in range(128)] + list("\u0430\uff41\u200b\u202e\u00e9\u0663\U0001f600"):
        assert legal(f"{some}{character}{tail}") == (character in named), f"{character!r} in {meaning}"
        if anchored and character not in string.ascii_letters + string.digits:
            assert not legal(f"{character}{tail}"), f"{character!r} first in {meaning}"
    for ending in ("\n", "\r\n", " \n"):
        assert not legal(f"{tail}{ending}")
