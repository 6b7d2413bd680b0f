from __future__ import annotations

import pytest

from control_plane.identity.certificates import ClientCertificate, client_certificate
from control_plane.identity.refusal import UnauthenticatedError
from tests.credentials import Authority, Certificate

AUTHORITY = Authority()


def seen(certificate: Certificate) -> ClientCertificate:
    found = client_certificate({"transport_security_type": [b"ssl"], "x509_pem_cert": [certificate.chain]})
    assert found is not None
    assert found.sha256 == certificate.sha256
    return found


@pytest.mark.parametrize(
    ("uri", "subject"),
    [
        ("spiffe://headway/worker/gpu-1", "worker:gpu-1"),
        ("spiffe://headway/service/gateway", "service:gateway"),
        ("spiffe://headway/service/support/nightly.import", "service:support/nightly.import"),
        ("spiffe://headway/worker/support/gpu-1", None),
        ("spiffe://headway/worker/", None),
        ("spiffe://headway/worker/-a", None),
        ("spiffe://headway/worker/gpu-1/", None),
        ("spiffe://headway/worker/GPU-1", None),
        ("spiffe://headway/user/alice", None),
        ("spiffe://headway/service/a/b/c", None),
        ("spiffe://headway.example/worker/gpu-1", None),
        ("https://headway/worker/gpu-1", None),
    ],
)
def test_whom_a_certificate_names(uri: str, subject: str | None) -> None:
    found = seen(AUTHORITY.client(uri))
    assert found.subject == subject
    assert found.worker == ("gpu-1" if subject == "worker:gpu-1" else None)


def test_two_names_are_none_and_other_kinds_of_names_do_not_count() -> None:
    assert seen(AUTHORITY.client("spiffe://headway/worker/a", "spiffe://headway/worker/b")).subject is None
    assert seen(AUTHORITY.client(dns=["spiffe.headway.worker.a"])).subject is None
    assert seen(AUTHORITY.client()).subject is None


def test_only_what_tls_verified_counts() -> None:
    certificate = AUTHORITY.client("spiffe://headway/worker/a")
    assert client_certificate({"x509_pem_cert": [certificate.chain]}) is None
    assert client_certificate({"transport_security_type": [b"insecure"], "x509_pem_cert": [certificate.chain]}) is None
    assert client_certificate({"transport_security_type": [b"ssl"]}) is None
    with pytest.raises(UnauthenticatedError):
        client_certificate({"transport_security_type": [b"ssl"], "x509_pem_cert": [b"-----BEGIN"]})
