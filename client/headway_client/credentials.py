"""What a client proves itself with: a bearer token, a certificate, or both; and over which connections it may be sent.

A token is sent with every call as metadata `authorization: Bearer …`. Whoever sees it can use it, so it is not sent in plain
text to another machine unless that is asked for.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

TokenSource = Callable[[], str]
"""Gives the token to send now. It is asked before every call, so it must answer at once."""

AUTHORIZATION = "authorization"


class CredentialsError(Exception):
    """What was given cannot be used as it is; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How the server is recognised, and what this client shows it. PEM throughout."""

    root_certificates: bytes | None = None
    """CAs that are believed; None: those that gRPC brings."""
    certificate_chain: bytes | None = None
    """This client's certificate, for mutual TLS."""
    private_key: bytes | None = None
    """Its key."""

    @classmethod
    def from_files(cls, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None) -> Tls:
        """Reads the files that are named.

        Raises:
            CredentialsError: one cannot be read, or only one of certificate and key is named.
        """
        if (certificate is None) != (key is None):
            raise CredentialsError("a client certificate and its key go together; expected both files or neither")
        return cls(*(None if path is None else _read(path) for path in (ca, certificate, key)))

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For gRPC."""
        return grpc.ssl_channel_credentials(self.root_certificates, self.private_key, self.certificate_chain)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who a client is, and how it reaches the server."""

    token: TokenSource | None = None
    tls: Tls | None = None
    """None: plain text."""
    allow_insecure: bool = False
    """Whether the token may be sent in plain text to another machine: only inside a network that encrypts by itself."""

    def check(self, address: str) -> None:
        """Makes sure that the token cannot be read on the way.

        Raises:
            CredentialsError: it could.
        """
        if self.token is not None and self.tls is None and not self.allow_insecure and not is_loopback(address):
            raise CredentialsError(
                f"the token would go to {address} in plain text; expected TLS (tls=, HEADWAY_TLS=1), a loopback address, "
                "or consent (allow_insecure=True, HEADWAY_ALLOW_INSECURE=1)"
            )

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call carries; empty without a token.

        Raises:
            CredentialsError: no call can carry the token.
        """
        return () if self.token is None else bearer(self.token())


ANONYMOUS = Credentials()
"""Proves nothing."""


def credentials(token: str | TokenSource | None, tls: Tls | None, allow_insecure: bool) -> Credentials:
    """As callers give them: a token may be the text itself.

    Raises:
        CredentialsError: no call can carry that text.
    """
    if isinstance(token, str):
        bearer(token)
    return Credentials((lambda: token) if isinstance(token, str) else token, tls, allow_insecure)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """A token as metadata of a call.

    Raises:
        CredentialsError: no call can carry it. gRPC itself would let an asyncio caller wait for ever.
    """
    if not token.isascii() or not token.isprintable():
        raise CredentialsError("the token has characters that no call can carry; expected one line of printable ASCII")
    return ((AUTHORIZATION, f"Bearer {token}"),)


def is_loopback(address: str) -> bool:
    """Whether host:port is this machine by a name that cannot mean another."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class FileToken:
    """A token kept in a file, read anew when the file changes: what rotates it need not restart anybody."""

    def __init__(self, path: Path) -> None:
        """Reads it.

        Raises:
            CredentialsError: the file cannot be read, or holds no token.
        """
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._token = ""
        self()

    def __call__(self) -> str:
        """The token as it is now; while the file cannot be read, as it was."""
        try:
            status = os.stat(self._path)  # noqa: PTH116  called before every call: no object for it
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._token, self._stamp = _one_token(self._path), stamp
        except (OSError, CredentialsError) as error:
            if not self._token:
                if isinstance(error, CredentialsError):
                    raise
                raise CredentialsError(
                    f"{self._path} cannot be read: {error.strerror}; expected a file with a token"
                ) from error
        return self._token


def _one_token(path: Path) -> str:
    try:
        token = _read(path).decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token or any(character.isspace() or not character.isprintable() for character in token):
        raise CredentialsError(f"{path} holds no token; expected one line of printable ASCII")
    return token


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read: {error.strerror}") from error
