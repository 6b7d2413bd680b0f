"""Client certificates, as the TLS layer verified them: whom they name, and until when."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from control_plane.identity.refusal import unauthenticated

# SPIFFE ids (https://spiffe.io) of the trust domain "headway": one URI among the subject's alternative names says who it is.
_NAME = r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?"
_IDENTITY = re.compile(rf"spiffe://headway/(?:(worker)/({_NAME})|(service)/({_NAME}(?:/{_NAME})?))")


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A certificate whose chain and key were verified.

    Attributes:
        uris: the URIs among its subject's alternative names.
        sha256: of its DER form, 32 bytes; names the certificate (RFC 8705).
        expires_at: when it ends.
    """

    uris: tuple[str, ...]
    sha256: bytes
    expires_at: datetime

    @property
    def subject(self) -> str | None:
        """Whom it stands for: `worker:NAME`, `service:NAME` or `service:PROJECT/NAME`; None: nobody that we know."""
        match = _IDENTITY.fullmatch(self.uris[0]) if len(self.uris) == 1 else None
        return None if match is None else f"{match[1] or match[3]}:{match[2] or match[4]}"

    @property
    def worker(self) -> str | None:
        """The name of the worker it is for; None: it is for none."""
        subject = self.subject
        return subject.removeprefix("worker:") if subject is not None and subject.startswith("worker:") else None


def client_certificate(auth_context: Mapping[str, Sequence[bytes]]) -> ClientCertificate | None:
    """The client's certificate, from what gRPC says of the connection; None: it sent none.

    gRPC shows a certificate only where it demanded and verified one. What the caller wrote into metadata plays no part.

    Raises:
        UnauthenticatedError: it cannot be read.
    """
    found = auth_context.get("x509_pem_cert")
    if not found or auth_context.get("transport_security_type") != [b"ssl"]:
        return None
    try:
        return _read(bytes(found[0]))
    except ValueError as error:
        raise unauthenticated(f"a client certificate that cannot be read: {error}") from None


# A connection brings the same certificate with every call.
@lru_cache(maxsize=1_024)
def _read(pem: bytes) -> ClientCertificate:
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
    except x509.ExtensionNotFound:
        uris = ()
    return ClientCertificate(uris, certificate.fingerprint(hashes.SHA256()), certificate.not_valid_after_utc)
