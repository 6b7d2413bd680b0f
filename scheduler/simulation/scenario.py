"""A scenario: cluster, load and what happens, as one YAML file.

The files in scenarios/ are known by name. Every fault of a file is named with its path; none is guessed around.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from scheduler.core.types import Limits, Micros, Node, QueueNode
from scheduler.simulation.changes import (
    BudgetChange,
    Change,
    Cordon,
    NodeBack,
    NodeLost,
    PriorityChange,
    QuotaChange,
    SpotLoss,
    Uncordon,
)
from scheduler.simulation.cluster import Amount, Count, Name, NodeSpec, PoolSpec, QueueSpec, Spec, leaves
from scheduler.simulation.load import SetSpec
from scheduler.simulation.units import Duration

FOLDER = Path(__file__).parent / "scenarios"

START = Micros(1_767_225_600_000_000)
"""Where virtual time begins: 2026-01-01 UTC, so that days begin at midnight."""

_DEFAULTS = Limits()


class ScenarioError(Exception):
    """A scenario file is not one; the text has a line for every fault: its path, what it is, what was expected."""


class LimitsSpec(Spec):
    """As `scheduler.core.types.Limits`; what is left out is as in production, but the window of admission."""

    prepare_ahead: Count = 1_000_000
    node_lost: Duration = _DEFAULTS.node_lost_micros
    aging: Duration = _DEFAULTS.aging_micros
    cost_buckets: Count = _DEFAULTS.cost_buckets
    reserve_after: Duration = _DEFAULTS.reserve_after_micros
    run_minimum: Duration = _DEFAULTS.run_minimum_micros
    operations_max: Count = _DEFAULTS.operations_max

    def limits(self) -> Limits:
        """The core's value of it."""
        return Limits(
            self.prepare_ahead,
            self.node_lost,
            self.aging,
            self.cost_buckets,
            self.reserve_after,
            self.run_minimum,
            None,
            self.operations_max,
        )


class BrakesSpec(Spec):
    """The bucket of preemptions and that of work thrown away: each begins full, holds an hour's worth, and fills evenly."""

    preemptions_per_hour: Amount = 1_000
    waste_accelerator_ms_per_hour: Amount = 3_600_000_000


class Scenario(Spec):
    """What is simulated."""

    name: Name
    description: str
    seed: int = 1
    pools: Annotated[tuple[PoolSpec, ...], Field(min_length=1)]
    nodes: Annotated[tuple[NodeSpec, ...], Field(min_length=1)]
    tree: QueueSpec
    load: Annotated[tuple[SetSpec, ...], Field(min_length=1)]
    changes: tuple[Change, ...] = ()
    limits: LimitsSpec = LimitsSpec()
    brakes: BrakesSpec = BrakesSpec()
    round_coalesce_ms: Amount = 5
    """From the first event that calls for a round to that round, which sees all that came since."""
    poll: Annotated[Duration, Field(gt=0)] = 10_000_000
    """The longest between rounds while something waits: age and brakes change without an event."""
    yield_after: Duration = 30_000_000
    """From the demand to yield until the accelerators are free: a last checkpoint, and the end of the processes."""
    past_use_half_life: Annotated[Duration, Field(gt=0)] = 86_400_000_000
    past_use_every: Annotated[Duration, Field(gt=0)] = 60_000_000
    """How often decayed use is brought up to date."""
    until: Duration | None = None
    """When the simulation stops at the latest; None: when all work is done or nothing more can happen."""

    def node_values(self, heartbeat: Micros) -> tuple[Node, ...]:
        """All nodes, alive."""
        return tuple(node for template in self.nodes for node in template.nodes(heartbeat))

    def tree_values(self) -> tuple[QueueNode, ...]:
        """The quota tree, parents first."""
        return tuple(self.tree.tree())


def names() -> list[str]:
    """The scenarios that are known by name."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_scenario(name: str, overrides: Sequence[str] = ()) -> Scenario:
    """The scenario of that name, or in the file of that path.

    Args:
        name: one of `names()`, or a path that ends in .yaml.
        overrides: "PATH=VALUE" each: "seed=7", "load.small.count=10", "nodes.0.count=4". Parts of a list are found by
            their `name` or position; the value is YAML, and takes the place of whatever is there.

    Raises:
        ScenarioError: there is none, or it has faults.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScenarioError(
            f"{name}: there is no such scenario; there are {', '.join(names())}, or give a .yaml file"
        ) from None
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path}: is not YAML: {error}") from None
    for override in overrides:
        _override(raw, override)
    return scenario_of(raw, str(path))


