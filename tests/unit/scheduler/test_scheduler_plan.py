"""The rules by example."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.core import (
    AdmissionWindow,
    Admit,
    EndCause,
    EndLease,
    ExceedsMaximum,
    Fragmented,
    Grant,
    HeldLease,
    LeaseRequest,
    Limits,
    Micros,
    NoCapacity,
    NotEvaluated,
    Plan,
    QueuedJob,
    QueueKey,
    QuotaReached,
    Reason,
    Refuse,
    Shape,
    Snapshot,
    Waiting,
    Worker,
    plan,
)

NOW = Micros(1_000)
LIMITS = Limits(prepare_ahead_per_project=2, worker_lost_micros=100)


def worker(name: str, accelerators: int, kind: str = "h100", *, heartbeat: int = NOW) -> Worker:
    return Worker(name, "first", kind, accelerators, Micros(heartbeat))


def held(name: str, on: Worker, accelerators: int = 1, *, project: str = "red", expires: int = 2_000) -> HeldLease:
    return HeldLease(name, f"job-{name}", project, on.name, on.incarnation, on.kind, accelerators, Micros(expires))


def request(
    name: str, accelerators: int = 1, kind: str = "h100", *, project: str = "red", priority: int = 500, since: int = 0
) -> LeaseRequest:
    return LeaseRequest(name, f"job-{name}", project, priority, Micros(since), Shape(accelerators, kind))


def queued(name: str, accelerators: int = 1, *, project: str = "red", priority: int = 500, since: int = 0) -> QueuedJob:
    return QueuedJob(name, project, priority, Micros(since), Shape(accelerators, "h100"))


def decide(snapshot: Snapshot, limits: Limits = LIMITS) -> Plan:
    return plan(snapshot, NOW, limits)


def granted(decided: Plan) -> dict[str, str]:
    return {grant.lease_id: grant.worker for grant in decided.grants}


def test_nothing_to_do() -> None:
    assert decide(Snapshot()) == Plan()


def test_priority_then_waiting_time_then_id() -> None:
    requests = (request("d"), request("c"), request("b", since=-1), request("a", priority=501, since=99))
    decided = decide(Snapshot(requests=requests, workers=(worker("w", 3),)))
    assert [grant.lease_id for grant in decided.grants] == ["a", "b", "c"]
    assert decided.waiting_leases == (Waiting("d", "job-d", NoCapacity(1, 0, 3, "h100"), 0),)


def test_a_grant_names_the_worker_and_this_start_of_it() -> None:
    decided = decide(Snapshot(requests=(request("a", 2, "any"),), workers=(worker("w", 4),)))
    assert decided.grants == (Grant("a", "job-a", "w", "first", "h100", 2),)


def test_the_tightest_fit_keeps_large_holes() -> None:
    workers = (worker("large", 8), worker("small", 2))
    assert granted(decide(Snapshot(requests=(request("a", 2),), workers=workers))) == {"a": "small"}


def test_a_head_that_fits_nowhere_blocks_only_its_own_shape() -> None:
    big = worker("w", 4)
    requests = (request("wide", 4, priority=900), request("narrow", 1), request("wide-too", 4))
    decided = decide(Snapshot(requests=requests, workers=(big,), held=(held("h", big),)))
    assert granted(decided) == {"narrow": "w"}
    assert [(waiter.waiter_id, waiter.ahead) for waiter in decided.waiting_leases] == [("wide", 0), ("wide-too", 1)]


def test_a_project_at_its_quota_leaves_the_rest_to_others() -> None:
    decided = decide(
        Snapshot(
            requests=(request("mine", priority=900), request("theirs", project="blue")),
            workers=(here := worker("w", 2),),
            held=(held("h", here),),
            quotas={"red": {"h100": 1}},
        )
    )
    assert granted(decided) == {"theirs": "w"}
    assert decided.waiting_leases == (Waiting("mine", "job-mine", QuotaReached(1, 1, 1, "h100"), 0),)


def test_any_kind_goes_where_the_quota_allows() -> None:
    workers = (worker("dear", 1), worker("plain", 4, "cpu"))
    decided = decide(Snapshot(requests=(request("a", 1, "any"),), workers=workers, quotas={"red": {"h100": 0}}))
    assert granted(decided) == {"a": "plain"}


@pytest.mark.parametrize(
    ("snapshot", "reason"),
    [
        (Snapshot(workers=(worker("w", 4),)), ExceedsMaximum(8, 4, "h100")),
        (Snapshot(workers=(worker("w", 16),), quotas={"red": {"h100": 6}}), ExceedsMaximum(8, 6, "h100")),
        # Lost workers say what the cluster can be.
        (Snapshot(workers=(worker("w", 4, heartbeat=0),)), ExceedsMaximum(8, 4, "h100")),
    ],
    ids=["worker", "quota", "lost worker"],
)
def test_what_can_never_run_is_refused_and_not_admitted(snapshot: Snapshot, reason: ExceedsMaximum) -> None:
    decided = decide(replace(snapshot, requests=(request("a", 8),), queued=(queued("j", 8),)))
    assert decided.refusals == (Refuse("a", "job-a", reason),)
    assert decided.waiting_jobs == (Waiting("j", "j", reason, 0),)
    assert decided.admissions == ()


@pytest.mark.parametrize(
    ("snapshot", "reason"),
    [
        (Snapshot(), NoCapacity(2, 0, 0, "h100")),
        (Snapshot(workers=(worker("w", 8, heartbeat=0),)), NoCapacity(2, 0, 0, "h100")),
        (Snapshot(workers=(worker("w", 8),), quotas={"red": {"h100": 0}}), QuotaReached(2, 0, 0, "h100")),
    ],
    ids=["no worker known", "all workers lost", "paused by a quota of 0"],
)
def test_what_may_run_later_waits(snapshot: Snapshot, reason: Reason) -> None:
    decided = decide(replace(snapshot, requests=(request("a", 2),)))
    assert decided.waiting_leases == (Waiting("a", "job-a", reason, 0),)
    assert decided.refusals == ()


def test_enough_in_all_and_not_on_one_worker() -> None:
    workers = (one := worker("one", 2), two := worker("two", 2))
    decided = decide(Snapshot(requests=(request("a", 2),), workers=workers, held=(held("x", one), held("y", two))))
    assert decided.waiting_leases == (Waiting("a", "job-a", Fragmented(2, 2, 1, "h100"), 0),)


def test_the_window_admits_the_most_urgent() -> None:
    jobs = (queued("late", since=2), queued("early", since=1), queued("urgent", priority=501, since=9))
    decided = decide(Snapshot(queued=jobs, admitted={"blue": 7}))
    assert decided.admissions == (Admit("urgent"), Admit("early"))
    assert decided.waiting_jobs == (Waiting("late", "late", AdmissionWindow(2, 2), 0),)


def test_leases_end_for_cause_and_free_their_place_at_once() -> None:
    here, gone = worker("here", 3), worker("gone", 1, heartbeat=NOW - 101)
    restarted = HeldLease("c", "job-c", "red", "here", "before", "h100", 1, Micros(2_000))
    leases = (held("a", here, expires=NOW - 1), held("b", gone), restarted, held("d", here, expires=NOW))
    decided = decide(Snapshot(workers=(here, gone), held=leases, requests=(request("next", 2),)))
    assert decided.ends == (
        EndLease("a", "job-a", EndCause.EXPIRED),
        EndLease("b", "job-b", EndCause.WORKER_LOST),
        EndLease("c", "job-c", EndCause.WORKER_RESTARTED),
    )
    assert granted(decided) == {"next": "here"}


def test_silence_while_the_database_was_down_is_nobodys_fault() -> None:
    quiet = worker("w", 1, heartbeat=0)
    snapshot = Snapshot(workers=(quiet,), held=(held("a", quiet),), database_started=Micros(NOW - 100))
    assert decide(snapshot).ends == ()


def test_a_round_at_its_budget_says_what_it_left_and_goes_on_there() -> None:
    limits = Limits(prepare_ahead_per_project=2, worker_lost_micros=100, operations_max=1)
    requests = (request("first", 2, priority=900), request("second", 1))
    snapshot = Snapshot(requests=requests, workers=(here := worker("w", 2),), held=(held("h", here),))
    decided = decide(snapshot, limits)
    assert not decided.complete
    assert decided.carried_over == (QueueKey("red", Shape(1, "h100")),)
    assert decided.waiting_leases[0].reason == NotEvaluated()

    resumed = decide(replace(snapshot, carried_over=decided.carried_over), limits)
    assert granted(resumed) == {"second": "w"}
    assert resumed.complete


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (
            ExceedsMaximum(8, 4, "any"),
            "exceeds maximum: asks for 8 accelerators of any kind on one worker; "
            "the largest worker within the project's quota has 4",
        ),
        (
            QuotaReached(1, 3, 3, "h100"),
            "quota: asks for 1 accelerator of kind h100; the project holds 3 of at most 3",
        ),
        (AdmissionWindow(2, 2), "admission: 2 of the project's jobs are under way; at most 2 may be"),
        (NoCapacity(2, 1, 4, "cpu"), "capacity: asks for 2 accelerators of kind cpu; 1 of 4 are free"),
        (NoCapacity(2, 0, 0, "cpu"), "capacity: asks for 2 accelerators of kind cpu; no living worker has any"),
        (
            Fragmented(2, 3, 1, "cpu"),
            "placement: asks for 2 accelerators of kind cpu on one worker; 3 are free and at most 1 on one",
        ),
        (NotEvaluated(), "not yet evaluated: the scheduler carries this over to its next round"),
    ],
    ids=lambda value: value.code if not isinstance(value, str) else "",
)
def test_reasons_in_words(reason: Reason, words: str) -> None:
    assert reason.words() == words
