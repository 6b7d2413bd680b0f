"""Secrets and signatures of webhooks (Standard Webhooks 1.0).

An endpoint's secret is derived from the control plane's own and the endpoint's id, so that it is stored nowhere.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import uuid

_PREFIX = "whsec_"


class Signer:
    """Signs messages with the server's key."""

    def __init__(self, secret_key: bytes) -> None:
        """Args:
        secret_key: secret of the whole control plane, equal on all replicas; at least 32 bytes.
        """
        self._key = hashlib.blake2b(secret_key, person=b"headway webhooks", digest_size=32).digest()

    def secret(self, webhook_id: str) -> str:
        """What the receiver checks signatures with: `whsec_` and base64."""
        return _PREFIX + base64.b64encode(self._secret(webhook_id)).decode()

    def headers(self, webhook_id: str, delivery_id: str, body: str, at: int) -> dict[str, str]:
        """The headers of one message.

        Args:
            webhook_id: the endpoint.
            delivery_id: the message; the same for every try, so that the receiver recognises a repeat.
            body: what is sent.
            at: when, in Unix seconds; the receiver refuses what is old.
        """
        signed = f"{delivery_id}.{at}.{body}".encode()
        signature = base64.b64encode(hmac.digest(self._secret(webhook_id), signed, "sha256")).decode()
        return {"webhook-id": delivery_id, "webhook-timestamp": str(at), "webhook-signature": f"v1,{signature}"}

    def _secret(self, webhook_id: str) -> bytes:
        return hmac.digest(self._key, uuid.UUID(webhook_id).bytes, "sha256")
