"""The promises of the core, each on many small clusters, and for each a broken rule that it catches."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from scheduler_clusters import LIMITS, NOW, State, applied, clusters

from scheduler.core import (
    AdmissionWindow,
    EndCause,
    ExceedsMaximum,
    Fragmented,
    Limits,
    Micros,
    NoCapacity,
    NotEvaluated,
    NoWorkflow,
    Plan,
    QueueKey,
    QuotaReached,
    Reason,
    Snapshot,
)
from scheduler.core import plan as real_plan

T = TypeVar("T")
Planner = Callable[[Snapshot, Micros, Limits], Plan]
Property = Callable[[Planner, Snapshot], None]

# Properties


def nothing_is_oversubscribed(plan: Planner, before: Snapshot) -> None:
    done = plan(before, NOW, LIMITS)
    state = State(applied(before, done))
    alive = {worker.name: worker for worker in state.alive()}
    requests = {request.lease_id: request for request in before.requests}
    for grant in done.grants:
        worker = alive[grant.worker]
        assert state.free(worker) >= 0
        assert (grant.incarnation, grant.kind) == (worker.incarnation, worker.kind)
        assert grant.accelerators == requests[grant.lease_id].shape.accelerators
        assert requests[grant.lease_id].shape.kind in ("any", worker.kind)


def no_quota_is_exceeded(plan: Planner, before: Snapshot) -> None:
    done = plan(before, NOW, LIMITS)
    state = State(applied(before, done))
    projects = {request.lease_id: request.project for request in before.requests}
    for grant in done.grants:
        project = projects[grant.lease_id]
        limit = state.limit(project, grant.kind)
        assert limit is None or state.held(project, grant.kind) <= limit


def no_window_is_exceeded(plan: Planner, before: Snapshot) -> None:
    done = plan(before, NOW, LIMITS)
    after = applied(before, done).admitted
    for project, admitted in after.items():
        assert admitted <= max(LIMITS.prepare_ahead_per_project, before.admitted.get(project, 0))


def nobody_overtakes_in_a_queue(plan: Planner, before: Snapshot) -> None:
    """Of one project and shape, what is granted comes before what waits; so do admitted jobs of a project."""
    done = plan(before, NOW, LIMITS)
    requests = {request.lease_id: request for request in before.requests}
    for waiting in (requests[waiter.waiter_id] for waiter in done.waiting_leases):
        for granted in (requests[grant.lease_id] for grant in done.grants):
            if granted.queue == waiting.queue:
                assert _order(granted.priority, granted.requested, granted.lease_id) < _order(
                    waiting.priority, waiting.requested, waiting.lease_id
                )
    jobs = {job.job_id: job for job in before.queued}
    for waiting in (jobs[waiter.job_id] for waiter in done.waiting_jobs if isinstance(waiter.reason, AdmissionWindow)):
        for admitted in (jobs[admission.job_id] for admission in done.admissions):
            if admitted.project == waiting.project:
                assert _order(admitted.priority, admitted.submitted, admitted.job_id) < _order(
                    waiting.priority, waiting.submitted, waiting.job_id
                )


def _order(priority: int, since: Micros, name: str) -> tuple[int, int, str]:
    return -priority, since, name


def nothing_idles_that_could_work(plan: Planner, before: Snapshot) -> None:
    done = plan(before, NOW, LIMITS)
    after = applied(before, done)
    state = State(after)
    for request in after.requests:
        assert not state.fits(request.queue)
    for job in after.queued:
        full = after.admitted.get(job.project, 0) >= LIMITS.prepare_ahead_per_project
        assert (
            full or job.job_type != "fine_tune" or 0 < state.maximum(QueueKey(job.project, job.shape)) < job.shape.accelerators
        )


def only_what_has_a_workflow_starts(plan: Planner, before: Snapshot) -> None:
    done = plan(before, NOW, LIMITS)
    without = {job.job_id: job.job_type for job in before.queued if job.job_type != "fine_tune"}
    told = {waiter.job_id: waiter.reason for waiter in done.waiting_jobs if isinstance(waiter.reason, NoWorkflow)}
    assert not without.keys() & {admission.job_id for admission in done.admissions}
    assert told == {job_id: NoWorkflow(job_type, ("fine_tune",)) for job_id, job_type in without.items()}


def everything_has_one_true_answer(plan: Planner, before: Snapshot) -> None:
    done = plan(before, NOW, LIMITS)
    state = State(applied(before, done))
    leases = [*(d.lease_id for d in (*done.grants, *done.refusals)), *(w.waiter_id for w in done.waiting_leases)]
    assert sorted(leases) == sorted(request.lease_id for request in before.requests)
    jobs = [*(admission.job_id for admission in done.admissions), *(w.waiter_id for w in done.waiting_jobs)]
    assert sorted(jobs) == sorted(job.job_id for job in before.queued)
    queues = {request.lease_id: request.queue for request in before.requests}
    queues |= {job.job_id: QueueKey(job.project, job.shape) for job in before.queued}
    for waiter in (*done.waiting_leases, *done.waiting_jobs):
        assert _true(waiter.reason, queues[waiter.waiter_id], state), waiter
    for refusal in done.refusals:
        assert _true(refusal.reason, queues[refusal.lease_id], state), refusal


def _true(reason: Reason, queue: QueueKey, state: State) -> bool:
    shape, project = queue.shape, queue.project
    free = [max(0, state.free(worker)) for worker in state.allowed(queue)]
    match reason:
        case ExceedsMaximum(requested, maximum, kind):
            return (
                (requested, kind) == (shape.accelerators, shape.kind)
                and 0 < maximum < requested
                and (maximum == state.maximum(queue))
            )
        case QuotaReached(requested, held, maximum, kind):
            return (
                requested == shape.accelerators
                and shape.kind in ("any", kind)
                and (held, maximum) == (state.held(project, kind), state.limit(project, kind))
                and held + requested > maximum
                and not state.allowed(queue)
            )
        case AdmissionWindow(admitted, maximum):
            return admitted == state.snapshot.admitted.get(project, 0) >= maximum == LIMITS.prepare_ahead_per_project
        case NoCapacity(requested, number, total, kind):
            accelerators = sum(worker.accelerators for worker in state.allowed(queue))
            return (
                (requested, kind, number, total) == (shape.accelerators, shape.kind, sum(free), accelerators)
                and number < requested
                and not state.quota_is_all_that_stands_in_the_way(queue)
            )
        case Fragmented(requested, number, largest, _):
            return (number, largest) == (sum(free), max(free)) and largest < requested <= number
        case NoWorkflow() | NotEvaluated():
            # The former is judged by `only_what_has_a_workflow_starts`; the latter never holds with a budget like this one.
            return isinstance(reason, NoWorkflow)


def order_of_input_means_nothing(plan: Planner, before: Snapshot) -> None:
    other = replace(
        before,
        queued=_shuffled(before.queued),
        requests=_shuffled(before.requests),
        held=_shuffled(before.held),
        workers=_shuffled(before.workers),
        quotas=dict(_shuffled(tuple(before.quotas.items()))),
        admitted=dict(_shuffled(tuple(before.admitted.items()))),
    )
    assert plan(other, NOW, LIMITS) == plan(before, NOW, LIMITS)


def _shuffled(items: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(random.Random(0).sample(items, len(items)))  # noqa: S311 - a permutation, not a secret


def planning_again_changes_nothing(plan: Planner, before: Snapshot) -> None:
    first = plan(before, NOW, LIMITS)
    again = plan(applied(before, first), NOW, LIMITS)
    assert again.changes == 0
    assert (again.waiting_leases, again.waiting_jobs) == (first.waiting_leases, first.waiting_jobs)


def leases_end_only_for_cause(plan: Planner, before: Snapshot) -> None:
    causes = {end.lease_id: end.cause for end in plan(before, NOW, LIMITS).ends}
    alive = {worker.name: worker for worker in State(before).alive()}
    for lease in before.held:
        worker = alive.get(lease.worker)
        if worker is None:
            assert causes.get(lease.lease_id) is EndCause.WORKER_LOST
        elif worker.incarnation != lease.incarnation:
            assert causes.get(lease.lease_id) is EndCause.WORKER_RESTARTED
        else:
            assert causes.get(lease.lease_id) is (EndCause.EXPIRED if lease.expires < NOW else None)


def small_budgets_reach_everything(plan: Planner, before: Snapshot) -> None:
    """Rounds with a budget of one operation each come, one after another, to where nothing is left to do."""
    tiny = replace(LIMITS, operations_max=1)
    state = before
    for _ in range(200):
        done = plan(state, NOW, tiny)
        state = applied(state, done)
        if done.complete:
            break
    else:
        raise AssertionError("the rounds did not come to an end")
    assert plan(replace(state, carried_over=()), NOW, LIMITS).changes == 0


PROPERTIES = (
    nothing_is_oversubscribed,
    no_quota_is_exceeded,
    no_window_is_exceeded,
    nobody_overtakes_in_a_queue,
    only_what_has_a_workflow_starts,
    nothing_idles_that_could_work,
    everything_has_one_true_answer,
    order_of_input_means_nothing,
    planning_again_changes_nothing,
    leases_end_only_for_cause,
    small_budgets_reach_everything,
)


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_holds_for_every_cluster(holds: Property) -> None:
    _search(holds, real_plan, examples=150)


@dataclass(frozen=True)
class Mutant:
    """One rule broken, as a slip of the pen would break it: in a copy of a module, `was` becomes `becomes`."""

    module: str
    was: str
    becomes: str

    def planner(self) -> Planner:
        """The planner with the broken rule."""
        capacity = self._load("scheduler.core.capacity")
        planner = self._load("scheduler.core.planner")
        vars(planner)["Capacity"] = vars(capacity)["Capacity"]
        return vars(planner)["plan"]

    def _load(self, name: str) -> ModuleType:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        if name.endswith(self.module):
            assert source.count(self.was) == 1, f"{self.was!r} must stand once in {name}"
            source = source.replace(self.was, self.becomes)
        module = importlib.util.module_from_spec(spec)
        exec(compile(source, spec.origin, "exec"), vars(module))  # noqa: S102 - our own source, one rule changed
        return module


MUTANTS: dict[str, tuple[Mutant, Property]] = {
    "a grant takes nothing from its worker": (
        Mutant("capacity", "self._free[worker.name] -= accelerators", "pass"),
        nothing_is_oversubscribed,
    ),
    "a grant goes to a worker of another kind": (
        Mutant("capacity", "if queue.shape.matches(worker.kind) and self._within_quota", "if self._within_quota"),
        nothing_is_oversubscribed,
    ),
    "a grant does not count against the quota": (
        Mutant("capacity", "self._held[request.project, worker.kind] += accelerators", "pass"),
        no_quota_is_exceeded,
    ),
    "the window has one place too many": (
        Mutant("planner", "self._admitted[job.project] >= self._window", "self._admitted[job.project] > self._window"),
        no_window_is_exceeded,
    ),
    "low priority goes first": (
        Mutant("planner", "return -request.priority,", "return request.priority,"),
        nobody_overtakes_in_a_queue,
    ),
    "jobs that nothing runs are admitted": (
        Mutant("planner", "job.job_type not in self._job_types", "not self._job_types"),
        only_what_has_a_workflow_starts,
    ),
    "a request needs room to spare": (
        Mutant("capacity", ">= queue.shape.accelerators\n        )", "> queue.shape.accelerators\n        )"),
        nothing_idles_that_could_work,
    ),
    "a head that fits nowhere stops the round": (
        Mutant(
            "planner", "            # Else the queue", "            else:\n                break\n            # Else the queue"
        ),
        everything_has_one_true_answer,
    ),
    "the quota's reason is left out": (
        Mutant("capacity", "if not allowed and (quota", "if False and (quota"),
        everything_has_one_true_answer,
    ),
    "ties between jobs are broken by position": (
        Mutant("planner", "return -job.priority, job.submitted, job.job_id", 'return -job.priority, job.submitted, ""'),
        order_of_input_means_nothing,
    ),
    "an ended lease frees its accelerators a round late": (
        Mutant("planner", "if lease.lease_id not in ended]", "if lease.worker in alive]"),
        planning_again_changes_nothing,
    ),
    "a silent worker is never given up": (
        Mutant("planner", "return now - heard <= limits.worker_lost_micros", "return True"),
        leases_end_only_for_cause,
    ),
    "queues that were not reached are forgotten": (
        Mutant("planner", "(queue not in self._first, _request_order", "(False, _request_order"),
        small_budgets_reach_everything,
    ),
}


@pytest.mark.parametrize(("mutant", "catches"), MUTANTS.values(), ids=MUTANTS.keys())
def test_catches_a_broken_rule(mutant: Mutant, catches: Property) -> None:
    broken = mutant.planner()
    with pytest.raises(AssertionError):
        _search(catches, broken, examples=3_000)


def test_every_property_has_a_mutant() -> None:
    assert {catches for _, catches in MUTANTS.values()} == set(PROPERTIES)


def _search(holds: Property, planner: Planner, examples: int) -> None:
    def holds_for(cluster: Snapshot) -> None:
        holds(planner, cluster)

    search = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        # A mutant need not be shrunk to be caught; a failure of the real planner is reported as it was found.
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    search(given(clusters())(holds_for))()
