"""Access tokens of the organisation's identity provider: signed JWTs (RFC 7519, RFC 9068), believed as far as the settings say.

The library checks the signature and the times. What it would let through is refused here: several audiences, ID tokens, tokens
that live too long, critical headers, keys that the token itself brings.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt

from control_plane.identity.key_set import KeySet
from control_plane.identity.refusal import unauthenticated
from control_plane.settings import OidcSettings

_TYPES = frozenset({"at+jwt", "application/at+jwt"})
_LENGTH_MAX = 16 * 1024
# What a member's subject may be, without `user:` (projects/repository.py).
_SUB = re.compile(r"[A-Za-z0-9._@/:+-]{1,195}")
_REQUIRED = ["iss", "aud", "sub", "exp", "iat"]


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What a verified token says.

    Attributes:
        sub: the person, in the words of the identity provider.
        expires_at: when it ends.
        certificate_sha256: the client certificate it is bound to (RFC 8705); None: to none.
    """

    sub: str
    expires_at: datetime
    certificate_sha256: bytes | None


class AccessTokens:
    """Verifies access tokens of one issuer for one audience."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._keys = KeySet(settings.jwks_url, settings.keys_max_age_seconds, settings.keys_refetch_seconds)

    async def close(self) -> None:
        """Ends what runs behind."""
        await self._keys.close()

    async def verify(self, token: str) -> AccessToken:
        """What the token says, if it is to be believed now.

        Raises:
            UnauthenticatedError: it is not.
            RefusedError: its signature cannot be judged, since the issuer's keys cannot be had (DEPENDENCY_UNAVAILABLE).
        """
        if len(token) > _LENGTH_MAX:
            raise unauthenticated("an access token of too many bytes")
        try:
            header = jwt.get_unverified_header(token)
        except Exception as error:  # It is a stranger's text: whatever reading it raises says that it is no token.
            raise unauthenticated(f"not a JWT: {error!r}") from None
        algorithm, key_id = self._checked_header(header)
        key = await self._keys.find(key_id)
        if algorithm not in key.algorithms:
            raise unauthenticated(f"an access token signed by {algorithm}, which its key is not for")
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                issuer=self._settings.issuer,
                leeway=self._settings.leeway_seconds,
                options={"require": _REQUIRED, "verify_aud": False},
            )
        except Exception as error:  # As above; infinite times, for one, overflow inside the library.
            raise unauthenticated(f"an access token that is not valid: {error!r}") from None
        return self._checked_claims(claims)

    def _checked_header(self, header: Mapping[str, Any]) -> tuple[str, str]:
        """Algorithm and key id. Nothing else of a header is used: what points to keys elsewhere is never followed."""
        algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ")
        if algorithm not in self._settings.algorithms:
            raise unauthenticated(f"an access token signed by {algorithm!r}; expected one of {self._settings.algorithms}")
        if "crit" in header:
            raise unauthenticated("an access token with critical headers; none is understood")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise unauthenticated(f"a JWT of type {kind!r}; expected an access token, at+jwt")
        if not isinstance(key_id, str) or not key_id:
            raise unauthenticated("an access token that names no key")
        return str(algorithm), key_id

    def _checked_claims(self, claims: Mapping[str, Any]) -> AccessToken:
        if claims["aud"] not in (self._settings.audience, [self._settings.audience]):
            raise unauthenticated("an access token that is not for this service alone")
        issued, expires = _moment(claims["iat"]), _moment(claims["exp"])
        limit = self._settings.lifetime_seconds_max
        if expires - issued > limit or expires > time.time() + limit + self._settings.leeway_seconds:
            raise unauthenticated(f"an access token that lives longer than {limit:g} s")
        sub = claims["sub"]
        if not isinstance(sub, str) or not _SUB.fullmatch(sub):
            raise unauthenticated("an access token whose sub is not 1 to 195 characters of [A-Za-z0-9._@/:+-]")
        return AccessToken(sub, datetime.fromtimestamp(expires, UTC), _bound_to(claims))


def _moment(value: object) -> float:
    """Seconds since 1970, if it is a number that a clock could show."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 < value < 2**33:
        raise unauthenticated(f"an access token with a time that is none: {value!r}")
    return float(value)


def _bound_to(claims: Mapping[str, Any]) -> bytes | None:
    """The certificate that the token is bound to. A binding that is not understood is not passed over."""
    if "cnf" not in claims:
        return None
    confirmation = claims["cnf"]
    thumbprint = confirmation.get("x5t#S256") if isinstance(confirmation, dict) and len(confirmation) == 1 else None
    if not isinstance(thumbprint, str):
        raise unauthenticated("an access token bound to something that is not a client certificate")
    try:
        return base64.b64decode(thumbprint + "=" * (-len(thumbprint) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise unauthenticated("an access token bound to a thumbprint that is not base64url") from None
