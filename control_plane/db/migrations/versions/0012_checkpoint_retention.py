"""What retention goes by: a checkpoint's metric, and whether an attempt has gone on from it."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Checkpoints from before have neither."""
    op.execute("ALTER TABLE checkpoints ADD COLUMN metric double precision, ADD COLUMN resumed_at timestamptz")
