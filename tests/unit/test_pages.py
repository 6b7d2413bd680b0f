"""Page tokens and cursors: bound to caller and query, unchangeable, and of one spelling."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from control_plane.call import Call, serve_call
from control_plane.errors import Reason, RefusedError
from control_plane.identity.principal import CredentialKind, Principal
from control_plane.rpc.pages import Cursors, page_size

KEY = b"a key of the tests with 32 bytes or more"
CURSORS = Cursors(KEY)
QUERY = ["ListJobs", "support", []]


def _called_by(subject: str) -> None:
    serve_call(Call("headway.jobs.v1.JobService/ListJobs", Principal(subject, subject, CredentialKind.TOKEN)))


@pytest.fixture(autouse=True)
def _caller() -> None:
    _called_by("user:alice")


def _refused(token: str, query: object = QUERY, types: tuple[type, ...] = (str, int)) -> None:
    with pytest.raises(RefusedError) as caught:
        CURSORS.decode(token, query, types, "page_token")
    assert caught.value.reason is Reason.INVALID_CURSOR


@given(st.text(max_size=500), st.integers(min_value=0, max_value=2**63 - 1))
@example("\U0001f600" * 500, 0)
def test_a_token_gives_back_its_position(text: str, number: int) -> None:
    _called_by("user:alice")
    token = CURSORS.encode(QUERY, [text, number])
    assert CURSORS.decode(token, QUERY, (str, int), "page_token") == [text, number]


def test_an_empty_token_is_the_beginning() -> None:
    assert CURSORS.decode("", QUERY, (str, int), "page_token") is None


def test_a_token_of_another_query_caller_or_server_is_refused() -> None:
    token = CURSORS.encode(QUERY, ["a", 1])
    _refused(token, ["ListJobs", "research", []])
    _refused(token, ["ListModels", "support", []])
    _refused(Cursors(b"another key with 32 bytes or more, really").encode(QUERY, ["a", 1]))
    _called_by("user:bob")
    _refused(token)


@given(st.data())
def test_a_token_with_any_bit_changed_is_refused(data: st.DataObject) -> None:
    _called_by("user:alice")
    token = CURSORS.encode(QUERY, ["a", 1])
    content = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    _refused(base64.urlsafe_b64encode(bytes(content)).decode().rstrip("="))


@given(st.text(max_size=200))
def test_no_text_but_a_token_is_accepted(text: str) -> None:
    _called_by("user:alice")
    if text:
        _refused(text)


def test_a_token_has_one_spelling() -> None:
    token = CURSORS.encode(QUERY, ["ab", 1])
    _refused(token + "=")
    _refused(token + "\n")
    # The last character of base64 may hold bits that mean nothing.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for other in alphabet:
        if other != token[-1]:
            _refused(token[:-1] + other)


def test_a_token_longer_than_any_of_ours_is_refused_unread() -> None:
    _refused("A" * 1_000_000)


def test_a_token_of_another_shape_is_refused() -> None:
    _refused(CURSORS.encode(QUERY, ["a"]))
    _refused(CURSORS.encode(QUERY, [1, "a"]))
    _refused(CURSORS.encode(QUERY, ["a", True]))


def test_page_sizes() -> None:
    assert [page_size(asked, default=50, maximum=1_000) for asked in (0, 1, 1_000, 2**31 - 1)] == [50, 1, 1_000, 1_000]
    with pytest.raises(RefusedError):
        page_size(-1, default=50, maximum=1_000)
