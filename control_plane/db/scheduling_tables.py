"""The tables that only scheduling is about, as SQLAlchemy Core; the rest, and their rules, are in `tables`."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from control_plane.db.tables import metadata

_NOW = text("now()")

# The quota tree. A project without a row is a child of the organisation with no quota of its own.
queue_nodes = Table(
    "queue_nodes",
    metadata,
    # Projects and teams have names of their own.
    Column("kind", Text, CheckConstraint("kind IN ('ORGANISATION','TEAM','PROJECT')", name="kind"), primary_key=True),
    Column("name", Text, primary_key=True),
    # The team above; none: the organisation.
    Column("parent", Text),
    # Thousandths.
    Column(
        "weight",
        Integer,
        CheckConstraint("weight BETWEEN 1 AND 1000000", name="weight"),
        nullable=False,
        server_default="1000",
    ),
    # [{"pool", "resource", "nominal", "borrowing_limit", "lending_limit"}], limits null where there are none.
    Column("quotas", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=_NOW),
    Column("version", BigInteger, nullable=False, server_default="1"),
)

# Decayed use of each queue, in accelerator-milliseconds as of `as_of`.
past_use = Table(
    "past_use",
    metadata,
    Column("project", Text, primary_key=True),
    Column("accelerator_ms", BigInteger, nullable=False),
    Column("as_of", DateTime(timezone=True), nullable=False),
)

# What changed that a round decides on: a row per statement, made by triggers, so that none escapes whoever writes. The leader
# takes them out.
scheduler_changes = Table(
    "scheduler_changes",
    metadata,
    Column("change_id", BigInteger, Identity(always=True), primary_key=True),
    Column(
        "kind",
        Text,
        CheckConstraint("kind IN ('jobs','leases','workers','queue_nodes')", name="kind"),
        nullable=False,
    ),
    # Of jobs or leases; null: read all of the kind.
    Column("ids", ARRAY(UUID(as_uuid=False))),
)

# Why what waits does: a row per line of what is alike to every rule but age, written when it changes.
waiting_reasons = Table(
    "waiting_reasons",
    metadata,
    # "job" or "lease", and the group: project, class and shape, as the column `shape` of jobs and leases writes it.
    Column("kind", Text, CheckConstraint("kind IN ('job','lease')", name="kind"), primary_key=True),
    Column("project", Text, primary_key=True),
    Column("priority_class", Integer, primary_key=True),
    Column("shape", Text, primary_key=True),
    # From then until the next row of the same group; a row without reasons says that nothing waits any more.
    Column("since", DateTime(timezone=True), primary_key=True, server_default=text("clock_timestamp()")),
    # [{"code", "words", ...numbers}], in order of precedence.
    Column("reasons", JSONB, nullable=False),
    Index("ix_waiting_reasons_since", "since"),
)

# What each round that changed something decided, to be replayed.
scheduling_rounds = Table(
    "scheduling_rounds",
    metadata,
    Column("round_id", BigInteger, Identity(always=True), primary_key=True),
    Column("leader_epoch", BigInteger, nullable=False),
    Column("planned_at", DateTime(timezone=True), nullable=False),
    Column("snapshot_sha256", Text, nullable=False),
    # zstd of the decisions as JSON.
    Column("decisions", LargeBinary, nullable=False),
    Column("decision_count", Integer, nullable=False),
    Column("trace_id", Text, nullable=False, server_default=""),
    # All that was decided on, as `scheduler.inputs` writes it; of some rounds only.
    Column("inputs", LargeBinary),
    Index("ix_scheduling_rounds_planned_at", "planned_at"),
)

__all__ = ["metadata", "past_use", "queue_nodes", "scheduler_changes", "scheduling_rounds", "waiting_reasons"]
