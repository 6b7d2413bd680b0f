"""Persistence: tables, migrations, and the unit of work."""
