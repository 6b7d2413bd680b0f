"""One settings object for every process of Headway.

`headway up` writes it to a file for its own servers; pointed at real servers, the same object is the production
configuration. Sources, the later wins: defaults, the JSON file named by HEADWAY_SETTINGS, environment variables such as
HEADWAY_POSTGRES__DSN. Unknown keys fail. A process that lacks a section it needs says so at start (`require`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from control_plane.attempts.retention import RetentionPolicy
from governance.policies import TypePolicies

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


class StorageSettings(_Section):
    """What is kept of what jobs store. Nothing is deleted but by `python -m control_plane collect`."""

    keep_latest: int = Field(default=3, ge=2, le=10_000)
    """Of a job's checkpoints, this many of the newest."""
    keep_best: int = Field(default=1, ge=0, le=10_000)
    """Of a job's checkpoints, this many of those with the lowest metric."""
    keep_every_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Of a job's checkpoints, those at multiples of this; 0: none for that reason."""
    final_job_days: float = Field(default=30.0, ge=0)
    """How long after its end a job's checkpoints, prepared data and records are kept. Registered versions stay."""
    grace_hours: float = Field(default=24.0, ge=0)
    """How long an object must have been there before it may be marked as garbage, and marked before it is deleted."""
    stale_upload_hours: float = Field(default=168.0, ge=0)
    """Uploads in parts that were begun longer ago are given up."""

    @property
    def retention(self) -> RetentionPolicy:
        """The rule for checkpoints."""
        return RetentionPolicy(self.keep_latest, self.keep_best, self.keep_every_steps)


class MlflowSettings(_Section):
    """Where runs and model versions are mirrored."""

    tracking_uri: str


class TlsSettings(_Section):
    """How the gRPC services prove who they are, and ask it of their callers. The files are read anew when they change."""

    certificate_file: Path
    """PEM: the server's certificate, then those between it and its CA."""
    key_file: Path
    """PEM: its private key."""
    client_ca_file: Path | None = None
    """PEM: CAs whose client certificates are believed; None: none are asked for."""
    client_certificate_required: bool = False
    """Whether the port refuses connections without a client certificate. If not, it asks for none: see the next."""
    client_certificate_listen: str | None = None
    """host:port of a second port, for callers with a client certificate; None: there is none."""

    @model_validator(mode="after")
    def _certificates_have_a_port_and_a_ca(self) -> Self:
        wanted = self.client_certificate_required or self.client_certificate_listen is not None
        if wanted != (self.client_ca_file is not None):
            raise ValueError(
                "client certificates take client_ca_file, and a port: client_certificate_required for the only one, or "
                "client_certificate_listen for a second one; expected both or neither"
            )
        return self


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
    stream_stalled_seconds: Seconds = 30.0
    """A stream whose reader takes no message for this long is cut."""
    stream_seconds_max: Seconds = 86_400.0
    """The longest a stream lives; its reader resumes with its cursor."""
    event_retention_days: float = Field(default=90.0, gt=0)
    """Events of final jobs older than this are kept no more."""
    log_hot_seconds: Seconds = 300.0
    """How long after its job is final a log stays in the database before it moves to the object store."""
    tls: TlsSettings | None = None
    """None: plain text, for a loopback address or behind a proxy that ends TLS."""
    reflection: Literal["org_admins", "everyone"] = "org_admins"
    """Who may ask the server for its contract: admins of the organisation, or every caller with a credential."""


SignatureAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class OidcSettings(_Section):
    """Whose access tokens are believed (OpenID Connect; RFC 9068)."""

    issuer: str
    """Must equal the token's `iss` to the letter."""
    audience: str
    """Must be the token's only `aud`."""
    jwks_url: Annotated[str, Field(pattern=r"\A(?:https://|http://(?:127\.0\.0\.1|localhost|\[::1\])[:/])")]
    """Where the issuer's keys are (RFC 7517); https, but for a loopback address."""
    algorithms: tuple[SignatureAlgorithm, ...] = ("RS256", "ES256")
    """Signatures that are believed; there are asymmetric ones only."""
    lifetime_seconds_max: Seconds = 86_400.0
    """A token that lives longer is refused, whatever it says."""
    leeway_seconds: float = Field(default=30.0, ge=0.0, le=300.0)
    """By how much clocks may differ."""
    keys_max_age_seconds: Seconds = 3_600.0
    """Keys older than this are not believed when they cannot be fetched anew."""
    keys_refetch_seconds: Seconds = 30.0
    """Shortest time between two fetches, whatever tokens arrive."""


