"""Reasons in words, for people: one sentence each, with the numbers that make it true."""

from __future__ import annotations

from datetime import UTC, datetime

from scheduler.core.reasons import (
    AdmissionWindow,
    AwaitsPreemption,
    BudgetReached,
    ExceedsMaximum,
    FairShare,
    Fragmented,
    NoCapacity,
    NotEvaluated,
    NoWorkflow,
    QuotaReached,
    Reason,
    Reserved,
)
from scheduler.core.types import ANY_KIND

_RESOURCES = {
    "accelerators": ("accelerator", "accelerators"),
    "cpu_millis": ("thousandth of a CPU", "thousandths of a CPU"),
    "memory_mib": ("MiB of memory", "MiB of memory"),
}
"""One, and any other number."""


def words(reason: Reason) -> str:  # noqa: PLR0911, PLR0912 - a case for each reason, and no more
    """What a reason says, without a full stop. Times are UTC."""
    match reason:
        case NoWorkflow(job_type, known):
            return (
                f"no workflow: no workflow in this deployment runs jobs of type {job_type}; it has workflows for "
                f"{', '.join(known)}"
            )
        case ExceedsMaximum(requested, maximum, kind, resource, "cluster"):
            return f"exceeds maximum: asks for {_amount(requested, resource, kind)}; the cluster can hold at most {maximum}"
        case ExceedsMaximum(requested, maximum, kind, resource, node):
            return f"exceeds maximum: asks for {_amount(requested, resource, kind)}; {node} may use at most {maximum}"
        case AdmissionWindow(admitted, maximum):
            return f"admission: {admitted} of the project's jobs {_are(admitted)} under way; at most {maximum} may be"
        case BudgetReached(node, "money", requested, left):
            return f"budget: needs {_money(requested)} at most; {node} has {_money(left)} left"
        case BudgetReached(node, _, requested, left):
            return f"budget: needs {_hours(requested)} at most; {node} has {_hours(left)} left"
        case QuotaReached(node, pool, resource, requested, used, nominal, maximum):
            borrowing = "" if maximum == nominal else f", {nominal} of them its own"
            return (
                f"quota: asks for {_counted(requested, resource)} of pool {pool}; "
                f"{node} uses {used} of at most {maximum}{borrowing}"
            )
        case FairShare(queue, cost, _, ahead_cost):
            # Whose it is may be none of the reader's business.
            return f"fair share: what is free went to a queue whose cost is {ahead_cost}; that of {queue} would be {cost}"
        case NoCapacity(requested, _, 0, kind, resource):
            return f"capacity: asks for {_amount(requested, resource, kind)}; no node that takes new work has any"
        case NoCapacity(requested, free, total, kind, resource):
            return f"capacity: asks for {_amount(requested, resource, kind)}; {free} of {total} {_are(free)} free"
        case Fragmented(requested, placeable, free, kind):
            members = "1 member" if requested == 1 else f"{requested} members"
            return (
                f"placement: has {members}, each whole on one worker; {placeable} {'fits' if placeable == 1 else 'fit'} now, "
                f"with {_amount(free, '', kind)} free"
            )
        case Reserved(_, starts):
            return f"reserved: what is free is kept for one that has waited longer and starts by {_time(starts)}"
        case AwaitsPreemption(1):
            return "preemption: 1 lease is asked to yield to it"
        case AwaitsPreemption(victims):
            return f"preemption: {victims} leases are asked to yield to it"
        case NotEvaluated():
            return "not yet evaluated: the scheduler carries this over to its next round"


def _amount(number: int, resource: str, kind: str) -> str:
    if resource in ("", "accelerators"):
        return f"{_counted(number, 'accelerators')} of {'any kind' if kind == ANY_KIND else f'kind {kind}'}"
    return _counted(number, resource)


def _counted(number: int, resource: str) -> str:
    one, more = _RESOURCES.get(resource, (resource, resource))
    return f"{number} {one if number == 1 else more}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _money(millionths: int) -> str:
    return f"{millionths / 1_000_000:,.2f}"


def _hours(milliseconds: int) -> str:
    return f"{milliseconds / 3_600_000:,.2f} accelerator-hours"


def _time(micros: int) -> str:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
