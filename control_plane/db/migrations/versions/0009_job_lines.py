"""An index of what is queued by line, in place of the one by priority; one of leases whose work came to its own end.

Nothing reads queued jobs in order of priority any more: the scheduler reads them all and keeps its own order. Who asks why a
job waits asks for its line: of a project's jobs, those of its shape and class.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The first takes the place of `ix_jobs_queued`, so a submit maintains as many indexes as before."""
    op.execute("DROP INDEX ix_jobs_queued")
    op.execute(
        "CREATE INDEX ix_jobs_lines ON jobs (project, shape, priority) INCLUDE (type, created_at, job_id) "
        "WHERE state = 'QUEUED'"
    )
    # What a project's latest leases took of what they declared.
    op.execute("CREATE INDEX ix_leases_run ON leases (project, ended_at DESC) WHERE outcome IN ('completed','failed')")
