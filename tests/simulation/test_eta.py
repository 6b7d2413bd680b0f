"""Estimates of start times: exact where all is known, right nine times in ten where run times are drawn, and bounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import comb

import pytest

from scheduler.core.backlog import Backlog
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import Lease, Limits, Micros, QueuedJob, Request, Shape
from scheduler.simulation.audit import SnapshotDigest
from scheduler.simulation.engine import Observer, Pace, Round
from scheduler.simulation.eta import Estimate, Forecast, Lately, UnknownRequestError, estimate
from scheduler.simulation.load import generator
from scheduler.simulation.run_times import (
    OBSERVED_MIN,
    Observation,
    ObservedRunTimes,
    RunTimes,
    Work,
    as_declared,
    declared_micros,
)
from scheduler.simulation.running import run_scenario
from scheduler.simulation.scenario import START, Scenario
from tests.simulation.simulated import Happened, jobs, scenario

MINUTE, HOUR = 60_000_000, 3_600_000_000
PACE = Pace(coalesce=5_000, poll=HOUR, yield_after=30_000_000, decay=MINUTE)
LOW, HIGH = 0.2, 1.0
NEVER = Micros(1 << 62)


class _Moment(Observer):
    """Keeps the first snapshot after a time as a live one is: heartbeats of now, leases that expire unless they are renewed."""

    def __init__(self, after: int) -> None:
        self._after = START + after
        self.kept: tuple[Snapshot, Micros] | None = None

    def decided(self, past: Round) -> None:
        if self.kept is None and past.now >= self._after:
            given = past.snapshot
            live = replace(
                given,
                requests=Backlog(given.requests, aging_micros=given.requests.aging_micros),
                jobs=Backlog(given.jobs, aging_micros=given.jobs.aging_micros),
                nodes=tuple(replace(node, heartbeat=past.now) for node in given.nodes),
                leases=tuple(replace(lease, expires=Micros(past.now + MINUTE)) for lease in given.leases),
            )
            self.kept = (live, past.now)


def _observed(work: Work) -> Sequence[int]:
    """Of the same distribution as the scenario's."""
    return [round(declared_micros(work) * (LOW + (HIGH - LOW) * (index + 0.5) / 50)) for index in range(50)]


RATIO = {"kind": "uniform", "low": LOW, "high": HIGH}
SMALL_NODES = [{"name": "node", "pool": "gpus", "count": 2, "accelerators": 4}]


def _busy(seed: int) -> Scenario:
    """Jobs of several sizes of two queues, at once and far more than fit; nothing comes later."""
    load = [
        jobs(name=f"{queue}-{size}", queues=queue, count=5, shape={"kind": "h100", "accelerators": size}, ratio=RATIO)
        for queue in ("red", "blue")
        for size in (1, 2)
    ]
    return scenario(seed=seed, poll="1h", nodes=SMALL_NODES, load=load)


def _streaming(seed: int) -> Scenario:
    """Jobs of two sizes and classes of two queues, that come all the time, as many as the nodes can just do."""
    load = [
        jobs(
            name=f"{queue}-{size}-{priority}",
            queues=queue,
            count=12,
            shape={"kind": "h100", "accelerators": size},
            ratio=RATIO,
            priority=priority,
            arrival={"kind": "poisson", "mean_interval": every},
        )
        for queue in ("red", "blue")
        for size, priority, every in ((1, 500, "20m"), (2, 500, "32m"), (1, 800, "48m"))
    ]
    return scenario(seed=seed, poll="1h", nodes=SMALL_NODES, load=load, until="8h")


def _coverage(
    of: Callable[[int], Scenario],
    after: int,
    window: int | None,
    scenarios: int,
    run_times: Callable[[int], RunTimes] = lambda _seed: _observed,
) -> dict[str, float]:
    """How often a job that waited at a moment of a run of the engine started no later than was foretold from that moment."""
    within, foretold = {"p50": 0, "p90": 0}, 0
    for seed in range(scenarios):
        moment, happened = _Moment(after), Happened()
        run_scenario(of(seed), (moment, happened))
        assert moment.kept is not None
        snapshot, now = moment.kept
        starts = {lease.lease_id: at for at, lease in happened.leases}
        waiting = sorted(name for name in (each.request_id for each in snapshot.requests) if starts.get(name, NEVER) > now)
        if not waiting:
            continue
        foretold += 1
        target = generator(seed).choice(waiting)
        lately = None if window is None else _came(snapshot, happened, now, window)
        guess = estimate(snapshot, target, now, Limits(), run_times(seed), lately, Forecast(draws=9, pace=PACE, seed=seed))
        within["p50"] += guess.p50 is None or starts.get(target, NEVER) <= guess.p50
        within["p90"] += guess.p90 is None or starts.get(target, NEVER) <= guess.p90
    assert foretold > scenarios / 2
    shares = {name: count / foretold for name, count in within.items()}
    print(f"{of.__name__}: coverage over {foretold} scenarios: {shares}")
    return shares


