"""Credentials made as the world makes them: by an identity provider with its key server, and by a certificate authority."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from jwt.algorithms import RSAAlgorithm

AUDIENCE = "https://headway.example"


class SigningKey:
    """A key of an identity provider."""

    def __init__(self, key_id: str, *, bits: int = 2_048) -> None:
        self.key_id = key_id
        self.private = rsa.generate_private_key(public_exponent=65_537, key_size=bits)

    def public_jwk(self, **changes: Any) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(RSAAlgorithm.to_jwk(self.private.public_key()))
        return content | {"kid": self.key_id, "use": "sig", "alg": "RS256"} | changes

    def public_pem(self) -> bytes:
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.private.public_key().public_bytes(serialization.Encoding.PEM, form)


class Issuer:
    """An identity provider: signs tokens, and serves its keys over HTTP. A context manager: inside it serves."""

    def __init__(self) -> None:
        self.key = SigningKey("first")
        self.published: list[Mapping[str, Any]] = [self.key.public_jwk()]
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: bytes | None = None
        """Instead of the published keys."""
        self.fetches = 0
        self.asked = threading.Event()
        """Somebody asked for the keys."""
        self.answering = threading.Event()
        """Cleared: requests hang until it is set."""
        self.answering.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetches += 1
                issuer.asked.set()
                issuer.answering.wait(30)
                body = json.dumps({"keys": issuer.published}).encode() if issuer.body is None else issuer.body
                self.send_response(issuer.status)
                for name, value in issuer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the overridden method's name
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.answering.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def jwks_url(self) -> str:
        return f"{self.url}/keys"

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Those of a good access token; a change to None leaves the claim out."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "alice",
            "iat": now,
            "exp": now + 600,
            "jti": str(uuid.uuid4()),
        }
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def token(
        self,
        *,
        key: SigningKey | None = None,
        algorithm: str = "RS256",
        headers: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        """An access token; good unless changed. A header changed to None is left out."""
        signer = key or self.key
        header = {"typ": "at+jwt", "kid": signer.key_id} | dict(headers or {})
        return jwt.encode(
            self.claims(**changes),
            signer.private,
            algorithm=algorithm,
            headers={name: value for name, value in header.items() if value is not None or name == "typ"},
        )


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, in PEM."""

    chain: bytes
    key: bytes
    sha256: bytes

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Stores both; returns certificate and key file."""
        certificate_file, key_file = directory / f"{name}.pem", directory / f"{name}-key.pem"
        certificate_file.write_bytes(self.chain)
        key_file.write_bytes(self.key)
        return certificate_file, key_file


class Authority:
    """A certificate authority."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(self._name, self._key, days=30, names=(), authority=True)

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def server(self, *, days: float = 1) -> Certificate:
        return self._issue("server", [x509.DNSName("localhost")], days)

    def client(self, *uris: str, days: float = 1, dns: Sequence[str] = ()) -> Certificate:
        """For a client of these URIs; `days` below zero: it ended that long ago."""
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        return self._issue("client", [*names, *(x509.DNSName(name) for name in dns)], days)

    def _issue(self, name: str, names: Sequence[x509.GeneralName], days: float) -> Certificate:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, days=days, names=names, authority=False)
        return Certificate(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
            certificate.fingerprint(hashes.SHA256()),
        )

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        days: float,
        names: Sequence[x509.GeneralName],
        authority: bool,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=60))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())
