"""What must be known before a group of submissions is written, in one look: earlier answers, projects, what specs name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from control_plane.db.idempotency import RequestKey
from control_plane.errors import Reason, RefusedError
from control_plane.jobs.resolve import Found, InputKind, Reference
from control_plane.jobs.submission import NewJob, ProjectRules, Submission

# One statement, because a round trip costs more than what it asks for. Each part answers in the same columns.
_LOOK = """
    WITH open AS (
        -- Locked until the commit, so that no project is deleted while it gains jobs; in one order, whatever the group.
        SELECT project, priority_max FROM projects WHERE project = ANY($4::text[]) AND deleted_at IS NULL
        ORDER BY project FOR KEY SHARE
    )
    SELECT 'TIME' AS what, 0::bigint AS place, '' AS first, '' AS second, 0 AS number, NULL::bytea AS response, now() AS now
    UNION ALL
    SELECT 'EARLIER', asked.place, known.method, known.request_sha256, 0, known.response, NULL
    FROM unnest($1::text[], $2::text[], $3::uuid[]) WITH ORDINALITY AS asked (project, principal, request_id, place)
    JOIN idempotency_keys AS known USING (project, principal, request_id)
    UNION ALL
    SELECT 'PROJECT', 0, project, '', priority_max, NULL, NULL FROM open
    UNION ALL
    -- The newest row of a name is what the name means; with a hash, only that one will do.
    SELECT 'DATASET', asked.place, known.sha256, known.uri, 0, NULL, NULL
    FROM unnest($5::text[], $6::text[], $7::text[]) WITH ORDINALITY AS asked (project, name, sha256, place)
    CROSS JOIN LATERAL (
        SELECT sha256, uri FROM datasets
        WHERE project = asked.project AND name = asked.name AND (asked.sha256 = '' OR sha256 = asked.sha256)
        ORDER BY created_at DESC, sha256 LIMIT 1
    ) AS known
    UNION ALL
    SELECT 'BASE_MODEL', asked.place, known.sha256, known.uri, 0, NULL, NULL
    FROM unnest($8::text[]) WITH ORDINALITY AS asked (name, place) JOIN base_models AS known USING (name)
    UNION ALL
    SELECT 'MODEL_VERSION', asked.place, known.manifest_sha256, known.manifest_uri, known.version, NULL, NULL
    FROM unnest($9::text[], $10::text[], $11::int[], $12::text[]) WITH ORDINALITY
        AS asked (project, model, version, alias, place)
    LEFT JOIN model_aliases AS pointer
        ON pointer.project = asked.project AND pointer.model = asked.model AND pointer.alias = asked.alias
    JOIN model_versions AS known
        ON known.project = asked.project AND known.model = asked.model
        AND known.version = CASE asked.version WHEN 0 THEN pointer.version ELSE asked.version END
"""


@dataclass(frozen=True, slots=True)
class Known:
    """What there is.

    Attributes:
        now: the transaction's time.
        earlier: what a repeat gets, by its place in the group: the first time's response, or why it is no repeat.
        projects: by name.
        inputs: by project; there what each reference means now.
    """

    now: datetime
    earlier: Mapping[int, bytes | RefusedError]
    projects: Mapping[str, ProjectRules]
    inputs: Mapping[str, Mapping[Reference, Found]]


async def look_up(raw: Any, group: Sequence[Submission]) -> Known:
    """Looks up everything that a group needs, each distinct reference once.

    Args:
        raw: an asyncpg connection in a transaction.
        group: submissions of any callers and projects.
    """
    asked: dict[InputKind, list[tuple[str, Reference]]] = {kind: [] for kind in InputKind}
    inputs: dict[str, dict[Reference, Found]] = {}
    for project, reference in _distinct(group):
        inputs.setdefault(project, {})
        asked[reference.kind].append((project, reference))
    datasets, models, versions = (asked[kind] for kind in (InputKind.DATASET, InputKind.BASE_MODEL, InputKind.MODEL_VERSION))
    keys = [submission.key for submission in group]
    rows = await raw.fetch(
        _LOOK,
        ["" if key is None else key.project for key in keys],
        ["" if key is None else key.principal for key in keys],
        [None if key is None else key.request_id for key in keys],
        list({submission.project for submission in group}),
        [project for project, _ in datasets],
        [reference.name for _, reference in datasets],
        [reference.sha256 for _, reference in datasets],
        [reference.name for _, reference in models],
        [project for project, _ in versions],
        [reference.name for _, reference in versions],
        [reference.version for _, reference in versions],
        [reference.alias for _, reference in versions],
    )
    earlier: dict[int, bytes | RefusedError] = {}
    projects: dict[str, ProjectRules] = {}
    for what, place, first, second, number, response, _ in rows[1:]:
        if what == "EARLIER":
            key = keys[place - 1]
            if key is not None:
                earlier[place - 1] = _answer(key, first, second, response)
        elif what == "PROJECT":
            projects[first] = ProjectRules(number)
        else:
            project, reference = asked[InputKind(what)][place - 1]
            inputs[project][reference] = Found(sha256=first, uri=second, version=number)
    return Known(rows[0]["now"], earlier, projects, inputs)


def _distinct(group: Sequence[Submission]) -> set[tuple[str, Reference]]:
    found: set[tuple[str, Reference]] = set()
    for submission in group:
        project = submission.project
        for job in submission.jobs:
            if isinstance(job, NewJob):
                found.update([(project, reference) for reference in job.references])
    return found


def _answer(key: RequestKey, method: str, sha256: str, response: bytes) -> bytes | RefusedError:
    try:
        key.require_same(method, sha256)
    except RefusedError as error:
        return error
    return bytes(response)


def project_not_found(project: str) -> RefusedError:
    """The refusal for a project that is not there, and equally for one the caller may not see."""
    return RefusedError(Reason.PROJECT_NOT_FOUND, f"there is no project {project}", {"project": project})
