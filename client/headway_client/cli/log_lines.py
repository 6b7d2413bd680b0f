"""Log records as lines of text."""

from __future__ import annotations

from headway.logs.v1 import log_record_pb2 as logs
from headway_client.cli.failures import InputError
from headway_client.text import local_time, printable
from headway_client.watching.plain import progress_line

_LEVELS = {
    "debug": logs.LOG_LEVEL_DEBUG,
    "info": logs.LOG_LEVEL_INFO,
    "warning": logs.LOG_LEVEL_WARNING,
    "error": logs.LOG_LEVEL_ERROR,
}


def level_of(name: str) -> logs.LogLevel.ValueType:
    """The level; unspecified for an empty name.

    Raises:
        InputError: there is no such level.
    """
    if not name:
        return logs.LOG_LEVEL_UNSPECIFIED
    if name.lower() not in _LEVELS:
        raise InputError(f"--level: {name} is no level; expected one of {', '.join(_LEVELS)}")
    return _LEVELS[name.lower()]


def record_line(record: logs.LogRecord) -> str:
    """Time, level, attempt and source before the text; further lines of the text are indented to it."""
    if record.HasField("progress"):
        return progress_line(record)
    level = logs.LogLevel.Name(record.line.level or logs.LOG_LEVEL_INFO).removeprefix("LOG_LEVEL_")
    head = f"{local_time(record.time)}  {level:<7}  {record.attempt} {record.line.source:<6}  "
    return head + printable(record.line.text.rstrip("\n")).replace("\n", "\n" + " " * len(head))
