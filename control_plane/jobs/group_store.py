"""One transaction for many submissions: look, settle each, and write what was accepted by a single statement."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from control_plane.audit.record import AuditRecord, new_record_id
from control_plane.capacity.largest import LargestNodes, LargestNodesReader
from control_plane.db.tables import CHANNEL_EVENTS_WRITTEN, CHANNEL_SCHEDULER
from control_plane.errors import RefusedError
from control_plane.jobs import references
from control_plane.jobs.references import Known
from control_plane.jobs.submission import NewJob, StoredJob, Submission, settle
from governance.policies import TypePolicies

_YIELD_EVERY = 200
"""After settling so many jobs the event loop gets a turn."""

# A job's own columns come by job, those of its submission once, joined by its place among the submissions.
_STORE = """
    WITH claimed AS (
        INSERT INTO idempotency_keys (project, principal, request_id, method, request_sha256, response)
        SELECT * FROM unnest($1::text[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::bytea[])
        ON CONFLICT DO NOTHING RETURNING 1
    ), submitted AS (
        SELECT * FROM unnest($1::text[], $2::text[], $7::text[], $8::text[], $9::uuid[]) WITH ORDINALITY
            AS submission (project, submitter, job_set, trace_parent, rerun_of, place)
    ), new AS (
        SELECT * FROM unnest(
            $10::int[], $11::uuid[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::int[],
            $26::timestamptz[]
        ) AS job (place, job_id, name, type, spec, spec_sha256, inputs, priority, start_by)
        JOIN submitted USING (place)
    ), stored AS (
        INSERT INTO jobs (job_id, project, name, type, spec, spec_sha256, inputs, priority, state,
            event_sequence, trace_parent, submitter, job_set, rerun_of, start_by)
        -- The first event is inserted with it, and counted already.
        SELECT job_id, project, name, type, spec::jsonb, spec_sha256, inputs::jsonb, priority, 'QUEUED',
            1, trace_parent, submitter, job_set, rerun_of, start_by
        FROM new
    ), events AS (
        INSERT INTO job_events (job_id, project, sequence, type, state, attempt, detail, job_set)
        SELECT job_id, project, 1, 'SUBMITTED', 'QUEUED', 0,
            jsonb_build_object('priority', priority, 'spec_sha256', spec_sha256), job_set
        FROM new
    ), records AS (
        INSERT INTO audit_records (record_id, created_at, principal, method, project, object, code, reason, request_id,
            trace_id, peer, count, leaf)
        SELECT record_id, now(), principal, method, project, object, 'OK', '', request_id, trace_id, peer, 1, leaf
        FROM unnest(
            $18::uuid[], $2::text[], $19::text[], $1::text[], $20::text[], $21::text[], $22::text[], $23::text[], $24::bytea[]
        ) AS record (record_id, principal, method, project, object, request_id, trace_id, peer, leaf)
    )
    SELECT (SELECT count(*) FROM claimed) AS claimed, pg_notify(channel, '') FROM unnest($25::text[]) AS channel
"""


class LostRaceError(Exception):
    """Another process stored one of the group's request ids meanwhile: look again."""


async def store(
    raw: Any, group: Sequence[Submission], nodes: LargestNodesReader, policies: TypePolicies
) -> list[bytes | RefusedError]:
    """Writes a group; returns what each caller gets.

    Args:
        raw: an asyncpg connection in a transaction.
        group: the submissions.
        nodes: tells what could ever start.
        policies: what a job's type does to its priority.

    Raises:
        LostRaceError: nothing may be committed; the group is to be stored again.
        PostgresError: the database refuses something in the group.
    """
    known = await references.look_up(raw, group)
    largest = await nodes.read(raw, {job.demand for submission in group for job in submission.jobs if isinstance(job, NewJob)})
    answers: list[bytes | RefusedError] = []
    accepted: list[tuple[Submission, bytes]] = []
    for place, submission in enumerate(group):
        answer = known.earlier.get(place)
        if answer is None:
            answer = await _settled(submission, known, largest, policies)
            if isinstance(answer, bytes) and submission.key is not None:
                accepted.append((submission, answer))
        answers.append(answer)
    if accepted:
        await _insert(raw, accepted, known)
    return answers


async def _settled(submission: Submission, known: Known, largest: LargestNodes, policies: TypePolicies) -> bytes | RefusedError:
    """The response to a submission whose outcomes are settled; or its refusal."""
    rules = known.projects.get(submission.project)
    if rules is None:
        return references.project_not_found(submission.project)
    org_admin = submission.call.principal.org_admin
    inputs = known.inputs.get(submission.project, {})
    submission.outcomes.clear()
    for number, job in enumerate(submission.jobs, 1):
        submission.outcomes.append(
            settle(job, submission.project, rules, inputs, largest, policies, known.now, org_admin=org_admin)
            if isinstance(job, NewJob)
            else job
        )
        if number % _YIELD_EVERY == 0:
            await asyncio.sleep(0)
    if submission.atomic:
        refusals = [outcome for outcome in submission.outcomes if isinstance(outcome, RefusedError)]
        if refusals:
            return refusals[0] if len(refusals) == 1 else _together(refusals)
    return submission.respond(submission.outcomes)


def _together(refusals: Sequence[RefusedError]) -> RefusedError:
    """One refusal for a batch: the first one's reason, and every violation."""
    first = refusals[0]
    violations = [violation for refusal in refusals for violation in refusal.violations]
    message = f"{len(refusals)} items of the batch were refused, so none was stored; the first: {first.message}"
    return RefusedError(first.reason, message, first.metadata, violations)


async def _insert(raw: Any, accepted: Sequence[tuple[Submission, bytes]], known: Known) -> None:
    submissions = [submission for submission, _ in accepted]
    keys = [submission.key for submission in submissions if submission.key is not None]
    jobs = [
        (place, job)
        for place, submission in enumerate(submissions, 1)
        for job in submission.outcomes
        if isinstance(job, StoredJob)
    ]
    records = [_record(submission, known) for submission in submissions]
    claimed = await raw.fetchval(
        _STORE,
        [submission.project for submission in submissions],
        [submission.call.principal.subject for submission in submissions],
        [key.request_id for key in keys],
        [key.method for key in keys],
        [key.sha256 for key in keys],
        [response for _, response in accepted],
        [submission.job_set for submission in submissions],
        [submission.trace_parent for submission in submissions],
        [submission.rerun_of for submission in submissions],
        [place for place, _ in jobs],
        [job.job_id for _, job in jobs],
        [job.name for _, job in jobs],
        [job.type for _, job in jobs],
        [job.spec_json for _, job in jobs],
        [job.spec_sha256 for _, job in jobs],
        [to_json(job.inputs).decode() for _, job in jobs],
        [job.priority for _, job in jobs],
        [record.record_id for record in records],
        [record.method for record in records],
        [record.object for record in records],
        [record.request_id for record in records],
        [record.trace_id for record in records],
        [record.peer for record in records],
        [record.leaf() for record in records],
        [CHANNEL_EVENTS_WRITTEN, CHANNEL_SCHEDULER],
        [job.start_by for _, job in jobs],
    )
    if claimed != len(keys):
        raise LostRaceError
    for submission in submissions:
        submission.call.audited = True


def _record(submission: Submission, known: Known) -> AuditRecord:
    call = submission.call
    jobs = [outcome for outcome in submission.outcomes if isinstance(outcome, StoredJob)]
    return AuditRecord(
        record_id=new_record_id(),
        created_at=known.now,
        principal=call.principal.subject,
        method=call.method,
        project=submission.project,
        object=str(jobs[0].job_id) if len(jobs) == 1 else f"{len(jobs)} jobs",
        code="OK",
        reason="",
        request_id="" if submission.key is None else submission.key.request_id,
        trace_id=call.trace_id,
        peer=call.peer,
    )