def scenario_of(raw: Any, source: str) -> Scenario:
    """The scenario that these plain values describe.

    Args:
        raw: as read from YAML or JSON.
        source: what to call it in errors.

    Raises:
        ScenarioError: it has faults.
    """
    try:
        # By way of JSON, whose strings and lists strict models take for enums and tuples, and which has nothing else.
        scenario = Scenario.model_validate_json(json.dumps(raw))
    except TypeError as error:
        raise ScenarioError(f"{source}: {error}; quote it, if it is meant as text") from None
    except ValidationError as error:
        raise ScenarioError("\n".join(_fault(source, fault) for fault in _own_faults(error))) from None
    between = [f"{source}: {fault}" for fault in _faults_between(scenario)]
    if between:
        raise ScenarioError("\n".join(between))
    return scenario


def _own_faults(error: ValidationError) -> list[Any]:
    """Without those of a list that is said to be too short only because its items have faults."""
    faults = error.errors(include_url=False)
    return [
        fault
        for fault in faults
        if fault["type"] != "too_short"
        or not any(other is not fault and other["loc"][: len(fault["loc"])] == fault["loc"] for other in faults)
    ]


def _fault(source: str, fault: Any) -> str:
    path = ""
    for part in fault["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "missing":
        return f"{source}: {path}: is missing; expected a value"
    if fault["type"] == "extra_forbidden":
        return f"{source}: {path}: is not a field here; remove it"
    return f"{source}: {path}: is {fault['input']!r:.80}; {message[:1].lower()}{message[1:]}"


def _faults_between(scenario: Scenario) -> Iterator[str]:
    """What single parts cannot know: names that stand for nothing, or for two things."""
    pools = {pool.name for pool in scenario.pools}
    nodes = [node.name for node in scenario.node_values(START)]
    tree = scenario.tree_values()
    queues = {node.name for node in tree}
    sets = [part.name for part in scenario.load]
    for what, called in (("pools", [pool.name for pool in scenario.pools]), ("nodes", nodes), ("load", sets)):
        yield from (
            f"{what}: {name!r} is there twice; every name once" for name in sorted({n for n in called if called.count(n) > 1})
        )
    if len(queues) < len(tree):
        yield "tree: two nodes have the same path; every name once below its parent"
    if scenario.tree.count is not None:
        yield f"tree.count: is {scenario.tree.count}; there is one root: leave it out"
    for index, template in enumerate(scenario.nodes):
        if template.pool not in pools:
            yield f"nodes[{index}].pool: is {template.pool!r}; expected one of {sorted(pools)}"
    for node in tree:
        for pool, _ in node.quotas:
            if pool not in pools:
                yield f"tree: {node.name!r} has a quota of pool {pool!r}; expected one of {sorted(pools)}"
    for index, part in enumerate(scenario.load):
        if not any(fnmatchcase(leaf, part.queues) for leaf in leaves(tree)):
            yield f"load[{index}].queues: {part.queues!r} matches no queue; there are {', '.join(leaves(tree)[:5])} ..."
    for index, change in enumerate(scenario.changes):
        yield from (f"changes[{index}].{fault}" for fault in _faults_of(change, nodes, queues, pools, set(sets)))


def _faults_of(change: Change, nodes: list[str], queues: set[str], pools: set[str], sets: set[str]) -> Iterator[str]:
    match change:
        case NodeLost() | NodeBack() | Cordon() | Uncordon() | SpotLoss():
            if not any(fnmatchcase(node, change.nodes) for node in nodes):
                yield f"nodes: {change.nodes!r} matches no node; the first is {nodes[0]!r}"
        case QuotaChange() | BudgetChange():
            if change.queue not in queues:
                yield f"queue: is {change.queue!r}; expected the path of a node of the tree"
            if isinstance(change, QuotaChange) and change.pool not in pools:
                yield f"pool: is {change.pool!r}; expected one of {sorted(pools)}"
        case PriorityChange():
            if change.set not in sets:
                yield f"set: is {change.set!r}; expected one of {sorted(sets)}"


def _override(raw: Any, override: str) -> None:
    path, found, written = override.partition("=")
    steps = path.split(".")
    if not found:
        raise ScenarioError(f"override {override!r}: expected PATH=VALUE, such as load.small.count=10")
    place = raw
    for step in steps[:-1]:
        place = _part(place, step, override)
    last = steps[-1]
    if isinstance(place, list):
        place[_position(place, last, override)] = yaml.safe_load(written)
    elif isinstance(place, dict):
        place[last] = yaml.safe_load(written)
    else:
        raise ScenarioError(f"override {override!r}: there is nothing below {'.'.join(steps[:-1])!r}")


def _part(place: Any, step: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_position(place, step, override)]
    if isinstance(place, dict):
        return place.setdefault(step, {})
    raise ScenarioError(f"override {override!r}: there is no {step!r}")


def _position(parts: list[Any], step: str, override: str) -> int:
    for index, part in enumerate(parts):
        if step == str(index) or (isinstance(part, dict) and part.get("name") == step):
            return index
    called = [part.get("name", index) if isinstance(part, dict) else index for index, part in enumerate(parts)]
    raise ScenarioError(f"override {override!r}: there is no {step!r}; expected one of {called}")
