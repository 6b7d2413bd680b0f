"""One settings object for every process of Headway.

`headway up` writes it to a file for its own servers; pointed at real servers, the same object is the production
configuration. Sources, the later wins: defaults, the JSON file named by HEADWAY_SETTINGS, environment variables such as
HEADWAY_POSTGRES__DSN. Unknown keys fail. A process that lacks a section it needs says so at start (`require`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

_T = TypeVar("_T")

Seconds = Annotated[float, Field(gt=0)]


class MissingSettingError(Exception):
    """A process was started without a section it needs."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PostgresSettings(_Section):
    """Where the truth is."""

    dsn: SecretStr
    """postgresql://user:password@host:port/database"""
    pool_size: int = Field(default=16, ge=1, le=200)
    """Most connections this process holds."""


class TemporalSettings(_Section):
    """Where workflows run."""

    address: str
    """host:port of the frontend."""
    namespace: str = "default"
    ui_url: str | None = None
    """Where a person can look, if anywhere."""


class S3Settings(_Section):
    """Where bytes are."""

    endpoint_url: str | None = None
    """None for AWS itself."""
    public_endpoint_url: str | None = None
    """Endpoint that presigned URLs name, if clients reach the store by another address."""
    region: str = "us-east-1"
    bucket: str = "headway"
    access_key_id: SecretStr | None = None
    """None: the ambient credentials."""
    secret_access_key: SecretStr | None = None


class MlflowSettings(_Section):
    """Where runs and model versions are mirrored."""

    tracking_uri: str


class ControlPlaneSettings(_Section):
    """Where the gRPC services are."""

    address: str
    """host:port that clients dial."""
    listen: str | None = None
    """host:port that the server binds; None: the address."""
    deadline_seconds_max: Seconds = 60.0
    """The longest a unary call may take, whatever its caller asks for."""
    stream_heartbeat_seconds: Seconds = 5.0
    """An idle stream sends its cursor this often; the contract says at least every 10 s."""


class TelemetrySettings(_Section):
    """Where traces go."""

    otlp_traces_url: str | None = None
    """Full URL of an OTLP/HTTP traces endpoint; None: traces stay inside the process."""
    otlp_headers: dict[str, str] = {}


class SchedulerSettings(_Section):
    """How the scheduler keeps time."""

    leader_lease_seconds: Seconds = 10.0
    """How long leadership outlives its last renewal."""
    round_coalesce_ms: float = Field(default=8.0, ge=0.0, le=1_000.0)
    """Events within this time share a round."""
    poll_seconds: Seconds = 2.0
    """A round at least this often, should a notification be lost."""
    lease_seconds: Seconds = 30.0
    """How long a lease outlives its last renewal."""
    worker_lost_seconds: Seconds = 15.0
    """How long a worker outlives its last heartbeat."""
    prepare_ahead_per_project: int = Field(default=8, ge=1, le=10_000)
    """Most jobs of one project that are admitted and not yet final."""


class WorkerSettings(_Section):
    """How workers run things."""

    name: str = "worker"
    """Stable across restarts, unique in the cluster; [a-z0-9-]."""
    scratch_dir: Path = Path(".headway/scratch")
    """Working files of running phases; may be lost."""
    cpu_slots: int = Field(default=2, ge=1, le=1_000)
    """Most activities at once on a CPU worker."""
    accelerators: int | None = Field(default=None, ge=0, le=1_024)
    """Accelerators a GPU worker offers; None: as many GPUs as there are, else one of kind "cpu"."""
    runner_threads: int | None = Field(default=None, ge=1, le=1_024)
    """Threads of a training process; None: the machine's cores."""
    heartbeat_timeout_seconds: Seconds = 10.0
    """A worker that is silent this long has lost its activity."""
    stop_grace_seconds: Seconds = 60.0
    """From asking a training process to stop at a checkpoint to killing it."""


class Settings(BaseSettings):
    """Everything a process of Headway can be told."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="HEADWAY_", env_nested_delimiter="__", env_nested_max_split=1
    )

    postgres: PostgresSettings | None = None
    temporal: TemporalSettings | None = None
    s3: S3Settings | None = None
    mlflow: MlflowSettings | None = None
    control_plane: ControlPlaneSettings | None = None
    telemetry: TelemetrySettings = TelemetrySettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    worker: WorkerSettings = WorkerSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over file over defaults; no dotenv, no secrets folder."""
        del dotenv_settings, file_secret_settings
        path = os.environ.get("HEADWAY_SETTINGS")
        if path is None:
            return init_settings, env_settings
        if not Path(path).is_file():
            raise MissingSettingError(f"HEADWAY_SETTINGS names {path}, which is not a file; expected a JSON settings file")
        return init_settings, env_settings, JsonConfigSettingsSource(settings_cls, json_file=path)


def require(section: _T | None, name: str, process: str) -> _T:
    """The section, or a clear refusal to start.

    Raises:
        MissingSettingError: the section is absent.
    """
    if section is None:
        raise MissingSettingError(
            f"{process} needs the settings section {name!r}, which is absent; set it in the file named by HEADWAY_SETTINGS "
            f"or by environment variables HEADWAY_{name.upper()}__*"
        )
    return section
