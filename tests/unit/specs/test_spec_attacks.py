"""Hostile values in every field of every type of job: each is refused by its exact path, and nothing else happens."""

from __future__ import annotations

import math
from random import Random
from typing import Any, get_args

import pytest
from annotated_types import Ge, Gt, Le
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from pydantic import BaseModel, ValidationError
from spec_cases import SPECS, Leaf, leaves, message, refusal

from control_plane.errors import RefusedError
from control_plane.jobs import spec_wire
from control_plane.jobs.planning import DataFacts, PriceList, plan, to_proto
from control_plane.jobs.resolve import inputs_of
from control_plane.jobs.spec import SPEC_TYPES, FineTuneSpec
from headway.jobs.v1 import job_spec_pb2
from headway.jobs.v1.job_spec_pb2 import JobSpec

FREE_TEXT = {"sample_prompts", "equals"}
"""Fields that people's own words are for. They are carried as they are, and never become anything else."""

HOSTILE = {
    "NUL": "a\x00b",
    "trailing newline": "base\n",
    "trailing newline, Windows": "base\r\n",
    "Cyrillic look-alike": "b\u0430se",
    "full-width look-alike": "\uff42ase",
    "zero-width": "ba\u200bse",
    "right-to-left override": "ba\u202ese",
    "emoji": "base\U0001f600",
    "digit that is not ASCII": "base\u0663",
    "file": "file:///etc/passwd",
    "file with host": "file://host/share",
    "bare path": "/etc/passwd",
    "data": "data:text/plain,x",
    "gopher": "gopher://x",
    "hub": "hf://org/model",
    "old S3": "s3n://bucket/key",
    "metadata address": "http://169.254.169.254/",
    "metadata address as one number": "http://2852039166/",
    "loopback, IPv6": "http://[::1]/",
    "other bucket": "s3://other-bucket/key",
    "up and out": "../../x",
    "up and out, encoded": "%2e%2e%2fx",
    "up and out, Windows": "..\\..\\x",
    "version query": "s3://b/k?versionId=1",
    "hub id": "org/model:main?x",
    "loader script": "../loader.py",
    "import by path": "os.system('id')",
    "environment": "LD_PRELOAD=/tmp/x.so",
    "shell": "; rm -rf /",
    "shell substitution": "$(id)",
    "template": "{{7*7}}",
    "percent format": "%s%s%n",
    "format": "{0.__class__}",
    "SQL": "x'; DROP TABLE jobs;--",
    "long": "a" * 100_000,
}
HARMLESS_AS_TEXT = {name: text for name, text in HOSTILE.items() if name not in {"NUL", "long"}}


def strings(name: str) -> list[Leaf]:
    return [leaf for leaf in leaves(message(name)) if leaf.field.cpp_type == FieldDescriptor.CPPTYPE_STRING]


def numbers(name: str) -> list[Leaf]:
    kinds = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_DOUBLE}
    return [leaf for leaf in leaves(message(name)) if leaf.field.cpp_type in kinds]


def test_the_specs_used_here_are_legal_and_set_every_field() -> None:
    seen: set[tuple[str, str]] = set()

    def note(descriptor: Descriptor, root: Any) -> None:
        for field, value in root.ListFields():
            seen.add((descriptor.name, field.name))
            entry = field.message_type
            if entry is None:
                continue
            is_map = entry.GetOptions().map_entry
            items = value.values() if is_map else value if field.is_repeated else [value]
            for item in items:
                note(item.DESCRIPTOR, item)

    wanted: set[tuple[str, str]] = set()

    def want(descriptor: Descriptor) -> None:
        for field in descriptor.fields:
            entry = field.message_type
            is_map = entry is not None and entry.GetOptions().map_entry
            inner = entry.fields_by_name["value"].message_type if entry is not None and is_map else entry
            wanted.add((descriptor.name, field.name))
            if inner is not None:
                want(inner)

    for name in SPECS:
        spec_wire.spec_from_proto(message(name))
        note(JobSpec.DESCRIPTOR, message(name))
    want(JobSpec.DESCRIPTOR)
    assert wanted - seen == {("TrainingSpec", "auto"), ("StageTraining", "auto")}


@pytest.mark.parametrize("name", SPECS)
def test_hostile_text_is_refused_in_every_name(name: str) -> None:
    for leaf in strings(name):
        for attack, text in HOSTILE.items():
            if leaf.field.name in FREE_TEXT and attack in HARMLESS_AS_TEXT:
                continue
            changed = message(name)
            leaf.set(changed, text)
            assert list(refusal(changed)) == [leaf.path], f"{attack} in {leaf.path}"


