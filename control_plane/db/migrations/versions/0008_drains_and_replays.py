"""Rounds hear of leases that are asked to leave their node, and may record what they were decided on."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Notes changes of `leases.preempted_at` too, and adds the inputs of rounds."""
    script = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in script.split(";\n\n"):
        op.execute(statement)
