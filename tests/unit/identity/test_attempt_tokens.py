from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from control_plane.identity.attempt_tokens import AttemptTokens
from control_plane.identity.principal import AttemptBinding
from control_plane.identity.refusal import UnauthenticatedError

JOB = "6f2b1e0c-3c57-4b0e-9a55-7d0f6a1b2c3d"
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
TOKENS = AttemptTokens(b"k" * 32)


def test_it_says_what_it_was_made_for() -> None:
    ends = NOW + timedelta(hours=1)
    assert TOKENS.verify(TOKENS.issue(JOB, 7, ends), NOW) == (AttemptBinding(JOB, 7), ends)


def test_it_ends() -> None:
    token = TOKENS.issue(JOB, 7, NOW + timedelta(hours=1))
    with pytest.raises(UnauthenticatedError, match="credential"):
        TOKENS.verify(token, NOW + timedelta(hours=1))


def test_every_changed_bit_is_noticed() -> None:
    token = TOKENS.issue(JOB, 7, NOW + timedelta(hours=1))
    text = token.removeprefix("hwa_")
    content = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    for bit in range(len(content) * 8):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UnauthenticatedError):
            TOKENS.verify("hwa_" + base64.urlsafe_b64encode(bytes(changed)).decode().rstrip("="), NOW)


SPOILED: list[Callable[[str], str]] = [
    lambda token: token[:-1],
    lambda token: token + "A",
    lambda token: token + "=",
    lambda token: token + "\n",
    lambda token: token.removeprefix("hwa_"),
    lambda token: "hwa_",
    lambda token: "hwa_" + "A" * 1_000,
    lambda token: "hwa_ä",
    lambda token: token[:-1] + chr(ord(token[-1]) + 1),
]


@pytest.mark.parametrize("spoil", SPOILED)
def test_another_spelling_is_not_believed(spoil: Callable[[str], str]) -> None:
    token = TOKENS.issue(JOB, 7, NOW + timedelta(hours=1))
    with pytest.raises(UnauthenticatedError):
        TOKENS.verify(spoil(token), NOW)


def test_another_key_makes_other_tokens() -> None:
    with pytest.raises(UnauthenticatedError):
        TOKENS.verify(AttemptTokens(b"x" * 32).issue(JOB, 7, NOW + timedelta(hours=1)), NOW)
