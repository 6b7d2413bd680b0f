"""From a scenario to its results."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from fnmatch import fnmatchcase
from functools import partial

from scheduler.core.planner import plan
from scheduler.core.types import Micros
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
from scheduler.simulation.cluster import RESOURCES, leaves
from scheduler.simulation.engine import Engine, Observer, Pace, Planner
from scheduler.simulation.jobs import Job
from scheduler.simulation.ledger import BrakeBuckets, Ledger
from scheduler.simulation.load import generator
from scheduler.simulation.results import Recorder, Results
from scheduler.simulation.scenario import START, Scenario
from scheduler.simulation.timeline import Action
from scheduler.simulation.world import ALWAYS, World


def run_scenario(scenario: Scenario, observers: tuple[Observer, ...] = (), planner: Planner = plan) -> Results:
    """Runs a scenario to its end.

    Args:
        scenario: it alone decides what happens: seeded, and without real time.
        observers: see what happens on the way.
        planner: the production one, unless planners are to be compared.

    Raises:
        BrokenPlanError: a plan did what its rules forbid.
        OverdrawnError: a plan spent what a budget has not.
    """
    limits = scenario.limits.limits()
    world = World(tuple(pool.pool() for pool in scenario.pools), scenario.node_values(ALWAYS), limits)
    recorder = Recorder(scenario, world)
    engine = Engine(
        world,
        Ledger(scenario.tree_values(), scenario.past_use_half_life, scenario.past_use_every),
        BrakeBuckets(scenario.brakes.preemptions_per_hour, scenario.brakes.waste_accelerator_ms_per_hour, START),
        limits,
        Pace(scenario.round_coalesce_ms * 1_000, scenario.poll, scenario.yield_after, scenario.past_use_every),
        (recorder, *observers),
        START,
        planner,
    )
    jobs = sorted(jobs_of(scenario), key=lambda job: (job.submitted, job.job_id))
    as_drawn = [copy(job) for job in jobs]
    engine.to_come = len(jobs)
    for job in jobs:
        engine.timeline.at(job.submitted, partial(_arrive, engine, job))
    for index, change in enumerate(scenario.changes):
        _schedule(engine, scenario, index, change)
    engine.run(None if scenario.until is None else START + scenario.until)
    return recorder.results(as_drawn)


def jobs_of(scenario: Scenario) -> Iterator[Job]:
    """All jobs of the load, with what was drawn for each: when it arrives and how long it really runs."""
    queues = leaves(scenario.tree_values())
    for part in scenario.load:
        shape = part.shape.shape()
        for queue in queues:
            if not fnmatchcase(queue, part.queues):
                continue
            draws = generator(scenario.seed, part.name, queue)
            for index, since in enumerate(part.arrival.times(part.count, draws)):
                yield Job(
                    job_id=f"{part.name}:{queue}:{index:05d}",
                    set_name=part.name,
                    queue=queue,
                    shape=shape,
                    priority=part.priority,
                    submitted=Micros(START + part.start + since),
                    declared=part.run,
                    work=max(1, round(part.run * part.ratio.draw(draws))),
                    checkpoint_every=part.checkpoint.every,
                    on_demand=part.checkpoint.on_demand,
                    prepare=part.prepare,
                )


def _arrive(engine: Engine, job: Job) -> None:
    engine.to_come -= 1
    engine.arrive(job)


def _schedule(engine: Engine, scenario: Scenario, index: int, change: Change) -> None:
    if isinstance(change, SpotLoss):
        _schedule_spot_losses(engine, scenario, index, change)
        return
    every, times = (change.repeat.every, change.repeat.times) if change.repeat else (0, 1)
    for turn in range(times):
        engine.timeline.at(START + change.at + turn * every, _action(engine, change, turn))


def _schedule_spot_losses(engine: Engine, scenario: Scenario, index: int, change: SpotLoss) -> None:
    draws = generator(scenario.seed, "changes", index)
    names = sorted(name for name in engine.world.nodes if fnmatchcase(name, change.nodes))
    when = START + change.at
    for _ in range(change.losses):
        when += round(draws.expovariate(1 / change.mean_interval))
        name = draws.choice(names)
        engine.timeline.at(when, partial(engine.lose, name))
        engine.timeline.at(when + change.back_after, partial(engine.bring_back, name))


def _action(engine: Engine, change: Change, turn: int) -> Action:
    match change:
        case NodeLost() | SpotLoss():
            return partial(engine.lose, change.nodes)
        case NodeBack():
            return partial(engine.bring_back, change.nodes)
        case Cordon() | Uncordon():
            return partial(engine.cordon, change.nodes, cordoned=isinstance(change, Cordon))
        case PriorityChange():
            return partial(engine.reprioritise, change.set, change.priorities[turn % len(change.priorities)])
        case QuotaChange():
            cell = (change.pool, RESOURCES[change.resource])
            return _then_wake(engine, partial(engine.ledger.set_quota, change.queue, cell, change.quota.quota()))
        case BudgetChange():
            return _then_wake(engine, partial(engine.ledger.set_budget, change.queue, change.budget.budget()))


def _then_wake(engine: Engine, action: Action) -> Action:
    def both() -> None:
        action()
        engine.wake()

    return both
