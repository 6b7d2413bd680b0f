"""Step 3: grants what fits, in the fair order, and keeps room for what was blocked for long.

A queue is compared with others by its first request that something is open for; those in line before it are blocked, and a
blocked gang at the front must not make the rest of its queue pay for its cost.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from operator import attrgetter

from scheduler.core.groups import Group
from scheduler.core.order import FairOrder, Head
from scheduler.core.quota import NodeIndex
from scheduler.core.reservation import reserve, runs_into
from scheduler.core.state import Demand, State
from scheduler.core.types import Pool, PriorityClass, Request, Reservation


class Pass:
    """One go through all groups. Reservations are made anew."""

    def __init__(self, state: State, groups: Iterable[Group], *, carried_first: bool) -> None:
        """`carried_first`: whether the groups that the last round did not get to go before others of their class."""
        self._state = state
        self._stages: dict[tuple[int, bool], list[Group]] = {}
        demands: dict[Demand, None] = {}
        for group in groups:
            if group.head is not None:
                stage = -group.priority_class, carried_first and not group.carried
                self._stages.setdefault(stage, []).append(group)
                demands[group.demand] = None
        state.cluster.drop_reservations()
        for demand in demands:
            for pool in demand.open_pools:
                if not state.cluster.fits(demand.shape, pool.name):
                    demand.close(pool)
        self._reservable = set(demands)
        """Those that some pool has no reservation for."""
        self._beyond_quota: set[tuple[NodeIndex, Demand, str]] = set()
        """What no room is kept for: its own limits are in the way, and use only grows in a pass; or it has too little."""
        self._beside_full: set[tuple[Demand, str]] = set()
        """What found no place beside the reservation in a pool; places only get fewer in a pass."""
        self._hopeless: set[tuple[Demand, str]] = set()
        """What would not fit even when all leases have ended."""
        self.reservations: list[Reservation] = []
        self.held_back = False
        """Whether somebody would fit but for a reservation."""
        self._reserved_in: set[str] = set()
        self.parked: list[Group] = []
        """Those whose head was found blocked, in the order of that."""
        self.not_reached: list[Group] = []

    def run(self) -> bool:
        """Whether it got to everything before the operations were used up."""
        stages = iter(sorted(self._stages))
        for stage in stages:
            left = self._fill(self._stages[stage])
            if left is not None:
                self.not_reached = [*left, *(group for later in stages for group in self._stages[later])]
                return False
        return True

    def _fill(self, groups: Sequence[Group]) -> list[Group] | None:
        """Of one class. Returns what was not got to when the operations were used up, else None."""
        state = self._state
        by_leaf: dict[NodeIndex, list[Group]] = {}
        for group in groups:
            by_leaf.setdefault(group.leaf, []).append(group)
        lines = {leaf: _Line(state, leaf, own) for leaf, own in by_leaf.items()}
        heads = {leaf: head for leaf, line in lines.items() if (head := line.choose()) is not None}
        order = FairOrder(state.usage.settled, heads)
        while (leaf := order.first()) is not None:
            if state.operations >= state.limits.operations_max:
                return [group for line in lines.values() for group in line.left()]
            line = lines[leaf]
            state.operations += len(line.passed)
            self._park(line.passed)
            if line.turn is not None:
                state.operations += 1
                if self._grant(line.turn):
                    line.enter(line.turn)
                else:
                    self._park([line.turn])
            order.update(leaf, line.choose())
        return None

    def _grant(self, group: Group) -> bool:
        """Grants the head in the first pool that can be; whether there is one."""
        state, leaf, demand, request = self._state, group.leaf, group.demand, _head(group)
        for pool in state.in_order(leaf, demand, demand.open_pools):
            if not state.affords(leaf, demand, request.run_micros, pool):
                continue
            state.operations += state.cluster.known_in(pool.name) // 64 + 1
            reservation = state.cluster.reservation(pool.name)
            lasting = runs_into(reservation, request.request_id, request.run_micros, state.now)
            if not (lasting and (demand, pool.name) in self._beside_full):
                placement = state.cluster.place(demand.shape, pool.name, lasting=lasting)
                if placement is not None:
                    state.grant(request, pool, placement)
                    group.granted()
                    return True
                if lasting:
                    self._beside_full.add((demand, pool.name))
            if lasting and state.cluster.fits(demand.shape, pool.name):
                self.held_back = True
            else:
                demand.close(pool)
        return False

    def _park(self, groups: Sequence[Group]) -> None:
        """The heads of these are blocked, in this order."""
        self.parked.extend(groups)
        long_ago = self._state.now - self._state.limits.reserve_after_micros
        for group in groups:
            if group.demand in self._reservable and _head(group).submitted <= long_ago:
                self._keep_room(group)

    def _keep_room(self, group: Group) -> None:
        """The head has been blocked for long: room is kept for it in the first pool that only has too little free."""
        state, demand, request = self._state, group.demand, _head(group)
        if group.priority_class is PriorityClass.SCAVENGER:
            return
        for pool in state.in_order(group.leaf, demand, demand.pools):
            if (
                pool.name not in self._reserved_in
                and self._quota_could_do(group.leaf, demand, pool)
                and state.budgets.short(group.leaf, demand.shape, request.run_micros, pool) is None
                # Where others' use of quota stood in the way, nobody may have looked for room.
                and not (pool in demand.open_pools and state.cluster.fits(demand.shape, pool.name))
                and self._reserve(request, demand, pool)
            ):
                return

    def _quota_could_do(self, leaf: NodeIndex, demand: Demand, pool: Pool) -> bool:
        """Whether quota allows it once others use less."""
        asked = leaf, demand, pool.name
        if asked in self._beyond_quota:
            return False
        if (
            self._state.usage.within_own_limits(leaf, pool.name, demand.amounts)
            and self._state.idle_tree.short(leaf, pool.name, demand.amounts) is None
        ):
            return True
        self._beyond_quota.add(asked)
        return False

    def _reserve(self, request: Request, demand: Demand, pool: Pool) -> bool:
        """Keeps room for it where it will fit once leases have ended as they must; whether it will."""
        state = self._state
        if (demand, pool.name) in self._hopeless:
            state.operations += sum(lease.pool == pool.name for lease in state.held())
            return False
        found = reserve(state.cluster, request.request_id, demand.shape, pool.name, state.held())
        state.operations += found.taken_away
        if found.reservation is None:
            self._hopeless.add((demand, pool.name))
            return False
        self.reservations.append(found.reservation)
        self._reserved_in.add(pool.name)
        self._reservable = {each for each in self._reservable if any(of.name not in self._reserved_in for of in each.pools)}
        return True


_LINE_KEY = attrgetter("line_key")


class _Line:
    """The groups of one queue and class that are not parked, by their heads."""

    __slots__ = ("_at", "_leaf", "_line", "_state", "passed", "turn")

    def __init__(self, state: State, leaf: NodeIndex, groups: Iterable[Group]) -> None:
        self._state = state
        self._leaf = leaf
        self._line = sorted(groups, key=_LINE_KEY)
        self._at = 0
        """What is before was chosen or passed."""
        self.passed: list[Group] = []
        """Those before the one whose turn it is, in line order: nothing is open for them."""
        self.turn: Group | None = None
        """The first that a pool is open for."""

    def enter(self, group: Group) -> None:
        """The group has a head that was not looked at; or none, then it is left out."""
        if group.head is not None:
            insort(self._line, group, lo=self._at, key=_LINE_KEY)

    def left(self) -> Iterable[Group]:
        """All that are not parked."""
        turn = () if self.turn is None else (self.turn,)
        return (*self.passed, *turn, *self._line[self._at :])

    def choose(self) -> Head | None:
        """What the queue is compared with others for from now on, and what it does on its turn. None: nothing is left."""
        self.passed, self.turn = [], None
        while self._at < len(self._line):
            group = self._line[self._at]
            self._at += 1
            demand = group.demand
            if demand.open_pools and (pool := self._open(group)) is not None:
                self.turn = group
                return Head(group.line_key, pool.name, demand.amounts)
            self.passed.append(group)
        if not self.passed:
            return None
        first = self.passed[0]
        pools = self._state.in_order(self._leaf, first.demand, first.demand.pools)
        return Head(first.line_key, pools[0].name if pools else "", first.demand.amounts)

    def _open(self, group: Group) -> Pool | None:
        """The pool that the head would be placed in, as far as is known."""
        state, demand, run_micros = self._state, group.demand, _head(group).run_micros
        for pool in state.in_order(self._leaf, demand, demand.open_pools):
            if state.affords(self._leaf, demand, run_micros, pool):
                return pool
        return None


def _head(group: Group) -> Request:
    """Of a group that has one."""
    if (head := group.head) is None:
        raise AssertionError(f"{group.key} has nobody left; expected it to have been left out")
    return head
