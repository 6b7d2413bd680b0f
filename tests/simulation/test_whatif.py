"""What a change would change, against a snapshot of a busy cluster that stays as it is."""

from __future__ import annotations

import pytest

from scheduler.core.backlog import Backlog
from scheduler.core.reasons import ReasonCode
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import (
    Brakes,
    EndCause,
    Lease,
    Limits,
    Micros,
    Node,
    Pool,
    QueuedJob,
    QueueNode,
    Quota,
    Request,
    Resource,
    Shape,
)
from scheduler.simulation.audit import SnapshotDigest
from scheduler.simulation.whatif import (
    Change,
    Difference,
    LostNodes,
    QuotaChange,
    Submission,
    UnknownNameError,
    simulate,
)

LIMITS = Limits()
NOW = Micros(10_000_000_000)
CELL = ("gpus", Resource.ACCELERATORS)
HOUR = 3_600_000_000


def _request(name: str, queue: str, accelerators: int, priority: int = 500) -> Request:
    return Request(name, f"job-{name}", queue, Shape("h100", (accelerators, 0, 0)), priority, Micros(NOW - 1), HOUR)


def _lease(name: str, accelerators: int, node: str, minutes: int) -> Lease:
    return Lease(
        lease_id=name,
        job_id=f"job-{name}",
        queue="blue",
        shape=Shape("h100", (accelerators, 0, 0)),
        priority=500,
        submitted=Micros(0),
        run_micros=HOUR,
        pool="gpus",
        placement=((node, 1),),
        incarnations=("1",),
        granted=Micros(NOW - minutes * 60_000_000),
        expires=Micros(NOW + 60_000_000),
    )


@pytest.fixture(name="busy")
def _busy() -> Snapshot:
    """Two nodes of eight, four free: blue holds twelve and borrows four of them, green waits for a quota that it has not."""
    return Snapshot(
        requests=Backlog([_request("waits", "green", 4)], aging_micros=LIMITS.aging_micros),
        jobs=Backlog[QueuedJob](aging_micros=LIMITS.aging_micros),
        leases=(_lease("b1", 8, "n1", minutes=10), _lease("b2", 4, "n2", minutes=5)),
        pools=(Pool("gpus", "h100"),),
        # Not heard for twenty seconds, but the database has been there for less.
        nodes=tuple(Node(name, "1", "gpus", (8, 0, 0), Micros(NOW - 20_000_000)) for name in ("n1", "n2")),
        tree=(
            QueueNode("organisation", None),
            QueueNode("red", "organisation", quotas={CELL: Quota(8)}),
            QueueNode("blue", "organisation", quotas={CELL: Quota(8)}),
            QueueNode("green", "organisation", quotas={CELL: Quota(0, borrowing_limit=0)}),
        ),
        brakes=Brakes(10, HOUR),
        database_started=Micros(NOW - 1_000),
    )


def _simulated(busy: Snapshot, change: Change, rounds: int = 1) -> Difference:
    before = SnapshotDigest()(busy)
    difference = simulate(busy, change, NOW, LIMITS, rounds=rounds)
    assert SnapshotDigest()(busy) == before, "the snapshot was changed"
    return difference


def test_a_submission_that_fits_is_granted(busy: Snapshot) -> None:
    difference = _simulated(busy, Submission((_request("new", "red", 4),)))
    assert [(grant.request.request_id, grant.placement) for grant in difference.granted] == [("new", (("n2", 1),))]
    assert not difference.preempted


def test_a_submission_within_its_quota_preempts_a_borrower_and_then_runs(busy: Snapshot) -> None:
    change = Submission((_request("new", "red", 8),))
    asked = _simulated(busy, change)
    assert [(each.lease_id, each.request_id) for each in asked.preempted] == [("b2", "new")]
    assert not asked.granted
    (waits,) = [waits for waits in asked.waiting if waits.group.queue == "red"]
    assert waits.without == ()
    assert [reason.code for reason in waits.with_change] == [ReasonCode.PREEMPTION]

    yielded = _simulated(busy, change, rounds=2)
    assert [(grant.request.request_id, grant.placement) for grant in yielded.granted] == [("new", (("n2", 1),))]
    (victim,) = [waits for waits in yielded.waiting if waits.group.queue == "blue"]
    assert victim.without == ()
    assert victim.with_change, "what was preempted asks again, and waits"


def test_a_submission_that_can_never_run_is_refused(busy: Snapshot) -> None:
    difference = _simulated(busy, Submission((_request("new", "red", 99),)))
    assert [refusal.request.request_id for refusal in difference.refused] == ["new"]


def test_a_quota_change_grants_what_waited_for_it(busy: Snapshot) -> None:
    difference = _simulated(busy, QuotaChange("green", CELL, Quota(0, borrowing_limit=4)))
    assert [grant.request.request_id for grant in difference.granted] == ["waits"]
    (waits,) = difference.waiting
    assert waits.without[0].code is ReasonCode.QUOTA
    assert waits.with_change == ()


def test_a_lost_node_ends_its_leases_which_ask_again(busy: Snapshot) -> None:
    difference = _simulated(busy, LostNodes(frozenset({"n2"})), rounds=2)
    assert difference.ended == (("b2", EndCause.NODE_LOST),)
    assert "blue" in {waits.group.queue for waits in difference.waiting}
    other = _simulated(busy, LostNodes(frozenset({"n1"})), rounds=2)
    assert other.ended == (("b1", EndCause.NODE_LOST),)


def test_a_change_that_changes_nothing_is_empty(busy: Snapshot) -> None:
    assert _simulated(busy, QuotaChange("red", CELL, Quota(8)), rounds=3).empty
    assert not _simulated(busy, QuotaChange("green", CELL, Quota(8))).empty


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (Submission((_request("waits", "red", 1),)), "waits"),
        (QuotaChange("purple", CELL, Quota(1)), "purple"),
        (LostNodes(frozenset({"n9"})), "n9"),
    ],
)
def test_names_that_are_not_there_are_refused(busy: Snapshot, change: Change, what: str) -> None:
    with pytest.raises(UnknownNameError, match=what):
        simulate(busy, change, NOW, LIMITS)