class BootstrapToken(_Section):
    """A token that exists from the first start on, so that somebody can make the others."""

    name: Annotated[str, Field(pattern=r"\A[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?\z")]
    role: Literal["ORG_ADMIN", "WORKER"]
    secret_sha256: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    """SHA-256 of the whole token, in hex."""


class IdentitySettings(_Section):
    """Who is believed."""

    secret_key: SecretStr = Field(min_length=32)
    """Signs cursors and the credentials of attempts; equal on every replica, at least 32 characters of chance."""
    bootstrap_tokens: tuple[BootstrapToken, ...] = ()
    bootstrap_projects: tuple[Annotated[str, Field(pattern=r"\A[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\z")], ...] = ()
    """Projects that exist from the first start on."""
    oidc: OidcSettings | None = None
    """None: service tokens and certificates only."""
    cache_seconds: float = Field(default=30.0, gt=0.0, le=60.0)
    """How long a verified credential and its roles are believed without looking again; at most 60."""
    attempt_token_seconds: Seconds = 3_600.0
    """How long the credential of an attempt lives."""


class LimitsSettings(_Section):
    """What one caller, and all together, may ask of one control plane process."""

    calls_per_second: float = Field(default=2_000.0, gt=0)
    """Unary calls of one principal, on average."""
    calls_burst: int = Field(default=4_000, ge=1)
    """Unary calls of one principal at once, after a pause."""
    unary_calls_max: int = Field(default=1_000, ge=1)
    """Unary calls under way, of all."""
    unary_calls_per_principal: int = Field(default=256, ge=1)
    """Unary calls under way, of one principal."""
    streams_max: int = Field(default=4_000, ge=1)
    """Open streams, of all."""
    streams_per_principal: int = Field(default=2_000, ge=1)
    """Open streams, of one principal."""


class WebhookSettings(_Section):
    """Where notifications may go."""

    allow_http: bool = False
    """Whether endpoints without TLS are allowed."""
    private_hosts: tuple[str, ...] = ()
    """Host names that may resolve to private addresses."""
    tries_max: int = Field(default=8, ge=1, le=50)
    """How often a notification is tried, with growing pauses."""


class PriceSettings(_Section):
    """What accelerators cost, for estimates."""

    currency: Annotated[str, Field(pattern=r"\A[A-Z]{3}\z")] = "EUR"
    """ISO 4217 code."""
    micros_per_hour: dict[str, Annotated[int, Field(ge=0, le=10**9)]] = {}
    """Millionths of the currency for one accelerator-hour, by kind."""


class PolicySettings(_Section):
    """What a job's type does to its priority."""

    filler_types: tuple[Literal["fine_tune", "hpo", "retrain", "rlhf", "evaluation"], ...] = ()
    """Types of job that only fill what would be idle: whatever priority they are given, it never leaves class scavenger."""

    @property
    def types(self) -> TypePolicies:
        """As governance has them."""
        return TypePolicies(filler_types=frozenset(self.filler_types))


class TelemetrySettings(_Section):
    """Where traces go."""

    otlp_traces_url: str | None = None
    """Full URL of an OTLP/HTTP traces endpoint; None: traces stay inside the process."""
    otlp_headers: dict[str, str] = {}


