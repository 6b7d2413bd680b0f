"""MLflow's view of a registered version. Postgres decides; this copy is repaired by repeating it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

JOB_TAG = "headway.job_id"


@dataclass(frozen=True, slots=True)
class MirroredVersion:
    """What MLflow is told. `tags` hold the lineage; they are set on the run and on the version."""

    project: str
    model: str
    job_id: str
    source: str
    """URI of the package's manifest: weights stay in the object store."""
    description: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    aliases: Sequence[str]

    @property
    def name(self) -> str:
        """Name of the registered model in MLflow, where projects share one list."""
        return f"{self.project}.{self.model}"


class MlflowMirror:
    """MLflow's tracking server. Its methods block."""

    def __init__(self, tracking_uri: str) -> None:
        self._tracking_uri = tracking_uri
        self._client: MlflowClient | None = None

    def mirror(self, version: MirroredVersion) -> str:
        """Makes run and model version, once per job, and points the aliases to it; returns the version's number in MLflow.

        What an earlier try made is found by the job's id, so a lost reply costs nothing.

        Raises:
            MlflowException: the server refused, or does not answer.
        """
        client = self._connected()
        _ensure_registered_model(client, version)
        if not _versions_of(client, version):
            client.create_model_version(
                version.name,
                version.source,
                _ensure_run(client, version),
                tags={**version.tags, JOB_TAG: version.job_id},
                description=version.description,
                await_creation_for=0,  # There is nothing to wait for: the files are in the object store already.
            )
        # Two tries at the same time may both have made one: the lower number stays.
        number, *superfluous = _versions_of(client, version)
        for other in superfluous:
            _delete(client, version.name, other)
        for alias in version.aliases:
            _point(client, version.name, alias, str(number))
        return str(number)

    def _connected(self) -> MlflowClient:
        if self._client is None:
            # Read by the library when it is first used; its own defaults wait for minutes, where Temporal retries better.
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
            from mlflow.tracking import MlflowClient  # noqa: PLC0415 — seconds and 150 MB that only this activity needs

            self._client = MlflowClient(tracking_uri=self._tracking_uri, registry_uri=self._tracking_uri)
        return self._client


def _ensure_registered_model(client: MlflowClient, version: MirroredVersion) -> None:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 — as above

    try:
        client.create_registered_model(version.name, tags={"headway.project": version.project})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions_of(client: MlflowClient, version: MirroredVersion) -> list[int]:
    found: Sequence[Any] = client.search_model_versions(f"name = '{version.name}' and tag.`{JOB_TAG}` = '{version.job_id}'")
    return sorted(int(entry.version) for entry in found)


def _point(client: MlflowClient, name: str, alias: str, number: str) -> None:
    """Points an alias to a version; MLflow refuses one of two that do so at once, and then it may point there already."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 — as above

    for last in (False, False, True):
        try:
            client.set_registered_model_alias(name, alias, number)
        except MlflowException:
            if last:
                raise
        else:
            return


def _delete(client: MlflowClient, name: str, number: int) -> None:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 — as above

    try:
        client.delete_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _ensure_run(client: MlflowClient, version: MirroredVersion) -> str:
    from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415 — as above

    experiment_id = _ensure_experiment(client, f"headway.{version.project}")
    known = client.search_runs([experiment_id], f"tags.`{JOB_TAG}` = '{version.job_id}'", max_results=1)
    run = known[0] if known else client.create_run(experiment_id, tags={JOB_TAG: version.job_id}, run_name=version.model)
    run_id: str = run.info.run_id
    _log(
        client,
        run_id,
        metrics=[Metric(key, value, run.info.start_time, 0) for key, value in version.metrics.items()],
        params=[Param(key, value) for key, value in version.params.items()],
        tags=[RunTag(key, value) for key, value in version.tags.items()],
    )
    client.set_terminated(run_id)
    return run_id


def _log(client: MlflowClient, run_id: str, **values: Any) -> None:
    """Writes a run's values; MLflow refuses one of two that write the same at once, and takes it once they are there."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 — as above

    for last in (False, False, True):
        try:
            client.log_batch(run_id, **values)
        except MlflowException:
            if last:
                raise
        else:
            return


def _ensure_experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 — as above

    try:
        return client.create_experiment(name)
    except MlflowException as error:
        experiment = client.get_experiment_by_name(name)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
            raise
        return experiment.experiment_id
