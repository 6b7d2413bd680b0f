"""The loads of Kueue's scheduler performance suite through gRPC, PostgreSQL, plan and lease, until the last job has succeeded.

Control plane, scheduler and database are processes of their own, durable, every interceptor on; a gRPC load executor asks for
leases, holds them and ends jobs in place of workers. The loads are the simulator's scenarios of the same name: a cohort there
is a team here, and its queues are projects. A project's window of admission is wide enough for all of its jobs.

Ceiling: the work of all jobs divided by what can be held at once, the least that any scheduler could need.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import asyncpg
import psutil

from benchmarks.figure import Figure
from benchmarks.load_executor import LoadExecutor, LoadJob
from benchmarks.scheduling import scheduler
from benchmarks.servers import DATASET, Servers, servers
from scheduler.core.types import QueueNode, Resource
from scheduler.simulation.cluster import leaves
from scheduler.simulation.load import generator
from scheduler.simulation.scenario import START, Scenario, load_scenario

_MICROS = 1_000_000
_RULES = {
    # All jobs of a queue that are there at once: admission is not what is measured.
    "prepare_ahead_per_project": 1_000,
    "lease_seconds": 3_600,
}
_HELD_MAX = """
    SELECT max(held) FROM (
        SELECT sum(change) OVER (ORDER BY at, change) AS held FROM (
            SELECT granted_at AS at, accelerators AS change FROM leases WHERE project = ANY($1)
            UNION ALL SELECT ended_at, -accelerators FROM leases WHERE project = ANY($1)
        ) AS changes
    ) AS over_time
