"""DatasetService: presigned uploads and names for what was uploaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import grpc
from sqlalchemy import RowMapping, func, select
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.call import current_call
from control_plane.datasets.object_store import ObjectStore, blob_key
from control_plane.db.mutations import audited, once
from control_plane.db.tables import datasets
from control_plane.errors import invalid_field
from control_plane.jobs.spec import ProjectName, ResourceName, Sha256Hex, canonical_sha256
from control_plane.projects.repository import require_open
from control_plane.rpc import pages
from control_plane.rpc.convert import identifier, timestamp, to_fields, validated_value
from control_plane.rpc.pages import Cursors
from control_plane.rpc.text import require_text
from headway.datasets.v1 import dataset_service_pb2 as pb
from headway.datasets.v1 import dataset_service_pb2_grpc

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# What S3 takes in one PUT.
SIZE_BYTES_MAX = 5 * 2**30


class DatasetServicer(dataset_service_pb2_grpc.DatasetServiceServicer):
    """Datasets: immutable bytes with a name, a hash and a licence."""

    def __init__(self, engine: AsyncEngine, cursors: Cursors, store: ObjectStore) -> None:
        self._engine = engine
        self._cursors = cursors
        self._store = store

    async def CreateUpload(self, request: pb.CreateUploadRequest, context: _Context) -> pb.CreateUploadResponse:  # noqa: N802 - gRPC's name
        """A presigned URL for bytes with a known hash; none if they are there already."""
        del context
        project = validated_value(ProjectName, request.project, "project")
        sha256 = validated_value(Sha256Hex, request.sha256, "sha256")
        _require_size(request.size_bytes, "size_bytes")
        key = blob_key(project, sha256)
        current_call().object = self._store.uri(key)
        # The URL is a right to write: who was given one is on record before they have it.
        await audited(self._engine, lambda connection: require_open(connection, project))
        if await self._store.size(key) == request.size_bytes:
            return pb.CreateUploadResponse(uri=self._store.uri(key))
        upload = self._store.presign_upload(key, sha256, request.size_bytes)
        return pb.CreateUploadResponse(
            uri=self._store.uri(key),
            upload_url=upload.url,
            headers=upload.headers,
            expire_time=timestamp(upload.expires_at),
        )

    async def RegisterDataset(  # noqa: N802 - gRPC's name
        self, request: pb.RegisterDatasetRequest, context: _Context
    ) -> pb.RegisterDatasetResponse:
        """Gives uploaded bytes a name, once per request id."""
        del context
        request_id, dataset = identifier(request.request_id, "request_id"), request.dataset
        project = validated_value(ProjectName, dataset.project, "dataset.project")
        validated_value(ResourceName, dataset.name, "dataset.name")
        sha256 = validated_value(Sha256Hex, dataset.sha256, "dataset.sha256")
        _require_size(dataset.size_bytes, "dataset.size_bytes")
        require_text({"dataset.license": (dataset.license, 200), "dataset.attribution": (dataset.attribution, 2_000)})
        uri = self._store.uri(blob_key(project, sha256))
        if dataset.uri not in {"", uri}:
            raise invalid_field("dataset.uri", f"is {dataset.uri[:200]!r}; expected {uri!r}, or nothing")
        await self._store.require(uri, dataset.size_bytes, "dataset.uri")
        content = canonical_sha256({"method": "RegisterDataset", **to_fields(dataset), "uri": uri})

        current_call().object = dataset.name

        # Once: a late repeat does not point the name back to old bytes.
        async def register(connection: AsyncConnection) -> pb.RegisterDatasetResponse:
            await require_open(connection, project)
            await connection.execute(
                insert(datasets)
                .values(
                    project=project,
                    name=dataset.name,
                    sha256=sha256,
                    size_bytes=dataset.size_bytes,
                    uri=uri,
                    license=dataset.license,
                    attribution=dataset.attribution,
                )
                # A name that points to these bytes again points to them from now on.
                .on_conflict_do_update(
                    index_elements=["project", "name", "sha256"],
                    set_={"created_at": func.now(), "license": dataset.license, "attribution": dataset.attribution},
                )
            )
            stored = await _newest(connection, project, dataset.name)
            return pb.RegisterDatasetResponse(dataset=_to_proto(stored))

        return await once(self._engine, project, request_id, content, pb.RegisterDatasetResponse, register)

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: _Context) -> pb.ListDatasetsResponse:  # noqa: N802 - gRPC's name
        """A project's datasets by name, each as its name means now."""
        del context
        project = validated_value(ProjectName, request.project, "project")
        size = pages.page_size(request.page_size, default=50, maximum=1_000)
        query = ["ListDatasets", project]
        after = self._cursors.decode(request.page_token, query, (str,), "page_token")
        statement = select(datasets).where(datasets.c.project == project)
        if after is not None:
            statement = statement.where(datasets.c.name > after[0])
        statement = (
            statement.ext(distinct_on(datasets.c.name))
            .order_by(datasets.c.name, datasets.c.created_at.desc(), datasets.c.sha256)
            .limit(size + 1)
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        page = rows[:size]
        token = self._cursors.encode(query, [page[-1]["name"]]) if len(rows) > size else ""
        return pb.ListDatasetsResponse(datasets=map(_to_proto, page), next_page_token=token)


async def _newest(connection: AsyncConnection, project: str, name: str) -> RowMapping:
    query = (
        select(datasets)
        .where(datasets.c.project == project, datasets.c.name == name)
        .order_by(datasets.c.created_at.desc(), datasets.c.sha256)
        .limit(1)
    )
    return (await connection.execute(query)).mappings().one()


def _require_size(size_bytes: int, field: str) -> None:
    if not 1 <= size_bytes <= SIZE_BYTES_MAX:
        raise invalid_field(field, f"is {size_bytes}; expected 1 to {SIZE_BYTES_MAX:,}")


def _to_proto(row: Mapping[Any, Any]) -> pb.Dataset:
    return pb.Dataset(
        project=row["project"],
        name=row["name"],
        sha256=row["sha256"],
        size_bytes=row["size_bytes"],
        uri=row["uri"],
        license=row["license"],
        attribution=row["attribution"],
        create_time=timestamp(row["created_at"]),
    )
