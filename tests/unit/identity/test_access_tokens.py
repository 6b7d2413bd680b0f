"""Every way in which a JWT may be wrong, held against a real key server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import RSAAlgorithm

from control_plane.identity.access_tokens import AccessTokens
from control_plane.identity.refusal import UnauthenticatedError
from control_plane.settings import OidcSettings
from tests.credentials import AUDIENCE, Issuer, SigningKey


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


@pytest.fixture
def access_tokens(issuer: Issuer) -> AccessTokens:
    return AccessTokens(OidcSettings(issuer=issuer.url, audience=AUDIENCE, jwks_url=issuer.jwks_url))


def b64(content: object) -> str:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def signed(issuer: Issuer, body: bytes, **headers: object) -> str:
    """A well-signed token of whatever content."""
    text = f"{b64({'alg': 'RS256', 'typ': 'at+jwt', 'kid': 'first'} | headers)}.{b64(body)}"
    algorithm = RSAAlgorithm(RSAAlgorithm.SHA256)
    return f"{text}.{b64(algorithm.sign(text.encode(), issuer.key.private))}"


def written(issuer: Issuer, **values: str) -> str:
    """A well-signed token with claims as they are written here."""
    body = json.dumps(issuer.claims())
    for name, value in values.items():
        body = body[:-1] + f', "{name}": {value}' + "}"  # The last of equal names counts.
    return signed(issuer, body.encode())


def b64_payload(issuer: Issuer) -> str:
    """The one critical header that the library understands (RFC 7797): we do not."""
    return signed(issuer, json.dumps(issuer.claims()).encode(), crit=["b64"], b64=True)


def unsigned(issuer: Issuer, algorithm: str | None) -> str:
    header = {"alg": algorithm, "typ": "at+jwt", "kid": "first"}
    return f"{b64({name: value for name, value in header.items() if value})}.{b64(issuer.claims())}."


def hs256_with_the_public_key(issuer: Issuer) -> str:
    signed = f"{b64({'alg': 'HS256', 'typ': 'at+jwt', 'kid': 'first'})}.{b64(issuer.claims())}"
    return f"{signed}.{b64(hmac.digest(issuer.key.public_pem(), signed.encode(), 'sha256'))}"


def es256_under_an_rsa_key(issuer: Issuer) -> str:
    headers = {"typ": "at+jwt", "kid": "first"}
    return jwt.encode(issuer.claims(), ec.generate_private_key(ec.SECP256R1()), algorithm="ES256", headers=headers)


def edited(issuer: Issuer) -> str:
    header, _, signature = issuer.token().split(".")
    return f"{header}.{b64(issuer.claims(sub='root'))}.{signature}"


def now() -> int:
    return int(time.time())


# What is wrong with the token, and what the log says of it.
WRONG: dict[str, tuple[Callable[[Issuer], str], str]] = {
    "A2 alg none": (lambda issuer: unsigned(issuer, "none"), "signed by 'none'"),
    "A2 alg None": (lambda issuer: unsigned(issuer, "None"), "signed by 'None'"),
    "A2 no alg": (lambda issuer: unsigned(issuer, None), "signed by None"),
    "A3 HS256 with the RSA public key": (hs256_with_the_public_key, "signed by 'HS256'"),
    "algorithm that is not allowed": (lambda issuer: issuer.token(algorithm="RS512"), "signed by 'RS512'"),
    "algorithm of another kind of key": (es256_under_an_rsa_key, "which its key is not for"),
    "edited": (edited, "InvalidSignature"),
    "another key of the same id": (lambda issuer: issuer.token(key=SigningKey("first")), "InvalidSignature"),
    "unknown key": (lambda issuer: issuer.token(key=SigningKey("other")), "does not have"),
    "no key id": (
        lambda issuer: jwt.encode(issuer.claims(), issuer.key.private, "RS256", headers={"typ": "at+jwt"}),
        "names no key",
    ),
    "A4 another audience": (lambda issuer: issuer.token(aud="https://other.example"), "not for this service alone"),
    "A4 no audience": (lambda issuer: issuer.token(aud=None), "MissingRequiredClaim"),
    "A4 audience of another type": (lambda issuer: issuer.token(aud={AUDIENCE: 1}), "not for this service alone"),
    "A5 several audiences": (lambda issuer: issuer.token(aud=[AUDIENCE, "https://b.example"]), "not for this service alone"),
    "A6 another issuer": (lambda issuer: issuer.token(iss="https://evil.example"), "InvalidIssuer"),
    "A6 prefix of the issuer": (lambda issuer: issuer.token(iss=issuer.url[:-1]), "InvalidIssuer"),
    "A6 suffix of the issuer": (lambda issuer: issuer.token(iss=issuer.url + ".evil.example"), "InvalidIssuer"),
    "A6 slash at the end": (lambda issuer: issuer.token(iss=issuer.url + "/"), "InvalidIssuer"),
    "A6 several issuers": (lambda issuer: written(issuer, iss=f'["{issuer.url}"]'), "InvalidIssuer"),
    "A7 ended": (lambda issuer: issuer.token(iat=now() - 700, exp=now() - 100), "ExpiredSignature"),
    "A7 not yet": (lambda issuer: issuer.token(nbf=now() + 100), "ImmatureSignature"),
    "issued in the future": (lambda issuer: issuer.token(iat=now() + 100), "ImmatureSignature"),
    "A8 no exp": (lambda issuer: issuer.token(exp=None), "MissingRequiredClaim"),
    "A8 no iat": (lambda issuer: issuer.token(iat=None), "MissingRequiredClaim"),
    "A9 exp 1e308": (lambda issuer: written(issuer, exp="1e308"), "a time that is none"),
    "A9 exp infinite": (lambda issuer: written(issuer, exp="1e999"), "must be an integer"),
    "A9 exp Infinity": (lambda issuer: written(issuer, exp="Infinity"), "must be an integer"),
    "A9 exp NaN": (lambda issuer: written(issuer, exp="NaN"), "must be an integer"),
    "A9 exp is text": (lambda issuer: written(issuer, exp='"9999999999"'), "a time that is none"),
    "A9 iat is true": (lambda issuer: written(issuer, iat="true"), "a time that is none"),
    "A9 iat is minus 1e308": (lambda issuer: written(issuer, iat="-1e308"), "a time that is none"),
    "A9 a year": (lambda issuer: issuer.token(exp=now() + 365 * 86_400), "lives longer"),
    "A9 a day and a little": (lambda issuer: issuer.token(iat=now() + 20, exp=now() + 86_400 + 100), "lives longer"),
    "A9 issued a year ago": (lambda issuer: issuer.token(iat=now() - 365 * 86_400), "lives longer"),
    "A13 unknown crit": (lambda issuer: issuer.token(headers={"crit": ["policy"], "policy": 1}), "critical"),
    "A13 empty crit": (lambda issuer: issuer.token(headers={"crit": []}), "crit"),
    "A13 known crit": (b64_payload, "critical headers"),
    "A14 ID token": (lambda issuer: issuer.token(headers={"typ": "JWT"}), "of type 'JWT'"),
    "A14 no type": (lambda issuer: issuer.token(headers={"typ": None}), "of type None"),
    "no sub": (lambda issuer: issuer.token(sub=None), "MissingRequiredClaim"),
    "sub with a line end": (lambda issuer: issuer.token(sub="alice\n"), "whose sub"),
    "sub of look-alike letters": (lambda issuer: issuer.token(sub="\u0430lice"), "whose sub"),
    "sub too long": (lambda issuer: issuer.token(sub="a" * 196), "whose sub"),
    "sub a number": (lambda issuer: written(issuer, sub="7"), "InvalidSubject"),
    "bound to a key": (lambda issuer: issuer.token(cnf={"jkt": "x"}), "bound to something"),
    "bound to two things": (lambda issuer: issuer.token(cnf={"x5t#S256": "AA", "jkt": "x"}), "bound to something"),
    "bound to nothing": (lambda issuer: issuer.token(cnf={}), "bound to something"),
    "bound to what is not base64url": (lambda issuer: issuer.token(cnf={"x5t#S256": "!"}), "not base64url"),
    "header nested without end": (lambda issuer: f"{b64(b'[' * 5_000)}.{b64({})}.", "not a JWT"),
    "claims nested without end": (lambda issuer: signed(issuer, b"[" * 5_000), "DecodeError"),
    "claims that are no object": (lambda issuer: signed(issuer, b"[]"), "DecodeError"),
    "too long": (lambda issuer: issuer.token(filler="x" * 20_000), "too many bytes"),
    "not a JWT": (lambda issuer: "Zm9v", "not a JWT"),
    "dots": (lambda issuer: "..", "not a JWT"),
}


@pytest.mark.parametrize(("wrong", "cause"), WRONG.values(), ids=WRONG)
async def test_it_is_refused(wrong: Callable[[Issuer], str], cause: str, issuer: Issuer, access_tokens: AccessTokens) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        await access_tokens.verify(wrong(issuer))
    assert cause in caught.value.cause
    assert cause not in str(caught.value)


async def test_a_good_one_says_who_calls_and_until_when(issuer: Issuer, access_tokens: AccessTokens) -> None:
    ends = now() + 600
    found = await access_tokens.verify(issuer.token(sub="alice@example.org", exp=ends))
    assert (found.sub, found.expires_at.timestamp(), found.certificate_sha256) == ("alice@example.org", ends, None)
    assert (await access_tokens.verify(issuer.token(aud=[AUDIENCE]))).sub == "alice"
    assert (await access_tokens.verify(issuer.token(headers={"typ": "application/AT+JWT"}))).sub == "alice"


async def test_a_binding_to_a_certificate_is_told(issuer: Issuer, access_tokens: AccessTokens) -> None:
    thumbprint = hashlib.sha256(b"certificate").digest()
    token = issuer.token(cnf={"x5t#S256": b64(thumbprint)})
    assert (await access_tokens.verify(token)).certificate_sha256 == thumbprint


@pytest.mark.parametrize("header", ["jku", "x5u", "jwk", "x5c"])
async def test_keys_that_a_token_brings_are_neither_fetched_nor_used(header: str, issuer: Issuer) -> None:
    with Issuer() as evil:
        brought = {"jku": evil.jwks_url, "x5u": evil.url, "jwk": evil.key.public_jwk(), "x5c": ["AAAA"]}[header]
        access_tokens = AccessTokens(OidcSettings(issuer=issuer.url, audience=AUDIENCE, jwks_url=issuer.jwks_url))
        claims, headers = issuer.claims(), {"typ": "at+jwt", "kid": "first", header: brought}
        with pytest.raises(UnauthenticatedError):
            await access_tokens.verify(jwt.encode(claims, evil.key.private, "RS256", headers=headers))
        # On a good signature the header changes nothing.
        assert (await access_tokens.verify(issuer.token(headers={header: brought}))).sub == "alice"
        assert evil.fetches == 0


@pytest.mark.parametrize("algorithm", ["HS256", "none", "RS1", ""])
def test_weak_algorithms_cannot_be_configured(algorithm: str) -> None:
    with pytest.raises(ValueError, match="algorithms"):
        OidcSettings(issuer="i", audience="a", jwks_url="https://i.example/keys", algorithms=(algorithm,))  # pyright: ignore[reportArgumentType] - that it is refused is the test


@pytest.mark.parametrize("url", ["http://i.example/keys", "http://127.0.0.1.evil.example/", "file:///keys", "ftp://i.example"])
def test_keys_come_over_tls(url: str) -> None:
    with pytest.raises(ValueError, match="jwks_url"):
        OidcSettings(issuer="i", audience="a", jwks_url=url)
