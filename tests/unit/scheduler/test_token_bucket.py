"""The bucket that bounds the rate of dispatch, by a clock of the test's own."""

from __future__ import annotations

import pytest

from scheduler.token_bucket import TokenBucket


def test_what_is_taken_comes_back_with_time_and_no_more_than_a_seconds_worth() -> None:
    now = [100.0]
    bucket = TokenBucket(4.0, lambda: now[0])
    assert bucket.available() == 4
    bucket.take(4)
    assert bucket.available() == 0
    assert bucket.seconds_until_next() == pytest.approx(0.25)
    now[0] += 0.25
    assert bucket.available() == 1
    now[0] += 60.0
    assert bucket.available() == 4


def test_a_rate_below_one_a_second_still_lets_one_through_at_a_time() -> None:
    now = [0.0]
    bucket = TokenBucket(0.5, lambda: now[0])
    assert bucket.available() == 1
    bucket.take(1)
    now[0] += 1.9
    assert bucket.available() == 0
    now[0] += 0.1
    assert bucket.available() == 1