def _came(snapshot: Snapshot, happened: Happened, now: Micros, window: int) -> Lately:
    granted = [_request(lease) for at, lease in happened.leases if at <= now]
    first = {each.job_id: each for each in (*snapshot.requests, *granted) if now - window < each.submitted <= now}
    return Lately(tuple(first[name] for name in sorted(first)), window)


def _request(lease: Lease) -> Request:
    return Request(lease.lease_id, lease.job_id, lease.queue, lease.shape, lease.priority, lease.submitted, HOUR)


def test_ninety_per_cent_of_true_starts_are_before_p90_and_half_before_p50() -> None:
    shares = _coverage(_busy, 30 * MINUTE, None, 120)
    # Three standard deviations of a share of 120.
    assert shares["p90"] == pytest.approx(0.90, abs=0.083)
    assert shares["p50"] == pytest.approx(0.50, abs=0.137)


def test_with_what_came_lately_the_coverage_holds_while_more_comes() -> None:
    shares = _coverage(_streaming, 3 * HOUR, 3 * HOUR, 45)
    # Three standard deviations of a share of 45.
    assert shares["p90"] == pytest.approx(0.90, abs=0.135)
    assert shares["p50"] == pytest.approx(0.50, abs=0.225)


def _of_two_habits(seed: int) -> Scenario:
    """As `_busy`, but red's jobs take little of what they declare, and blue's nearly all of it."""
    habits = {"red": {"kind": "uniform", "low": 0.05, "high": 0.4}, "blue": {"kind": "uniform", "low": 0.8, "high": 1.0}}
    load = [
        jobs(name=f"{queue}-{size}", queues=queue, count=5, shape={"kind": "h100", "accelerators": size}, ratio=ratio)
        for queue, ratio in habits.items()
        for size in (1, 2)
    ]
    return scenario(seed=seed, poll="1h", nodes=SMALL_NODES, load=load)


def _observed_before(seed: int) -> ObservedRunTimes:
    """What ended in ten earlier runs of these queues, as the database would say it."""
    seen: list[Observation] = []
    for earlier in range(10):
        happened = Happened()
        run_scenario(_of_two_habits(10_000 + 10 * seed + earlier), (happened,))
        seen += [Observation(lease.queue, "fine_tune", lease.run_micros, at - lease.granted) for at, lease in happened.stops]
    return ObservedRunTimes(seen, {})


def _within_chance(share: float, expected: float, of: int) -> bool:
    """Whether a share of so many is one that the expected chance gives in 997 of 1,000 cases (exact binomial)."""

    def at_most(count: int) -> float:
        return sum(comb(of, k) * expected**k * (1 - expected) ** (of - k) for k in range(count + 1))

    count = round(share * of)
    return at_most(count) > 0.0015 and 1 - at_most(count - 1) > 0.0015


def test_with_run_times_of_ended_leases_p50_covers_half_and_p90_nine_in_ten() -> None:
    """Over scenarios that each have a history of their own: one for all would be wrong in the same way for all."""
    scenarios = 200
    shares = _coverage(_of_two_habits, 15 * MINUTE, None, scenarios, _observed_before)
    assert _within_chance(shares["p50"], 0.5, scenarios)
    assert _within_chance(shares["p90"], 0.9, scenarios)


def test_by_what_is_declared_far_more_start_before_what_was_foretold() -> None:
    """So the bounds of the test above are ones that can be broken."""
    assert not _within_chance(_coverage(_of_two_habits, 15 * MINUTE, None, 40, lambda _: as_declared)["p50"], 0.5, 40)


