"""Opaque page tokens and stream cursors, bound to the caller and the query they came from.

A token is base64url of a MAC and a JSON list of positions. The MAC (BLAKE2b keyed, RFC 7693) covers the caller's subject, the
query and the position, so that a token that was edited, belongs to somebody else or comes from another query is refused. It
grants nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from typing import Any

from control_plane.call import current_call
from control_plane.errors import Reason, RefusedError, invalid_field

_MAC_BYTES = 16
_TOKEN_MAX = 4_096
"""Characters: those of two positions of the longest text that is listed by, and to spare."""


def page_size(asked: int, *, default: int, maximum: int) -> int:
    """Rows in a page: 0 means the default, too many is lowered (AIP-158).

    Raises:
        RefusedError: it is negative.
    """
    if asked < 0:
        raise invalid_field("page_size", f"is {asked}; expected 0 for the default or a positive number")
    return min(asked or default, maximum)


class Cursors:
    """Makes and checks tokens with the server's key, for the caller of the current call."""

    def __init__(self, key: bytes) -> None:
        """Args:
        key: secret of the whole control plane, equal on all replicas; at least 32 bytes.
        """
        self._key = hashlib.blake2b(key, person=b"headway cursors", digest_size=32).digest()

    def scope(self, query: object) -> Scope:
        """What makes the tokens of one query of the current caller: for streams, which make many."""
        return Scope(self._key, current_call().principal.subject, query)

    def encode(self, query: object, position: list[Any]) -> str:
        """A token for what follows `position` in the result of `query`, which is JSON values."""
        return self.scope(query).encode(position)

    def decode(self, token: str, query: object, types: tuple[type, ...], field: str) -> list[Any] | None:
        """The position in a token made by `encode`; None for an empty token.

        Raises:
            RefusedError: the token is damaged, or comes from another caller or query.
        """
        return self.scope(query).decode(token, types, field) if token else None


class Scope:
    """The tokens of one query of one caller."""

    def __init__(self, key: bytes, subject: str, query: object) -> None:
        identity = json.dumps([subject, query], sort_keys=True).encode()
        self._key = hashlib.blake2b(identity, key=key, digest_size=32).digest()

    def encode(self, position: list[Any]) -> str:
        """A token for what follows `position`."""
        body = json.dumps(position, separators=(",", ":"), ensure_ascii=False).encode()
        return _spelled(self._mac(body) + body)

    def decode(self, token: str, types: tuple[type, ...], field: str) -> list[Any]:
        """The position in a token made by `encode`.

        Raises:
            RefusedError: it was not made here.
        """
        refusal = RefusedError(
            Reason.INVALID_CURSOR,
            f"{field} was not made by this server for this caller and query; repeat the query it came from, or begin with an "
            "empty one",
        )
        if len(token) > _TOKEN_MAX or not token.isascii():
            raise refusal
        try:
            content = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            raise refusal from None
        mac, body = content[:_MAC_BYTES], content[_MAC_BYTES:]
        # What passes was made by `encode`: only its types need a look, for a query may have changed with a release.
        if not hmac.compare_digest(mac, self._mac(body)) or _spelled(content) != token:
            raise refusal
        position: list[Any] = json.loads(body)
        if len(position) != len(types) or any(type(value) is not kind for value, kind in zip(position, types, strict=True)):
            raise refusal
        return position

    def _mac(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, key=self._key, digest_size=_MAC_BYTES).digest()


def _spelled(content: bytes) -> str:
    """The one spelling of a token: base64 has several for the same bytes."""
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
