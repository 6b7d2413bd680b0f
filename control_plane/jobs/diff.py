"""What differs between two jobs: what was asked, the bytes it read, the code that ran it, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, select
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.db.tables import model_versions

DIFFERENCES_MAX = 1_000
_CODE = ("code_version", "environment_lock_sha256")
"""What lineage says of the code and environment that ran a job."""
_PINS = ("sha256", "version")
"""Fields that say which bytes a name stood for."""


class Section(StrEnum):
    """What part of two jobs differs; the names are those of headway.jobs.v1.DiffSection without prefix."""

    SPEC = "SPEC"
    DATA = "DATA"
    CODE = "CODE"
    RESULT = "RESULT"


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that differs; None: there is none."""

    section: Section
    path: str
    left: Any
    right: Any


async def lineage_of(connection: AsyncConnection, job_id: str) -> Mapping[str, Any]:
    """What is on record of how the job's model was made; empty if it made none."""
    query = select(model_versions.c.lineage).where(model_versions.c.job_id == job_id)
    return (await connection.execute(query)).scalar_one_or_none() or {}


def differences(
    left: RowMapping, left_lineage: Mapping[str, Any], right: RowMapping, right_lineage: Mapping[str, Any]
) -> list[Difference]:
    """What differs between two rows of `jobs`, by section, then path; the first 1,000."""
    found: list[Difference] = []
    sides = [_sections(left, left_lineage), _sections(right, right_lineage)]
    for section in Section:
        ours, theirs = (side[section] for side in sides)
        for path in sorted(ours.keys() | theirs.keys()):
            pair = ours.get(path), theirs.get(path)
            if pair[0] != pair[1]:
                found.append(Difference(section, path, *pair))
    return found[:DIFFERENCES_MAX]


def _sections(row: RowMapping, lineage: Mapping[str, Any]) -> Mapping[Section, Mapping[str, Any]]:
    spec = dict(leaves(row["spec"]))
    pins = {path: value for path, value in spec.items() if path.rpartition(".")[2] in _PINS}
    # Where the bytes are says nothing about which they are.
    inputs = {path: value for path, value in leaves(row["inputs"]) if not path.endswith("uri")}
    return {
        Section.SPEC: {path: value for path, value in spec.items() if path not in pins},
        Section.DATA: pins | {f"inputs.{path}": value for path, value in inputs.items()},
        Section.CODE: {name: lineage[name] for name in _CODE if lineage.get(name)},
        Section.RESULT: dict(leaves(row["result"])),
    }


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in JSON that holds no others, with its path; what is empty counts as one."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{index}]")
    elif path:
        yield path, value