def test_run_times_are_those_of_work_that_is_most_alike() -> None:
    def seen(queue: str, job_type: str, ratio: float, count: int) -> list[Observation]:
        return [Observation(queue, job_type, HOUR, round(HOUR * ratio))] * count

    history = [
        *seen("red", "fine_tune", 0.5, OBSERVED_MIN),
        *seen("red", "evaluation", 0.2, OBSERVED_MIN - 1),
        *seen("blue", "evaluation", 0.1, 1),
    ]
    observed = ObservedRunTimes(history, {"a": "fine_tune", "b": "evaluation", "c": "retrain"})
    ask = Request("", "", "", Shape("h100", (1, 0, 0)), 500, Micros(0), 2 * HOUR)

    def of(queue: str, job_id: str) -> set[int]:
        return set(observed(replace(ask, queue=queue, job_id=job_id)))

    assert of("red", "a") == {HOUR}, "of the queue and type"
    assert of("red", "b") == {round(0.4 * HOUR), round(0.2 * HOUR)}, "of the type, where the queue has seen too little"
    assert of("red", "c") == {HOUR, round(0.4 * HOUR)}, "of the queue, where the type is new"
    assert of("green", "c") == {HOUR, round(0.4 * HOUR), round(0.2 * HOUR)}, "of all"
    assert set(observed(QueuedJob("d", "red", ask.shape, 500, Micros(0), "fine_tune"))) == {HOUR // 2}
    assert ObservedRunTimes(history[: OBSERVED_MIN - 1], {})(ask) == (2 * HOUR,), "as declared"


def _moment(after: int, of: Scenario) -> tuple[Snapshot, Micros]:
    moment = _Moment(after)
    run_scenario(of, (moment,))
    assert moment.kept is not None
    return moment.kept


WHOLE = {"kind": "h100", "accelerators": 8, "members": 4}


def test_with_nothing_observed_jobs_run_as_declared() -> None:
    snapshot, now = _moment(10 * MINUTE, scenario(load=[jobs(name="first", shape=WHOLE), jobs(shape=WHOLE, start="10m")]))
    guess = estimate(snapshot, "work:red:00000.1", now, Limits(), forecast=Forecast(draws=9, pace=PACE))
    assert guess == Estimate(Micros(START + HOUR + 10_000), Micros(START + HOUR + 10_000), 9, 9)


def test_a_queued_job_has_an_estimate_too() -> None:
    snapshot, now = _moment(0, scenario(load=[jobs(prepare="0s")]))
    guess = estimate(snapshot, "work:red:00000", now, Limits(), forecast=Forecast(draws=9, pace=PACE))
    assert guess.p90 == now + 10_000


def test_a_lease_that_has_run_longer_than_any_observed_still_ends() -> None:
    load = [jobs(name="first", shape=WHOLE), jobs(shape=WHOLE, start="50m")]
    snapshot, now = _moment(50 * MINUTE, scenario(load=load))
    guess = estimate(snapshot, "work:red:00000.1", now, Limits(), lambda _: [HOUR // 4], forecast=Forecast(draws=19, pace=PACE))
    assert guess.p50 is not None
    assert guess.p90 is not None
    # It is 35 minutes overdue, so it may take up to as long again.
    assert now < guess.p50 < guess.p90 <= now + 35 * MINUTE + 10_000


def test_a_lease_that_yields_is_waited_for() -> None:
    load = [jobs(name="low", shape=WHOLE, priority=100), jobs(shape=WHOLE, start="50m", priority=950)]
    snapshot, now = _moment(50 * MINUTE + 1_000_000, scenario(load=[*load, jobs(name="tick", start="3001s")]))
    assert [lease.preempted_for for lease in snapshot.leases] == ["work:red:00000.1"]
    guess = estimate(snapshot, "work:red:00000.1", now, Limits(), forecast=Forecast(draws=1, pace=PACE))
    assert guess.p50 is not None
    assert guess.p50 - now == pytest.approx(30_000_000, abs=10_000)


def test_what_is_not_decided_within_the_bounds_has_no_estimate() -> None:
    snapshot, now = _moment(30 * MINUTE, _busy(1))
    last = max(snapshot.requests, key=lambda request: (request.shape.accelerators, request.request_id))
    guess = estimate(snapshot, last.request_id, now, Limits(), _observed, forecast=Forecast(draws=5, rounds_max=1, pace=PACE))
    assert guess == Estimate(None, None, 5, 0)
    never, then = _moment(0, scenario(load=[jobs(shape={"kind": "b200", "accelerators": 1})]))
    assert estimate(never, "work:red:00000.1", then, Limits(), forecast=Forecast(draws=3)).decided == 0


def test_the_same_seed_gives_the_same_estimate_and_the_snapshot_stays_as_it_is() -> None:
    snapshot, now = _moment(30 * MINUTE, _busy(3))
    before = SnapshotDigest()(snapshot)
    target = next(iter(snapshot.requests)).request_id
    one, again, other = (
        estimate(snapshot, target, now, Limits(), _observed, forecast=Forecast(draws=9, pace=PACE, seed=seed))
        for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other
    assert SnapshotDigest()(snapshot) == before


def test_what_does_not_wait_is_refused() -> None:
    snapshot, now = _moment(0, scenario())
    with pytest.raises(UnknownRequestError, match="nothing: neither"):
        estimate(snapshot, "nothing", now, Limits())
