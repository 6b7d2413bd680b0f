"""The webhook example believes what the control plane signs, and nothing else."""

from __future__ import annotations

from control_plane.webhooks.signing import Signer
from examples.webhook_receiver import AGE_SECONDS_MAX, is_genuine

WEBHOOK, NOW, BODY = "2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11", 1_790_000_000, '{"type": "job.failed"}'


def test_a_message_is_believed_if_its_signature_fits_and_it_is_not_old() -> None:
    signer = Signer(b"k" * 32)
    secret, headers = signer.secret(WEBHOOK), signer.headers(WEBHOOK, "message", BODY, NOW)
    body = BODY.encode()
    assert is_genuine(secret, headers, body, NOW)
    assert is_genuine(secret, headers | {"webhook-signature": f"v1,AAAA {headers['webhook-signature']}"}, body, NOW)
    assert not is_genuine(secret, headers, body + b" ", NOW)
    assert not is_genuine(secret, headers | {"webhook-id": "other"}, body, NOW)
    assert not is_genuine(secret, headers, body, NOW + AGE_SECONDS_MAX + 1)
    assert not is_genuine(Signer(b"l" * 32).secret(WEBHOOK), headers, body, NOW)
    assert not is_genuine(secret, {}, body, NOW)
