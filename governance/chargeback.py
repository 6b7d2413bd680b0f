"""The chargeback report: who used what, as rows whose sum is the ledger's to the last millionth.

Rows are whole numbers; hours and money for people are written beside them, money exactly, hours rounded to six decimals.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from governance.costs import HOUR_MS
from governance.estimates import NOTHING_COMPARED, Comparison
from governance.values import Amounts, total

_MICRO = 1_000_000


class Dimension(StrEnum):
    """By what a report is divided."""

    PROJECT = "project"
    USER = "user"
    MODEL = "model"
    JOB_TYPE = "job_type"
    MONTH = "month"
    """The calendar month of the grant, in UTC."""


@dataclass(frozen=True, slots=True)
class ChargebackRow:
    """What leases that are alike in every dimension of the report were charged."""

    keys: tuple[str, ...]
    """Values of the report's dimensions, in their order."""
    leases: int
    charged: Amounts
    open_reservations: int = 0
    """Of the leases, those that have not ended: what they will be charged is not in here."""
    estimates: Comparison = NOTHING_COMPARED
    """Of the jobs whose first lease is among the leases, with all their leases: each job is in one row of one stretch."""


@dataclass(frozen=True, slots=True)
class Chargeback:
    """A report of the leases granted from `start` until before `end`."""

    start: datetime
    end: datetime
    currency: str
    dimensions: tuple[Dimension, ...]
    rows: tuple[ChargebackRow, ...]

    @property
    def charged(self) -> Amounts:
        """The sum of all rows."""
        return total(row.charged for row in self.rows)

    @property
    def sums(self) -> ChargebackRow:
        """All rows as one, whose keys are "total"."""
        return ChargebackRow(
            keys=("total",) * len(self.dimensions),
            leases=sum(row.leases for row in self.rows),
            charged=self.charged,
            open_reservations=sum(row.open_reservations for row in self.rows),
            estimates=sum((row.estimates for row in self.rows), start=Comparison()),
        )


def money(micros: int) -> str:
    """Millionths as a decimal number with six places, exactly."""
    whole, rest = divmod(abs(micros), _MICRO)
    return f"{'-' if micros < 0 else ''}{whole}.{rest:06d}"


def hours(accelerator_ms: int) -> str:
    """Accelerator-hours with six places, rounded to the nearest (half up); the exact number is in milliseconds."""
    return money((2 * accelerator_ms * _MICRO + HOUR_MS) // (2 * HOUR_MS))


def to_csv(report: Chargeback) -> str:
    """The report as CSV (RFC 4180): a header, a row for each, and a last one with the sums, whose keys are "total".

    A cell that a spreadsheet would take for a formula is preceded by an apostrophe.
    """
    out = io.StringIO()
    writer = csv.writer(out)
    keys = [str(dimension) for dimension in report.dimensions]
    writer.writerow([*keys, *_numbers(report.sums), "currency"])
    for row in (*report.rows, report.sums):
        writer.writerow([*map(_harmless, row.keys), *_numbers(row).values(), report.currency])
    return out.getvalue()


def to_json(report: Chargeback) -> str:
    """The report as JSON: `{"start", "end", "currency", "rows": [...], "total": {...}}`.

    Whole numbers of more than 53 bits are possible: read them with a parser that keeps them.
    """
    return json.dumps(
        {
            "start": report.start.isoformat(),
            "end": report.end.isoformat(),
            "currency": report.currency,
            "rows": [dict(zip(map(str, report.dimensions), row.keys, strict=True)) | _numbers(row) for row in report.rows],
            "total": _numbers(report.sums),
        }
    )


def _numbers(row: ChargebackRow) -> dict[str, int | str]:
    return {
        "leases": row.leases,
        "open": row.open_reservations,
        "accelerator_ms": row.charged.accelerator_ms,
        "gpu_hours": hours(row.charged.accelerator_ms),
        "micros": row.charged.micros,
        "money": money(row.charged.micros),
        "estimated_jobs": row.estimates.jobs,
        "estimated_jobs_open": row.estimates.open_jobs,
        "estimated_micros_low": row.estimates.estimate.low,
        "estimated_micros_high": row.estimates.estimate.high,
        "estimated_jobs_micros": row.estimates.charged_micros,
        "variance_micros": row.estimates.variance_micros,
    }


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
