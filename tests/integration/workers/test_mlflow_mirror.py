"""The mirror in MLflow against a real server: one version per job, whatever is repeated."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from mlflow.tracking import MlflowClient

from workers.cpu.mlflow_mirror import MirroredVersion, MlflowMirror


@pytest.fixture
def version() -> MirroredVersion:
    return MirroredVersion(
        project=f"p-{uuid.uuid4().hex[:8]}",
        model="answers",
        job_id=str(uuid.uuid4()),
        source="s3://headway/projects/p/manifests/0.json",
        description="p/answers version 1",
        params={"training.steps": "10"},
        metrics={"gain": 1.5},
        tags={"headway.dataset_sha256": "1" * 64},
        aliases=["dev"],
    )


@pytest.fixture
def client(mlflow_uri: str) -> MlflowClient:
    return MlflowClient(mlflow_uri, registry_uri=mlflow_uri)


def test_a_version_comes_with_its_run_and_lineage(mlflow_uri: str, client: MlflowClient, version: MirroredVersion) -> None:
    number = MlflowMirror(mlflow_uri).mirror(version)
    mirrored = client.get_model_version_by_alias(version.name, "dev")
    assert (mirrored.version, mirrored.source) == (number, version.source)
    assert mirrored.tags["headway.job_id"] == version.job_id
    assert mirrored.tags["headway.dataset_sha256"] == "1" * 64
    assert mirrored.run_id is not None
    run = client.get_run(mirrored.run_id)
    assert run.data.params == {"training.steps": "10"}
    assert run.data.metrics == {"gain": 1.5}
    assert run.info.status == "FINISHED"


def test_a_repetition_finds_what_is_there(mlflow_uri: str, client: MlflowClient, version: MirroredVersion) -> None:
    first = MlflowMirror(mlflow_uri).mirror(version)
    assert MlflowMirror(mlflow_uri).mirror(version) == first
    assert len(client.search_model_versions(f"name = '{version.name}'")) == 1


def test_two_tries_at_once_leave_one_version(mlflow_uri: str, client: MlflowClient, version: MirroredVersion) -> None:
    with ThreadPoolExecutor(4) as pool:
        tries = [pool.submit(MlflowMirror(mlflow_uri).mirror, version) for _ in range(4)]
    numbers = {tried.result() for tried in tries}
    left = client.search_model_versions(f"name = '{version.name}'")
    assert [str(found.version) for found in left] == [min(numbers, key=int)]


def test_the_next_job_takes_the_alias_and_a_late_repetition_does_not_take_it_back(
    mlflow_uri: str, client: MlflowClient, version: MirroredVersion
) -> None:
    mirror = MlflowMirror(mlflow_uri)
    first = mirror.mirror(version)
    second = mirror.mirror(replace(version, job_id=str(uuid.uuid4())))
    assert first != second
    # Our registry answers the repetition that the alias points elsewhere by now.
    assert mirror.mirror(replace(version, aliases=[])) == first
    assert client.get_model_version_by_alias(version.name, "dev").version == second
