"""Rows a second of `headway dataset validate`, all checks but tokens, over prompts and completions of 500 bytes a row.

Beside it, over files with every fault class planted among sound rows: the share of planted faults that is found where it is
(recall), and the share of what is reported that was planted (precision). Ceiling: json.loads alone, over the same file.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from pathlib import Path

from benchmarks.figure import Figure
from dataset_checks.faults import Fault
from dataset_checks.formats import RowFormat
from dataset_checks.reading import open_dataset
from dataset_checks.validation import validate
from tests.planted_faults import Planted, campaign, csv_campaign, words
from tests.planted_files import FILES

_ROWS, _QUICK_ROWS = 600_000, 100_000
_SEEDS, _QUICK_SEEDS = 20, 2


async def run(quick: bool) -> Figure:
    """Writes the files, and reads them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "rows.jsonl"
        rows = _QUICK_ROWS if quick else _ROWS
        _write(path, rows)
        # Both read what the page cache holds.
        ceiling = rows / _seconds_of_json(path)
        found: list[Fault] = []
        began, processor_began = time.perf_counter(), _processor_seconds()
        report = validate(open_dataset(path), found.extend, processes=min(2, os.cpu_count() or 1))
        seconds, processor_seconds = time.perf_counter() - began, _processor_seconds() - processor_began
        if report.rows != rows or found:
            raise RuntimeError(f"{report.rows} rows and {len(found)} faults; expected {rows} rows and none: {found[:3]}")
        planted, reported, agreed, codes = _campaigns(folder, _QUICK_SEEDS if quick else _SEEDS)
    return Figure(
        "dataset_validate",
        rows / seconds,
        "rows/s",
        ceiling,
        "json.loads alone, one process",
        {
            "recall": agreed / planted,
            "precision": agreed / reported,
            "planted": planted,
            "fault_classes": codes,
            "row_bytes": report.bytes / rows,
            "rows_per_processor_s": rows / processor_seconds,
        },
    )


def _write(path: Path, rows: int) -> None:
    rng = random.Random(1)  # noqa: S311 - rows, to be made again
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            row = {"prompt": words(rng, 15, 30), "completion": words(rng, 35, 65)}
            file.write(json.dumps(row) + "\n")


def _seconds_of_json(path: Path) -> float:
    began = time.perf_counter()
    with path.open("rb") as file:
        for line in file:
            json.loads(line)
    return time.perf_counter() - began


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _campaigns(folder: Path, seeds: int) -> tuple[int, int, int, int]:
    """Faults planted, reported, and both; and of how many classes."""
    planted = reported = agreed = 0
    codes: set[str] = set()
    for seed in range(seeds):
        for one in (*(campaign(row_format, 300, seed) for row_format in RowFormat), csv_campaign(300, seed)):
            found = _found(one, folder)
            planted += len(one.expected)
            reported += len(found)
            agreed += len(one.expected & set(found))
            codes.update(code for _, _, code in one.expected)
    for name, (data, expected) in FILES.items():
        found = _found(Planted(name, data, frozenset(expected), 0), folder)
        planted += len(expected)
        reported += len(found)
        agreed += len(set(expected) & set(found))
        codes.update(code for _, _, code in expected)
    return planted, reported, agreed, len(codes)


def _found(planted: Planted, folder: Path) -> list[tuple[int, str, str]]:
    path = folder / planted.name
    path.write_bytes(planted.data)
    found: list[Fault] = []
    validate(open_dataset(path), found.extend)
    return [(fault.line, fault.pointer, fault.code) for fault in found]
