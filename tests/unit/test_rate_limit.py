"""The token bucket, by a clock of the test's own."""

from __future__ import annotations

import pytest
from google.rpc import error_details_pb2

from control_plane.errors import Reason, RefusedError
from control_plane.rpc.limits import Rates
from control_plane.rpc.status import to_status
from control_plane.settings import LimitsSettings


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def _rates(clock: _Clock) -> Rates:
    return Rates(LimitsSettings(calls_per_second=10, calls_burst=5), clock)


def _taken(rates: Rates, caller: str, tries: int) -> int:
    """How many of so many calls at once get through."""
    through = 0
    for _ in range(tries):
        try:
            rates.take(caller)
            through += 1
        except RefusedError:
            pass
    return through


def test_a_burst_and_then_so_many_a_second_and_never_more_than_a_burst_after_a_pause() -> None:
    clock = _Clock()
    rates = _rates(clock)
    assert _taken(rates, "a", 100) == 5
    clock.now += 0.35
    assert _taken(rates, "a", 100) == 3
    clock.now += 3_600
    assert _taken(rates, "a", 100) == 5
    assert _taken(rates, "b", 100) == 5, "one caller's calls are not another's"


def test_over_a_long_time_the_average_holds_however_calls_are_spread() -> None:
    clock = _Clock()
    rates = _rates(clock)
    through = 0
    for _ in range(1_000):
        clock.now += 0.037
        through += _taken(rates, "a", 1 + int(clock.now * 7) % 3)
    assert through == pytest.approx(370 + 5, abs=6)


def test_the_refusal_says_when_to_come_back_and_then_there_is_a_call() -> None:
    clock = _Clock()
    rates = _rates(clock)
    _taken(rates, "service:support/a", 5)
    with pytest.raises(RefusedError) as refused:
        rates.take("service:support/a")
    assert refused.value.reason is Reason.RATE_LIMITED
    status = to_status(refused.value)
    retry, quota = error_details_pb2.RetryInfo(), error_details_pb2.QuotaFailure()
    assert [detail.Unpack(retry) or detail.Unpack(quota) for detail in status.details] == [False, True, True]
    assert (quota.violations[0].quota_id, quota.violations[0].quota_value) == ("calls_per_second", 10)
    assert quota.violations[0].subject == "service:support/a"
    clock.now += retry.retry_delay.ToTimedelta().total_seconds()
    rates.take("service:support/a")
