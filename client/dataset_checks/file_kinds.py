"""What a file is, by its first bytes: one of the formats, or something that only looks like one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dataset_checks.faults import Code, Fault
from dataset_checks.formats import FileFormat

HEAD_BYTES = 256 * 1024

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"(\xb5/\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf\x27\x1c": "7-zip",
    b"\x04\x22\x4d\x18": "lz4",
}
_BINARY = {
    b"ARROW1": "Arrow IPC",
    b"\x80\x02": "pickle",
    b"\x80\x03": "pickle",
    b"\x80\x04": "pickle",
    b"\x80\x05": "pickle",
    b"\x93NUMPY": "NumPy",
    b"SQLite format 3\x00": "SQLite",
    b"\x89PNG": "PNG",
    b"%PDF": "PDF",
    b"\x7fELF": "program",
    b"GGUF": "GGUF",
    b"\x89HDF": "HDF5",
    b"Obj\x01": "Avro",
    b"ORC": "ORC",
}
_COLUMN_NAMES = (b"text", b"prompt", b"completion", b"chosen", b"rejected", b"label", b"messages")
# Text hardly ever has control characters: every hundredth byte makes it something else.
_TEXT = bytes(byte for byte in range(256) if byte >= 32 or byte in b"\t\n\r")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def file_fault(head: bytes, name: str) -> Fault | None:
    """What keeps a file that begins with `head` from being read at all, if anything does."""
    if not head.removeprefix(BYTE_ORDER_MARK).strip():
        return Fault(0, "", Code.EMPTY_FILE, "the file is empty; expected rows")
    if head.startswith(b"PAR1"):
        return None
    if kind := _kind(head, _COMPRESSED):
        fault = Code.COMPRESSED_FILE, f"the file is compressed ({kind}); expected JSON lines, CSV or Parquet"
    elif head[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(head) >= 8 and head[1:8:2] == bytes(4) and all(head[:8:2])):
        fault = Code.UTF16_FILE, "the file is UTF-16; expected UTF-8"
    elif kind := _kind(head, _BINARY):
        fault = Code.BINARY_FILE, f"the file is binary ({kind}); expected JSON lines, CSV or Parquet"
    elif len(head.translate(None, _TEXT)) * 100 > len(head):
        fault = Code.BINARY_FILE, "the file is binary; expected JSON lines, CSV or Parquet"
    elif head.startswith(b"#!") or Path(name).suffix in (".py", ".sh", ".js"):
        fault = Code.SCRIPT_FILE, "the file is a script; expected rows"
    else:
        return _json_fault(head.removeprefix(BYTE_ORDER_MARK).lstrip())
    return Fault(0, "", *fault)


def _kind(head: bytes, kinds: Mapping[bytes, str]) -> str:
    return next((kind for magic, kind in kinds.items() if head.startswith(magic)), "")


def _json_fault(text: bytes) -> Fault | None:
    if text.startswith(b"[") and text[1:].lstrip().startswith(b"{"):
        return Fault(0, "", Code.JSON_ARRAY_FILE, "the file is one JSON array; expected an object on each line")
    lines = text.split(b"\n", 2)
    if len(lines) > 1 and lines[0].strip() == b"{" and lines[1].lstrip().startswith(b'"'):
        return Fault(0, "", Code.PRETTY_PRINTED_JSON, "objects go over several lines; expected each on one line")
    return None


def file_format_of(head: bytes, name: str) -> FileFormat:
    """The format of a file of which `file_fault` finds no fault: by its bytes, and by its name where those leave it open."""
    if head.startswith(b"PAR1"):
        return FileFormat.PARQUET
    if head.removeprefix(BYTE_ORDER_MARK).lstrip()[:1] in (b"{", b"["):
        return FileFormat.JSONL
    suffix = Path(name).suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return FileFormat.JSONL
    if suffix == ".parquet":
        return FileFormat.PARQUET
    first = head.removeprefix(BYTE_ORDER_MARK).partition(b"\n")[0]
    named = any(
        part.strip(b" \"\r'").lower() in _COLUMN_NAMES for part in first.replace(b";", b",").replace(b"\t", b",").split(b",")
    )
    return FileFormat.CSV if suffix in (".csv", ".tsv") or named else FileFormat.JSONL
