"""Deliberately broken rules: the reference with a few words of one module changed, as a slip of the pen would change them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType

import invariants as they
from clusters import ANYTHING, BACKFILLED, CALM, CONTENDED, SHORT_ROUNDS, Size
from invariants import Check, Planner

from scheduler.core import reference


@dataclass(frozen=True)
class BrokenRule:
    """In a copy of the reference, in `module`, `was` becomes `becomes`."""

    module: str
    was: str
    becomes: str

    @contextmanager
    def planner(self) -> Generator[Planner]:
        """The broken planner, for as long as the block lasts."""
        original, copy = reference.__name__, "broken_reference"
        sources = {path.stem: path.read_text(encoding="utf-8") for path in Path(reference.__path__[0]).glob("*.py")}
        found = sources[self.module].count(self.was)
        assert found == 1, f"{self.was!r} stands {found} times in {self.module}, expected once: rewrite the mutant"
        sources[self.module] = sources[self.module].replace(self.was, self.becomes)
        importer = _Importer(copy, {name: source.replace(original, copy) for name, source in sources.items()})
        sys.meta_path.insert(0, importer)
        try:
            yield importlib.import_module(copy).plan
        finally:
            sys.meta_path.remove(importer)
            for name in [name for name in sys.modules if name.split(".")[0] == copy]:
                del sys.modules[name]


@dataclass(frozen=True)
class Mutant(BrokenRule):
    """A rule so broken that `catches` fails for some cluster of `size`."""

    catches: Check
    size: Size = ANYTHING


class _Importer(MetaPathFinder, Loader):
    """Imports a package whose modules are given as text."""

    def __init__(self, package: str, sources: dict[str, str]) -> None:
        self._package, self._sources = package, sources

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, module = fullname.partition(".")
        if package != self._package or (module or "__init__") not in self._sources:
            return None
        return spec_from_loader(fullname, self, is_package=not module)

    def exec_module(self, module: ModuleType) -> None:
        source = self._sources[module.__name__.partition(".")[2] or "__init__"]
        exec(compile(source, module.__name__, "exec"), vars(module))  # noqa: S102 - our own source, one rule changed


MUTANTS: dict[str, Mutant] = {
    "what is claimed for another is given away": Mutant(
        "state",
        "return minus(node.total, plus(held, claimed))",
        "return minus(node.total, held)",
        they.nothing_is_oversubscribed,
        CONTENDED,
    ),
    "a cordoned node takes new work": Mutant(
        "state", "if self.lives(node) and not node.cordoned]", "if self.lives(node)]", they.nothing_is_oversubscribed
    ),
    "spot is taken by who does not want it": Mutant(
        "state", " and (shape.spot or not pool.spot)]", "]", they.nothing_is_oversubscribed
    ),
    "the borrowing limit is ignored": Mutant("tree", "from_above = min(from_above, own)", "pass", they.no_quota_is_exceeded),
    "what is never lent is lent": Mutant(
        "tree", "return 0 if limit is None else max(0, self.subtree(name, cell) - limit)", "return 0", they.no_quota_is_exceeded
    ),
    "the budget is not looked at": Mutant(
        "planner",
        "return self.state.quota_short(request, pool) is None and self.state.budget_short(request, pool) is None",
        "return self.state.quota_short(request, pool) is None",
        they.no_budget_is_exceeded,
    ),
    "the budgets of teams are not looked at": Mutant(
        "state",
        "for name in self.tree.path(request.queue):\n            budget",
        "for name in [request.queue]:\n            budget",
        they.no_budget_is_exceeded,
    ),
    "gangs are granted in parts": Mutant(
        "fitting", "if sum(taken.values()) == shape.members else None", "if taken else None", they.gangs_are_atomic
    ),
    "a required domain is only preferred": Mutant(
        "fitting",
        "    if shape.topology.mode is not TopologyMode.PREFERRED:\n        return None\n    order",
        "    order",
        they.gangs_are_atomic,
    ),
    "the lower class goes first": Mutant(
        "planner",
        "for priority_class in sorted(PriorityClass, reverse=True)",
        "for priority_class in sorted(PriorityClass)",
        they.nobody_is_overtaken,
        CALM,
    ),
    "the last come are the first served": Mutant(
        "ordering", "(item.submitted - item.priority", "(-item.submitted - item.priority", they.nobody_is_overtaken, CALM
    ),
    "whoever is demoted keeps the class": Mutant(
        "state", "PriorityClass.SCAVENGER if demoted else", "", they.nobody_is_overtaken, CALM
    ),
    "only the first pool is tried": Mutant(
        "planner", "for pool in self.not_closed(head):\n", "for pool in self.not_closed(head)[:1]:\n", they.work_is_conserved
    ),
    "a head that does not fit stops its queue": Mutant(
        "planner",
        "if (following := turn_of(queue)) is not None:",
        "if turn.tried not in self.parked and (following := turn_of(queue)) is not None:",
        they.work_is_conserved,
    ),
    "whoever borrows displaces whom it wants": Mutant(
        "preempting",
        "    mine, theirs = tree.sides",
        "    return True\n    mine, theirs = tree.sides",
        they.borrowers_displace_no_nominal_work,
        CALM,
    ),
    "nominal work yields to nominal work": Mutant(
        "preempting", "        return False\n    within", "        pass\n    within", they.preemptions_are_lawful, CALM
    ),
    "borrowers are preferred": Mutant(
        "preempting", "within = not tree.borrows", "within = tree.borrows", they.preemptions_are_lawful, CALM
    ),
    "a class yields to its own": Mutant(
        "preempting",
        "return state.effective(victim) < state.effective(request)",
        "return state.effective(victim) <= state.effective(request)",
        they.preemptions_are_lawful,
        CALM,
    ),
    "nobody gets the place back that is not needed": Mutant(
        "preempting", "                kept = fewer", "                pass", they.no_victim_is_needless, CALM
    ),
    "preemption knows no brakes": Mutant(
        "preempting",
        "            len(more) <= self.brakes.preemptions_left\n"
        "            and lost <= self.brakes.waste_ms_left\n            and",
        "            lost >= 0\n            and",
        they.brakes_hold,
        CONTENDED,
    ),
    "what has just begun is preempted": Mutant(
        "preempting", ">= max(1, state.limits.run_minimum_micros)", ">= 1", they.brakes_hold
    ),
    "claims are made where others stay": Mutant(
        "preempting",
        "return place(request.shape, state.unreserved(request, pool, gone), state.domains(request.shape))",
        "return place(request.shape, {n.name: n.total for n in state.eligible(request.shape, pool)}, {})",
        they.room_is_made_for_each,
        CONTENDED,
    ),
    "a group is forgotten": Mutant(
        "planner",
        "Waiting(group, why(line[0])) for group, line in _lines(self.state, self.state.requests)",
        "Waiting(group, why(line[0])) for group, line in _lines(self.state, self.state.requests)[1:]",
        they.everything_is_answered,
    ),
    "the quota is no reason": Mutant("explaining", "        _quota(end, request, pools),\n", "", they.everything_is_answered),
    "the budget is no reason": Mutant("explaining", "        _budget(end, request, pools),\n", "", they.all_reasons_are_given),
    "a reason counts what is cordoned as free": Mutant(
        "explaining",
        "total = sum(node.total[short] for node in state.eligible(shape, pool))",
        "total = sum(node.total[short] for node in state.known(shape, pool))",
        they.reasons_are_true,
    ),
    "who took the last is guessed": Mutant(
        "explaining", "ahead = others[-1]", "ahead = others[0]", they.reasons_are_true, CONTENDED
    ),
    "what is too large by quota says so of the cluster": Mutant(
        "refusing", "tree.limiting(queue, cell, IDLE))", '"cluster")', they.reasons_are_true
    ),
    "a lease ends a moment too early": Mutant(
        "planner", "if lease.expires < self.now", "if lease.expires <= self.now", they.ends_are_due
    ),
    "a restarted node keeps its leases": Mutant("planner", "return EndCause.NODE_RESTARTED", "return None", they.ends_are_due),
    "fill and preempt come once": Mutant(
        "planner", "if self.decided() == before or not could_change:", "if True:", they.replanning_changes_nothing, CONTENDED
    ),
    "a dissolved claim is not told": Mutant(
        "planner", "self.dissolved.append(request.request_id)", "pass", they.claims_wait_for_somebody
    ),
    "what was carried over is forgotten": Mutant(
        "planner",
        "carried_first = set(self.snapshot.carried_over)",
        "carried_first = set[GroupKey]()",
        they.a_round_goes_on,
        SHORT_ROUNDS,
    ),
    "ties are broken by the order of the input": Mutant(
        "preempting", "-z.granted, z.lease_id)", "-z.granted)", they.order_of_input_means_nothing, CALM
    ),
    "equal nodes are taken as they come": Mutant(
        "fitting",
        "(left[name][first], left[name][second], name)",
        "(left[name][first], left[name][second])",
        they.order_of_input_means_nothing,
        BACKFILLED,
    ),
}

UNFAIR: dict[str, BrokenRule] = {
    "weights do not count": BrokenRule("tree", "(lendable * self.nodes[name].weight)", "(lendable * 1_000)"),
    "the own quota is not free": BrokenRule(
        "tree",
        "beyond = max(0, self.usage(name, cell, used) - self.subtree(name, cell))",
        "beyond = self.usage(name, cell, used)",
    ),
    "whoever used little before goes first": BrokenRule("ordering", "        state.tree.cost(child, used),\n", ""),
    "what a team has is divided among all": BrokenRule(
        "ordering", "state.tree.cost(child, used)", "state.tree.cost(turn.speaker.queue, used)"
    ),
}
