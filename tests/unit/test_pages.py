"""Page tokens and cursors are opaque, tied to their query, and whatever else is sent is refused and never a fault."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from control_plane.errors import Reason, RefusedError
from control_plane.rpc import pages

QUERY = ["ListJobs", "project", ["QUEUED"]]


@given(st.text(max_size=64), st.integers(0, 2**63 - 1))
def test_a_token_gives_its_position_back(text: str, number: int) -> None:
    assert pages.decode(pages.encode(QUERY, [text, number]), QUERY, (str, int), "page_token") == [text, number]


def test_an_empty_token_is_the_beginning() -> None:
    assert pages.decode("", QUERY, (str,), "page_token") is None


@given(st.text(min_size=1))
@example("é")
@example("A" * 2_000)
@example(base64.urlsafe_b64encode(b"[" * 500).decode())
@example(base64.urlsafe_b64encode(json.dumps(["0" * 16, True]).encode()).decode())
def test_anything_else_is_refused(token: str) -> None:
    with pytest.raises(RefusedError) as refused:
        pages.decode(token, QUERY, (int,), "page_token")
    assert refused.value.reason is Reason.INVALID_CURSOR


@pytest.mark.parametrize("position", [[-1], [2**63], ["1"], [True], [1.0], [None], [], [1, 2]])
def test_a_position_of_another_kind_is_refused(position: list[object]) -> None:
    with pytest.raises(RefusedError):
        pages.decode(pages.encode(QUERY, position), QUERY, (int,), "page_token")


def test_a_token_of_another_query_is_refused() -> None:
    token = pages.encode(["ListJobs", "other", ["QUEUED"]], [1])
    with pytest.raises(RefusedError):
        pages.decode(token, QUERY, (int,), "page_token")


@pytest.mark.parametrize(("asked", "given_size"), [(0, 50), (1, 1), (1_000, 1_000), (1_001, 1_000), (2**31 - 1, 1_000)])
def test_page_sizes(asked: int, given_size: int) -> None:
    assert pages.page_size(asked, default=50, maximum=1_000) == given_size


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(RefusedError) as refused:
        pages.page_size(-1, default=50, maximum=1_000)
    assert refused.value.violations[0].path == "page_size"
