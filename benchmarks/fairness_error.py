"""How far shares are from exact water-filling in steady state, on seeded trees of queues with weights, quotas and limits.

Every queue has jobs of one accelerator; some have more than can ever run, some a bounded number. Leases end at random and
rounds fill what they leave, until all have been replaced several times. Then what each queue holds is compared with what
progressive filling gives it: at every node of the tree a level rises until what the node may use is divided, and each child
gets its quota and its weight times the level, but no more than it can use.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from random import Random
from typing import TypeAlias

from benchmarks.figure import Figure
from scheduler.core.apply import apply
from scheduler.core.backlog import Backlog
from scheduler.core.planner import plan
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import (
    Cell,
    Limits,
    Micros,
    Node,
    Plan,
    Pool,
    QueuedJob,
    QueueNode,
    Quota,
    Request,
    Resource,
    Shape,
)

CELL: Cell = ("h100", Resource.ACCELERATORS)
Planner: TypeAlias = Callable[[Snapshot, Micros, Limits], Plan]
SHAPE = Shape("h100", (1, 0, 0))
_ROUND_MICROS = 10_000_000


@dataclass(frozen=True)
class Contest:
    """Queues that want accelerators of one pool."""

    tree: tuple[QueueNode, ...]
    wanted: Mapping[str, int]
    """Accelerators that each leaf could use at once."""
    accelerators: int


class WaterFilling:
    """The exact shares of a contest, by progressive filling from the root down."""

    def __init__(self, contest: Contest) -> None:
        self._contest = contest
        self._nodes = {node.name: node for node in contest.tree}
        self._root = next(node.name for node in contest.tree if node.parent is None)
        self._children: dict[str, list[str]] = {name: [] for name in self._nodes}
        for node in contest.tree:
            if node.parent is not None:
                self._children[node.parent].append(node.name)

    def shares(self) -> dict[str, Fraction]:
        """Of every leaf, in accelerators."""
        found: dict[str, Fraction] = {}
        kept = sum(self._kept(name) for name in self._nodes if name != self._root)
        usable = max(self._quota(self._root), self._contest.accelerators - kept)
        self._divide(self._root, min(Fraction(usable), self._seen_wants(self._root)), found)
        return found

    def _divide(self, name: str, amount: Fraction, found: dict[str, Fraction]) -> None:
        if not (rising := self._children[name]):
            found[name] = amount
            return
        share = {child: self._want(child) for child in rising}
        while rising:
            # The level at which what is left is used up by those that are not yet satisfied.
            left = amount - sum(max(Fraction(0), share[c] - self._kept(c)) for c in share if c not in rising)
            base = sum(self._quota(c) - self._kept(c) for c in rising)
            level = max(Fraction(0), (left - base) / sum(self._nodes[c].weight for c in rising))
            satisfied = [c for c in rising if self._want(c) <= self._quota(c) + level * self._nodes[c].weight]
            if not satisfied:
                share |= {c: self._quota(c) + level * self._nodes[c].weight for c in rising}
                break
            rising = [c for c in rising if c not in satisfied]
        for child, amount_of_child in share.items():
            self._divide(child, amount_of_child, found)

    def _want(self, name: str) -> Fraction:
        """The most that the node can use, whatever the others do."""
        wanted = self._seen_wants(name) if self._children[name] else Fraction(self._contest.wanted[name])
        limit = self._quota_of(name).borrowing_limit
        return wanted if limit is None else min(wanted, Fraction(self._quota(name) + limit))

    def _seen_wants(self, name: str) -> Fraction:
        """What the children can use together, apart from what each keeps for itself."""
        return sum((max(Fraction(0), self._want(child) - self._kept(child)) for child in self._children[name]), Fraction(0))

    def _quota(self, name: str) -> int:
        return self._quota_of(name).nominal + sum(self._quota(c) - self._kept(c) for c in self._children[name])

    def _kept(self, name: str) -> int:
        limit = self._quota_of(name).lending_limit
        return 0 if limit is None else max(0, self._quota(name) - limit)

    def _quota_of(self, name: str) -> Quota:
        return self._nodes[name].quotas.get(CELL, Quota())


def contest(seed: int, *, queues: int = 8, accelerators: int = 5_000) -> Contest:
    """About so many queues, in two levels; half of the accelerators are somebody's nominal quota."""
    random = Random(seed)  # noqa: S311 - a contest that repeats, not a secret
    teams = random.randint(1, 3)
    nodes = [QueueNode("org", None)]
    nodes += [QueueNode(f"team-{index}", "org", weight=random.choice((1_000, 2_000))) for index in range(teams)]
    leaves = [f"queue-{index}" for index in range(queues)]
    for name in leaves:
        nominal = random.choice((0, accelerators // (2 * queues)))
        quota = Quota(
            nominal,
            borrowing_limit=random.choice((None, None, None, accelerators // queues)),
            lending_limit=random.choice((None, None, None, nominal // 2)),
        )
        team = random.choice(("org", *(f"team-{index}" for index in range(teams))))
        nodes.append(QueueNode(name, team, random.choice((500, 1_000, 2_000)), {CELL: quota}, past_use=random.randint(0, 9)))
    inner = {node.parent for node in nodes}
    tree = tuple(node for node in nodes if node.name in leaves or node.name in inner)
    bounded = (accelerators, accelerators, accelerators // queues)
    return Contest(tree, {name: random.choice(bounded) for name in leaves}, accelerators)


def held_in_steady_state(given: Contest, *, rounds: int = 20, planner: Planner = plan) -> Counter[str]:
    """Accelerators of every queue after so many rounds, between which a fifth of the leases ends."""
    limits = Limits()
    random = Random(0)  # noqa: S311 - a run that repeats, not a secret
    now, asked = Micros(1_000_000_000), 0
    snapshot = Snapshot(
        requests=Backlog[Request](aging_micros=limits.aging_micros),
        jobs=Backlog[QueuedJob](aging_micros=limits.aging_micros),
        pools=(Pool("h100", "h100"),),
        nodes=(Node("node", "first", "h100", (given.accelerators, 0, 0), now),),
        tree=given.tree,
        database_started=Micros(2**62),
    )
    for _ in range(rounds):
        staying = tuple(lease for lease in snapshot.leases if random.random() < 0.8)
        requests = list(snapshot.requests)
        running, waiting = Counter(lease.queue for lease in staying), Counter(request.queue for request in requests)
        for queue, wanted in given.wanted.items():
            # More than a round can grant need not wait.
            for _ in range(min(wanted - running[queue], given.accelerators // 3) - waiting[queue]):
                asked += 1
                requests.append(Request(f"{asked:09}", "", queue, SHAPE, 500, now, 3_600_000_000))
        snapshot = replace(snapshot, leases=staying, requests=Backlog(requests, aging_micros=limits.aging_micros))
        # What is left over when a round runs out of operations, the next one does.
        while True:
            done = planner(snapshot, now, limits)
            snapshot = apply(snapshot, done, now, lease_micros=2**61)
            if done.complete:
                break
        now = Micros(now + _ROUND_MICROS)
    return Counter(lease.queue for lease in snapshot.leases)


def largest_error(given: Contest) -> float:
    """The largest deviation of a queue from its exact share, as a fraction of the share."""
    held = held_in_steady_state(given)
    return float(max(abs(held[queue] - share) / share for queue, share in WaterFilling(given).shares().items() if share))


async def run(quick: bool) -> Figure:
    """3 contests when `quick`, else 20."""
    return await asyncio.to_thread(_measure, 3 if quick else 20)


def _measure(contests: int) -> Figure:
    errors = [largest_error(contest(seed)) for seed in range(contests)]
    return Figure(
        "fairness_error",
        max(errors),
        "of the exact share",
        0.01,
        "the most that shares may be off",
        {"mean_fraction": sum(errors) / len(errors), "contests": float(contests)},
    )
