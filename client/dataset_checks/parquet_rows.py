"""Parquet, a batch of rows at a time. What its footer says is held against limits before anything is decompressed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_checks.faults import Code, Fault, Limits, pointer_to

_BATCH_ROWS = 4_096


class MissingLibraryError(Exception):
    """A library is not installed that this file or option needs; the message says how to get it."""


def read_records(path: Path, limits: Limits, found: list[Fault]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of each row, from 1, and its fields."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - only Parquet needs it
        import pyarrow.parquet as pq  # noqa: PLC0415 - only Parquet needs it
    except ImportError as error:
        raise MissingLibraryError("Parquet needs pyarrow; install headway[data]") from error
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if not _check_footer(file.metadata, file.schema_arrow.names, limits, found):
                return
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in _rows(batch):
                    number += 1
                    if isinstance(row, UnicodeDecodeError):
                        what = f"a text is not UTF-8: {row.reason} at byte {row.start + 1}; expected UTF-8"
                        found.append(Fault(number, "", Code.INVALID_UTF8, what))
                    else:
                        yield number, row
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        found.append(Fault(0, "", Code.INVALID_PARQUET, f"the file cannot be read: {reason}; expected a whole Parquet file"))


def _rows(batch: Any) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """The rows of a batch; for one whose texts cannot be decoded, why. Parquet does not check what it calls strings."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error


def _check_footer(metadata: Any, names: list[str], limits: Limits, found: list[Fault]) -> bool:
    if len(names) > limits.columns:
        message = f"the file has {len(names)} columns; expected at most {limits.columns}"
        found.append(Fault(0, "", Code.TOO_MANY_COLUMNS, message))
        return False
    sizes = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    if sizes and max(sizes) > limits.row_group_bytes:
        message = f"a row group has {max(sizes)} bytes when decompressed; expected at most {limits.row_group_bytes}"
        found.append(Fault(0, "", Code.ROW_GROUP_TOO_LARGE, message))
        return False
    repeated = sorted({name for name in names if names.count(name) > 1})
    for name in repeated:
        message = f"the column {name[:40]!r} is there twice; expected it once"
        found.append(Fault(0, pointer_to(name), Code.DUPLICATE_COLUMN, message))
    return not repeated
