"""Jobs with a deadline: the latest start that keeps it, and when they were raised for it.

Only they are in the index: to find that nothing is due costs nothing, however much waits.
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Two columns without default, so that no row is rewritten, and an index of the few rows that have them."""
    op.execute("ALTER TABLE jobs ADD COLUMN start_by timestamptz, ADD COLUMN raised_at timestamptz")
    op.execute(
        "CREATE INDEX ix_jobs_deadlines ON jobs (start_by) "
        "WHERE start_by IS NOT NULL AND raised_at IS NULL AND ended_at IS NULL"
    )
