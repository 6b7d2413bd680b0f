"""Keeps the state in step with the database: all of it once, then what changed, each time as of one moment.

Triggers note which jobs and leases changed, a row per statement in `scheduler_changes`. A round reads those jobs and leases
anew; the notes go with the commit of what it decided. So a round that comes to nothing loses nothing: the next one finds the
same notes. Rows are read, never changes, so reading one twice does no harm.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import structlog
from pydantic_core import from_json, to_json
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.budgets.prices import prices_in_force
from control_plane.budgets.standing import BudgetState, read_states
from control_plane.collector import collector_paused
from control_plane.settings import GrowingPool
from governance.prices import Price, price_at
from scheduler import tree
from scheduler.core.types import Budget, Limits, Micros, QueueNode
from scheduler.decay import decayed
from scheduler.growing import nodes_to_come
from scheduler.state import JobRow, LeaseRow, State, StateLoader, WorkerRow
from scheduler.tree import Allowance, Books, QueueRow, node_name

_log = structlog.get_logger()

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PREFETCH = 10_000
"""Rows that a load takes at once."""

_CLOCK = """
    SELECT (extract(epoch FROM now()) * 1000000)::bigint AS now,
        (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started
"""
_NOTES = "SELECT change_id, kind, ids FROM scheduler_changes ORDER BY change_id"
# Whoever reads all jobs need not know which of them changed.
_NOTES_AT_LOAD = """
    SELECT change_id, kind, CASE WHEN kind = 'leases' THEN ids END AS ids FROM scheduler_changes ORDER BY change_id
"""


def _micros(column: str) -> str:
    """Microseconds since 1970. A double holds them exactly until the year 2255, and costs a tenth of a numeric."""
    return f"(date_part('epoch', {column}) * 1e6)::bigint"


_JOB = f"SELECT job_id::text, project, priority, {_micros('created_at')}, state, type, shape FROM jobs"  # noqa: S608 - constants
_QUEUED_JOBS = f"{_JOB} WHERE state = 'QUEUED'"
_OPEN_JOBS = f"{_JOB} WHERE state IN ('STARTING','RUNNING','PAUSING','PAUSED','CANCELLING')"
_NAMED_JOBS = f"{_JOB} WHERE job_id = ANY($1::uuid[])"

_LEASE = f"""
    SELECT lease_id::text, leases.job_id::text, leases.project, jobs.state, leases.state, leases.shape, leases.priority,
        {_micros("waiting_since")}, max_run_seconds, claim::text, pool, placement::text,
        {_micros("granted_at")}, {_micros("expires_at")},
        {_micros("checkpointed_at")}, preempted_for::text,
        {_micros("preempted_at")}
    FROM leases JOIN jobs USING (job_id)
"""  # noqa: S608 - constants
_OPEN_LEASES = f"{_LEASE} WHERE leases.state IN ('REQUESTED','GRANTED')"
# A job's state says whether its requests wait. Without the concatenation the planner would look through all open leases.
_LEASES_OF_JOBS = f"{_LEASE} WHERE leases.job_id = ANY($1::uuid[]) AND leases.state || '' IN ('REQUESTED','GRANTED')"
_NAMED_LEASES = f"{_LEASE} WHERE lease_id = ANY($1::uuid[])"

_WORKERS = """
    SELECT name, incarnation::text, accelerator_kind, accelerators, cpu_millis, memory_mib, pool, spot, labels::text,
        cordoned OR draining, (extract(epoch FROM heartbeat_at) * 1000000)::bigint
    FROM workers
"""
_QUEUE_NODES = "SELECT kind, name, parent, weight, quotas::text FROM queue_nodes"
_PAST_USE = "SELECT project, accelerator_ms, (extract(epoch FROM as_of) * 1000000)::bigint FROM past_use"
# What leases used that ended since the notes were last taken: counted when their notes go, so exactly once.
_ENDED_USE = """
    SELECT project, sum(accelerator_ms)::bigint FROM leases
    WHERE lease_id = ANY($1::uuid[]) AND ended_at IS NOT NULL AND accelerator_ms > 0 GROUP BY project
"""


class PastUse(NamedTuple):
    """Decayed use of a project, as it was at a time."""

    accelerator_ms: int
    as_of: Micros


@dataclass(frozen=True, slots=True)
class Reading:
    """What the database says, as of one moment."""

    state: State
    now: Micros
    database_started: Micros
    workers: Sequence[WorkerRow]
    tree: tuple[QueueNode, ...]
    prices: Sequence[Price]
    """Those in force."""
    change_ids: Sequence[int]
    """The notes that this reading took in; they are to go with the commit of what is decided on it."""
    past_use: Mapping[str, PastUse]
    """Of the projects whose leases ended, to be written when the notes go."""
    rows_sha256: str
    """Of all rows read since the last record of a round."""

    def price(self, kind: str, spot: bool) -> int:
        """Millionths of the currency for an accelerator-hour; 0: no price is set."""
        price = price_at(self.prices, kind, spot, _EPOCH + timedelta(microseconds=self.now))
        return 0 if price is None else price.micros_per_hour


class SnapshotReader:
    """Reads for one leader. After anything unexpected, `forget` makes it read everything anew."""

    def __init__(
        self,
        engine: AsyncEngine,
        limits: Limits,
        job_types: frozenset[str],
        *,
        half_life_micros: int,
        recheck_seconds: float,
        growing_pools: Sequence[GrowingPool] = (),
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._job_types = job_types
        self._half_life_micros = half_life_micros
        self._recheck_seconds = recheck_seconds
        self._growing_pools = growing_pools
        self._state: State | None = None
        self._checked_at = 0.0
        self._queue_rows: list[QueueRow] = []
        self._past_use: dict[str, PastUse] = {}
        self._digest = hashlib.sha256()

    def forget(self) -> None:
        """What is known may be wrong: the next reading reads everything."""
        self._state = None

    @property
    def knows(self) -> bool:
        """Whether there is a state to keep up."""
        return self._state is not None

    def committed(self, reading: Reading) -> None:
        """The reading's notes are gone, and what it says of past use is stored."""
        self._past_use |= reading.past_use

    def recorded(self) -> None:
        """A round was recorded with `rows_sha256`; the next one's begins here."""
        self._digest = hashlib.sha256()

    async def read(self) -> Reading:
        """What the database says now.

        Raises:
            SQLAlchemyError, PostgresError: the database failed. What is known may be half-way; forget it.
        """
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            async with connection.begin():
                # Begins the transaction, and its one moment.
                await connection.exec_driver_sql("SELECT 1")
                raw = (await connection.get_raw_connection()).driver_connection
                return await self._read(raw, await read_states(connection), await prices_in_force(connection))

    async def _read(self, raw: Any, budgets: Sequence[BudgetState], prices: Sequence[Price]) -> Reading:
        clock = await raw.fetchrow(_CLOCK)
        now = Micros(clock["now"])
        notes = await raw.fetch(_NOTES_AT_LOAD if self._state is None else _NOTES)
        named = _named(notes)
        state = await self._kept_up(raw, self._state, named, now)
        if self._state is None or "queue_nodes" in named:
            self._queue_rows = [
                QueueRow(row[0], row[1], row[2], row[3], from_json(row[4])) for row in await raw.fetch(_QUEUE_NODES)
            ]
        self._state = state
        ended: Mapping[str, int] = dict(await raw.fetch(_ENDED_USE, named["leases"])) if named.get("leases") else {}
        past_use = {project: PastUse(self._decayed(project, now) + used, now) for project, used in ended.items()}
        workers = [WorkerRow(*row) for row in await raw.fetch(_WORKERS)]
        return Reading(
            state=state,
            now=now,
            database_started=Micros(clock["started"]),
            workers=[*workers, *nodes_to_come(self._growing_pools, workers)],
            tree=self._tree(now, past_use, budgets),
            prices=prices,
            change_ids=[note["change_id"] for note in notes],
            past_use=past_use,
            rows_sha256=self._digest.hexdigest(),
        )

    async def _kept_up(self, raw: Any, state: State | None, named: Mapping[str, list[Any]], now: Micros) -> State:
        if state is None:
            self._past_use = {project: PastUse(*rest) for project, *rest in await raw.fetch(_PAST_USE)}
            return await self._load(raw)
        await self._refresh(raw, state, named, now)
        if asyncio.get_running_loop().time() - self._checked_at < self._recheck_seconds:
            return state
        fresh = await self._load(raw)
        if differences := state.differences(fresh):
            _log.error("snapshot.differs", differences=differences[:10], count=len(differences))
        return fresh

    async def _refresh(self, raw: Any, state: State, named: Mapping[str, list[Any]], now: Micros) -> None:
        jobs: list[JobRow] = []
        found: dict[str, LeaseRow] = {}
        if named.get("jobs"):
            jobs = [JobRow(*row) for row in await raw.fetch(_NAMED_JOBS, named["jobs"])]
            # What was just submitted has no lease.
            known = [row.job_id for row in jobs if row.state != "QUEUED" or state.knows(row.job_id)]
            if known:
                found = {row[0]: LeaseRow(*row) for row in await raw.fetch(_LEASES_OF_JOBS, known)}
        if named.get("leases"):
            found |= {row[0]: LeaseRow(*row) for row in await raw.fetch(_NAMED_LEASES, named["leases"])}
        leases = list(found.values())
        state.apply(jobs, leases)
        # Renewals leave no note.
        if expired := state.expired(now):
            renewed = [LeaseRow(*row) for row in await raw.fetch(_NAMED_LEASES, expired)]
            state.apply((), renewed)
            leases += renewed
        if jobs or leases:
            self._digest.update(to_json((jobs, leases)))

    async def _load(self, raw: Any) -> State:
        self._checked_at = asyncio.get_running_loop().time()
        loader = StateLoader(job_types=self._job_types, limits=self._limits)
        # A million objects that all stay make the collector look at them again and again, for nothing.
        with collector_paused():
            for query in (_QUEUED_JOBS, _OPEN_JOBS):
                async for rows in _batches(raw, query):
                    loader.take(jobs=[JobRow(*row) for row in rows])
                    self._digest.update(to_json([tuple(row) for row in rows]))
            async for rows in _batches(raw, _OPEN_LEASES):
                loader.take(leases=[LeaseRow(*row) for row in rows])
                self._digest.update(to_json([tuple(row) for row in rows]))
            return loader.state()

    def _decayed(self, project: str, now: Micros) -> int:
        use = self._past_use.get(project)
        return 0 if use is None else decayed(use.accelerator_ms, now - use.as_of, self._half_life_micros)

    def _tree(self, now: Micros, ended: Mapping[str, PastUse], budgets: Sequence[BudgetState]) -> tuple[QueueNode, ...]:
        faded = {project: self._decayed(project, now) for project in self._past_use}
        fresh = {project: use.accelerator_ms for project, use in ended.items()}
        allowances = {
            node_name(state.budget.scope.kind, state.budget.scope.name): Allowance(
                Budget(state.standing.left.micros, state.standing.left.accelerator_ms), demoted=state.standing.demoted
            )
            for state in budgets
        }
        return tree.build(self._queue_rows, Books(allowances, faded | fresh))


def _named(notes: Sequence[Any]) -> dict[str, list[Any]]:
    """What the notes name, each once, by kind."""
    named: dict[str, dict[Any, None]] = {}
    for note in notes:
        named.setdefault(note["kind"], {}).update(dict.fromkeys(note["ids"] or ()))
    return {kind: list(ids) for kind, ids in named.items()}


async def _batches(raw: Any, query: str) -> AsyncIterator[list[Any]]:
    cursor = await raw.cursor(query)
    while rows := await cursor.fetch(_PREFETCH):
        yield rows
