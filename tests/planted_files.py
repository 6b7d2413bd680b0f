"""Whole files, each with what is wrong with it; beside tests/planted_faults.py, whose faults are among sound rows."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import zipfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_checks.faults import Code
from dataset_checks.formats import RowFormat
from tests.planted_faults import Found, sound_row

ROWS = [sound_row(RowFormat.PROMPT_COMPLETION, random.Random(seed)) for seed in range(30)]
JSONL = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("rows.jsonl", JSONL)
    return out.getvalue()


def parquet(rows: list[dict[str, Any]] = ROWS, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, **options)
    return out.getvalue()


WHOLE = parquet()
SUMMED = parquet(write_page_checksum=True)
FILES: dict[str, tuple[bytes, list[Found]]] = {
    "empty.jsonl": (b"", [(0, "", Code.EMPTY_FILE)]),
    "blank.jsonl": (b"\n \n", [(0, "", Code.EMPTY_FILE)]),
    "bom_only.jsonl": (b"\xef\xbb\xbf", [(0, "", Code.EMPTY_FILE)]),
    "rows.jsonl.gz": (gzip.compress(JSONL), [(0, "", Code.COMPRESSED_FILE)]),
    "gzip_named.jsonl": (gzip.compress(JSONL), [(0, "", Code.COMPRESSED_FILE)]),
    "rows.zip": (_zip(), [(0, "", Code.COMPRESSED_FILE)]),
    "pickled.jsonl": (pickle.dumps(ROWS), [(0, "", Code.BINARY_FILE)]),
    "noise.jsonl": (random.Random(0).randbytes(50_000), [(0, "", Code.BINARY_FILE)]),
    "utf16.jsonl": (JSONL.decode().encode("utf-16"), [(0, "", Code.UTF16_FILE)]),
    "utf16le.jsonl": (JSONL.decode().encode("utf-16-le"), [(0, "", Code.UTF16_FILE)]),
    "loader.py": (b"import datasets\n", [(0, "", Code.SCRIPT_FILE)]),
    "shebang.jsonl": (b"#!/bin/sh\necho {}\n", [(0, "", Code.SCRIPT_FILE)]),
    "bom.jsonl": (b"\xef\xbb\xbf" + JSONL, [(1, "", Code.BYTE_ORDER_MARK)]),
    "array.json": (json.dumps(ROWS).encode(), [(0, "", Code.JSON_ARRAY_FILE)]),
    "pretty.jsonl": (b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS), [(0, "", Code.PRETTY_PRINTED_JSON)]),
    "mac.jsonl": (JSONL.replace(b"\n", b"\r"), [(1, "", Code.CARRIAGE_RETURN_ENDS)]),
    "mixed_ends.jsonl": (JSONL + b'{"prompt": "a", "completion": "b"}\r\n', [(31, "", Code.MIXED_LINE_ENDS)]),
    "windows.jsonl": (JSONL.replace(b"\n", b"\r\n"), []),
    "cut.jsonl": (JSONL[:-40], [(30, "", Code.TRUNCATED_FILE)]),
    "no_last_end.jsonl": (JSONL[:-1], []),
    "columns.jsonl": (b'{"question": "a", "answer": "b"}\n' * 3, [(0, "", Code.UNKNOWN_COLUMNS)]),
    "no_rows.jsonl": (b"[1]\n", [(1, "", Code.NOT_AN_OBJECT)]),
    "cut.parquet": (WHOLE[:-200], [(0, "", Code.INVALID_PARQUET)]),
    "half.parquet": (WHOLE[: len(WHOLE) // 2], [(0, "", Code.INVALID_PARQUET)]),
    "damaged.parquet": (SUMMED[:100] + bytes([SUMMED[100] ^ 1]) + SUMMED[101:], [(0, "", Code.INVALID_PARQUET)]),
    "sound.parquet": (WHOLE, []),
    "null.parquet": (parquet([*ROWS, {"prompt": "a"}]), [(31, "/completion", Code.NULL_VALUE)]),
    "semicolons.csv": (b"prompt;completion\na;b\n", [(1, "", Code.WRONG_DELIMITER)]),
    "twice.csv": (b"prompt,completion,prompt\na,b,c\n", [(1, "/prompt", Code.DUPLICATE_COLUMN)]),
    "wide.csv": (b"prompt," + b",".join(b"c%d" % n for n in range(100)) + b"\n", [(1, "", Code.TOO_MANY_COLUMNS)]),
    "header_only.csv": (b"prompt,completion\r\n", [(0, "", Code.EMPTY_FILE)]),
    "one_label.csv": (b"prompt,completion,label\na,b,true\nc,d,True\n", [(0, "", Code.ONE_LABEL_ONLY)]),
    "label.csv": (b"prompt,completion,label\na,b,true\nc,d,no\ne,f,false\n", [(3, "/label", Code.LABEL_NOT_BOOLEAN)]),
    "prompts.jsonl": (b'{"chosen": "ab", "rejected": "ac"}\n{"chosen": "b", "rejected": "c"}\n',
                      [(2, "/rejected", Code.PROMPTS_DIFFER)]),
    "last.jsonl": (b'{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "x": 1}\n',
                   [(1, "/prompt/1", Code.LAST_TURN_NOT_USER)]),
}  # fmt: skip
