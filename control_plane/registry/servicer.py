"""RegistryService over the repository."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.call import current_call
from control_plane.datasets.object_store import ObjectStore
from control_plane.datasets.servicer import SIZE_BYTES_MAX
from control_plane.db.mutations import audited, once
from control_plane.errors import invalid_field
from control_plane.jobs.spec import ProjectName, ResourceName, Sha256Hex, canonical_sha256
from control_plane.registry import repository
from control_plane.rpc import pages
from control_plane.rpc.convert import identifier, plain, struct, timestamp, validated_value
from control_plane.rpc.pages import Cursors
from control_plane.rpc.text import require_text
from headway.registry.v1 import registry_service_pb2 as pb
from headway.registry.v1 import registry_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class RegistryServicer(registry_service_pb2_grpc.RegistryServiceServicer):
    """Base models, and the versions that jobs make of them."""

    def __init__(self, engine: AsyncEngine, cursors: Cursors, store: ObjectStore) -> None:
        self._engine = engine
        self._cursors = cursors
        self._store = store

    async def RegisterBaseModel(  # noqa: N802 - gRPC's name
        self, request: pb.RegisterBaseModelRequest, context: _Context
    ) -> pb.RegisterBaseModelResponse:
        """Makes a base model known, once per request id; the same name with the same bytes is the same base model."""
        del context
        request_id = identifier(request.request_id, "request_id")
        model = request.base_model
        validated_value(ResourceName, model.name, "base_model.name")
        validated_value(Sha256Hex, model.sha256, "base_model.sha256")
        if model.format != pb.BASE_MODEL_FORMAT_GGUF:
            raise invalid_field("base_model.format", f"is {model.format}; expected BASE_MODEL_FORMAT_GGUF")
        if not 1 <= model.size_bytes <= SIZE_BYTES_MAX:
            raise invalid_field("base_model.size_bytes", f"is {model.size_bytes}; expected 1 to {SIZE_BYTES_MAX:,}")
        require_text({"base_model.license": (model.license, 200), "base_model.attribution": (model.attribution, 2_000)})
        if not self._store.key(model.uri, "base_model.uri").endswith(f"/blobs/{model.sha256}"):
            raise invalid_field("base_model.uri", f"is {model.uri!r}; expected the URI CreateUpload returned for this sha256")
        await self._store.require(model.uri, model.size_bytes, "base_model.uri")
        values = {
            "name": model.name,
            "sha256": model.sha256,
            "size_bytes": model.size_bytes,
            "uri": model.uri,
            "format": "GGUF",
            "license": model.license,
            "attribution": model.attribution,
        }
        current_call().object = model.name

        async def register(connection: AsyncConnection) -> pb.RegisterBaseModelResponse:
            stored = await repository.register_base_model(connection, values)
            return pb.RegisterBaseModelResponse(base_model=_base_model(stored))

        sha256 = canonical_sha256({"method": "RegisterBaseModel", **values})
        return await once(self._engine, "", request_id, sha256, pb.RegisterBaseModelResponse, register)

    async def ListBaseModels(self, request: pb.ListBaseModelsRequest, context: _Context) -> pb.ListBaseModelsResponse:  # noqa: N802 - gRPC's name
        """The base models, by name."""
        del context
        size = pages.page_size(request.page_size, default=50, maximum=1_000)
        after = self._cursors.decode(request.page_token, "ListBaseModels", (str,), "page_token")
        async with self._engine.connect() as connection:
            rows = await repository.list_base_models(connection, "" if after is None else after[0], size + 1)
        page = rows[:size]
        token = self._cursors.encode("ListBaseModels", [page[-1]["name"]]) if len(rows) > size else ""
        return pb.ListBaseModelsResponse(base_models=map(_base_model, page), next_page_token=token)

    async def RegisterModelVersion(  # noqa: N802 - gRPC's name
        self, request: pb.RegisterModelVersionRequest, context: _Context
    ) -> pb.RegisterModelVersionResponse:
        """Registers what a job made, once per job."""
        del context
        job_id, version = identifier(request.job_id, "job_id"), request.model_version
        values = {
            "project": validated_value(ProjectName, version.project, "model_version.project"),
            "model": validated_value(ResourceName, version.model, "model_version.model"),
            "manifest_uri": version.manifest_uri,
            "manifest_sha256": validated_value(Sha256Hex, version.manifest_sha256, "model_version.manifest_sha256"),
            "lineage": MessageToDict(version.lineage, preserving_proto_field_name=True),
            "metrics": plain(version.metrics),
        }
        self._store.key(version.manifest_uri, "model_version.manifest_uri")

        async def register(connection: AsyncConnection) -> pb.ModelVersion:
            await repository.register_version(connection, job_id, request.attempt, values)
            return _model_version(await repository.version_of_job(connection, job_id))

        return pb.RegisterModelVersionResponse(model_version=await audited(self._engine, register))

    async def RecordMirror(self, request: pb.RecordMirrorRequest, context: _Context) -> pb.RecordMirrorResponse:  # noqa: N802 - gRPC's name
        """Notes that MLflow mirrors a version."""
        del context
        job_id = identifier(request.job_id, "job_id")
        require_text({"mlflow_version": (request.mlflow_version, 64)})

        async def record(connection: AsyncConnection) -> pb.ModelVersion:
            await repository.record_mirror(connection, job_id, request.attempt, request.mlflow_version)
            return _model_version(await repository.version_of_job(connection, job_id))

        return pb.RecordMirrorResponse(model_version=await audited(self._engine, record))

    async def GetModelVersion(  # noqa: N802 - gRPC's name
        self, request: pb.GetModelVersionRequest, context: _Context
    ) -> pb.GetModelVersionResponse:
        """One version, by number or alias; the newest if neither is given."""
        del context
        project = validated_value(ProjectName, request.project, "project")
        model = validated_value(ResourceName, request.model, "model")
        selector = request.WhichOneof("selector")
        async with self._engine.connect() as connection:
            row = await repository.get_version(
                connection,
                project,
                model,
                version=request.version if selector == "version" else None,
                alias=validated_value(ResourceName, request.alias, "alias") if selector == "alias" else None,
            )
        return pb.GetModelVersionResponse(model_version=_model_version(row))

    async def ListModelVersions(  # noqa: N802 - gRPC's name
        self, request: pb.ListModelVersionsRequest, context: _Context
    ) -> pb.ListModelVersionsResponse:
        """Versions of a project's models."""
        del context
        project = validated_value(ProjectName, request.project, "project")
        model = validated_value(ResourceName, request.model, "model") if request.model else ""
        size = pages.page_size(request.page_size, default=50, maximum=1_000)
        query = ["ListModelVersions", project, model]
        after = self._cursors.decode(request.page_token, query, (str, int), "page_token")
        async with self._engine.connect() as connection:
            rows = await repository.list_versions(
                connection, project, model, None if after is None else (after[0], after[1]), size + 1
            )
        page = rows[:size]
        token = self._cursors.encode(query, [page[-1]["model"], page[-1]["version"]]) if len(rows) > size else ""
        return pb.ListModelVersionsResponse(model_versions=map(_model_version, page), next_page_token=token)


def _base_model(row: Mapping[Any, Any]) -> pb.BaseModel:
    return pb.BaseModel(
        name=row["name"],
        sha256=row["sha256"],
        size_bytes=row["size_bytes"],
        uri=row["uri"],
        format=pb.BaseModelFormat.Value(f"BASE_MODEL_FORMAT_{row['format']}"),
        license=row["license"],
        attribution=row["attribution"],
        create_time=timestamp(row["created_at"]),
    )


def _model_version(row: Mapping[Any, Any]) -> pb.ModelVersion:
    return pb.ModelVersion(
        project=row["project"],
        model=row["model"],
        version=row["version"],
        manifest_uri=row["manifest_uri"],
        manifest_sha256=row["manifest_sha256"],
        lineage=ParseDict(row["lineage"], pb.Lineage(), ignore_unknown_fields=True),
        metrics=struct(row["metrics"]),
        aliases=sorted(row["aliases"] or ()),
        mlflow_version=row["mlflow_version"],
        create_time=timestamp(row["created_at"]),
    )
