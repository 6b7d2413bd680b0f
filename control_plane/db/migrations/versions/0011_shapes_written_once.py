"""The text of a shape is written once, by a trigger at the insert, and is no generated column any more.

PostgreSQL parses the stored expression of a generated column again for every row that is updated, whether the update
concerns it or not (`ExecInitGenerated`): a fifth of all the processor time that a job cost the database. What a shape is
made of never changes once it is written.
"""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_DEFAULTS = {
    "accelerator_kind": "any",
    "accelerators": "1",
    "cpu_millis": "0",
    "memory_mib": "0",
    "members": "1",
    "spot": "false",
    "labels": "{}",
    "topology": "null",
}
_SHAPES = {
    "jobs": "SELECT "  # noqa: S608 - constants
    + " || ' ' || ".join(f"coalesce(resources ->> '{name}', '{default}')" for name, default in _DEFAULTS.items())
    # A search's are its trial's, a retraining's those of what it repeats.
    + " FROM (SELECT coalesce($1.spec -> 'resources', $1.spec #> '{trial,resources}', $1.spec #> '{fine_tune,resources}')"
    " AS resources) AS found",
    "leases": "SELECT "
    + " || ' ' || ".join(
        f"coalesce($1.{name}::text, 'null')" if name == "topology" else f"$1.{name}::text" for name in _DEFAULTS
    ),
}


def upgrade() -> None:
    """Keeps what is written, and writes what comes; a job whose resources lie deeper gets its own at last."""
    for table, shape in _SHAPES.items():
        op.execute(f"ALTER TABLE {table} ALTER COLUMN shape DROP EXPRESSION")
        op.execute(f"CREATE FUNCTION shape_of({table}) RETURNS text LANGUAGE sql STABLE AS $$ {shape} $$")
        op.execute(
            f"CREATE FUNCTION write_shape_of_{table}() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN NEW.shape := shape_of(NEW); RETURN NEW; END $$"
        )
        op.execute(
            f"CREATE TRIGGER write_shape BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION write_shape_of_{table}()"
        )
    op.execute("UPDATE jobs SET shape = shape_of(jobs) WHERE NOT spec ? 'resources'")
