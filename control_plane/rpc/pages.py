"""Opaque page tokens and stream cursors, tied to the query they came from."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any

from control_plane.errors import Reason, RefusedError, invalid_field


def page_size(asked: int, *, default: int, maximum: int) -> int:
    """Rows in a page: 0 means the default, too many is lowered (AIP-158).

    Raises:
        RefusedError: it is negative.
    """
    if asked < 0:
        raise invalid_field("page_size", f"is {asked}; expected 0 for the default or a positive number")
    return min(asked or default, maximum)


def encode(query: object, position: list[Any]) -> str:
    """A token for what follows `position` in the result of `query`."""
    body = json.dumps([_fingerprint(query), *position], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(body).decode().rstrip("=")


def decode(token: str, query: object, types: tuple[type, ...], field: str) -> list[Any] | None:
    """The position in a token made by `encode`; None for an empty token.

    Raises:
        RefusedError: the token is damaged, or comes from another query.
    """
    if not token:
        return None
    refusal = RefusedError(
        Reason.INVALID_CURSOR,
        f"{field} was not made by this server for this query; repeat the query it came from, or begin with an empty one",
    )
    if len(token) > 1_000 or not token.isascii():
        raise refusal
    try:
        body = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise refusal from None
    if not isinstance(body, list) or len(body) != len(types) + 1 or body[0] != _fingerprint(query):
        raise refusal
    position: list[Any] = body[1:]
    for value, expected in zip(position, types, strict=True):
        # bool is an int to isinstance; nothing here is one.
        if type(value) is not expected or (expected is int and not 0 <= value < 2**63):
            raise refusal
    return position


def _fingerprint(query: object) -> str:
    return hashlib.sha256(json.dumps(query, sort_keys=True).encode()).hexdigest()[:16]
