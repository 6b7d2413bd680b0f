"""The credential of one attempt of a job: signed, not stored, so that a worker's writes need no look into the database.

`hwa_` and base64url of a body and its MAC (BLAKE2b keyed, RFC 7693). The body is a version, the job's id, the attempt's number
and the second it ends. It grants no more than to speak for that attempt; whether that is still current is judged by the fence.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
import uuid
from datetime import UTC, datetime

from control_plane.identity.principal import AttemptBinding
from control_plane.identity.refusal import unauthenticated

PREFIX = "hwa_"

_BODY = struct.Struct(">B16sIQ")
_VERSION = 1
_MAC_BYTES = 32
_LENGTH_MAX = 200


class AttemptTokens:
    """Makes and checks the credentials of attempts with the server's key."""

    def __init__(self, secret_key: bytes) -> None:
        """Args:
        secret_key: secret of the whole control plane, equal on all replicas; at least 32 bytes.
        """
        self._key = hashlib.blake2b(secret_key, person=b"headway attempts", digest_size=32).digest()

    def issue(self, job_id: str, attempt: int, expires_at: datetime) -> str:
        """The credential of an attempt until `expires_at`, to the second."""
        body = _BODY.pack(_VERSION, uuid.UUID(job_id).bytes, attempt, int(expires_at.timestamp()))
        return PREFIX + _spelled(body + self._mac(body))

    def verify(self, token: str, now: datetime) -> tuple[AttemptBinding, datetime]:
        """Whom a token made by `issue` speaks for, and when it ends.

        Raises:
            UnauthenticatedError: it was not made here, or has ended.
        """
        text = token.removeprefix(PREFIX)
        if len(token) > _LENGTH_MAX or text == token or not token.isascii():
            raise unauthenticated("not of the form of an attempt's token")
        try:
            content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            raise unauthenticated("an attempt's token that is not base64url") from None
        body, mac = content[:-_MAC_BYTES], content[-_MAC_BYTES:]
        # One spelling only: base64 has several for the same bytes.
        if not hmac.compare_digest(mac, self._mac(body)) or _spelled(content) != text:
            raise unauthenticated("an attempt's token that was not made by this server")
        version, job, attempt, ends = _BODY.unpack(body)
        if version != _VERSION:
            raise unauthenticated(f"an attempt's token of version {version}")
        expires_at = datetime.fromtimestamp(ends, UTC)
        if expires_at <= now:
            raise unauthenticated("an attempt's token that has ended")
        return AttemptBinding(str(uuid.UUID(bytes=job)), attempt), expires_at

    def _mac(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, key=self._key, digest_size=_MAC_BYTES).digest()


def _spelled(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