"""


@dataclass(frozen=True, slots=True)
class _Cpu:
    """Processor seconds that the parts have used so far."""

    control_plane: float
    scheduler: float
    postgres: float
    executor: float


def of_scenario(figure: str, scenario: str) -> Callable[[bool], Awaitable[Figure]]:
    """The benchmark of a scenario; `quick`, with a fifth of its queues and of its capacity."""

    async def run(quick: bool) -> Figure:
        load = load_scenario(scenario)
        if quick:
            [cohort] = load.tree.children
            [node] = load.nodes
            fewer = [f"tree.children.0.count={(cohort.count or 1) // 5}", f"nodes.0.accelerators={node.accelerators // 5}"]
            load = load_scenario(scenario, fewer)
        return await _measure(figure, load)

    return run


async def _measure(figure: str, scenario: Scenario) -> Figure:
    [pool], [node] = scenario.pools, scenario.nodes
    work = _load_of(scenario)
    jobs = [job for queue in work.values() for job in queue]
    bound = sum(job.accelerators * job.run_seconds for job in jobs) / node.accelerators
    async with servers() as running:
        connection = await asyncpg.connect(running.dsn)
        await _set_up(connection, scenario)
        log = running.log.with_name("scheduler.log")
        async with scheduler(running.dsn, _RULES, log) as scheduler_pid:
            before = _cpu(running, scheduler_pid)
            seconds = await LoadExecutor(running, pool.kind, work).run()
            after = _cpu(running, scheduler_pid)
        await _check(connection, scenario, len(jobs))
        waits = await _mean_waits(connection)
        used_ms = await connection.fetchval("SELECT sum(accelerator_ms)::bigint FROM leases")
        rounds = await connection.fetchval("SELECT count(*) FROM scheduling_rounds")
        await connection.close()
    details = {
        "usage": sum(job.accelerators * job.run_seconds for job in jobs) / node.accelerators / seconds,
        "held": used_ms / 1_000 / node.accelerators / seconds,
        **{f"{name}_mean_wait_s": wait for name, wait in waits.items()},
        "rounds": float(rounds),
        **{
            f"{part}_cpu_us_a_job": (getattr(after, part) - getattr(before, part)) / len(jobs) * 1e6
            for part in _Cpu.__dataclass_fields__
        },
    }
    return Figure(figure, seconds, "s", bound, "s: work over capacity", details)


def _load_of(scenario: Scenario) -> dict[str, Sequence[LoadJob]]:
    """By project, in order of time."""
    load: defaultdict[str, list[LoadJob]] = defaultdict(list)
    for queue in leaves(scenario.tree_values()):
        for part in scenario.load:
            if fnmatchcase(queue, part.queues):
                times = part.arrival.times(part.count, generator(scenario.seed, part.name, queue))
                load[_project(queue)] += [
                    LoadJob((part.start + at) / _MICROS, part.name, part.shape.accelerators, part.run / _MICROS, part.priority)
                    for at in times
                ]
    return {project: sorted(jobs, key=lambda job: job.due_seconds) for project, jobs in load.items()}


def _project(queue: str) -> str:
    return queue.replace("/", "-")


async def _set_up(connection: asyncpg.Connection, scenario: Scenario) -> None:
    """Projects with the dataset that their jobs name, the quota tree, and the one node."""
    tree = scenario.tree_values()
    queues = set(leaves(tree))
    projects = [_project(queue) for queue in sorted(queues)]
    await connection.execute("INSERT INTO projects (project, creator) SELECT unnest($1::text[]), 'system:bench'", projects)
    await connection.execute(
        "INSERT INTO datasets (project, name, sha256, size_bytes, uri, license, attribution)"
        " SELECT unnest($1::text[]), $2, repeat('0', 64), 1, 's3://headway/x', '', ''",
        projects,
        DATASET,
    )
    root = next(node.name for node in tree if node.parent is None)
    await connection.executemany(
        "INSERT INTO queue_nodes (kind, name, parent, weight, quotas) VALUES ($1, $2, $3, $4, $5)",
        [
            (
                "PROJECT" if node.name in queues else "TEAM",
                _project(node.name),
                None if node.parent == root else node.parent,
                node.weight,
                json.dumps(_cells(node)),
            )
            for node in tree
            if node.parent is not None
        ],
    )
    [pool], nodes = scenario.pools, scenario.node_values(START)
    await connection.executemany(
        "INSERT INTO workers (name, incarnation, accelerator_kind, accelerators, pool, heartbeat_at)"
        " VALUES ($1, gen_random_uuid(), $2, $3, $4, now() + interval '1 day')",
        [(node.name, pool.kind, node.total[Resource.ACCELERATORS], node.pool) for node in nodes],
    )


def _cells(node: QueueNode) -> list[Mapping[str, object]]:
    return [
        {
            "pool": pool,
            "resource": resource.name.lower(),
            "nominal": quota.nominal,
            "borrowing_limit": quota.borrowing_limit,
            "lending_limit": quota.lending_limit,
        }
        for (pool, resource), quota in node.quotas.items()
    ]


async def _check(connection: asyncpg.Connection, scenario: Scenario, count: int) -> None:
    """Holds what the database says against what may be.

    Raises:
        RuntimeError: a job did not succeed, was granted twice, or more was held at a time than there is or a quota allows.
    """
    succeeded = await connection.fetchval("SELECT count(*) FROM jobs WHERE state = 'SUCCEEDED' AND attempt = 1")
    completed = await connection.fetchval("SELECT count(*) FROM leases WHERE outcome = 'completed'")
    all_leases = await connection.fetchval("SELECT count(*) FROM leases")
    if not succeeded == completed == all_leases == count:
        raise RuntimeError(
            f"of {count} jobs {succeeded} succeeded in their first attempt, with {completed} of {all_leases} leases"
        )
    [node] = scenario.nodes
    tree = scenario.tree_values()
    queues = leaves(tree)
    children: defaultdict[str | None, list[QueueNode]] = defaultdict(list)
    for child in tree:
        children[child.parent].append(child)
    limits: dict[tuple[str, ...], int] = {tuple(_project(queue) for queue in queues): node.accelerators}
    for team in children[scenario.tree.name]:
        nominal = sum(quota.nominal for child in children[team.name] for quota in child.quotas.values())
        limits[tuple(_project(child.name) for child in children[team.name])] = nominal
        for child in children[team.name]:
            [quota] = child.quotas.values()
            limits[_project(child.name),] = quota.nominal + (quota.borrowing_limit or 0)
    for projects, limit in limits.items():
        held: int = await connection.fetchval(_HELD_MAX, list(projects)) or 0
        if held > limit:
            raise RuntimeError(
                f"{held} accelerators were held at once by {projects[0]} and {len(projects) - 1} more; of {limit}"
            )


async def _mean_waits(connection: asyncpg.Connection) -> dict[str, float]:
    """Seconds from submission to grant, by set."""
    rows = await connection.fetch(
        """
        SELECT name, avg(extract(epoch FROM granted_at - created_at))::float8 AS wait
        FROM leases JOIN jobs USING (job_id) GROUP BY name ORDER BY name
        """
    )
    return {row["name"]: row["wait"] for row in rows}


def _cpu(running: Servers, scheduler_pid: int) -> _Cpu:
    return _Cpu(
        control_plane=_seconds(psutil.Process(running.pid)),
        scheduler=_seconds(psutil.Process(scheduler_pid)),
        postgres=sum(_seconds(process) for process in psutil.process_iter() if _is_postgres(process)),
        executor=_seconds(psutil.Process()),
    )


def _is_postgres(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("postgres")
    except psutil.Error:
        return False


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system
