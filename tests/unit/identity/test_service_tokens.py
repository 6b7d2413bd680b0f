from __future__ import annotations

import secrets
import uuid

import pytest

from control_plane.identity.service_tokens import bootstrap_token_id, new_secret, secret_sha256, token_id_of


def test_a_secret_names_its_token_and_nothing_else_is_the_same() -> None:
    token_id = str(uuid.uuid4())
    made = [new_secret(token_id) for _ in range(100)]
    assert {token_id_of(secret) for secret in made} == {token_id}
    assert len({secret_sha256(secret) for secret in made}) == 100


def test_it_is_of_the_form_that_any_base64url_of_32_bytes_gives() -> None:
    for _ in range(200):
        assert token_id_of(f"hw_{uuid.uuid4().hex}_{secrets.token_urlsafe(32)}") is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hw_",
        "hw_" + "0" * 32,
        "hw_" + "0" * 32 + "_" + "A" * 42,
        "hw_" + "0" * 32 + "_" + "A" * 44,
        "hw_" + "0" * 32 + "_" + "A" * 42 + "B",  # its last bits would not count: another spelling of the same bytes
        "hw_" + "G" * 32 + "_" + "A" * 43,
        "hw_" + "0" * 32 + "_" + "A" * 43 + "\n",
        "HW_" + "0" * 32 + "_" + "A" * 43,
    ],
)
def test_what_is_no_token_has_no_id(text: str) -> None:
    assert token_id_of(text) is None


def test_the_bootstrap_id_is_always_the_same() -> None:
    assert bootstrap_token_id("admin") == bootstrap_token_id("admin") != bootstrap_token_id("worker")
    assert token_id_of(new_secret(bootstrap_token_id("admin"))) == bootstrap_token_id("admin")
