"""Why something waits, from what the scheduler stored to the contract's messages.

Projects do not learn of one another: the name of one that the caller may not see is left out of the numbers and of the words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, TypeAlias, get_args

from control_plane.jobs.workflows import RUN_TYPES
from headway.scheduler.v1 import wait_reason_pb2 as pb
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
from scheduler.core.words import words
from scheduler.tree import ROOT

Sees: TypeAlias = Callable[[str], bool]
"""Whether the caller may see a project."""

_TYPES: Mapping[str, type[Reason]] = {str(kind.code): kind for kind in get_args(Reason)}
_ANOTHER = "another project"


def reason_of(stored: Mapping[str, Any]) -> Reason:
    """A reason as it was stored; one that this release does not know counts as not evaluated."""
    kind = _TYPES.get(stored.get("code", ""), NotEvaluated)
    numbers = {field.name: stored[field.name] for field in fields(kind) if field.name in stored}
    if "known" in numbers:
        numbers["known"] = tuple(numbers["known"])
    return kind(**numbers)


def reason_messages(reasons: Iterable[Reason], sees: Sees) -> list[pb.WaitReason]:
    """Reasons as messages, for somebody who may see some projects."""
    return [_message(reason, sees) for reason in reasons]


def no_workflow(job_type: str) -> NoWorkflow:
    """Why a job waits whose type nothing runs."""
    return NoWorkflow(job_type, tuple(sorted(RUN_TYPES)))


def _message(reason: Reason, sees: Sees) -> pb.WaitReason:
    shown = _shown(reason, sees)
    # What unblocks one that is hidden speaks of "another project"; its numbers have no name.
    numbers = asdict(shown)
    if isinstance(shown, FairShare) and shown.ahead_queue == _ANOTHER:
        numbers["ahead_queue"] = ""
    message = pb.WaitReason(
        code=pb.WaitReasonCode.Value(f"WAIT_REASON_CODE_{shown.code}"), words=words(shown), unblocked_by=_unblocked_by(shown)
    )
    # The field is called as the code; one without numbers has none.
    field = message.DESCRIPTOR.fields_by_name.get(shown.code.lower())
    if field is not None:
        of_code: Any = getattr(message, field.name)
        of_code.CopyFrom(type(of_code)(**numbers))
    return message


def _shown(reason: Reason, sees: Sees) -> Reason:
    match reason:
        case FairShare(ahead_queue=ahead) if not sees(ahead):
            return replace(reason, ahead_queue=_ANOTHER)
        case QuotaReached(node=node) | BudgetReached(node=node):
            return replace(reason, node=node_words(node))
        case ExceedsMaximum(limited_by=node):
            return replace(reason, limited_by=node_words(node))
        case _:
            return reason


def node_words(node: str) -> str:
    """A node of the quota tree as people call it."""
    if node == ROOT:
        return "the organisation"
    kind, _, name = node.rpartition(":")
    return f"{kind} {name}" if kind else name


def _unblocked_by(reason: Reason) -> str:  # noqa: PLR0912 - a case for each reason, and no more
    match reason:
        case NoWorkflow(job_type):
            said = f"a deployment that has a workflow for {job_type}"
        case ExceedsMaximum(limited_by="cluster", maximum=maximum):
            said = f"more nodes, or asking for at most {maximum}"
        case ExceedsMaximum(limited_by=node, maximum=maximum):
            said = f"a larger quota of {node}, or asking for at most {maximum}"
        case AdmissionWindow(admitted, maximum):
            said = f"the end of {_count(admitted - maximum + 1, 'job')} of the project"
        case BudgetReached(node=node):
            said = f"a larger budget of {node}, its next period, or work of it that ends and used less than was set aside"
        case QuotaReached(node=node, pool=pool, resource=resource, requested=requested, used=used, maximum=maximum):
            short = max(1, used + requested - maximum)
            said = f"{short} {resource} of pool {pool} given back by {node} or lent to it, or a larger quota"
        case FairShare(ahead_queue=ahead):
            said = f"capacity that comes free while {ahead} has the higher cost"
        case NoCapacity(total=0):
            said = "a node of that kind that takes new work: uncordon one, or add one"
        case NoCapacity(requested=requested, free=free, resource=resource):
            said = f"{max(1, requested - free)} {resource} more coming free, or more nodes"
        case Fragmented(requested=requested, placeable=placeable):
            said = f"room for {_count(max(1, requested - placeable), 'member')} more, each whole on a node"
        case Reserved():
            said = "the start of the other, or a longest run time that ends before it"
        case AwaitsPreemption(victims):
            said = f"{_count(victims, 'lease')} to checkpoint and yield"
        case NotEvaluated():
            said = "the scheduler's next round"
    return said


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