class GrowingPool(_Section):
    """A pool of nodes that something outside makes as they are needed, such as a node pool of Kubernetes with an autoscaler."""

    name: Annotated[str, Field(pattern=r"\A[a-z0-9.-]{1,32}\z")]
    """As its nodes register it."""
    accelerator_kind: Annotated[str, Field(pattern=r"\A[a-z0-9.-]{1,32}\z")]
    """Of its nodes."""
    accelerators: int = Field(ge=1, le=4_096)
    """Of each of its nodes."""
    nodes_max: int = Field(ge=1, le=10_000)
    """Most nodes that it grows to."""
    spot: bool = False
    """Whether they may be taken away without notice."""
    cpu_millis: int = Field(default=0, ge=0, le=1_048_576_000)
    """Thousandths of a CPU of each; 0: not counted."""
    memory_mib: int = Field(default=0, ge=0, le=1_073_741_824)
    """MiB of memory of each; 0: not counted."""


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
    dispatches_per_second: float = Field(default=2_000.0, gt=0.0)
    """Most starts and signals sent to Temporal in a second, on average; at most a second's worth at once."""
    round_operations_max: int = Field(default=1_000_000, ge=1_000)
    """Bound of a round's work, in requests looked at, placements tried and victims weighed; the next round takes the rest."""
    aging_seconds_per_point: Seconds = 60.0
    """Waiting so long outweighs one point of priority, inside a project and class."""
    past_use_half_life_hours: float = Field(default=168.0, gt=0)
    """After so long half of a project's past use is forgotten."""
    reserve_after_seconds: Seconds = 60.0
    """The first request that has been too large for what is free for so long gets a reservation."""
    deadline_notice_seconds: Annotated[float, Field(ge=0, le=31_536_000)] = 3_600.0
    """A job with a deadline rises by one class so long before the latest start that keeps it."""
    preempt_after_seconds: Seconds = 120.0
    """A lease is not preempted before it has run so long."""
    yield_seconds: Seconds = 120.0
    """How long a preempted lease may take to reach a checkpoint and yield, before it is taken away."""
    preemptions_burst: int = Field(default=32, ge=0, le=100_000)
    """Most leases preempted at once, after an hour without any."""
    preemptions_per_hour: int = Field(default=120, ge=1, le=1_000_000)
    """Most leases preempted in an hour, on average."""
    preemption_waste_accelerator_hours_per_hour: float = Field(default=64.0, ge=0)
    """Most work since its last checkpoint that preemption may throw away in an hour."""
    recheck_seconds: Seconds = 600.0
    """How often the leader reads everything anew, and holds what it knew against that."""
    reason_history_days: float = Field(default=30.0, gt=0)
    """How long it is remembered why something waited, after something else held. What still holds is kept."""
    round_records_days: float = Field(default=30.0, gt=0)
    """How long the records of rounds are kept."""
    record_inputs_every_rounds: int = Field(default=0, ge=0)
    """Every so many rounds that decide something all that was decided on is recorded too, to be replayed; 0: never."""
    growing_pools: tuple[GrowingPool, ...] = ()
    """Pools that grow when needed: what they could hold is accepted and waits, even while none of their nodes is there."""
    failpoint: str = ""
    """For tests of crashes: where the process ends as in a power cut; empty: nowhere."""


class WorkerTlsSettings(_Section):
    """How a worker recognises the control plane, and what it shows it."""

    ca_file: Path | None = None
    """PEM: the CAs of the control plane's certificate; None: those that gRPC brings."""
    certificate_file: Path | None = None
    """PEM: the worker's own certificate, for mutual TLS."""
    key_file: Path | None = None
    """PEM: its private key."""


class WorkerSettings(_Section):
    """How workers run things."""

    token: SecretStr | None = None
    """The worker's service token, role WORKER; None: the certificate in `tls` says who it is."""
    tls: WorkerTlsSettings | None = None
    """How the control plane is dialled; None: plain text."""
    allow_insecure: bool = False
    """Whether the token may go to another machine in plain text: only inside a network that encrypts by itself."""
    name: str = "worker"
    """Stable across restarts, unique in the cluster; [a-z0-9-]."""
    scratch_dir: Path = Path(".headway/scratch")
    """Working files of running phases; may be lost."""
    cache_bytes_max: int = Field(default=200 * 2**30, ge=0)
    """Most bytes of base models that are kept on the machine; exceeded only by those in use at once."""
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
    storage: StorageSettings = StorageSettings()
    mlflow: MlflowSettings | None = None
    control_plane: ControlPlaneSettings | None = None
    identity: IdentitySettings | None = None
    limits: LimitsSettings = LimitsSettings()
    webhooks: WebhookSettings = WebhookSettings()
    prices: PriceSettings = PriceSettings()
    policies: PolicySettings = PolicySettings()
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
