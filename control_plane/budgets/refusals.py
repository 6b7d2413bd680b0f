"""How what the pure rules refuse becomes a refusal of the call."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from control_plane.errors import invalid_field
from governance.values import InvalidValueError


@contextmanager
def refused_as(path: str) -> Generator[None]:
    """Inside, a value that breaks its limits is refused as a field below `path`, which may be empty.

    Raises:
        RefusedError: it did; the field is named.
    """
    try:
        yield
    except InvalidValueError as error:
        raise invalid_field(f"{path}.{error.field}" if path else error.field, error.description) from None
