"""Why a node is drained, as whoever drains it said."""

from __future__ import annotations

from alembic import op

revision = "0011_gov_drain"
down_revision = "0011_gov"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column with a constant default, which rewrites no row."""
    op.execute("ALTER TABLE workers ADD COLUMN drain_reason text NOT NULL DEFAULT ''")
