"""Sound rows around planted faults: each fault is reported exactly where it is, and nothing else is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_checks.faults import Fault
from dataset_checks.formats import RowFormat
from dataset_checks.reading import open_dataset
from dataset_checks.validation import validate
from tests.planted_faults import Planted, campaign, csv_campaign


def _validated(planted: Planted, folder: Path, processes: int = 1) -> tuple[list[tuple[int, str, str]], int]:
    path = folder / planted.name
    path.write_bytes(planted.data)
    found: list[Fault] = []
    report = validate(open_dataset(path), found.extend, processes=processes)
    assert report.counts.total() == len(found)
    assert all("expected" in fault.message for fault in found)
    return sorted((fault.line, fault.pointer, fault.code) for fault in found), report.rows


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("row_format", RowFormat)
def test_each_fault_of_a_row_is_found_where_it_is_and_no_other(row_format: RowFormat, seed: int, tmp_path: Path) -> None:
    planted = campaign(row_format, 250, seed)
    assert len(planted.expected) > 20
    assert _validated(planted, tmp_path) == (sorted(planted.expected), planted.rows)


@pytest.mark.parametrize("seed", range(3))
def test_each_fault_of_csv_is_found_where_it_is_and_no_other(seed: int, tmp_path: Path) -> None:
    planted = csv_campaign(250, seed)
    assert _validated(planted, tmp_path) == (sorted(planted.expected), planted.rows)


def test_several_processes_find_what_one_does(tmp_path: Path) -> None:
    planted = campaign(RowFormat.CHAT, 6_000, 7)
    assert len(planted.data) > 4 * 1024 * 1024, "expected several chunks"
    assert _validated(planted, tmp_path, processes=2) == (sorted(planted.expected), planted.rows)
