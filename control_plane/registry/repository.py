"""Base models and model versions in PostgreSQL, which decides; MLflow mirrors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import RowMapping, and_, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.attempts.fence import lock_current, refuse_foreign_manifest
from control_plane.db.tables import base_models, model_aliases, model_versions
from control_plane.errors import Reason, RefusedError

ALIAS_DEV = "dev"


async def register_base_model(connection: AsyncConnection, values: Mapping[str, Any]) -> RowMapping:
    """Stores a base model; the same name with the same bytes is the same base model.

    Raises:
        RefusedError: the name has other bytes.
    """
    await connection.execute(insert(base_models).values(**values).on_conflict_do_nothing(index_elements=["name"]))
    stored = (await connection.execute(select(base_models).where(base_models.c.name == values["name"]))).mappings().one()
    if stored["sha256"] != values["sha256"]:
        raise RefusedError(
            Reason.NAME_TAKEN,
            f"base_model.name: {values['name']} is registered with sha256 {stored['sha256']}; a base model never changes, "
            "choose another name",
            {"name": values["name"], "sha256": stored["sha256"]},
        )
    return stored


async def list_base_models(connection: AsyncConnection, after: str, limit: int) -> Sequence[RowMapping]:
    """Base models by name, beginning after a name."""
    query = select(base_models).where(base_models.c.name > after).order_by(base_models.c.name).limit(limit)
    return (await connection.execute(query)).mappings().all()


async def register_version(connection: AsyncConnection, job_id: str, attempt: int, values: Mapping[str, Any]) -> str:
    """Registers what a job made as its model's next version, with alias `dev`; returns the job's id. A repeat changes nothing.

    Raises:
        RefusedError: the attempt is stale; or the project, or the manifest, is not the job's.
    """
    job = await lock_current(connection, job_id, attempt)
    if job["project"] != values["project"]:
        raise RefusedError(
            Reason.STALE_ATTEMPT,
            f"job {job_id} belongs to project {job['project']}, not {values['project']}",
            {"job_id": job_id, "attempt": str(attempt), "current_attempt": str(job["attempt"])},
        )
    refuse_foreign_manifest(job, values["manifest_uri"], values["manifest_sha256"], "model_version.manifest_uri")
    known = await connection.execute(select(model_versions.c.version).where(model_versions.c.job_id == job_id))
    if known.first() is not None:
        return job_id
    project, model = values["project"], values["model"]
    # Versions count 1, 2, 3, … within a model: one registration at a time.
    await connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"model/{project}/{model}", 0))))
    newest = select(func.coalesce(func.max(model_versions.c.version), 0)).where(
        model_versions.c.project == project, model_versions.c.model == model
    )
    version = (await connection.execute(newest)).scalar_one() + 1
    await connection.execute(insert(model_versions).values(**values, job_id=job_id, version=version))
    await connection.execute(
        insert(model_aliases)
        .values(project=project, model=model, alias=ALIAS_DEV, version=version)
        .on_conflict_do_update(
            index_elements=["project", "model", "alias"], set_={"version": version, "updated_at": func.now()}
        )
    )
    return job_id


async def record_mirror(connection: AsyncConnection, job_id: str, attempt: int, mlflow_version: str) -> None:
    """Notes the number that MLflow gave a job's version.

    Raises:
        RefusedError: the attempt is stale, or the job has no version.
    """
    await lock_current(connection, job_id, attempt)
    noted = await connection.execute(
        update(model_versions).where(model_versions.c.job_id == job_id).values(mlflow_version=mlflow_version)
    )
    if noted.rowcount == 0:
        raise RefusedError(Reason.MODEL_NOT_FOUND, f"job {job_id} has registered no model version", {"model": ""})


def _versions() -> Any:
    aliases = (
        select(func.array_agg(model_aliases.c.alias))
        .where(
            model_aliases.c.project == model_versions.c.project,
            model_aliases.c.model == model_versions.c.model,
            model_aliases.c.version == model_versions.c.version,
        )
        .scalar_subquery()
    )
    return select(model_versions, aliases.label("aliases"))


async def version_of_job(connection: AsyncConnection, job_id: str) -> RowMapping:
    """The version a job made."""
    return (await connection.execute(_versions().where(model_versions.c.job_id == job_id))).mappings().one()


async def get_version(
    connection: AsyncConnection, project: str, model: str, *, version: int | None, alias: str | None
) -> RowMapping:
    """One version, by number or alias; the newest if neither is given.

    Raises:
        RefusedError: there is none.
    """
    query = _versions().where(model_versions.c.project == project, model_versions.c.model == model)
    if alias is not None:
        pointed = select(model_aliases.c.version).where(
            model_aliases.c.project == project, model_aliases.c.model == model, model_aliases.c.alias == alias
        )
        query = query.where(model_versions.c.version == pointed.scalar_subquery())
    elif version is not None:
        query = query.where(model_versions.c.version == version)
    row = (await connection.execute(query.order_by(model_versions.c.version.desc()).limit(1))).mappings().one_or_none()
    if row is None:
        which = f" with alias {alias!r}" if alias is not None else f" version {version}" if version is not None else ""
        raise RefusedError(
            Reason.MODEL_NOT_FOUND, f"project {project} has no model {model!r}{which}", {"model": f"{project}/{model}"}
        )
    return row


async def list_versions(
    connection: AsyncConnection, project: str, model: str, after: tuple[str, int] | None, limit: int
) -> Sequence[RowMapping]:
    """Versions of a project by model, each model's newest first, beginning after a (model, version)."""
    query = _versions().where(model_versions.c.project == project)
    if model:
        query = query.where(model_versions.c.model == model)
    if after is not None:
        query = query.where(
            or_(
                model_versions.c.model > after[0],
                and_(model_versions.c.model == after[0], model_versions.c.version < after[1]),
            )
        )
    query = query.order_by(model_versions.c.model, model_versions.c.version.desc()).limit(limit)
    return (await connection.execute(query)).mappings().all()
