"""The state that rounds read and change: nodes, leases, what waits. It checks every grant against what is really free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from scheduler.core.apply import lease_of
from scheduler.core.backlog import Backlog
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import (
    Brakes,
    Grant,
    GroupKey,
    Lease,
    Limits,
    Micros,
    Node,
    Placement,
    Pool,
    QueuedJob,
    QueueNode,
    Request,
    Resource,
    Shape,
)

ALWAYS = Micros(1 << 62)
"""When a living node was last heard, and a living holder's lease expires: a simulated one never misses a beat."""


class BrokenPlanError(Exception):
    """A plan did what its rules forbid: the planner has a fault, and the simulation stops there."""


class World:
    """Nodes, leases and what waits; `snapshot` is what a round is given."""

    def __init__(
        self,
        pools: tuple[Pool, ...],
        nodes: Iterable[Node],
        limits: Limits,
        requests: Iterable[Request] = (),
        jobs: Iterable[QueuedJob] = (),
    ) -> None:
        """Args: the cluster; the limits that rounds are given; what waits already."""
        self.pools = pools
        self.nodes: dict[str, Node] = {node.name: node for node in nodes}
        self.requests: Backlog[Request] = Backlog(requests, aging_micros=limits.aging_micros)
        self.jobs: Backlog[QueuedJob] = Backlog(jobs, aging_micros=limits.aging_micros)
        self.leases: dict[str, Lease] = {}
        self.admitted: Counter[str] = Counter()
        self.carried_over: tuple[GroupKey, ...] = ()
        self._node_lost_micros = limits.node_lost_micros
        self._free = {name: list(node.total) for name, node in self.nodes.items()}
        self._nodes: tuple[Node, ...] | None = None

    def snapshot(self, tree: tuple[QueueNode, ...], brakes: Brakes) -> Snapshot:
        """The state as it is; the backlogs in it are these, not copies."""
        if self._nodes is None:
            self._nodes = tuple(self.nodes.values())
        return Snapshot(
            requests=self.requests,
            jobs=self.jobs,
            leases=tuple(self.leases.values()),
            pools=self.pools,
            nodes=self._nodes,
            tree=tree,
            admitted=dict(self.admitted),
            brakes=brakes,
            database_started=Micros(0),
            carried_over=self.carried_over,
        )

    def put_node(self, node: Node) -> None:
        """A known node has changed, but not in size."""
        self.nodes[node.name] = node
        self._nodes = None

    def silent(self, name: str) -> bool:
        """Whether a node is not there, known to rounds or not."""
        return self.nodes[name].heartbeat != ALWAYS

    def lost(self, name: str, now: Micros) -> bool:
        """Whether a node has been silent for so long that rounds must know it. Until then they may grant on it."""
        return now - self.nodes[name].heartbeat > self._node_lost_micros

    def hold(self, lease: Lease) -> None:
        """A lease exists; what it holds is taken.

        Raises:
            BrokenPlanError: a node has not so much left.
        """
        for name, members in lease.placement:
            free = self._free[name]
            for resource in Resource:
                free[resource] -= lease.shape.member[resource] * members
            if min(free) < 0:
                raise BrokenPlanError(f"{name} is oversubscribed by {lease.lease_id}: free {free} of {self.nodes[name].total}")
        self.leases[lease.lease_id] = lease

    def release(self, lease_id: str) -> Lease:
        """A lease has ended; what it held is free."""
        lease = self.leases.pop(lease_id)
        for name, members in lease.placement:
            for resource in Resource:
                self._free[name][resource] += lease.shape.member[resource] * members
        return lease

    def grant(self, grant: Grant, now: Micros) -> Lease:
        """A request has its lease.

        Raises:
            BrokenPlanError: the gang is not whole, a node is lost, cordoned, of another pool or start, or full; or nothing
                of that id waits.
        """
        request = self.requests.get(grant.request.request_id)
        if request is None or request != replace(grant.request, claim=request.claim):
            raise BrokenPlanError(f"{grant.request.request_id} was granted as {grant.request}; what waits is {request}")
        self._check_placement(request.shape, grant, now)
        self.requests.remove(request.request_id)
        lease = lease_of(grant, now, lease_micros=ALWAYS - now)
        self.hold(lease)
        return lease

    def claim(self, request_id: str, placement: Placement) -> None:
        """What victims give up on these nodes is kept for a request."""
        self.replace_request(replace(self._waiting(request_id), claim=placement))

    def preempt(self, lease_id: str, request_id: str) -> None:
        """A lease is to yield to a request."""
        self.leases[lease_id] = replace(self.leases[lease_id], preempted_for=request_id)

    def admit(self, job: QueuedJob) -> None:
        """A queued job is under way."""
        self.jobs.remove(job.job_id)
        self.admitted[job.queue] += 1

    def replace_request(self, request: Request) -> None:
        """A waiting request has changed, and with it perhaps its place in line."""
        self.requests.remove(request.request_id)
        self.requests.add(request)

    def _waiting(self, request_id: str) -> Request:
        request = self.requests.get(request_id)
        if request is None:
            raise BrokenPlanError(f"the plan speaks of request {request_id}, and none of that id waits")
        return request

    def _check_placement(self, shape: Shape, grant: Grant, now: Micros) -> None:
        whole = sum(members for _, members in grant.placement) == shape.members
        for (name, _), incarnation in zip(grant.placement, grant.incarnations, strict=True):
            node = self.nodes[name]
            if self.lost(name, now) or node.cordoned or node.pool != grant.pool or node.incarnation != incarnation:
                raise BrokenPlanError(f"{grant.request.request_id} was granted on {node} as of pool {grant.pool}")
        if not whole:
            raise BrokenPlanError(f"{grant.request.request_id} was granted {grant.placement}; it has {shape.members} members")
