"""The tables, as SQLAlchemy Core. Alembic's migrations build the same; a test compares the two.

Times are the database's (`now()`): leases and heartbeats of many hosts are judged by one clock.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

import control_plane.db.budget_tables  # noqa: F401  # pyright: ignore[reportUnusedImport] - completes the metadata
from control_plane.db.schema import NOW as _NOW
from control_plane.db.schema import metadata

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
        CheckConstraint(
            "state IN ('QUEUED','STARTING','RUNNING','PAUSING','PAUSED','CANCELLING','SUCCEEDED','FAILED','CANCELLED')",
            name="state",
        ),
        nullable=False,
    ),
    Column("phase", Text),
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
    # When its workflow was asked for; until then the job is this row and nothing else.
    Column("admitted_at", DateTime(timezone=True)),
    # The subject of the credential it was submitted with.
    Column("submitter", Text, nullable=False, server_default=""),
    Column("job_set", Text, nullable=False, server_default=""),
    Column("rerun_of", UUID(as_uuid=False)),
    # Pauses asked for so far: the number of the newest. Its confirmation names it, so that one never confirms another.
    Column("pauses", Integer, nullable=False, server_default="0"),
    # Of a job with a deadline: the latest start that keeps it, and when the scheduler raised the job because that was near.
    Column("start_by", DateTime(timezone=True)),
    Column("raised_at", DateTime(timezone=True)),
    # What its largest lease will ask for, as a lease's shape is written: what is alike has the same text. A trigger's.
    Column("shape", Text),
    CheckConstraint("(ended_at IS NOT NULL) = (state IN ('SUCCEEDED','FAILED','CANCELLED'))", name="ended"),
    Index(
        "ix_jobs_lines",
        "project",
        "shape",
        "priority",
        postgresql_include=["type", "created_at", "job_id"],
        postgresql_where=text("state = 'QUEUED'"),
    ),
    Index("ix_jobs_open", "project", postgresql_where=text("state IN ('STARTING','RUNNING','PAUSING','PAUSED','CANCELLING')")),
    Index(
        "ix_jobs_deadlines",
        "start_by",
        postgresql_where=text("start_by IS NOT NULL AND raised_at IS NULL AND ended_at IS NULL"),
    ),
    Index("ix_jobs_listing", "project", text("created_at DESC"), text("job_id DESC")),
    Index(
        "ix_jobs_prepared",
        "project",
        text("(spec -> 'dataset' ->> 'sha256')"),
        text("created_at DESC"),
        postgresql_where=text("result ? 'prepare'"),
    ),
    Index("ix_jobs_listing_all", text("created_at DESC"), text("job_id DESC")),
    Index("ix_jobs_listing_state", "project", "state", text("created_at DESC"), text("job_id DESC")),
    Index("ix_jobs_listing_priority", "project", text("priority DESC"), text("job_id DESC")),
    Index(
        "ix_jobs_job_set",
        "project",
        "job_set",
        text("created_at DESC"),
        text("job_id DESC"),
        postgresql_where=text("job_set <> ''"),
    ),
    # Room for as many new versions as a page has rows: rounds change many at once, and most updates then touch no index.
    postgresql_with={"fillfactor": "50"},
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    # Per principal and project: nobody learns of another's request ids.
    Column("project", Text, primary_key=True),
    Column("principal", Text, primary_key=True, server_default=""),
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
    # The order of insertion.
    Column("event_id", BigInteger, Identity(always=True), nullable=False),
    # No foreign key here and on the outbox: their rows are written in the transaction of their job, thousands at a time.
    Column("job_id", UUID(as_uuid=False), primary_key=True),
    Column("project", Text, nullable=False),
    Column("sequence", BigInteger, primary_key=True),
    Column("type", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("phase", Text),
    Column("attempt", Integer, nullable=False),
    Column("detail", JSONB, nullable=False, server_default=_EMPTY_OBJECT),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    # Commit order, given by the sequencer after the commit; a reader that saw N has seen everything below N.
    Column("position", BigInteger),
    # The job set the job belonged to then.
    Column("job_set", Text, nullable=False, server_default=""),
    Index("ix_job_events_position", "position", unique=True, postgresql_where=text("position IS NOT NULL")),
    # What retention takes next.
    Index("ix_job_events_final", "created_at", postgresql_where=text("state IN ('SUCCEEDED','FAILED','CANCELLED')")),
    Index("ix_job_events_unsequenced", "event_id", postgresql_where=text("position IS NULL")),
    Index("ix_job_events_project_position", "project", "position", postgresql_where=text("position IS NOT NULL")),
    Index(
        "ix_job_events_job_set_position",
        "project",
        "job_set",
        "position",
        postgresql_where=text("position IS NOT NULL AND job_set <> ''"),
    ),
)

event_log_head = Table(
    "event_log_head",
    metadata,
    # One row. Its lock is the sequencer's fence.
    Column("singleton", Integer, CheckConstraint("singleton = 1", name="singleton"), primary_key=True),
    Column("position", BigInteger, nullable=False),
    # What lies at or before this position is kept no more.
    Column("oldest_position", BigInteger, nullable=False, server_default="0"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("outbox_id", BigInteger, Identity(always=True), primary_key=True),
    # start_workflow, signal_lease_granted, signal_lease_lost, signal_pause, signal_resume, signal_preempt, cancel_workflow
    Column("kind", Text, nullable=False),
    Column("job_id", UUID(as_uuid=False), nullable=False),
    # Makes the effect unique: a second row for it is refused.
    Column("dedupe_key", Text, nullable=False, unique=True),
    Column("payload", JSONB, nullable=False, server_default=_EMPTY_OBJECT),
    Column("trace_parent", Text, nullable=False, server_default=""),
    # ready: to be dispatched. done: dispatched or void.
    Column("state", Text, CheckConstraint("state IN ('ready','done')", name="state"), nullable=False),
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
    # Of each member.
    Column("accelerators", Integer, CheckConstraint("accelerators >= 1", name="accelerators"), nullable=False),
    # Asked for; may be "any".
    Column("accelerator_kind", Text, nullable=False),
    Column("members", Integer, CheckConstraint("members >= 1", name="members"), nullable=False, server_default="1"),
    Column("cpu_millis", Integer, CheckConstraint("cpu_millis >= 0", name="cpu_millis"), nullable=False, server_default="0"),
    Column("memory_mib", Integer, CheckConstraint("memory_mib >= 0", name="memory_mib"), nullable=False, server_default="0"),
    # Whether spot pools will do.
    Column("spot", Boolean, nullable=False, server_default=text("false")),
    # What every node must carry.
    Column("labels", JSONB, nullable=False, server_default=_EMPTY_OBJECT),
    # The level whose domains matter, and the mode.
    Column("topology", JSONB),
    # All of the above in one text, which a trigger writes.
    Column("shape", Text),
    Column("priority", Integer, nullable=False),
    Column("max_run_seconds", Integer, nullable=False),
    Column("requested_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    # Since when its job has waited for it: one asked for after a preemption keeps the preempted one's time.
    Column("waiting_since", DateTime(timezone=True), nullable=False, server_default=_NOW),
    # [[node, members]]: what preemption makes room for it on.
    Column("claim", JSONB),
    # Set at the grant.
    Column("attempt", Integer),
    # The node of its first member.
    Column("worker", Text),
    Column("worker_incarnation", UUID(as_uuid=False)),
    Column("granted_kind", Text),
    Column("pool", Text),
    # [[node, members, incarnation]], in order of node.
    Column("placement", JSONB),
    Column("leader_epoch", BigInteger),
    Column("granted_at", DateTime(timezone=True)),
    Column("expires_at", DateTime(timezone=True)),
    # When its work was last safe.
    Column("checkpointed_at", DateTime(timezone=True)),
    # Set when it is asked to yield: to which request, when, and the work at stake, in accelerator-milliseconds. To none:
    # because its node is drained.
    Column("preempted_for", UUID(as_uuid=False)),
    Column("preempted_at", DateTime(timezone=True)),
    Column("preempted_ms", BigInteger, nullable=False, server_default="0"),
    # Set at the end.
    Column("ended_at", DateTime(timezone=True)),
    Column("outcome", Text),
    # Of all members.
    Column("accelerator_ms", BigInteger, nullable=False, server_default="0"),
    CheckConstraint(
        "state <> 'GRANTED' OR (attempt IS NOT NULL AND worker IS NOT NULL AND granted_kind IS NOT NULL"
        " AND granted_at IS NOT NULL AND expires_at IS NOT NULL)",
        name="granted",
    ),
    Index("ix_leases_open", "state", "lease_id", postgresql_where=text("state IN ('REQUESTED','GRANTED')")),
    Index("ix_leases_job_id", "job_id"),
    Index("ix_leases_preempted_at", "preempted_at", postgresql_where=text("preempted_at IS NOT NULL")),
    Index("ix_leases_run", "project", text("ended_at DESC"), postgresql_where=text("outcome IN ('completed','failed')")),
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
    # What quotas and prices are about; empty: by its kind, and by whether it is spot.
    Column("pool", Text, nullable=False, server_default=""),
    # Whether it may go without notice.
    Column("spot", Boolean, nullable=False, server_default=text("false")),
    Column("cpu_millis", Integer, CheckConstraint("cpu_millis >= 0", name="cpu_millis"), nullable=False, server_default="0"),
    Column("memory_mib", Integer, CheckConstraint("memory_mib >= 0", name="memory_mib"), nullable=False, server_default="0"),
    Column("labels", JSONB, nullable=False, server_default=_EMPTY_OBJECT),
    # It takes nothing new; what runs on it goes on.
    Column("cordoned", Boolean, nullable=False, server_default=text("false")),
    # It takes nothing new, and what runs on it is asked to yield.
    Column("draining", Boolean, nullable=False, server_default=text("false")),
    # Why, as whoever drains it said; empty: nothing was said.
    Column("drain_reason", Text, nullable=False, server_default=""),
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
    # What held-out data said of it; lower is better.
    Column("metric", Double),
    # When an attempt last went on from it: it was whole then.
    Column("resumed_at", DateTime(timezone=True)),
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

log_archives = Table(
    "log_archives",
    metadata,
    Column("job_id", UUID(as_uuid=False), ForeignKey("jobs.job_id"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("first_sequence", BigInteger, primary_key=True),
    Column("last_sequence", BigInteger, nullable=False),
    Column("uri", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
)

projects = Table(
    "projects",
    metadata,
    Column("project", Text, primary_key=True),
    Column("title", Text, nullable=False, server_default=""),
    Column(
        "priority_max",
        Integer,
        CheckConstraint("priority_max BETWEEN 0 AND 1000", name="priority_max"),
        nullable=False,
        server_default="1000",
    ),
    Column("creator", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Column("deleted_at", DateTime(timezone=True)),
    Column("version", BigInteger, nullable=False, server_default="1"),
)

members = Table(
    "members",
    metadata,
    Column("project", Text, ForeignKey("projects.project"), primary_key=True),
    Column("subject", Text, primary_key=True),
    Column(
        "role",
        Text,
        CheckConstraint("role IN ('VIEWER','SUBMITTER','MAINTAINER','APPROVER')", name="role"),
        nullable=False,
    ),
    Column("grantor", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Index("ix_members_subject", "subject"),
)

organisation_members = Table(
    "organisation_members",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("role", Text, CheckConstraint("role IN ('ORG_ADMIN','AUDITOR')", name="role"), nullable=False),
    Column("grantor", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
)

tokens = Table(
    "tokens",
    metadata,
    Column("token_id", UUID(as_uuid=False), primary_key=True),
    # None: the organisation.
    Column("project", Text, ForeignKey("projects.project")),
    Column("name", Text, nullable=False),
    Column(
        "role",
        Text,
        CheckConstraint(
            "role IN ('VIEWER','SUBMITTER','MAINTAINER','APPROVER','ORG_ADMIN','AUDITOR','WORKER')",
            name="role",
        ),
        nullable=False,
    ),
    # Enough for a secret of 256 random bits; nothing here can be guessed from a list of words.
    Column("secret_sha256", LargeBinary, nullable=False),
    Column("creator", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Column("expires_at", DateTime(timezone=True)),
    Column("revoked_at", DateTime(timezone=True)),
    Column("last_used_at", DateTime(timezone=True)),
    CheckConstraint("(project IS NULL) = (role IN ('ORG_ADMIN','AUDITOR','WORKER'))", name="scope"),
    Index("ix_tokens_listing", "project", text("created_at DESC"), text("token_id DESC")),
)

audit_records = Table(
    "audit_records",
    metadata,
    Column("record_id", UUID(as_uuid=False), primary_key=True),
    Column("inserted", BigInteger, Identity(always=True), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("principal", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("trace_id", Text, nullable=False),
    Column("peer", Text, nullable=False),
    Column("count", BigInteger, CheckConstraint("count >= 1", name="count"), nullable=False),
    # SHA-256 of the record's canonical form, written with it; the chain is linked afterwards, so that nothing waits on it.
    Column("leaf", LargeBinary, nullable=False),
    Index("ix_audit_records_inserted", "inserted"),
)

# A row for every record, made by a trigger of `audit_records`, so that none escapes the chain whoever inserts it.
audit_links = Table(
    "audit_links",
    metadata,
    Column("record_id", UUID(as_uuid=False), primary_key=True),
    # The record's, for lists in the chain's order.
    Column("project", Text, nullable=False),
    # From 1 without a hole; none until the sequencer links it.
    Column("position", BigInteger, unique=True),
    # SHA-256(the previous link's hash, the record's leaf).
    Column("hash", LargeBinary),
    CheckConstraint("(position IS NULL) = (hash IS NULL)", name="linked"),
    Index("ix_audit_links_unlinked", "record_id", postgresql_where=text("position IS NULL")),
    Index("ix_audit_links_project_position", "project", "position"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("webhook_id", UUID(as_uuid=False), primary_key=True),
    Column("project", Text, ForeignKey("projects.project"), nullable=False),
    Column("url", Text, nullable=False),
    # Empty: every final state.
    Column("states", ARRAY(Text), nullable=False),
    # Empty: every job.
    Column("job_set", Text, nullable=False, server_default=""),
    # Whether it hears of budgets as well.
    Column("budget_alerts", Boolean, nullable=False, server_default="false"),
    Column("creator", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Column("deleted_at", DateTime(timezone=True)),
    Index("ix_webhooks_listing", "project", text("created_at DESC"), text("webhook_id DESC")),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("delivery_id", UUID(as_uuid=False), primary_key=True),
    Column("webhook_id", UUID(as_uuid=False), ForeignKey("webhooks.webhook_id"), nullable=False),
    # What it is about: a job that ended, or an alert of a budget.
    Column("job_id", UUID(as_uuid=False)),
    Column("alert_id", UUID(as_uuid=False)),
    # What is sent, fixed when it happened, so that every try sends the same bytes.
    Column("body", Text, nullable=False),
    Column("state", Text, CheckConstraint("state IN ('PENDING','DELIVERED','FAILED')", name="state"), nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("last_result", Text, nullable=False, server_default=""),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Column("next_try_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    UniqueConstraint("webhook_id", "job_id"),
    UniqueConstraint("webhook_id", "alert_id"),
    CheckConstraint("(job_id IS NULL) <> (alert_id IS NULL)", name="subject"),
    Index("ix_webhook_deliveries_due", "webhook_id", "next_try_at", postgresql_where=text("state = 'PENDING'")),
    Index("ix_webhook_deliveries_listing", "webhook_id", text("created_at DESC"), text("delivery_id DESC")),
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
CHANNEL_IDENTITY = "headway_identity"
CHANNEL_WEBHOOKS = "headway_webhooks"
