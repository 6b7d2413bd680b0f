"""The fast ways between wire, model and storage give what the plain ones give, for any legal spec of any type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from spec_cases import SPECS, message

from control_plane.jobs.spec import PATTERN_MEANINGS, SPEC_TYPES, JobSpec, canonical_json, canonical_sha256, stored_spec
from control_plane.jobs.spec_wire import spec_from_proto, spec_to_proto
from control_plane.jobs.specs.hpo import SEARCHABLE
from control_plane.rpc.convert import enum_words
from headway.jobs.v1 import job_spec_pb2

_NAMES = st.from_regex(r"\A[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?\Z")
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)
# What a rule over several fields would mostly refuse if it were drawn freely.
_CHOSEN: dict[str, st.SearchStrategy[Any]] = {
    "steps": st.integers(50, 1_000_000),
    "warmup_steps": st.integers(0, 50),
    "min_steps": st.integers(1, 50),
    "max_parallel_trials": st.just(1),
    "num_generations": st.sampled_from((2, 4, 8)),
    "micro_batch_size": st.sampled_from((8, 64, 1_024)),
    "label_smoothing": st.just(0.0),
    "desirable_weight": st.just(1.0),
    "undesirable_weight": st.just(1.0),
    "cron": st.sampled_from(("* * * * *", "0 3 1,15 */2 1-5")),
    "metric": st.sampled_from(("gain", "safety/refusals")),
    "auto": st.just([]),
    "max_accelerator_seconds": st.integers(1, 10**12),
}


def _text_of(field: str, rules: list[Any]) -> st.SearchStrategy[str]:
    meanings = [PATTERN_MEANINGS[str(rule.pattern)] for rule in rules if getattr(rule, "pattern", None)]
    if "expected text without NUL" in meanings:
        return _TEXT
    if field == "sha256":
        return st.sampled_from(("", "a" * 64, "0" * 64))
    return st.sampled_from(("length", "x1")) if field in {"name", "field"} else _NAMES


@st.composite
def fields_of(draw: st.DrawFn, descriptor: Descriptor, model: Any) -> dict[str, Any]:
    """Fields of a message, as its JSON has them; some of those that need not be are left out."""
    found: dict[str, Any] = {}
    left_out: set[str] = set()
    for oneof in descriptor.oneofs:
        names = [field.name for field in oneof.fields]
        if len(names) > 1:
            left_out |= set(names) - {draw(st.sampled_from(names))}
    for field in descriptor.fields:
        info = model.model_fields[field.name]
        in_oneof = field.containing_oneof is not None and len(field.containing_oneof.fields) > 1
        if field.name in left_out or (not info.is_required() and not in_oneof and draw(st.booleans())):
            continue
        if field.name == "search_space":
            found[field.name] = draw(_search_spaces())
            continue
        found[field.name] = draw(_values(field, info.annotation, list(info.metadata)))
    return found


def _search_spaces() -> st.SearchStrategy[dict[str, Any]]:
    dimension = st.sampled_from(({"choices": {"numbers": [8.0, 16.0]}}, {"whole": {"low": 8, "high": 40, "step": 8}}))
    whole = [path for path, info in SEARCHABLE.items() if info.annotation is int]
    return st.dictionaries(st.sampled_from(whole), dimension, min_size=1, max_size=4)


def _values(field: FieldDescriptor, annotation: Any, rules: list[Any]) -> st.SearchStrategy[Any]:
    if field.name in _CHOSEN:
        return _CHOSEN[field.name]
    if type(None) in get_args(annotation):
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    if hasattr(annotation, "__metadata__"):
        rules = [*rules, *annotation.__metadata__]
        annotation = annotation.__origin__
    if get_origin(annotation) is tuple:
        return st.lists(_values(field, get_args(annotation)[0], []), min_size=1, max_size=2, unique_by=json.dumps)
    rules = [part for rule in rules for part in (rule.metadata if hasattr(rule, "metadata") else [rule])]
    return _value(field, annotation, rules)


def _value(field: FieldDescriptor, kind: Any, rules: list[Any]) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return fields_of(field.message_type, kind)
    if kind is str:
        return _text_of(field.name, rules)
    if kind is bool or get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind) or (False, True))
    above = any(isinstance(rule, Gt) for rule in rules)
    low = next(getattr(rule, "gt" if above else "ge") for rule in rules if isinstance(rule, Ge | Gt))
    high = next(getattr(rule, "le") for rule in rules if isinstance(rule, Le))  # noqa: B009 - its type has no numbers
    return st.integers(low, high) if kind is int else st.floats(low, high, exclude_min=above)


@st.composite
def specs(draw: st.DrawFn) -> JobSpec:
    kind = draw(st.sampled_from(sorted(SPEC_TYPES)))
    fields = draw(fields_of(_message_of(kind), SPEC_TYPES[kind]))
    try:
        return SPEC_TYPES[kind].model_validate(fields, strict=False)
    except ValidationError as error:
        if any(fault["type"] != "value_error" for fault in error.errors()):
            # A fault of one field is a fault of this generator; rules over several fields it may well break.
            raise
        reject()


def _message_of(kind: str) -> Descriptor:
    descriptor = job_spec_pb2.JobSpec.DESCRIPTOR.fields_by_name[kind].message_type
    assert descriptor is not None
    return descriptor


def plain_to_proto(content: Mapping[str, Any]) -> job_spec_pb2.JobSpec:
    """The plain way: protobuf's own JSON, in which enums have their names and a job's type is a field of the oneof."""

    def named(descriptor: Descriptor, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value(descriptor.fields_by_name[name], item)
            for name, item in fields.items()
            if name != "type" and item is not None
        }

    def value(field: FieldDescriptor, item: Any) -> Any:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            return {key: value(entry.fields_by_name["value"], inner) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return [named(entry, inner) if entry is not None else inner for inner in item]
        if field.enum_type is not None:
            return next(number for number, word in enum_words(field.enum_type).items() if word == item)
        return named(entry, item) if entry is not None else item

    kind = content["type"]
    return json_format.ParseDict({kind: named(_message_of(kind), content)}, job_spec_pb2.JobSpec())


def plain_from_proto(spec: job_spec_pb2.JobSpec) -> JobSpec:
    """The plain way: one field after the other, each looked at as it comes."""

    def fields(root: Message) -> dict[str, Any]:
        return {field.name: value(field, item) for field, item in root.ListFields()}

    def value(field: FieldDescriptor, item: Any) -> Any:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            return {key: fields(inner) for key, inner in item.items()}
        if field.is_repeated:
            return [fields(inner) if entry is not None else inner for inner in item]
        if field.enum_type is not None:
            return field.enum_type.values_by_number[item].name.rsplit("_", 1)[1].lower()
        return fields(item) if entry is not None else item

    kind = spec.WhichOneof("type")
    assert kind is not None
    return SPEC_TYPES[kind].model_validate(fields(getattr(spec, kind)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(specs())
def test_any_legal_spec_survives_wire_and_storage(spec: JobSpec) -> None:
    canonical = canonical_json(spec)
    stored = json.loads(canonical)
    assert stored == spec.model_dump(mode="json")
    sent = spec_to_proto(stored)
    assert sent == plain_to_proto(stored)
    arrived = job_spec_pb2.JobSpec.FromString(sent.SerializeToString())
    assert spec_from_proto(arrived) == plain_from_proto(arrived) == spec
    # PostgreSQL sorts keys by its own rules, and one number may stand for another type of number.
    shuffled = json.loads(json.dumps(_backwards(stored)))
    assert stored_spec(shuffled) == spec
    assert canonical_json(stored_spec(shuffled)) == canonical


def _backwards(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _backwards(inner) for key, inner in reversed(value.items())}
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return [_backwards(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", SPECS)
def test_a_resolved_spec_sent_again_is_the_same_spec(name: str) -> None:
    spec = spec_from_proto(message(name))
    echoed = spec_to_proto(spec.model_dump(mode="json"))
    assert spec_from_proto(echoed) == spec
    assert canonical_sha256(spec_from_proto(echoed)) == canonical_sha256(spec)


def test_what_is_left_out_is_spelled_out_in_the_echo() -> None:
    minimal = {"fine_tune": {"base_model": "base", "dataset": {"name": "data"}, "output_model": "out"}}
    spec = spec_from_proto(json_format.ParseDict(minimal, job_spec_pb2.JobSpec()))
    echoed = spec_to_proto(spec.model_dump(mode="json")).fine_tune
    assert (echoed.training.steps, echoed.lora.rank, echoed.dataset.eval_fraction) == (10, 8, 0.09)
    assert echoed.training.HasField("seed")
    assert echoed.resources.accelerator_kind == "any"


def test_equal_specs_have_one_hash_and_others_another() -> None:
    forward, backward = message("hpo"), message("hpo")
    backward.hpo.search_space.clear()
    for path in sorted(forward.hpo.search_space, reverse=True):
        backward.hpo.search_space[path].CopyFrom(forward.hpo.search_space[path])
    assert canonical_sha256(spec_from_proto(forward)) == canonical_sha256(spec_from_proto(backward))
    hashes = {canonical_sha256(spec_from_proto(message(name))) for name in SPECS}
    assert len(hashes) == len(SPECS)
    backward.hpo.search_space["lora.rank"].choices.numbers[0] = 5
    assert canonical_sha256(spec_from_proto(forward)) != canonical_sha256(spec_from_proto(backward))
    assert canonical_sha256({"a": 1, "b": 2}) == canonical_sha256({"b": 2, "a": 1}) != canonical_sha256({"a": 2, "b": 1})


def test_a_spec_stored_before_a_field_was_there_is_still_read_and_sent() -> None:
    spec = spec_from_proto(message("fine_tune"))
    old = spec.model_dump(mode="json")
    del old["training"]["auto"]
    assert stored_spec(old) == spec
    assert spec_to_proto(old) == spec_to_proto(spec.model_dump(mode="json"))
