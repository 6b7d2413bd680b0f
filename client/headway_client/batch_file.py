"""Several job files as one batch: YAML files with a job each, and JSONL files with a job on every line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headway.jobs.v1.job_service_pb2 import BatchItem, SubmitJobRequest
from headway_client.job_file import JobFileError, parse_job, read_job_file, read_text
from headway_client.yaml_nodes import Fault

_JSONL_BYTES_MAX = 64 * 1024 * 1024
_ITEM = re.compile(r"items\[(\d+)\]\.?")


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """One job of a batch, and where it was read."""

    place: str
    """file, or file:line."""
    request: SubmitJobRequest

    @property
    def item(self) -> BatchItem:
        """As it goes into a batch."""
        priority = self.request.priority if self.request.HasField("priority") else None
        return BatchItem(name=self.request.name, spec=self.request.spec, priority=priority)


def read_batch(paths: Sequence[Path]) -> list[BatchEntry]:
    """The jobs of all files, in their order.

    Raises:
        JobFileError: a file cannot be read, or holds something else than jobs.
    """
    entries: list[BatchEntry] = []
    for path in paths:
        if path.suffix == ".jsonl":
            entries += _read_lines(path)
        else:
            entries.append(BatchEntry(str(path), read_job_file(path)))
    return entries


def project_of(entries: Sequence[BatchEntry]) -> str:
    """The project that the jobs name; empty if none does.

    Raises:
        ValueError: they name several.
    """
    named = {entry.request.project: entry.place for entry in entries if entry.request.project}
    if len(named) > 1:
        said = " and ".join(f"{project} ({place})" for project, place in list(named.items())[:2])
        raise ValueError(f"the jobs of a batch belong to one project, these name {said}")
    return next(iter(named), "")


def with_places(field: str, entries: Sequence[BatchEntry]) -> str:
    """The path of a field of a batch's request, the item's number replaced by where the item was read."""
    found = _ITEM.match(field)
    if found is None or int(found[1]) >= len(entries):
        return field
    return f"{entries[int(found[1])].place}: {field[found.end() :]}".removesuffix(": ")


def _read_lines(path: Path) -> list[BatchEntry]:
    entries: list[BatchEntry] = []
    faults: list[Fault] = []
    # Only a newline ends a line of JSON; splitlines() knows more.
    for number, line in enumerate(read_text(path, _JSONL_BYTES_MAX).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entries.append(BatchEntry(f"{path}:{number}", parse_job(path, line, number)))
        except JobFileError as error:
            faults += error.faults
    if faults:
        raise JobFileError(path, faults)
    return entries
