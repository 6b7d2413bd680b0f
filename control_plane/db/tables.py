"""The tables, as SQLAlchemy Core. Alembic's migrations build the same; a test compares the two.

Times are the database's (`now()`): leases and heartbeats of many hosts are judged by one clock.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

_NOW = text("now()")
_EMPTY_OBJECT = text("'{}'::jsonb")

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", UUID(as_uuid=False), primary_key=True),
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("spec", JSONB, nullable=False),
    Column("spec_sha256", Text, nullable=False),
    # What the workflow needs beyond the spec: where the pinned inputs are.
    Column("inputs", JSONB, nullable=False),
    Column("priority", Integer, CheckConstraint("priority BETWEEN 0 AND 1000", name="priority"), nullable=False),
    Column(
        "state",
        Text,
        CheckConstraint("state IN ('QUEUED','STARTING','RUNNING','CANCELLING','SUCCEEDED','FAILED','CANCELLED')", name="state"),
        nullable=False,
    ),
    Column("phase", Text),
    Column("waiting_reason", Text, nullable=False, server_default=""),
    # The fence: leases granted so far. A worker's write names it.
    Column("attempt", Integer, nullable=False, server_default="0"),
    # Counts the job's events, so that within a job commit order is sequence order.
    Column("event_sequence", BigInteger, nullable=False, server_default="0"),
    Column("checkpoint_step", Integer, nullable=False, server_default="0"),
    Column("failure", JSONB),
    Column("result", JSONB, nullable=False, server_default=_EMPTY_OBJECT),
    # Milliseconds by kind of accelerator: integers, so that sums are exact.
    Column("accelerator_ms", JSONB, nullable=False, server_default=_EMPTY_OBJECT),
    Column("trace_parent", Text, nullable=False, server_default=""),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Column("ended_at", DateTime(timezone=True)),
    Column("version", BigInteger, nullable=False, server_default="1"),
    CheckConstraint("(ended_at IS NOT NULL) = (state IN ('SUCCEEDED','FAILED','CANCELLED'))", name="ended"),
    Index("ix_jobs_queued", text("priority DESC"), "created_at", "job_id", postgresql_where=text("state = 'QUEUED'")),
    Index("ix_jobs_open", "project", postgresql_where=text("state IN ('STARTING','RUNNING','CANCELLING')")),
    Index("ix_jobs_listing", "project", text("created_at DESC"), text("job_id DESC")),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("project", Text, primary_key=True),
    Column("request_id", UUID(as_uuid=False), primary_key=True),
    Column("method", Text, nullable=False),
    Column("request_sha256", Text, nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Index("ix_idempotency_keys_created_at", "created_at"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("event_id", BigInteger, Identity(always=True), primary_key=True),
    Column("job_id", UUID(as_uuid=False), ForeignKey("jobs.job_id"), nullable=False),
    Column("project", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("phase", Text),
    Column("attempt", Integer, nullable=False),
    Column("detail", JSONB, nullable=False, server_default=_EMPTY_OBJECT),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    # Commit order, given by the sequencer after the commit; a reader that saw N has seen everything below N.
    Column("position", BigInteger),
    Index("ix_job_events_job_sequence", "job_id", "sequence", unique=True),
    Index("ix_job_events_position", "position", unique=True, postgresql_where=text("position IS NOT NULL")),
    Index("ix_job_events_unsequenced", "event_id", postgresql_where=text("position IS NULL")),
    Index("ix_job_events_project_position", "project", "position"),
)

event_log_head = Table(
    "event_log_head",
    metadata,
    # One row. Its lock is the sequencer's fence.
    Column("singleton", Integer, CheckConstraint("singleton = 1", name="singleton"), primary_key=True),
    Column("position", BigInteger, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("outbox_id", BigInteger, Identity(always=True), primary_key=True),
    # start_workflow, signal_lease_granted, signal_lease_lost, cancel_workflow
    Column("kind", Text, nullable=False),
    Column("job_id", UUID(as_uuid=False), ForeignKey("jobs.job_id"), nullable=False),
    # Makes the effect unique: a second row for it is refused.
    Column("dedupe_key", Text, nullable=False, unique=True),
    Column("payload", JSONB, nullable=False, server_default=_EMPTY_OBJECT),
    Column("trace_parent", Text, nullable=False, server_default=""),
    # held: written with the job, waits for admission. ready: to be dispatched. done: dispatched or void.
    Column("state", Text, CheckConstraint("state IN ('held','ready','done')", name="state"), nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("not_before", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Column("last_error", Text, nullable=False, server_default=""),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Column("done_at", DateTime(timezone=True)),
    Index("ix_outbox_ready", "not_before", "outbox_id", postgresql_where=text("state = 'ready'")),
    Index("ix_outbox_job_id", "job_id"),
)

leases = Table(
    "leases",
    metadata,
    Column("lease_id", UUID(as_uuid=False), primary_key=True),
    Column("job_id", UUID(as_uuid=False), ForeignKey("jobs.job_id"), nullable=False),
    Column("project", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("state", Text, CheckConstraint("state IN ('REQUESTED','GRANTED','ENDED')", name="state"), nullable=False),
    Column("accelerators", Integer, CheckConstraint("accelerators >= 1", name="accelerators"), nullable=False),
    # Asked for; may be "any".
    Column("accelerator_kind", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("max_run_seconds", Integer, nullable=False),
    Column("waiting_reason", Text, nullable=False, server_default=""),
    Column("requested_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    # Set at the grant.
    Column("attempt", Integer),
    Column("worker", Text),
    Column("worker_incarnation", UUID(as_uuid=False)),
    Column("granted_kind", Text),
    Column("leader_epoch", BigInteger),
    Column("granted_at", DateTime(timezone=True)),
    Column("expires_at", DateTime(timezone=True)),
    # Set at the end.
    Column("ended_at", DateTime(timezone=True)),
    Column("outcome", Text),
    Column("accelerator_ms", BigInteger, nullable=False, server_default="0"),
    CheckConstraint(
        "state <> 'GRANTED' OR (attempt IS NOT NULL AND worker IS NOT NULL AND granted_kind IS NOT NULL"
        " AND granted_at IS NOT NULL AND expires_at IS NOT NULL)",
        name="granted",
    ),
    Index("ix_leases_open", "state", "lease_id", postgresql_where=text("state IN ('REQUESTED','GRANTED')")),
    Index("ix_leases_job_id", "job_id"),
    Index("ix_leases_usage", "project", "granted_kind", postgresql_where=text("state = 'ENDED'")),
)

workers = Table(
    "workers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("incarnation", UUID(as_uuid=False), nullable=False),
    Column("accelerator_kind", Text, nullable=False),
    Column("accelerators", Integer, CheckConstraint("accelerators >= 0", name="accelerators"), nullable=False),
    Column("heartbeat_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("job_id", UUID(as_uuid=False), ForeignKey("jobs.job_id"), primary_key=True),
    Column("step", Integer, CheckConstraint("step >= 1", name="step"), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("manifest_uri", Text, nullable=False),
    Column("manifest_sha256", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
)

log_chunks = Table(
    "log_chunks",
    metadata,
    Column("job_id", UUID(as_uuid=False), ForeignKey("jobs.job_id"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("first_sequence", BigInteger, primary_key=True),
    Column("last_sequence", BigInteger, nullable=False),
    # zstd of a serialized headway.logs.v1.AppendLogsRequest.
    Column("data", LargeBinary, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    CheckConstraint("last_sequence >= first_sequence", name="sequence"),
)

datasets = Table(
    "datasets",
    metadata,
    Column("project", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("sha256", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("uri", Text, nullable=False),
    Column("license", Text, nullable=False),
    Column("attribution", Text, nullable=False),
    # The newest row of a name is what the name means.
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
)

base_models = Table(
    "base_models",
    metadata,
    Column("name", Text, primary_key=True),
    Column("sha256", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("uri", Text, nullable=False),
    Column("format", Text, CheckConstraint("format IN ('GGUF')", name="format"), nullable=False),
    Column("license", Text, nullable=False),
    Column("attribution", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("project", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    # At most one version per job, whatever is repeated.
    Column("job_id", UUID(as_uuid=False), ForeignKey("jobs.job_id"), nullable=False, unique=True),
    Column("manifest_uri", Text, nullable=False),
    Column("manifest_sha256", Text, nullable=False),
    Column("lineage", JSONB, nullable=False),
    Column("metrics", JSONB, nullable=False),
    Column("mlflow_version", Text, nullable=False, server_default=""),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
)

model_aliases = Table(
    "model_aliases",
    metadata,
    Column("project", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
)

quotas = Table(
    "quotas",
    metadata,
    Column("project", Text, primary_key=True),
    Column("max_accelerators", JSONB, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
)

leaders = Table(
    "leaders",
    metadata,
    Column("name", Text, primary_key=True),
    # Grows with every change of leader; every decision names it.
    Column("epoch", BigInteger, nullable=False),
    Column("holder", Text, nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
)

# LISTEN/NOTIFY channels. A notification is a wake-up and nothing more: whoever misses one finds the work by polling.
CHANNEL_SCHEDULER = "headway_scheduler"
CHANNEL_OUTBOX = "headway_outbox"
CHANNEL_EVENTS_WRITTEN = "headway_events_written"
CHANNEL_EVENTS_POSITIONED = "headway_events_positioned"
CHANNEL_LOGS = "headway_logs"
