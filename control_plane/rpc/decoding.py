"""From bytes to messages, once the caller is known: not longer than the method takes, well-formed, no text with NUL."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any, ClassVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from control_plane.errors import FieldViolation, Reason, RefusedError, invalid_fields
from control_plane.rpc.exchange import Exchange, Method, Proceed

_VIOLATIONS_MAX = 20


class Decoding:
    """Makes the request of the body; of a stream of bodies, one by one as the service asks for them."""

    name: ClassVar[str] = "decoding"
    after: ClassVar[frozenset[str]] = frozenset({"authentication", "permission", "rates", "concurrency"})

    async def around(self, exchange: Exchange, proceed: Proceed) -> Any:
        """The rest, with a request.

        Raises:
            RefusedError: the body is too long, is no message of the method, or has NUL in a text.
        """
        if exchange.method.takes_stream:
            exchange.request = _decoded(exchange.method, exchange.body)
        else:
            exchange.request = decoded(exchange.method, exchange.body)
            if exchange.call is not None:
                exchange.call.request_id = _request_id(exchange.request)
        return await proceed(exchange)


async def _decoded(method: Method, bodies: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for body in bodies:
        yield decoded(method, body)


def decoded(method: Method, body: bytes) -> Any:
    """The message of a body.

    Raises:
        RefusedError: as `Decoding.around`.
    """
    most = method.rule.bytes_max
    if len(body) > most:
        raise RefusedError(
            Reason.REQUEST_TOO_LARGE,
            f"the request has {len(body):,} bytes; {method.name} takes at most {most:,}, send less or split it",
            {"bytes": str(len(body)), "maximum": str(most)},
        )
    try:
        message = method.decode(body)
    except (DecodeError, RecursionError):
        raise RefusedError(
            Reason.MALFORMED_REQUEST,
            "the request's bytes are not a message of the method's request type; check the client's version of the protos",
        ) from None
    # Most requests have no zero byte at all; in the others it may be part of a number, so the texts are looked at one by one.
    if b"\0" in body and not method.rule.judges_text:
        found = list(_nul_paths(message, ""))
        if found:
            raise invalid_fields(
                [FieldViolation(path, "has the character NUL; expected text without it") for path in found[:_VIOLATIONS_MAX]]
            )
    return message


def _request_id(request: Any) -> str:
    """The client's request id for the record, if it is one; whether it must be is for the service to say."""
    value = getattr(request, "request_id", "")
    if not value or len(value) != 36:
        return ""
    try:
        return str(uuid.UUID(value))
    except ValueError:
        return ""


_Look = Callable[[Any, str], list[str]]


def _nul_paths(message: Message, path: str) -> list[str]:
    """Paths of the texts that have a NUL."""
    found: list[str] = []
    looks = _looks(message.DESCRIPTOR)
    for field, value in message.ListFields():
        look = looks.get(field.name)
        if look is not None:
            found += look(value, f"{path}.{field.name}" if path else field.name)
    return found


@cache
def _looks(descriptor: Descriptor) -> dict[str, _Look]:
    """How to look at each field of a message that can hold text."""
    return {field.name: _look(field) for field in descriptor.fields if _holds_text(field)}


def _holds_text(field: FieldDescriptor) -> bool:
    return field.message_type is not None or field.type == FieldDescriptor.TYPE_STRING


def _look(field: FieldDescriptor) -> _Look:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        return _in_map_of_messages if entry.fields_by_name["value"].message_type is not None else _in_map
    if entry is not None:
        return _in_messages if field.is_repeated else _nul_paths
    return _in_texts if field.is_repeated else _in_text


def _in_text(value: str, path: str) -> list[str]:
    return [path] if "\0" in value else []


def _in_texts(values: Any, path: str) -> list[str]:
    return [f"{path}[{index}]" for index, value in enumerate(values) if "\0" in value]


def _in_messages(values: Any, path: str) -> list[str]:
    return [found for index, value in enumerate(values) for found in _nul_paths(value, f"{path}[{index}]")]


def _in_map(values: Any, path: str) -> list[str]:
    return [
        f"{path}[{key!r}]"
        for key, value in values.items()
        if (isinstance(key, str) and "\0" in key) or (isinstance(value, str) and "\0" in value)
    ]


def _in_map_of_messages(values: Any, path: str) -> list[str]:
    found: list[str] = []
    for key, value in values.items():
        if isinstance(key, str) and "\0" in key:
            found.append(f"{path}[{key!r}]")
        found += _nul_paths(value, f"{path}[{key!r}]")
    return found
