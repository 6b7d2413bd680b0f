"""That a lease was asked to yield is a change that a round must hear of, whoever asked."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Notes changes of `leases.preempted_at` too."""
    op.execute(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
