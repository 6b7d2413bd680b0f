"""JSON lines: from bytes to objects, with everything that can be wrong on the way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from dataset_checks.faults import Code, Fault, Limits, pointer_to, type_name

_BLOCK_BYTES = 2 * 1024 * 1024
_INTEGER_MAX = 2**63
_INTEGER_DIGITS = 19
_BLANKS = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some whole lines of a file. The last one of a file may lack its end."""

    data: bytes
    too_long: bool = False
    """The chunk stands for one line that is longer than may be; `data` is its beginning."""
    tail: bool = False
    """The chunk is what comes after a file's last line end."""


def chunks(file: BinaryIO, limits: Limits) -> Iterator[Chunk]:
    """The file in chunks, each of a few megabytes at most, whatever the lines are like."""
    kept, ended = b"", False
    while block := file.read(_BLOCK_BYTES):
        kept += block
        end = kept.rfind(b"\n") + 1
        if end:
            yield Chunk(kept[:end])
            ended = True
            kept = kept[end:]
        if len(kept) > limits.line_bytes + 1:
            yield Chunk(kept[:200], too_long=True)
            kept, ended = _after_line(file), True
    end = kept.rfind(b"\n") + 1
    if end:
        yield Chunk(kept[:end])
    if kept[end:]:
        yield Chunk(kept[end:], tail=ended or end > 0)


def _after_line(file: BinaryIO) -> bytes:
    """Skips the rest of a line; what was read beyond it."""
    while block := file.read(_BLOCK_BYTES):
        end = block.find(b"\n") + 1
        if end:
            return block[end:]
    return b""


class _UnreadableError(Exception):
    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Marked:
    """A value that JSON does not have, in the place of which a reader would put something."""

    def __init__(self, code: Code, message: str) -> None:
        self.code, self.message = code, message


class _Repeating(dict[str, Any]):
    """An object in which names stand twice."""

    names: Sequence[str] = ()


class LineParser:
    """Turns lines into objects. What is wrong in an object, but leaves it one, is told with its place."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._marked = False
        decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_int=self._integer, parse_float=self._number
        )
        self._scan: Callable[[str, int], tuple[Any, int]] = vars(decoder)["scan_once"]

    def parse(self, number: int, line: bytes, found: list[Fault]) -> dict[str, Any] | None:
        """The object on a line, which is not blank; None, and a fault, where there is none."""
        self._marked = False
        try:
            row = self._parse(line)
        except _UnreadableError as error:
            found.append(Fault(number, "", error.code, str(error)))
            return None
        if self._marked:
            found += (Fault(number, pointer, code, message) for pointer, code, message in _marks(row, ""))
        return row

    def _parse(self, line: bytes) -> dict[str, Any]:
        limits = self._limits
        if len(line) > limits.line_bytes:
            raise _UnreadableError(Code.LINE_TOO_LONG, _too_long(limits))
        try:
            text = line.decode()
            if text[0] in _BLANKS:
                text = text.lstrip(_BLANKS)
            value, end = self._scan(text, 0)
            if end != len(text) and text[end:].strip(_BLANKS):
                raise json.JSONDecodeError("more text after the value", text, end)
        except UnicodeDecodeError as error:
            what = f"byte 0x{line[error.start]:02x} at byte {error.start + 1} is not UTF-8; expected UTF-8"
            raise _UnreadableError(Code.INVALID_UTF8, what) from error
        except StopIteration as error:
            raise _not_json(line, f"expecting a value at column {cast('int', error.value) + 1}") from error
        except json.JSONDecodeError as error:
            raise _not_json(line, f"{error.msg.lower().removesuffix(' at')} at column {error.colno}") from error
        except RecursionError as error:
            raise _UnreadableError(Code.NESTED_TOO_DEEPLY, _too_deep(limits)) from error
        if line.count(b"[") + line.count(b"{") > limits.depth and _depth(value) > limits.depth:
            raise _UnreadableError(Code.NESTED_TOO_DEEPLY, _too_deep(limits))
        if not isinstance(value, dict):
            what = value.message if isinstance(value, _Marked) else f"the row is {type_name(value)}; expected an object"
            raise _UnreadableError(Code.NOT_AN_OBJECT, what)
        return cast("dict[str, Any]", value)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            self._marked = True
            fields = _Repeating(fields)
            names = [name for name, _ in pairs]
            fields.names = sorted({name for name in names if names.count(name) > 1})
        return fields

    def _constant(self, text: str) -> _Marked:
        self._marked = True
        return _Marked(Code.NOT_A_NUMBER, f"{text} is no JSON value; expected a number or null")

    def _integer(self, text: str) -> int | _Marked:
        if len(text) > _INTEGER_DIGITS and (len(text) > _INTEGER_DIGITS + 1 or not -_INTEGER_MAX <= int(text) < _INTEGER_MAX):
            self._marked = True
            return _Marked(Code.NUMBER_TOO_LARGE, f"{text[:20]}… has {len(text)} digits; expected a number of 64 bits")
        return int(text)

    def _number(self, text: str) -> float | _Marked:
        value = float(text)
        if math.isinf(value):
            self._marked = True
            return _Marked(Code.NUMBER_TOO_LARGE, f"{text[:20]} is too large for a number; expected one of 64 bits")
        return value


def _too_long(limits: Limits) -> str:
    return f"the line is longer than {limits.line_bytes} bytes; expected at most that"


def _too_deep(limits: Limits) -> str:
    return f"values are nested more than {limits.depth} deep; expected at most that"


def _not_json(line: bytes, what: str) -> _UnreadableError:
    if b"\r" in line.strip():
        message = "the line holds carriage returns between values; expected lines to end with line feeds"
        return _UnreadableError(Code.CARRIAGE_RETURN_ENDS, message)
    return _UnreadableError(Code.INVALID_JSON, f"{what}; expected a JSON object")


def _marks(value: Any, pointer: str) -> Iterator[tuple[str, Code, str]]:
    if isinstance(value, _Marked):
        yield pointer, value.code, value.message
    elif isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if isinstance(fields, _Repeating):
            for name in fields.names:
                yield pointer + pointer_to(name), Code.DUPLICATE_FIELD, f"{name[:40]!r} is given twice; expected it once"
        for name, item in fields.items():
            yield from _marks(item, pointer + pointer_to(name))
    elif isinstance(value, list):
        for index, item in enumerate(cast("list[Any]", value)):
            yield from _marks(item, f"{pointer}/{index}")


def _depth(value: Any) -> int:
    """Levels of arrays and objects. By a list of what is to come, since the value may be deeper than Python recurses."""
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        item, level = waiting.pop()
        if isinstance(item, dict):
            children = list(cast("dict[str, Any]", item).values())
        elif isinstance(item, list):
            children = cast("list[Any]", item)
        else:
            continue
        deepest = max(deepest, level)
        waiting += [(child, level + 1) for child in children]
    return deepest
