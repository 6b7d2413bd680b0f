"""Carries intents from the outbox to Temporal, at least once and in order per job.

Every effect is harmless when repeated: a workflow's id is its job's id, a signal names its lease, a cancellation is one
however often it is asked for. So a crash between the effect and its record costs a repetition and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta

import structlog
from opentelemetry.trace import SpanKind
from pydantic import BaseModel, ValidationError
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from temporalio.client import Client
from temporalio.common import RetryPolicy, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from control_plane.db.engine import in_transaction
from control_plane.jobs.states import FailureKind, JobState
from headway_client.telemetry import continued, tracer
from scheduler import failpoints
from scheduler.failpoints import Failpoint
from scheduler.finish import finish
from scheduler.leader import DeposedError, Leadership
from scheduler.routing import UnroutableJobError, job_input, route
from scheduler.token_bucket import TokenBucket
from workers.workflows.contracts import JobFailure, LeaseEnd, LeaseGrant, PauseOrder, PreemptOrder, ResumeOrder

_log = structlog.get_logger()

CONCURRENCY = 64
"""Most calls to Temporal at once."""
_BATCH = 512
"""Most rows that are read, and recorded, together."""
_CALL_TIMEOUT = timedelta(seconds=10)
_RETRY_SECONDS_MAX = 10.0

# A later row of the same job waits for an earlier one, even for one that waits for its next try.
_DUE = text(
    """
    SELECT outbox_id, kind, job_id::text, payload, trace_parent, tries FROM outbox AS due
    WHERE state = 'ready' AND not_before <= now() AND NOT EXISTS (
        SELECT 1 FROM outbox AS earlier
        WHERE earlier.job_id = due.job_id AND earlier.outbox_id < due.outbox_id AND earlier.state = 'ready'
    )
    ORDER BY outbox_id LIMIT :most
    """
)
JOBS_TO_START = text(
    """
    SELECT job_id::text, project, type, spec, spec_sha256, inputs, state, attempt, pauses, trace_parent FROM jobs
    WHERE job_id = ANY(CAST(:ids AS uuid[]))
    """
).columns(spec=JSONB, inputs=JSONB)
_DONE = text(
    """
    UPDATE outbox SET state = 'done', done_at = now(), last_error = :error
    WHERE outbox_id = ANY(CAST(:outbox_ids AS bigint[])) AND state = 'ready'
    """
)
_NEXT_DUE = text("SELECT extract(epoch FROM min(not_before) - now())::float8 FROM outbox WHERE state = 'ready'")
_POSTPONE = text(
    """
    UPDATE outbox SET tries = tries + 1, last_error = :error, not_before = now() + make_interval(secs => :seconds)
    WHERE outbox_id = :outbox_id AND state = 'ready'
    """
)


_SIGNALS: Mapping[str, tuple[str, type[BaseModel]]] = {
    "signal_lease_granted": ("lease_granted", LeaseGrant),
    "signal_lease_lost": ("lease_lost", LeaseEnd),
    "signal_pause": ("pause", PauseOrder),
    "signal_resume": ("resume", ResumeOrder),
    "signal_preempt": ("preempt", PreemptOrder),
}
"""By kind of outbox row: the signal it becomes, and what the signal carries."""


class Dispatcher:
    """The leader's dispatch to Temporal. On a standby it does nothing."""

    def __init__(
        self,
        engine: AsyncEngine,
        client: Client,
        leadership: Leadership,
        poll_seconds: float,
        *,
        per_second: float = 2_000.0,
    ) -> None:
        """`per_second` is the setting `scheduler.dispatches_per_second`."""
        self._rate = TokenBucket(per_second)
        self._engine = engine
        self._client = client
        self._leadership = leadership
        self._poll_seconds = poll_seconds

    async def drain(self) -> float:
        """Dispatches a batch of what is due; returns after how many seconds to look again, 0 if there may be more.

        Raises:
            SQLAlchemyError: the database failed; what was dispatched without record is dispatched again.
        """
        if self._leadership.epoch is None:
            return self._poll_seconds
        async with self._engine.connect() as connection:
            most = min(_BATCH, self._rate.available())
            if most == 0:
                return self._rate.seconds_until_next()
            due: Sequence[RowMapping] = (await connection.execute(_DUE, {"most": most})).mappings().all()
            self._rate.take(len(due))
            if not due:
                seconds: float | None = (await connection.execute(_NEXT_DUE)).scalar_one()
                return self._poll_seconds if seconds is None else min(self._poll_seconds, max(0.01, seconds))
            starting = [row["job_id"] for row in due if row["kind"] == "start_workflow"]
            found = (await connection.execute(JOBS_TO_START, {"ids": starting})).mappings() if starting else ()
            stored = {job["job_id"]: job for job in found}
        failpoints.reach(Failpoint.BEFORE_DISPATCH)
        free = asyncio.Semaphore(CONCURRENCY)

        async def dispatch(row: RowMapping) -> bool:
            async with free:
                return await self._dispatch(row, stored.get(row["job_id"]))

        results = await asyncio.gather(*(dispatch(row) for row in due), return_exceptions=True)
        failpoints.reach(Failpoint.AFTER_DISPATCH)
        done = [row["outbox_id"] for row, result in zip(due, results, strict=True) if result is True]
        await in_transaction(self._engine, lambda connection: _mark_done(connection, done))
        for result in results:
            if isinstance(result, DeposedError):
                _log.warning("dispatch.refused", reason=str(result))
                return self._poll_seconds
            if isinstance(result, BaseException):
                raise result
        return 0.0

    async def _dispatch(self, row: RowMapping, job: RowMapping | None) -> bool:
        """Carries out one row; returns whether that is to be recorded."""
        attributes = {"headway.job_id": row["job_id"], "headway.outbox.kind": row["kind"], "headway.tries": row["tries"]}
        with (
            continued(row["trace_parent"]),
            tracer().start_as_current_span("outbox.dispatch", kind=SpanKind.PRODUCER, attributes=attributes) as span,
        ):
            try:
                await self._carry_out(row, job)
            except (UnroutableJobError, ValidationError) as error:
                span.record_exception(error)
                await self._give_up(row, str(error))
            except Exception as error:
                # Whatever it is, it is this row's: it must not keep others from going out.
                span.record_exception(error)
                await self._postpone(row, error)
            else:
                return True
        return False

    async def _carry_out(self, row: RowMapping, job: RowMapping | None) -> None:
        match row["kind"]:
            case "start_workflow":
                if job is None:
                    raise UnroutableJobError(f"outbox row {row['outbox_id']} starts job {row['job_id']}, which does not exist")
                await self._start(job)
            case "cancel_workflow":
                await self._cancel(row["job_id"])
            case kind if kind in _SIGNALS:
                signal, message = _SIGNALS[kind]
                await self._signal(row["job_id"], signal, message.model_validate(row["payload"]))
            case kind:
                raise UnroutableJobError(f"outbox row {row['outbox_id']} is of unknown kind {kind!r}")

    async def _start(self, job: RowMapping) -> None:
        job_id = job["job_id"]
        where = route(job["type"])
        argument = job_input(job)
        try:
            await self._client.start_workflow(
                where.workflow,
                argument,
                id=job_id,
                task_queue=where.task_queue,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                retry_policy=RetryPolicy(maximum_attempts=where.runs),
                rpc_timeout=_CALL_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            # It ran, and even ended, before this was recorded.
            _log.info("dispatch.already_started", job_id=job_id)
        except RPCError as error:
            if error.status is RPCStatusCode.INVALID_ARGUMENT:
                raise UnroutableJobError(f"Temporal refuses to start the job's workflow: {error}") from error
            raise

    async def _signal(self, job_id: str, signal: str, message: BaseModel) -> None:
        handle = self._client.get_workflow_handle(job_id)
        try:
            await handle.signal(signal, message, rpc_timeout=_CALL_TIMEOUT)
        except RPCError as error:
            _ignore_finished(error)

    async def _cancel(self, job_id: str) -> None:
        handle = self._client.get_workflow_handle(job_id)
        try:
            await handle.cancel(rpc_timeout=_CALL_TIMEOUT)
        except RPCError as error:
            _ignore_finished(error)

    async def _postpone(self, row: RowMapping, error: Exception) -> None:
        seconds = min(_RETRY_SECONDS_MAX, 0.25 * 2.0 ** min(row["tries"], 10))
        _log.warning("dispatch.postponed", job_id=row["job_id"], kind=row["kind"], error=str(error), seconds=seconds)
        parameters = {"outbox_id": row["outbox_id"], "error": f"{type(error).__name__}: {error}", "seconds": seconds}

        async def postpone(connection: AsyncConnection) -> None:
            await connection.execute(_POSTPONE, parameters)

        await in_transaction(self._engine, postpone)

    async def _give_up(self, row: RowMapping, message: str) -> None:
        _log.error("dispatch.impossible", job_id=row["job_id"], kind=row["kind"], error=message)
        failure = JobFailure(kind=FailureKind.PLATFORM, message=message)

        async def fail(connection: AsyncConnection) -> None:
            await self._leadership.fence(connection)
            await finish(connection, row["job_id"], JobState.FAILED, failure)
            await _mark_done(connection, [row["outbox_id"]], message)
            failpoints.reach(Failpoint.BEFORE_GIVING_UP)

        await in_transaction(self._engine, fail)
        failpoints.reach(Failpoint.AFTER_GIVING_UP)


def _ignore_finished(error: RPCError) -> None:
    """A workflow that is closed, or that Temporal lost, hears nothing any more; the reconciler looks after the latter."""
    if error.status is not RPCStatusCode.NOT_FOUND:
        raise error


async def _mark_done(connection: AsyncConnection, outbox_ids: Sequence[int], last_error: str = "") -> None:
    if outbox_ids:
        await connection.execute(_DONE, {"outbox_ids": list(outbox_ids), "error": last_error})
