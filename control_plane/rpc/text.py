"""Limits that several services put on free text."""

from __future__ import annotations

from control_plane.errors import FieldViolation, invalid_fields


def require_text(limits: dict[str, tuple[str, int]]) -> None:
    """Holds free text to its length and to what PostgreSQL can store.

    Args:
        limits: by field path, the text and the most characters it may have.

    Raises:
        RefusedError: with every field at fault.
    """
    violations = [
        FieldViolation(path, f"has {len(text)} characters; expected at most {most}, without NUL")
        for path, (text, most) in limits.items()
        if len(text) > most or "\x00" in text
    ]
    if violations:
        raise invalid_fields(violations)
