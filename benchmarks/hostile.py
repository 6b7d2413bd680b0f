"""Requests that nobody means well by: valid on the wire or nearly so, with values that have broken servers before.

Made from the contract's descriptors and a seed, so that every method is met and every finding can be repeated.
"""

from __future__ import annotations

import random
import struct
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

_TEXTS = (
    *("", " ", "a", "support", "\0", "a\0b", "x" * 64, "x" * 3_000, "SUPPORT", "support\n"),
    # A look-alike, a text turned round, one of no width, and one outside the plane that most texts live in.
    *("\u0455upport", "\u202eabc", "\u200b", "\U0001f600"),
    *("'; DROP TABLE jobs; --", "id; select pg_sleep(5)", "state = RUNNING OR (", "((((((((((", "%s%n{0.__class__}{{7*7}}"),
    *("../../etc/passwd", "s3://other/x", "file:///etc/passwd", "http://169.254.169.254/"),
    *("NaN", "-1", "1e308", "null", "user:x", "fine_tune.*", "name", "priority"),
    *("00000000-0000-0000-0000-000000000000", "{00000000-0000-0000-0000-000000000000}", "0" * 36),
)
_INTEGERS = (0, 1, -1, 2, 63, 1_000, 1_001, 2**31 - 1, -(2**31), 2**31, 2**32, 2**53, 2**63 - 1, -(2**63), 2**64 - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-308, 5e-324, 1e308, float("inf"), float("-inf"), float("nan"))
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_DEPTH_MAX = 6


class Hostile:
    """A source of requests."""

    def __init__(self, methods: Sequence[MethodDescriptor], seed: int, known: Sequence[str] = ()) -> None:
        """Args:
        methods: what to call.
        seed: the same seed gives the same requests.
        known: texts that mean something to the server, such as ids of jobs, so that some requests get further than others.
        """
        self._methods = methods
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._texts = (*_TEXTS, *known, *known, *known)

    def next(self) -> tuple[MethodDescriptor, bytes]:
        """A method and a body for it."""
        method = self._random.choice(self._methods)
        body = self._message(method.input_type, 0).SerializeToString()
        return method, self._random.choice(_DAMAGES)(body, self._random)

    def _message(self, descriptor: Descriptor, depth: int) -> Message:
        message: Any = message_factory.GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self._random.random() < (0.75 if depth == 0 else 0.5):
                self._fill(message, field, depth)
        return message

    def _fill(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
            mapping = getattr(message, field.name)
            for _ in range(self._count()):
                if value.message_type is None:
                    mapping[self._scalar(key)] = self._scalar(value)
                elif depth < _DEPTH_MAX:
                    mapping[self._scalar(key)].CopyFrom(self._message(value.message_type, depth + 1))
        elif entry is not None and depth < _DEPTH_MAX:
            if field.is_repeated:
                getattr(message, field.name).extend(self._message(entry, depth + 1) for _ in range(self._count()))
            else:
                getattr(message, field.name).CopyFrom(self._message(entry, depth + 1))
        elif entry is None and field.is_repeated:
            getattr(message, field.name).extend(self._scalar(field) for _ in range(self._count()))
        elif entry is None:
            setattr(message, field.name, self._request_id() if field.name == "request_id" else self._scalar(field))

    def _request_id(self) -> str:
        """Mostly a good one: without it nothing that changes anything gets far."""
        if self._random.random() < 0.1:
            return self._random.choice(self._texts)
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _count(self) -> int:
        return self._random.choice((0, 1, 1, 2, 3, 40))

    def _scalar(self, field: FieldDescriptor) -> Any:
        kind = field.cpp_type
        if kind == FieldDescriptor.CPPTYPE_STRING:
            text = self._random.choice(self._texts)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self._random.random() < 0.5
        if kind in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}:
            return self._random.choice(_FLOATS)
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return self._random.choice((0, 1, 2, 3, 5, 8, 99, -1, 2**31 - 1))
        lowest, highest = _BITS[kind]
        return self._random.choice([number for number in _INTEGERS if lowest <= number <= highest])


_Damage = Callable[[bytes, random.Random], bytes]


def _none(body: bytes, chance: random.Random) -> bytes:
    del chance
    return body


def _flipped(body: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(body)
    for _ in range(min(len(damaged), 3)):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def _cut(body: bytes, chance: random.Random) -> bytes:
    return body[: chance.randrange(len(body) + 1)]


def _garbage(body: bytes, chance: random.Random) -> bytes:
    del body
    return chance.randbytes(chance.randrange(200))


def _twice(body: bytes, chance: random.Random) -> bytes:
    """Fields again: scalars are overwritten, lists grow, messages merge."""
    del chance
    return body + body


def _unknown(body: bytes, chance: random.Random) -> bytes:
    """A field the contract does not have."""
    return body + b"\xfa\xff\x01" + struct.pack("B", 5) + chance.randbytes(5)


def nested(depth: int, field: int = 1) -> bytes:
    """A message in a message in a message, by the same field number."""
    body = b""
    for _ in range(depth):
        body = bytes([field << 3 | 2]) + _varint(len(body)) + body
    return body


def groups(depth: int) -> bytes:
    """Groups in groups, which nobody has used for long and every parser still reads."""
    return b"\x0b" * depth + b"\x0c" * depth


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _deep(body: bytes, chance: random.Random) -> bytes:
    return body + chance.choice((nested, groups))(chance.choice((20, 60, 101, 1_000)))


# Most arrive as they were made: a damaged message is refused early, and looks at little.
_DAMAGES: tuple[_Damage, ...] = (*[_none] * 12, _flipped, _cut, _garbage, _twice, _unknown, _deep)
