from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from control_plane.errors import Reason, RefusedError
from control_plane.identity.key_set import KeySet, read_keys
from control_plane.identity.refusal import UnauthenticatedError
from tests.credentials import Issuer, SigningKey

MAX_AGE = 3_600.0
REFETCH = 30.0


class Clock:
    """Seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(issuer: Issuer, clock: Clock) -> KeySet:
    return KeySet(issuer.jwks_url, MAX_AGE, REFETCH, clock)


async def test_keys_are_fetched_once(issuer: Issuer, keys: KeySet) -> None:
    found = await asyncio.gather(*(keys.find("first") for _ in range(50)))
    assert issuer.fetches == 1
    assert found[0].algorithms == {"RS256"}


async def test_rotation_is_followed_and_fetches_are_rationed(issuer: Issuer, keys: KeySet, clock: Clock) -> None:
    await keys.find("first")
    second = SigningKey("second")
    issuer.published = [second.public_jwk()]
    # Whatever key ids strangers make up, the provider is asked once in 30 s.
    for number in range(100):
        with pytest.raises(UnauthenticatedError):
            await keys.find(f"made-up-{number}")
    with pytest.raises(UnauthenticatedError):
        await keys.find("second")
    assert issuer.fetches == 1
    clock.now += REFETCH
    await asyncio.gather(*(keys.find("second") for _ in range(50)))
    assert issuer.fetches == 2
    with pytest.raises(UnauthenticatedError):
        await keys.find("first")


async def test_old_keys_are_renewed_behind_the_calls(issuer: Issuer, keys: KeySet, clock: Clock) -> None:
    await keys.find("first")
    issuer.published.append(SigningKey("second").public_jwk())
    clock.now += MAX_AGE / 2 + 1
    issuer.answering.clear()
    issuer.asked.clear()
    await keys.find("first")  # Waits for nobody,
    await asyncio.to_thread(issuer.asked.wait, 10)
    issuer.answering.set()
    await keys.find("second")  # and who needs the new keys waits for the fetch under way.
    assert issuer.fetches == 2


async def test_an_outage_is_outlived_until_the_keys_are_too_old_and_then_nobody_is_let_in(
    issuer: Issuer, keys: KeySet, clock: Clock
) -> None:
    await keys.find("first")
    issuer.status = 503
    clock.now += MAX_AGE
    await keys.find("first")
    clock.now += REFETCH
    for _ in range(10):
        with pytest.raises(RefusedError) as caught:
            await keys.find("first")
        assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
        assert caught.value.retry_after_seconds == REFETCH
    assert issuer.fetches <= 3
    issuer.status = 200
    clock.now += REFETCH
    await keys.find("first")


async def test_a_provider_that_hangs_is_given_up(issuer: Issuer, keys: KeySet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.identity.key_set._FETCH_SECONDS", 0.2)
    issuer.answering.clear()
    with pytest.raises(RefusedError, match="keys cannot be had"):
        await keys.find("first")


async def test_nothing_else_than_a_set_of_reasonable_size_from_the_place_itself(issuer: Issuer, clock: Clock) -> None:
    good = json.dumps({"keys": issuer.published}).encode()
    with Issuer() as elsewhere:
        for status, headers, body in (
            (302, {"Location": elsewhere.jwks_url}, None),
            (200, {}, good + b" " * 300_000),
            (200, {}, b"<html>"),
            (200, {}, b"[" * 100_000),
            (200, {}, b'{"keys": {}}'),
            (200, {}, b'{"keys": []}'),
            (500, {}, good),
        ):
            issuer.status, issuer.headers, issuer.body = status, headers, body
            with pytest.raises(RefusedError, match="keys cannot be had"):
                await KeySet(issuer.jwks_url, MAX_AGE, REFETCH, clock).find("first")
        assert elsewhere.fetches == 0


def test_only_public_keys_for_strong_signatures_are_read() -> None:
    key, weak = SigningKey("k"), SigningKey("weak", bits=1_024)
    listed = [
        key.public_jwk(),
        key.public_jwk(kid="encryption", use="enc"),
        key.public_jwk(kid="symmetric-name", alg="HS256"),
        key.public_jwk(kid=""),
        key.public_jwk(kid=7),
        key.public_jwk(kid="broken", n="!"),
        key.public_jwk(kid="private", d="AQAB"),
        weak.public_jwk(),
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "EC", "kid": "curve", "crv": "secp256k1", "x": "AA", "y": "AA"},
        "text",
    ]
    assert set(read_keys(json.dumps({"keys": listed}).encode())) == {"k"}
    any_signature = key.public_jwk()
    del any_signature["alg"]
    (found,) = read_keys(json.dumps({"keys": [any_signature]}).encode()).values()
    assert found.algorithms == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
