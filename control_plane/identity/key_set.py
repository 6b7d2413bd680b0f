"""The identity provider's public keys: fetched seldom, believed for a bounded time, never from anywhere else (RFC 7517)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import jwt
import structlog

from control_plane.errors import Reason, RefusedError
from control_plane.identity.refusal import unauthenticated

_log = structlog.get_logger()

_FETCH_SECONDS = 5.0
_BYTES_MAX = 256 * 1024
_KEYS_MAX = 100
_RSA_BITS_MIN = 2_048

# Which signatures a key may make (RFC 7518, RFC 8037). A symmetric key is in no set that we believe.
_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_BY_CURVE = {
    "P-256": frozenset({"ES256"}),
    "P-384": frozenset({"ES384"}),
    "P-521": frozenset({"ES512"}),
    "Ed25519": frozenset({"EdDSA"}),
    "Ed448": frozenset({"EdDSA"}),
}


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key, and the signatures it is for."""

    key: Any
    algorithms: frozenset[str]


class KeySet:
    """Keys by id. It follows rotation: an unknown id is looked for, and half-old keys are fetched anew, as often as allowed."""

    def __init__(
        self, url: str, max_age_seconds: float, refetch_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args:
        url: where the set is.
        max_age_seconds: keys older than this are not believed.
        refetch_seconds: shortest time between two fetches, whatever tokens arrive.
        clock: seconds.
        """
        self._url = url
        self._max_age_seconds = max_age_seconds
        self._refetch_seconds = refetch_seconds
        self._clock = clock
        self._keys: Mapping[str, VerificationKey] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, key_id: str) -> VerificationKey:
        """The key of this id.

        Raises:
            UnauthenticatedError: the provider has no such key, as far as we may ask.
            RefusedError: no set that may be believed can be had (DEPENDENCY_UNAVAILABLE): nobody is let in on old keys.
        """
        key = self._known(key_id)
        if key is None:
            # Those who come while a fetch is under way wait for it; only its beginning is rationed.
            if self._fetching is not None or self._may_fetch():
                await asyncio.shield(self._fetch_once())
            key = self._known(key_id)
        elif self._age() > self._max_age_seconds / 2 and self._may_fetch():
            self._fetch_once()
        if key is not None:
            return key
        if self._age() > self._max_age_seconds:
            raise RefusedError(
                Reason.DEPENDENCY_UNAVAILABLE,
                "the identity provider's keys cannot be had, and no old ones are believed; retry later",
                {"component": "identity provider"},
                retry_after_seconds=self._refetch_seconds,
            )
        raise unauthenticated("a token signed with a key that the identity provider does not have")

    async def close(self) -> None:
        """Ends a fetch under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            with suppress(asyncio.CancelledError):
                await self._fetching

    def _known(self, key_id: str) -> VerificationKey | None:
        return self._keys.get(key_id) if self._age() <= self._max_age_seconds else None

    def _age(self) -> float:
        return float("inf") if self._fetched_at is None else self._clock() - self._fetched_at

    def _may_fetch(self) -> bool:
        return self._fetching is None and (self._tried_at is None or self._clock() - self._tried_at >= self._refetch_seconds)

    def _fetch_once(self) -> asyncio.Task[None]:
        """The fetch under way, or one that is begun now."""
        if self._fetching is None:
            self._tried_at = self._clock()
            self._fetching = asyncio.create_task(self._fetch(), name="identity provider's keys")
        return self._fetching

    async def _fetch(self) -> None:
        began = self._clock()
        try:
            keys = read_keys(await _read(self._url))
            if not keys:
                raise ValueError("the set has no key that can verify a signature")
            self._keys, self._fetched_at = keys, began
            _log.info("identity.keys_fetched", keys=sorted(keys))
        # Whatever went wrong, the keys we have stay until they are too old.
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError, OSError) as error:
            _log.warning("identity.keys_unavailable", url=self._url, error=repr(error))
        finally:
            self._fetching = None


async def _read(url: str) -> bytes:
    """The body at `url`, within a time and a size."""
    # No redirects and no proxies of the environment: the keys come from the place that was configured, or not at all.
    timeout = aiohttp.ClientTimeout(total=_FETCH_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise ValueError(f"HTTP status {response.status}; expected 200")
        body = bytearray()
        async for chunk in response.content.iter_chunked(16 * 1024):
            body += chunk
            if len(body) > _BYTES_MAX:
                raise ValueError(f"more than {_BYTES_MAX:,} bytes")
        return bytes(body)


def read_keys(body: bytes) -> dict[str, VerificationKey]:
    """The usable keys of a JWK set, by id. Those that cannot verify a token, or could be too weak, are passed over.

    Raises:
        ValueError: it is no JWK set.
    """
    content = json.loads(body)
    listed = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(listed, list) or len(listed) > _KEYS_MAX:
        raise ValueError(f"no JWK set of at most {_KEYS_MAX} keys")
    found: dict[str, VerificationKey] = {}
    for entry in listed:
        key = _key(entry) if isinstance(entry, dict) else None
        if key is not None:
            found[str(entry["kid"])] = key
    return found


def _key(entry: Mapping[str, Any]) -> VerificationKey | None:
    key_id, curve = entry.get("kid"), entry.get("crv")
    if not isinstance(key_id, str) or not key_id or entry.get("use", "sig") != "sig":
        return None
    kind = entry.get("kty")
    if kind == "RSA":
        algorithms = _RSA
    elif kind in {"EC", "OKP"} and isinstance(curve, str):
        algorithms = _BY_CURVE.get(curve, frozenset())
    else:
        return None
    if "alg" in entry:
        algorithms = algorithms & {entry["alg"]}
    if not algorithms or "d" in entry:
        return None
    try:
        key = jwt.PyJWK(dict(entry), min(algorithms)).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if kind == "RSA" and key.key_size < _RSA_BITS_MIN:
        return None
    return VerificationKey(key, algorithms)
