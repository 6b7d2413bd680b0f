"""Durations as people write them: "250ms", "8h"."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, PlainSerializer

MICROS_PER_SECOND = 1_000_000

_MICROS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_WRITTEN = re.compile(r"(\d+)(us|ms|s|m|h|d)")


def _read(written: Any) -> int:
    match = _WRITTEN.fullmatch(written) if isinstance(written, str) else None
    if match is None:
        raise ValueError('expected a whole number and a unit of us, ms, s, m, h or d, such as "250ms"')
    return int(match[1]) * _MICROS[match[2]]


def _write(micros: int) -> str:
    unit = next(unit for unit in reversed(_MICROS) if micros % _MICROS[unit] == 0)
    return f"{micros // _MICROS[unit]}{unit}"


Duration: TypeAlias = Annotated[int, BeforeValidator(_read, json_schema_input_type=str), PlainSerializer(_write)]
"""Microseconds, in files a whole number with its unit."""
