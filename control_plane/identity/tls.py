"""The server's side of TLS (1.2 or newer, as gRPC does it): its certificate, and those it demands of its callers.

The files are looked at before every handshake and read anew when they changed, so that certificates are exchanged without a
restart; connections that are open stay as they are. gRPC for Python either demands a client certificate on a port or asks for
none, so callers with and without one have a port each.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import structlog

from control_plane.settings import ControlPlaneSettings, TlsSettings

_log = structlog.get_logger()

_Version = tuple[tuple[int, int, int], ...]


class TlsFilesError(Exception):
    """The certificate, its key or the CAs cannot be used."""


class _Files:
    """The files of one port as last read."""

    def __init__(self, settings: TlsSettings, *, certificate_demanded: bool) -> None:
        self._settings = settings
        self._client_ca_file = settings.client_ca_file if certificate_demanded else None
        self._version = self._current_version()
        self.first = self._read()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What to use from now on; None: what is in use. Called by gRPC, on a thread of its own, before every handshake."""
        try:
            version = self._current_version()
            if version == self._version:
                return None
            # Remembered even if they turn out unusable: half-written files change once more.
            self._version = version
            configuration = self._read()
        except (OSError, TlsFilesError) as error:
            _log.warning("tls.files_not_usable", error=str(error), consequence="the former ones stay in use")
            return None
        _log.info("tls.files_read_anew", certificate=str(self._settings.certificate_file))
        return configuration

    def _paths(self) -> Iterator[Path]:
        yield self._settings.certificate_file
        yield self._settings.key_file
        if self._client_ca_file is not None:
            yield self._client_ca_file

    def _current_version(self) -> _Version:
        states = [path.stat() for path in self._paths()]
        return tuple((state.st_ino, state.st_mtime_ns, state.st_size) for state in states)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        self._check()
        key, chain = self._settings.key_file.read_bytes(), self._settings.certificate_file.read_bytes()
        authorities = None if self._client_ca_file is None else self._client_ca_file.read_bytes()
        return grpc.ssl_server_certificate_configuration([(key, chain)], authorities)

    def _check(self) -> None:
        """Holds the files to being a pair and a list of CAs: gRPC would only fail handshakes, and say so to nobody."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._settings.certificate_file, self._settings.key_file)
            if self._client_ca_file is not None:
                context.load_verify_locations(self._client_ca_file)
        except ssl.SSLError as error:
            files = ", ".join(str(path) for path in self._paths())
            raise TlsFilesError(f"cannot use {files}: {error}; expected a certificate with its key, and CAs, in PEM") from None


def server_credentials(settings: TlsSettings, *, certificate_demanded: bool) -> grpc.ServerCredentials:
    """Credentials of a port that follow their files.

    Args:
        settings: where the files are.
        certificate_demanded: whether a connection without a client certificate is refused.

    Raises:
        OSError: a file cannot be read.
        TlsFilesError: a file is not what it should be.
    """
    files = _Files(settings, certificate_demanded=certificate_demanded)
    changed: Any = files.changed  # The published stubs do not know that None means no change.
    return grpc.dynamic_ssl_server_credentials(files.first, changed, certificate_demanded)


def ports(settings: ControlPlaneSettings) -> list[tuple[str, grpc.ServerCredentials | None]]:
    """The addresses to bind, the main one first, each with its credentials; None: plain text.

    Raises:
        OSError: a file cannot be read.
        TlsFilesError: a file is not what it should be.
    """
    main, tls = settings.listen or settings.address, settings.tls
    if tls is None:
        return [(main, None)]
    found: list[tuple[str, grpc.ServerCredentials | None]] = [
        (main, server_credentials(tls, certificate_demanded=tls.client_certificate_required))
    ]
    if tls.client_certificate_listen is not None:
        found.append((tls.client_certificate_listen, server_credentials(tls, certificate_demanded=True)))
    return found
