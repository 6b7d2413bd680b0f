"""The REGISTER phase: the version in our registry, which decides, and then its mirror in MLflow."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from google.protobuf.struct_pb2 import Struct
from temporalio import activity

from control_plane.jobs.states import JobPhase
from headway.registry.v1 import registry_service_pb2 as pb
from headway_client import telemetry
from workers.activities import heartbeating, translated
from workers.control_plane import ControlPlane
from workers.cpu.mlflow_mirror import MirroredVersion, MlflowMirror
from workers.lineage import code_version, environment_lock_sha256
from workers.workflows.contracts import RegisteredModel, RegisterInput

_ALIAS = "dev"
_PARAM_CHARACTERS_MAX = 500


class RegisterActivity:
    """The activity `register` with what it needs."""

    def __init__(self, control_plane: ControlPlane, mirror: MlflowMirror) -> None:
        self._control_plane = control_plane
        self._mirror = mirror

    @activity.defn
    async def register(self, argument: RegisterInput) -> RegisteredModel:
        """Registers what the job made. Safe to repeat: the job has one version, here and in MLflow."""
        context = argument.context
        with translated(context):
            async with heartbeating():
                await self._control_plane.start_phase(context, JobPhase.REGISTER)
                lineage = await asyncio.to_thread(_lineage, argument)
                stored = await self._control_plane.register_model_version(context, _version(argument, lineage))
                with telemetry.tracer().start_as_current_span("mirror in MLflow"):
                    number = await asyncio.to_thread(self._mirror.mirror, _mirrored(argument, stored))
                await self._control_plane.record_mirror(context, number)
                registered = RegisteredModel(
                    model=stored.model,
                    version=stored.version,
                    mlflow_version=number,
                    # Empty when a newer version has it already.
                    alias=_ALIAS if _ALIAS in stored.aliases else "",
                )
                await self._control_plane.finish_phase(context, JobPhase.REGISTER, registered.model_dump())
                return registered


def _lineage(argument: RegisterInput) -> pb.Lineage:
    job = argument.context.job
    return pb.Lineage(
        job_id=job.job_id,
        attempt=argument.context.attempt,
        dataset=job.spec.dataset.name,
        dataset_sha256=job.spec.dataset.sha256,
        base_model=job.spec.base_model,
        base_model_sha256=job.base_model_sha256,
        spec_sha256=job.spec_sha256,
        code_version=code_version(),
        environment_lock_sha256=environment_lock_sha256(),
        trace_id=job.trace_id,
    )


def _version(argument: RegisterInput, lineage: pb.Lineage) -> pb.ModelVersion:
    job, files = argument.context.job, argument.package.files
    metrics = Struct()
    metrics.update(_metrics(argument))
    return pb.ModelVersion(
        project=job.project,
        model=job.spec.output_model,
        manifest_uri=files.manifest_uri,
        manifest_sha256=files.manifest_sha256,
        lineage=lineage,
        metrics=metrics,
    )


def _metrics(argument: RegisterInput) -> dict[str, float]:
    return argument.scores.model_dump(exclude={"samples", "records"})


def _mirrored(argument: RegisterInput, stored: pb.ModelVersion) -> MirroredVersion:
    # From what is stored, not from what was sent: after a lost reply the first registration counts, with its lineage.
    lineage = stored.lineage
    tags = {f"headway.{field.name}": str(value) for field, value in lineage.ListFields() if field.name != "job_id"}
    tags |= {"headway.version": str(stored.version), "headway.manifest_sha256": stored.manifest_sha256}
    return MirroredVersion(
        project=stored.project,
        model=stored.model,
        job_id=lineage.job_id,
        source=stored.manifest_uri,
        description=f"{stored.project}/{stored.model} version {stored.version}",
        params=dict(_flattened(argument.context.job.spec.model_dump(mode="json"))),
        metrics=_metrics(argument),
        tags=tags,
        aliases=[alias for alias in stored.aliases if alias == _ALIAS],
    )


def _flattened(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested fields as MLflow's flat params, their names joined by dots."""
    params: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            params += _flattened(value, f"{prefix}{name}.")
        else:
            params.append((prefix + name, (value if isinstance(value, str) else json.dumps(value))[:_PARAM_CHARACTERS_MAX]))
    return params
