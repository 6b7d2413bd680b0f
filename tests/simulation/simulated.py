"""Small scenarios, and a watcher that counts what is held by itself, without the simulator's or the planner's arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from scheduler.core.types import Cell, Lease, Micros, Node, Plan, QueueNode, Quota, Resource
from scheduler.simulation.engine import Observer, Round
from scheduler.simulation.jobs import Job
from scheduler.simulation.scenario import Scenario, scenario_of

SMALL: Mapping[str, tuple[str, ...]] = {
    "diurnal": ("load.interactive.count=12", "load.pipelines.count=4", "nodes.node.count=8", "poll=30m"),
    "flapping_priorities": ("load.red.count=10", "load.blue.count=10", "nodes.node.count=2", "changes.0.repeat.times=12"),
    "gang_reclaim": ("nodes.node.count=20", "load.fill.count=80", "load.gang.shape.members=5", "poll=10m"),
    "hpo_storm": (
        "load.trials.count=60",
        "load.trials.arrival.mean_interval=20s",
        "load.gangs.count=3",
        "load.large-gangs.count=1",
        "nodes.node.count=16",
        "poll=5m",
    ),
    "kai_fill": ("nodes.node.count=20", "load.fill.count=40"),
    "kueue_baseline": ("tree.children.cohort.count=1", "nodes.node.accelerators=120"),
    "kueue_large_scale": (
        "tree.children.cohort.count=1",
        "tree.children.cohort.children.queue.count=20",
        "nodes.node.accelerators=400",
    ),
    "kueue_topology": (
        "tree.children.cohort.count=1",
        "nodes.node.count=40",
        "nodes.node.domains.rack=10",
        *(f"load.small-{mode}.count=12" for mode in ("required", "preferred", "balanced")),
        *(f"load.medium-{mode}.count=4" for mode in ("required", "preferred", "balanced")),
        *(f"load.large-{mode}.count=2" for mode in ("required", "preferred", "balanced")),
    ),
    "spot_loss": (
        "load.tolerant.count=15",
        "load.steady.count=4",
        "nodes.owned.count=3",
        "nodes.spot.count=3",
        "changes.0.losses=6",
        "changes.0.mean_interval=20m",
    ),
}
"""How each scenario is made small enough for every run of the tests."""


def scenario(**parts: Any) -> Scenario:
    """One pool of nodes with eight accelerators, two queues of sixteen each; `parts` take the place of parts of it."""
    raw: dict[str, Any] = {
        "name": "test",
        "description": "made by a test",
        "pools": [{"name": "gpus", "kind": "h100"}],
        "nodes": [{"name": "node", "pool": "gpus", "count": 4, "accelerators": 8}],
        "tree": {
            "name": "organisation",
            "children": [{"name": name, "quotas": {"gpus": {"accelerators": {"nominal": 16}}}} for name in ("red", "blue")],
        },
        "load": [jobs()],
    }
    return scenario_of({**raw, **parts}, "test")


def jobs(**parts: Any) -> dict[str, Any]:
    """A set of one job of one accelerator for an hour, in the red queue."""
    return {
        "name": "work",
        "queues": "red",
        "count": 1,
        "shape": {"kind": "h100", "accelerators": 1},
        "run": "1h",
        **parts,
    }


class Happened(Observer):
    """What happened, when, in virtual seconds since the first round."""

    def __init__(self) -> None:
        self.rounds: list[tuple[Micros, Plan]] = []
        self.leases: list[tuple[Micros, Lease]] = []
        self.stops: list[tuple[Micros, Lease]] = []
        self.preempted_at: list[tuple[Micros, str]] = []
        self.lost_ms: Counter[str] = Counter()

    def decided(self, past: Round) -> None:
        self.rounds.append((past.now, past.decided))

    def started(self, job: Job, lease: Lease, now: Micros) -> None:
        self.leases.append((now, lease))

    def stopped(self, job: Job, lease: Lease, now: Micros) -> None:
        self.stops.append((now, lease))

    def preempted(self, job: Job, now: Micros) -> None:
        self.preempted_at.append((now, job.job_id))

    def lost(self, job: Job, accelerator_ms: int) -> None:
        self.lost_ms[job.job_id] += accelerator_ms


class Invariants(Observer):
    """Holds every grant against nodes and quotas."""

    def __init__(self) -> None:
        self.checked = 0
        self.most_held = 0
        self._held: dict[str, Lease] = {}
        self._nodes: dict[str, Node] = {}
        self._tree: tuple[QueueNode, ...] = ()

    def decided(self, past: Round) -> None:
        self._nodes = {node.name: node for node in past.snapshot.nodes}
        self._tree = past.snapshot.tree
        assert len(past.snapshot.leases) == len(self._held), "the snapshot has other leases than were granted and not ended"

    def started(self, job: Job, lease: Lease, now: Micros) -> None:
        self._held[lease.lease_id] = lease
        assert sum(members for _, members in lease.placement) == lease.shape.members, f"{lease} is not whole"
        self._assert_nodes_hold_it(lease)

    def applied(self, past: Round) -> None:
        for cell in {cell for node in self._tree for cell in node.quotas}:
            self._assert_within_quotas(cell)
        self.most_held = max(self.most_held, sum(lease.shape.accelerators for lease in self._held.values()))
        self.checked += len(past.decided.grants)

    def stopped(self, job: Job, lease: Lease, now: Micros) -> None:
        del self._held[lease.lease_id]

    def _assert_nodes_hold_it(self, lease: Lease) -> None:
        names = {name for name, _ in lease.placement}
        taken: Counter[tuple[str, Resource]] = Counter()
        for held in self._held.values():
            for name, members in held.placement:
                if name in names:
                    taken.update({(name, resource): held.shape.member[resource] * members for resource in Resource})
        for (name, resource), amount in taken.items():
            assert amount <= self._nodes[name].total[resource], f"{name} is oversubscribed: {amount} {resource.name}"

    def _assert_within_quotas(self, cell: Cell) -> None:
        """Of nodes of the tree with a borrowing limit, where nothing is lent at most: nominal of all below, and the limit."""
        children: dict[str | None, list[QueueNode]] = {}
        for node in self._tree:
            children.setdefault(node.parent, []).append(node)

        used: Counter[str] = Counter()
        for lease in self._held.values():
            if lease.pool == cell[0]:
                used[lease.queue] += lease.shape.member[cell[1]] * lease.shape.members

        def check(node: QueueNode) -> tuple[int, int]:
            below = [check(child) for child in children.get(node.name, ())]
            nominal = node.quotas.get(cell, Quota()).nominal + sum(each[0] for each in below)
            held = used[node.name] + sum(each[1] for each in below)
            limit = node.quotas.get(cell, Quota()).borrowing_limit
            if limit is not None and node.parent is not None:
                assert held <= nominal + limit, f"{node.name} holds {held} of {cell}: nominal {nominal}, may borrow {limit}"
            return nominal, held

        for root in children.get(None, ()):
            check(root)
