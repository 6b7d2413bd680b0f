"""Projects, jobs and leases for tests of budgets, valid by default, so that a test states only what matters to it."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.budgets.prices import set_price
from control_plane.budgets.reserving import LeaseToReserve, Shortfall, reserve_many
from control_plane.budgets.settling import Charge, LeaseUse, settle_many
from control_plane.budgets.standing import BudgetState, read_states
from control_plane.budgets.store import set_budget
from control_plane.budgets.verify import verify
from control_plane.db.engine import in_transaction
from control_plane.db.tables import jobs, projects
from control_plane.jobs.spec import DatasetRef, FineTuneSpec, JobSpec, ResourceSpec, canonical_sha256
from governance.budgets import AtHardLimit, Budget, Scope, ScopeKind
from governance.ledger import Account, Entry, EntryKind
from governance.periods import PeriodKind
from governance.values import Amounts, Limits

_T = TypeVar("_T")

RED = Scope(ScopeKind.PROJECT, "red")
BLUE = Scope(ScopeKind.PROJECT, "blue")
VISION = Scope(ScopeKind.TEAM, "vision")
ORGANISATION = Scope(ScopeKind.ORGANISATION, "organisation")
ABOVE: Mapping[str, Sequence[Scope]] = {"red": (VISION, ORGANISATION), "blue": (ORGANISATION,)}
"""red belongs to team vision, blue to no team."""

PRICE = 3_600_000
"""Of an h200, in millionths an hour: a thousand for each accelerator-second, one for each accelerator-millisecond."""
SETTER = "user:ada"


def lease(project: str = "red", *, job_id: str = "", seconds: int = 1, kind: str = "h200", **fields: Any) -> LeaseToReserve:
    """A lease that costs a thousand millionths and a thousand accelerator-milliseconds for each second."""
    given: dict[str, Any] = {"accelerators": 1, "spot": False} | fields
    return LeaseToReserve(
        lease_id=str(uuid.uuid4()),
        job_id=job_id or str(uuid.uuid4()),
        project=project,
        kind=kind,
        run_ms=seconds * 1_000,
        **given,
    )


class BudgetWorld:
    """What a test does to budgets, each in a transaction of its own, and how it looks at what became of them."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    async def prepare(self) -> None:
        """Two projects, and prices."""
        async with self.engine.begin() as connection:
            for project in ("red", "blue"):
                await connection.execute(insert(projects).values(project=project, creator=SETTER))
            await set_price(connection, "h200", False, PRICE, SETTER)
            await set_price(connection, "cpu", False, 36_000, SETTER)

    async def run(self, work: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        """Runs work in a transaction, as the control plane does."""
        return await in_transaction(self.engine, work)

    async def budget(
        self,
        scope: Scope = RED,
        *,
        micros: int | None = None,
        ms: int | None = None,
        period: PeriodKind = PeriodKind.MONTH,
        at_hard_limit: AtHardLimit = AtHardLimit.STOP,
        **fields: Any,
    ) -> None:
        """Sets a scope's budget."""
        budget = Budget(scope, period, Limits(micros, ms), at_hard_limit, **fields)
        await self.run(lambda connection: set_budget(connection, budget, SETTER))

    async def reserve(self, *leases: LeaseToReserve) -> list[Shortfall]:
        """Reserves for leases, all in one call."""
        return await self.run(lambda connection: reserve_many(connection, leases, ABOVE))

    async def settle(self, *uses: tuple[LeaseToReserve, int]) -> list[Charge]:
        """Settles leases by accelerator-milliseconds used, all in one call."""
        ends = [LeaseUse(one.lease_id, used) for one, used in uses]
        return await self.run(lambda connection: settle_many(connection, ends))

    async def state(self, scope: Scope = RED) -> BudgetState:
        """Where a scope with a budget stands."""
        async with self.engine.connect() as connection:
            (found,) = await read_states(connection, [scope])
            return found

    async def sql(self, statement: str, **values: Any) -> list[Any]:
        async with self.engine.begin() as connection:
            result = await connection.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    async def balances(self, scope: Scope = RED) -> dict[str, Amounts]:
        """Balances of a scope's newest ledger, by account."""
        rows = await self.sql(
            "SELECT * FROM ledgers WHERE kind = :kind AND scope = :scope ORDER BY ledger_id DESC LIMIT 1",
            kind=str(scope.kind),
            scope=scope.name,
        )
        row = rows[0]._mapping
        return {
            account: Amounts(row[f"{account.lower()}_micros"], row[f"{account.lower()}_ms"])
            for account in ("EXTERNAL", "BUDGET", "RESERVED", "SPENT")
        }

    async def entries(self) -> list[Entry]:
        """Every entry, in order."""
        rows = await self.sql("SELECT * FROM ledger_entries ORDER BY entry_id")
        return [
            Entry(
                EntryKind(row.kind),
                str(row.reference),
                row.ledger_id,
                Account(row.account),
                Amounts(row.micros, row.accelerator_ms),
            )
            for row in rows
        ]

    async def job(
        self, project: str = "red", *, submitter: str = "user:ada", model: str = "tuned", spec: JobSpec | None = None
    ) -> str:
        """A job that is under way, a fine-tune if nothing else is said."""
        spec = spec or FineTuneSpec(
            base_model="smol",
            dataset=DatasetRef(name="questions", sha256="a" * 64),
            output_model=model,
            resources=ResourceSpec(accelerators=2, accelerator_kind="h200", max_run_seconds=10),
        )
        job_id = str(uuid.uuid4())
        async with self.engine.begin() as connection:
            await connection.execute(
                insert(jobs).values(
                    job_id=job_id,
                    project=project,
                    name="a job",
                    type=spec.type,
                    spec=spec.model_dump(mode="json"),
                    spec_sha256=canonical_sha256(spec),
                    inputs={},
                    priority=500,
                    state="RUNNING",
                    submitter=submitter,
                )
            )
        return job_id

    async def hold_lease(self, held: LeaseToReserve, *, state: str = "GRANTED", granted_at: datetime | None = None) -> None:
        """Writes the lease's own row, as the scheduler would have granted it."""
        await self.sql(
            """
            INSERT INTO leases (lease_id, job_id, project, phase, state, accelerators, accelerator_kind, priority,
                max_run_seconds, attempt, worker, granted_kind, granted_at, expires_at)
            VALUES (:lease_id, :job_id, :project, 'TRAIN', :state, 1, 'h200', 500, 60, 1, 'w', 'h200',
                coalesce(CAST(:granted_at AS timestamptz), now()), now())
            """,
            lease_id=held.lease_id,
            job_id=held.job_id,
            project=held.project,
            state=state,
            granted_at=granted_at,
        )

    async def assert_sound(self) -> None:
        """The ledger holds together."""
        problems = await verify(self.engine)
        assert not problems, problems
