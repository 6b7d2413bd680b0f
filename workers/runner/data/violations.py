"""Faults of a dataset as a job's failure tells them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dataset_checks.faults import Code, Fault, Severity
from workers.workflows.contracts import DataViolation

MAX_LISTED = 1000


class Violations:
    """Counts all errors and keeps the first thousand; warnings are only counted."""

    def __init__(self) -> None:
        self.listed: list[DataViolation] = []
        self.count = 0
        self.warnings: Counter[Code] = Counter()

    def add(self, faults: Iterable[Fault]) -> None:
        """Notes faults."""
        for fault in faults:
            if fault.code.severity is Severity.WARNING:
                self.warnings[fault.code] += 1
                continue
            self.count += 1
            if len(self.listed) < MAX_LISTED:
                line, path, code, message = fault
                self.listed.append(DataViolation(path=path, line=line, code=code.value, message=message))

    def summary(self) -> str:
        """One sentence for the job's failure: how many faults, and the first."""
        first = self.listed[0]
        place = f"line {first.line}{': ' + first.path if first.path else ''}: " if first.line else ""
        return f"the dataset has {self.count} fault{'s' if self.count > 1 else ''}; first: {place}{first.message}"