@pytest.mark.parametrize("name", SPECS)
def test_free_text_is_carried_as_it_is(name: str) -> None:
    for leaf in strings(name):
        for text in HARMLESS_AS_TEXT.values() if leaf.field.name in FREE_TEXT else ():
            changed = message(name)
            leaf.set(changed, text)
            stored = spec_wire.spec_from_proto(changed).model_dump(mode="json")
            assert text in [value for _, value in _flat(spec_wire.spec_to_proto(stored))]


def _flat(root: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for leaf in leaves(root):
        target: Any = root
        for step in leaf.steps:
            target = target[step] if isinstance(step, int) or not hasattr(target, "DESCRIPTOR") else getattr(target, step)
        found.append((leaf.path, target))
    return found


@pytest.mark.parametrize("name", SPECS)
def test_numbers_beyond_their_limits_are_refused(name: str) -> None:
    for leaf in numbers(name):
        for value in _beyond(leaf):
            changed = message(name)
            leaf.set(changed, value)
            assert leaf.path in refusal(changed), f"{value} in {leaf.path}"


def _beyond(leaf: Leaf) -> list[float]:
    low, high, above = _limits(leaf.field)
    if leaf.field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        outside = [math.nan, math.inf, -math.inf, 1e308, -1e308, math.nextafter(high, math.inf)]
        return [*outside, low if above else math.nextafter(low, -math.inf)]
    widest = 2**31 if leaf.field.cpp_type == FieldDescriptor.CPPTYPE_INT32 else 2**63
    least, most = int(low), int(high)
    outside = {least - 1, most + 1, -1, -widest, widest - 1}
    return [value for value in sorted(outside) if not least <= value <= most and -widest <= value < widest]


def _limits(field: FieldDescriptor) -> tuple[float, float, bool]:
    """Lowest and highest value of a field, and whether the lowest is left out."""
    assert field.containing_type is not None
    info = MODELS[field.containing_type.name].model_fields[field.name]
    rules: list[Any] = list(info.metadata)
    if field.is_repeated:
        (item,) = (argument for argument in get_args(info.annotation) if argument is not Ellipsis)
        rules = [rule for part in get_args(item)[1:] for rule in part.metadata]
    above = any(isinstance(rule, Gt) for rule in rules)
    low = next(getattr(rule, "gt" if above else "ge") for rule in rules if isinstance(rule, Ge | Gt))
    high = next(getattr(rule, "le") for rule in rules if isinstance(rule, Le))  # noqa: B009 - its type has no numbers
    return float(low), float(high), above


def _models() -> dict[str, type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {}

    def walk(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found[kind.__name__] = kind
            for info in kind.model_fields.values():
                walk(info.annotation)
        for argument in getattr(kind, "__args__", ()):
            walk(argument)

    for kind in SPEC_TYPES.values():
        walk(kind)
    return found


MODELS = _models()


def test_minus_zero_is_zero() -> None:
    changed = message("fine_tune")
    changed.fine_tune.lora.dropout = -0.0
    spec = spec_wire.spec_from_proto(changed)
    changed.fine_tune.lora.dropout = 0.0
    assert spec_wire.canonical_sha256(spec) == spec_wire.canonical_sha256(spec_wire.spec_from_proto(changed))


@pytest.mark.parametrize("name", SPECS)
def test_lists_and_maps_beyond_their_size_are_refused(name: str) -> None:
    root = message(name)
    for path, container in _containers(root, "spec"):
        changed = message(name)
        target = dict(_containers(changed, "spec"))[path]
        if hasattr(container, "keys"):
            some = next(iter(container.values()))
            for index in range(17):
                target[f"training.x{index}"].CopyFrom(some)
        else:
            first = container[0]
            target.extend([first] * 100)
        assert path in refusal(changed), path


def _containers(root: Any, path: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for field, value in root.ListFields():
        here = f"{path}.{field.name}"
        entry = field.message_type
        if field.is_repeated:
            found.append((here, value))
        elif entry is not None:
            found += _containers(value, here)
    return found


@pytest.mark.parametrize(
    "key", ["", "rank", "lora.rank\n", "lora.r\u0430nk", "x" * 10_000, "lora.__class__", "training.steps", "a\x00"]
)
def test_keys_of_maps_are_held_to_what_is_known(key: str) -> None:
    changed = message("hpo")
    changed.hpo.search_space[key].CopyFrom(changed.hpo.search_space["lora.rank"])
    ((path, words),) = refusal(changed).items()
    assert path.startswith('spec.hpo.search_space["')
    assert len(path) < 120
    assert path.isascii()
    assert path.isprintable()
    assert words.startswith("cannot be searched; expected one of lora.rank, ")


@pytest.mark.parametrize(
    "name",
    [
        "env", "environment", "labels", "annotations", "tolerations", "node_selector", "nodeSelector", "priority_class",
        "host_path", "service_account", "init_containers", "image", "command", "args", "script", "loader_script",
        "trust_remote_code", "uri", "state", "attempt", "owner", "cost",
    ],
)  # fmt: skip
def test_a_spec_is_closed(name: str) -> None:
    """Nothing is passed through to a pod, an environment or a command line: there is no field for it, at any depth."""
    assert not [model for model, kind in MODELS.items() if name in kind.model_fields]
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict({"fine_tune": {**SPECS["fine_tune"]["fine_tune"], name: "x"}}, JobSpec())
    stored = spec_wire.spec_from_proto(message("fine_tune")).model_dump(mode="json")
    for place in (stored, stored["resources"], stored["dataset"]):
        place[name] = {"LD_PRELOAD": "x.so"}
        with pytest.raises(ValidationError):
            FineTuneSpec.model_validate(stored)
        del place[name]


def test_no_map_of_text_to_text_and_no_bytes_anywhere() -> None:
    """What could hold an environment, labels, or a pickled object."""
    for model in MODELS.values():
        for name, info in model.model_fields.items():
            assert "bytes" not in str(info.annotation), name
            assert "dict[str, str]" not in str(info.annotation), name
            assert "Any" not in str(info.annotation), name


@pytest.mark.parametrize("where", ["", "fine_tune", "fine_tune.dataset", "fine_tune.training"])
def test_fields_of_a_newer_contract_are_refused_and_not_dropped(where: str) -> None:
    changed = message("fine_tune")
    target: Any = changed
    for name in where.split(".") if where else ():
        target = getattr(target, name)
    target.MergeFromString(bytes([0xF8, 0x07, 0x01]))  # Field 127 with value 1.
    path = f"spec.{where}" if where else "spec"
    assert refusal(changed) == {f'{path}["#127"]': "is not a field of this message; remove it"}


def test_an_enum_value_of_a_newer_contract_is_refused() -> None:
    changed = message("hpo")
    changed.MergeFromString(bytes([0x12, 0x02, 0x18, 0x63]))  # hpo.sampler = 99
    assert refusal(changed) == {"spec.hpo.sampler": "is 99; input should be 'random', 'tpe' or 'grid'"}


def test_a_spec_without_type_is_refused_with_the_types_there_are() -> None:
    assert refusal(job_spec_pb2.JobSpec()) == {
        "spec": "has no type; expected exactly one to be set of: fine_tune, hpo, retrain, rlhf, evaluation"
    }


def test_damaged_bytes_are_a_spec_or_a_refusal_and_nothing_else() -> None:
    """What is accepted after damage is a whole spec: it can be stored, sent, planned and looked up."""
    random = Random(20_000)  # noqa: S311 - the same damage every time, nothing secret
    whole = [message(name).SerializeToString() for name in SPECS]
    paths: set[str] = set()
    outcomes = {"accepted": 0, "refused": 0, "not a message": 0}
    for _ in range(3_000):
        damaged = bytearray(random.choice(whole))
        for _ in range(random.randint(1, 4)):
            at = random.randrange(len(damaged))
            match random.randrange(3):
                case 0:
                    damaged[at] = random.randrange(256)
                case 1:
                    damaged[at : at + random.randint(1, 3)] = b"\x00"
                case _:
                    damaged += random.choice(whole)
        try:
            spec = spec_wire.spec_from_proto(JobSpec.FromString(bytes(damaged)))
        except DecodeError:
            outcomes["not a message"] += 1
        except RefusedError as refused:
            paths |= {violation.path for violation in refused.violations}
            outcomes["refused"] += 1
        else:
            assert spec_wire.spec_from_proto(spec_wire.spec_to_proto(spec.model_dump(mode="json"))) == spec
            to_proto(plan(spec, {"rows": DataFacts(5, 50)}, PriceList("EUR", {"h200": 10**9})))
            assert inputs_of(spec)
            outcomes["accepted"] += 1
    assert min(outcomes.values()) > 100, outcomes
    assert all(path.startswith("spec") for path in paths)
