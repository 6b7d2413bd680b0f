"""Brings a database's schema to the newest version with Alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

from control_plane.db.engine import asyncpg_url


def alembic_config(dsn: str) -> Config:
    """Alembic's configuration for a database."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["url"] = asyncpg_url(dsn)
    return config


def upgrade(dsn: str) -> None:
    """Applies what is missing. Safe to repeat, and safe when several do it at once: an advisory lock lets one go first.

    Args:
        dsn: postgresql://user:password@host:port/database
    """
    command.upgrade(alembic_config(dsn), "head")
