"""Why a node is drained, as whoever drains it said."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column with a constant default, which rewrites no row."""
    op.execute("ALTER TABLE workers ADD COLUMN drain_reason text NOT NULL DEFAULT ''")
