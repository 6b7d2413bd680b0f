"""The tables that only budgets and their ledgers are about, as SQLAlchemy Core; the rest, and their rules, are in `tables`.

Money is in millionths of the currency (`micros`), accelerator time in accelerator-milliseconds (`ms`, `accelerator_ms`).
What was entered is never changed or deleted: triggers refuse it.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import UUID

from control_plane.db.schema import NOW, metadata


def _scope_kind() -> CheckConstraint:
    return CheckConstraint("kind IN ('ORGANISATION','TEAM','PROJECT')", name="kind")


def _period() -> CheckConstraint:
    return CheckConstraint("period IN ('MONTH','QUARTER','ONE_OFF')", name="period")


def _positive(name: str) -> Column[int]:
    return Column(name, BigInteger, CheckConstraint(f"{name} > 0", name=name))


def _amount(name: str) -> Column[int]:
    return Column(name, BigInteger, CheckConstraint(f"{name} >= 0", name=name), nullable=False)


def _balance(name: str, *, negative: bool) -> Column[int]:
    checks = () if negative else (CheckConstraint(f"{name} >= 0", name=name),)
    return Column(name, BigInteger, *checks, nullable=False, server_default="0")


budgets = Table(
    "budgets",
    metadata,
    # Projects and teams have names of their own.
    Column("kind", Text, _scope_kind(), primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("period", Text, _period(), nullable=False),
    # Of a one-off.
    Column("starts_at", DateTime(timezone=True)),
    Column("ends_at", DateTime(timezone=True)),
    # None: not limited. There is at least one.
    _positive("hard_micros"),
    _positive("hard_ms"),
    _positive("soft_micros"),
    _positive("soft_ms"),
    Column(
        "at_hard_limit",
        Text,
        CheckConstraint("at_hard_limit IN ('STOP','DEMOTE','WARN')", name="at_hard_limit"),
        nullable=False,
    ),
    Column("alert_percents", ARRAY(Integer), nullable=False),
    # Whose endpoints hear of it; of a project's budget they are its own.
    Column("notified_project", Text, ForeignKey("projects.project")),
    # The principal who set it last.
    Column("setter", Text, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("version", BigInteger, nullable=False, server_default="1"),
    CheckConstraint("(period = 'ONE_OFF') = (starts_at IS NOT NULL AND ends_at IS NOT NULL)", name="one_off"),
    CheckConstraint("starts_at < ends_at", name="order"),
    CheckConstraint("hard_micros IS NOT NULL OR hard_ms IS NOT NULL", name="limited"),
)

# What an accelerator-hour costs from a time on; the row before it ends there.
prices = Table(
    "prices",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("spot", Boolean, primary_key=True),
    Column("valid_from", DateTime(timezone=True), primary_key=True),
    Column(
        "micros_per_hour",
        BigInteger,
        CheckConstraint("micros_per_hour BETWEEN 0 AND 1000000000", name="micros_per_hour"),
        nullable=False,
    ),
    Column("setter", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
)

# One for each scope and period: four accounts in each of two books, whose balances are kept here as sums of the entries. The
# row's lock is the lock of all of them.
ledgers = Table(
    "ledgers",
    metadata,
    Column("ledger_id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, _scope_kind(), nullable=False),
    Column("scope", Text, nullable=False),
    Column("period", Text, _period(), nullable=False),
    Column("period_start", DateTime(timezone=True), nullable=False),
    Column("period_end", DateTime(timezone=True), nullable=False),
    # What may be spent and reserved at most. None: nothing is held back, and the account "budget" may fall below zero.
    Column("limit_micros", BigInteger),
    Column("limit_ms", BigInteger),
    # The last entry before there was a limit: from then on no prefix of the entries overruns.
    Column("limited_after", BigInteger),
    _balance("external_micros", negative=True),
    _balance("external_ms", negative=True),
    _balance("budget_micros", negative=True),
    _balance("budget_ms", negative=True),
    _balance("reserved_micros", negative=False),
    _balance("reserved_ms", negative=False),
    _balance("spent_micros", negative=False),
    _balance("spent_ms", negative=False),
    UniqueConstraint("kind", "scope", "period", "period_start"),
    CheckConstraint("period_start < period_end", name="order"),
    CheckConstraint("(limited_after IS NULL) = (limit_micros IS NULL AND limit_ms IS NULL)", name="limited"),
    CheckConstraint(
        "external_micros + budget_micros + reserved_micros + spent_micros = 0"
        " AND external_ms + budget_ms + reserved_ms + spent_ms = 0",
        name="balanced",
    ),
    CheckConstraint(
        "(limit_micros IS NULL OR budget_micros >= 0) AND (limit_ms IS NULL OR budget_ms >= 0)", name="never_overrun"
    ),
    # Limits that were lowered below what was committed, and sink.
    Index(
        "ix_ledgers_sinking",
        "ledger_id",
        postgresql_where=text("(- external_micros) > limit_micros OR (- external_ms) > limit_ms"),
    ),
)

# The entries of one kind with one reference are one transaction, and sum to zero in each ledger and book. They have no foreign
# key: thousands are written at a time, each under the lock of its ledger.
ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("entry_id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, CheckConstraint("kind IN ('FUND','RESERVE','SETTLE','RELEASE')", name="kind"), nullable=False),
    # The lease; of FUND: of the change that caused it.
    Column("reference", UUID(as_uuid=False), nullable=False),
    Column("ledger_id", BigInteger, nullable=False),
    Column(
        "account", Text, CheckConstraint("account IN ('EXTERNAL','BUDGET','RESERVED','SPENT')", name="account"), nullable=False
    ),
    Column("micros", BigInteger, nullable=False),
    Column("accelerator_ms", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    CheckConstraint("micros <> 0 OR accelerator_ms <> 0", name="moves"),
    Index("ix_ledger_entries_transaction", "reference", "kind", "ledger_id", "account", unique=True),
    Index("ix_ledger_entries_listing", "ledger_id", "entry_id"),
)

# What was set aside for a lease when it was granted, and by what.
reservations = Table(
    "reservations",
    metadata,
    Column("lease_id", UUID(as_uuid=False), primary_key=True),
    Column("job_id", UUID(as_uuid=False), nullable=False),
    Column("project", Text, nullable=False),
    Column("accelerators", Integer, CheckConstraint("accelerators >= 1", name="accelerators"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("spot", Boolean, nullable=False),
    _amount("micros_per_hour"),
    # Accelerators times longest run time.
    Column("held_ms", BigInteger, CheckConstraint("held_ms > 0", name="held_ms"), nullable=False),
    _amount("micros"),
    # `held_ms` again, or 0 for the kind "cpu", which is never GPU-hours.
    Column(
        "accelerator_ms", BigInteger, CheckConstraint("accelerator_ms IN (0, held_ms)", name="accelerator_ms"), nullable=False
    ),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    Index("ix_reservations_job_id", "job_id"),
    Index("ix_reservations_created_at", "created_at"),
)

# How a reservation was closed: once, since its lease is the key.
settlements = Table(
    "settlements",
    metadata,
    Column("lease_id", UUID(as_uuid=False), ForeignKey("reservations.lease_id"), primary_key=True),
    # Accelerators times time held, whatever their kind.
    _amount("used_ms"),
    # Of it, what was beyond the reservation and found no room in a budget.
    Column(
        "uncharged_ms", BigInteger, CheckConstraint("uncharged_ms BETWEEN 0 AND used_ms", name="uncharged_ms"), nullable=False
    ),
    # Charged.
    _amount("micros"),
    Column(
        "accelerator_ms",
        BigInteger,
        CheckConstraint("accelerator_ms IN (0, used_ms - uncharged_ms)", name="accelerator_ms"),
        nullable=False,
    ),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
)

# What a job's plan foretold, by the prices of its submission.
job_estimates = Table(
    "job_estimates",
    metadata,
    Column("job_id", UUID(as_uuid=False), ForeignKey("jobs.job_id"), primary_key=True),
    _amount("held_ms_low"),
    Column("held_ms_high", BigInteger, nullable=False),
    # None: not known.
    Column("micros_low", BigInteger, CheckConstraint("micros_low >= 0", name="micros_low")),
    Column("micros_high", BigInteger),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    CheckConstraint("held_ms_low <= held_ms_high AND micros_low <= micros_high", name="order"),
    CheckConstraint("(micros_low IS NULL) = (micros_high IS NULL)", name="money"),
)

# Alerts that were sent, or had nobody to be sent to: each level once for each ledger and book.
budget_alerts = Table(
    "budget_alerts",
    metadata,
    Column("alert_id", UUID(as_uuid=False), primary_key=True),
    Column("ledger_id", BigInteger, ForeignKey("ledgers.ledger_id"), nullable=False),
    Column("book", Text, CheckConstraint("book IN ('MONEY','ACCELERATOR_TIME')", name="book"), nullable=False),
    # "soft", or percent of the hard limit.
    Column("level", Text, nullable=False),
    # Spent and reserved when it was reached, and the hard limit then, in the book's unit.
    Column("committed", BigInteger, nullable=False),
    Column("hard_limit", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
    UniqueConstraint("ledger_id", "book", "level"),
)
