"""Service tokens: `hw_`, the token's id in hex, `_`, and 32 random bytes in base64url.

Stored are the id and the SHA-256 of the whole token. The secret has 256 bits of chance, so that a fast hash is enough: there is
no list of words to try.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import uuid

PREFIX = "hw_"
BOOTSTRAP_CREATOR = "system:bootstrap"
"""Creator of the tokens that the settings name."""

# 32 bytes are 43 characters, the last of which carries 4 bits.
_TOKEN = re.compile(r"hw_([0-9a-f]{32})_[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
_BOOTSTRAP_NAMESPACE = uuid.UUID("5f1d2c1e-6d43-4a37-9d43-3f6a1f0f8a57")


def new_secret(token_id: str) -> str:
    """A new token of this id: what its holder sends, shown once."""
    chance = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    return f"{PREFIX}{uuid.UUID(token_id).hex}_{chance}"


def secret_sha256(secret: str) -> bytes:
    """What is stored of a token, 32 bytes."""
    return hashlib.sha256(secret.encode()).digest()


def token_id_of(secret: str) -> str | None:
    """The id in a token; None: it is not of a token's form."""
    match = _TOKEN.fullmatch(secret)
    return None if match is None else str(uuid.UUID(match[1]))


def bootstrap_token_id(name: str) -> str:
    """The id of the bootstrap token of this name, always the same (UUID version 5, RFC 9562)."""
    return str(uuid.uuid5(_BOOTSTRAP_NAMESPACE, name))
