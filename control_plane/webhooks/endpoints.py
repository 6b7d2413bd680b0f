"""Where notifications may go: what a URL may say, and which addresses its host may stand for.

An endpoint is named by a user and called by the server, from inside the network. So its host is resolved, every address it
stands for must be public, and the connection is made to the very addresses that were looked at: a name that points elsewhere
a moment later gains nothing. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult

from control_plane.errors import RefusedError, invalid_field
from control_plane.settings import WebhookSettings

_URL_MAX = 2_000
_RESOLVE_SECONDS = 5.0
# IPv4 inside IPv6, for translators that would carry it on (RFC 6052).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class ForbiddenAddressError(OSError):
    """A host stands for an address that is not public. Which one is not said: that would be a look into the inner network."""

    def __init__(self, host: str) -> None:
        super().__init__(f"{host} is, or stands for, an address that is not public")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A URL that may be called, as far as the URL tells."""

    url: str
    host: str
    """Lower case, without brackets."""
    port: int


def endpoint(url: str, settings: WebhookSettings, path: str) -> Endpoint:
    """The endpoint that a URL names.

    Args:
        url: as the user gave it.
        settings: what is allowed here.
        path: of the field, for the refusal.

    Raises:
        RefusedError: the URL is none that is called.
    """
    if not 0 < len(url) <= _URL_MAX:
        raise invalid_field(path, f"has {len(url):,} characters; expected 1 to {_URL_MAX:,}")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise invalid_field(path, "has characters that no URL has; expected printable ASCII, others percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise invalid_field(path, f"is no URL: {error}") from None
    schemes = ("https", "http") if settings.allow_http else ("https",)
    if parts.scheme not in schemes:
        raise invalid_field(path, f"begins with {parts.scheme[:32] or 'nothing'!r}; expected {' or '.join(schemes)}")
    return _named(url, parts, port, path)


def _named(url: str, parts: SplitResult, port: int | None, path: str) -> Endpoint:
    if parts.username is not None or parts.password is not None:
        raise invalid_field(path, "holds credentials; expected none: messages are signed instead")
    if parts.fragment:
        raise invalid_field(path, "has a fragment, which is never sent; leave it out")
    host = (parts.hostname or "").rstrip(".")
    if not host or len(host) > 253 or "%" in host:
        raise invalid_field(path, "names no host; expected https://HOST/PATH")
    if port == 0:
        raise invalid_field(path, "has port 0; expected 1 to 65535")
    return Endpoint(url, host, port or (443 if parts.scheme == "https" else 80))


def is_public(address: str) -> bool:
    """Whether an IP address is anybody's on the internet, and stands for no other that is not."""
    found: _Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None and not _is_global(inner):
            return False
        if found.ipv4_mapped is not None:
            return True  # Judged by what it stands for.
    return _is_global(found)


def _is_global(address: _Address) -> bool:
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


async def check_host(found: Endpoint, settings: WebhookSettings, path: str) -> None:
    """Looks where an endpoint's host points now, so that its owner learns at once that it will not be called.

    A host that nobody knows yet is let pass: every delivery looks again.

    Raises:
        RefusedError: it points inward.
    """
    try:
        await CheckedResolver(settings).resolve(found.host, found.port)
    except ForbiddenAddressError as error:
        raise _refusal(path, error) from None
    except OSError:
        return


def _refusal(path: str, error: ForbiddenAddressError) -> RefusedError:
    return invalid_field(path, f"{error}; expected a host with public addresses only")


class CheckedResolver(AbstractResolver):
    """Resolves host names for aiohttp, and gives it only addresses that may be connected to."""

    def __init__(self, settings: WebhookSettings) -> None:
        self._private = frozenset(name.lower().rstrip(".") for name in settings.private_hosts)

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """The addresses of a host, all of them checked.

        Raises:
            ForbiddenAddressError: one of them is not public.
            OSError: nobody knows the host.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        allowed = host.lower().rstrip(".") in self._private
        results: list[ResolveResult] = []
        for family_found, _, protocol, _, place in found:
            address = str(place[0])
            # One inward address among others is enough: the next try might use it.
            if not allowed and not is_public(address):
                raise ForbiddenAddressError(host)
            results.append(
                ResolveResult(
                    hostname=host, host=address, port=port, family=family_found, proto=protocol, flags=socket.AI_NUMERICHOST
                )
            )
        return results

    async def close(self) -> None:
        """Nothing is kept open."""
