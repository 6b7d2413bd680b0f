"""Every scenario in a small version: it ends, keeps the invariants, and is the same again."""

from __future__ import annotations

import pytest

from scheduler.core.apply import apply
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import Lease, Micros
from scheduler.simulation.engine import Observer, Round
from scheduler.simulation.jobs import Job
from scheduler.simulation.results import Results
from scheduler.simulation.running import run_scenario
from scheduler.simulation.scenario import load_scenario, names
from tests.simulation.simulated import SMALL, Invariants


def _run(name: str, *observers: Observer) -> Results:
    return run_scenario(load_scenario(name, SMALL[name]), observers)


@pytest.mark.parametrize("name", names())
def test_a_scenario_ends_and_keeps_the_invariants(name: str) -> None:
    invariants = Invariants()
    results = _run(name, invariants)
    assert invariants.checked >= results.jobs > 0
    assert (results.finished, results.unfinished) == (results.jobs, 0)
    assert results.makespan_s >= results.bound_s
    assert 0 < results.capacity_use <= 1
    assert invariants.most_held <= max(results.shares.usable) + 1e-6


def test_kueue_baseline_comes_near_the_capacity_bound() -> None:
    results = _run("kueue_baseline")
    print(f"makespan {results.makespan_s:.2f} s, bound {results.bound_s:.2f} s, use {results.capacity_use:.1%}")
    assert results.bound_s == pytest.approx(66.0)
    assert results.makespan_s < 1.06 * results.bound_s
    large, small = results.sets[2].waits, results.sets[0].waits
    assert large.mean_s < small.mean_s, "higher classes go first"


class _AsApplied(Observer):
    """Holds the world after each round against what the pure `apply` makes of the same plan."""

    def __init__(self) -> None:
        self.changes = 0
        self._held: dict[str, Lease] = {}
        self._expected: Snapshot | None = None

    def decided(self, past: Round) -> None:
        self._expected = apply(past.snapshot, past.decided, past.now)

    def started(self, job: Job, lease: Lease, now: Micros) -> None:
        self._held[lease.lease_id] = lease

    def stopped(self, job: Job, lease: Lease, now: Micros) -> None:
        del self._held[lease.lease_id]

    def applied(self, past: Round) -> None:
        assert self._expected is not None
        self.changes += past.decided.changes
        assert {lease.lease_id: lease.placement for lease in self._expected.leases} == {
            name: lease.placement for name, lease in self._held.items()
        }
        # The backlogs of a snapshot are the world's own. What lost its lease asks again at once, which is not the plan's doing.
        ended = {end.job_id for end in past.decided.ends}
        left = [request for request in past.snapshot.requests if request.job_id not in ended]
        assert left == [request for request in self._expected.requests if request.job_id not in ended]
        assert list(past.snapshot.jobs) == list(self._expected.jobs)


@pytest.mark.parametrize("name", ["diurnal", "flapping_priorities", "gang_reclaim", "spot_loss"])
def test_a_round_leads_to_what_the_core_says(name: str) -> None:
    compared = _AsApplied()
    _run(name, compared)
    assert compared.changes > 20
