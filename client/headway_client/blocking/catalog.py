"""Datasets, base models and the models that jobs make."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from headway.datasets.v1 import dataset_service_pb2 as datasets
from headway.datasets.v1.dataset_service_pb2_grpc import DatasetServiceStub
from headway.registry.v1 import registry_service_pb2 as registry
from headway.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from headway_client import requests, uploads
from headway_client.arguments import build
from headway_client.blocking.calls import Calls


class CatalogCalls(Calls):
    """DatasetService and RegistryService, without what only workers write."""

    @cached_property
    def _datasets(self) -> DatasetServiceStub:
        return DatasetServiceStub(self._channel)

    @cached_property
    def _registry(self) -> RegistryServiceStub:
        return RegistryServiceStub(self._channel)

    def upload(self, project: str, path: Path, progress: uploads.Progress = uploads.ignore_progress) -> uploads.Uploaded:
        """Brings a file's bytes into the object store, unless they are there already.

        Raises:
            OSError: the file cannot be read.
        """
        content = uploads.read_content(path)
        upload = self._unary(self._datasets.CreateUpload, requests.create_upload(project, content))
        return uploads.put(content, upload, self._deadline_seconds, progress)

    def register_dataset(
        self,
        project: str,
        name: str,
        uploaded: uploads.Uploaded,
        *,
        license_: str = "",
        attribution: str = "",
        request_id: str | None = None,
    ) -> datasets.Dataset:
        """Gives uploaded bytes a name among the project's datasets."""
        request = requests.register_dataset(
            project, name, uploaded, license_=license_, attribution=attribution, request_id=request_id
        )
        return self._unary(self._datasets.RegisterDataset, request).dataset

    def list_datasets(self, project: str) -> Iterator[datasets.Dataset]:
        """A project's datasets, by name."""
        for page in self._pages(self._datasets.ListDatasets, build(datasets.ListDatasetsRequest, project=project)):
            yield from page.datasets

    def register_base_model(
        self,
        name: str,
        uploaded: uploads.Uploaded,
        *,
        license_: str = "",
        attribution: str = "",
        request_id: str | None = None,
    ) -> registry.BaseModel:
        """Makes an uploaded GGUF file known as a base model."""
        request = requests.register_base_model(
            name, uploaded, license_=license_, attribution=attribution, request_id=request_id
        )
        return self._unary(self._registry.RegisterBaseModel, request).base_model

    def list_base_models(self) -> Iterator[registry.BaseModel]:
        """The base models, by name."""
        for page in self._pages(self._registry.ListBaseModels, registry.ListBaseModelsRequest()):
            yield from page.base_models

    def get_model_version(
        self, project: str, model: str, *, version: int | None = None, alias: str | None = None
    ) -> registry.ModelVersion:
        """One version of a model, by number or by alias."""
        request = requests.get_model_version(project, model, version, alias)
        return self._unary(self._registry.GetModelVersion, request).model_version

    def list_model_versions(self, project: str, model: str = "") -> Iterator[registry.ModelVersion]:
        """The versions of a project's models, or of one of them, newest first."""
        request = build(registry.ListModelVersionsRequest, project=project, model=model)
        for page in self._pages(self._registry.ListModelVersions, request):
            yield from page.model_versions
