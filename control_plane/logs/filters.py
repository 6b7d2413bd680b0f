"""Which records of a log a reader wants, as they want them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.errors import FieldViolation, invalid_fields
from headway.logs.v1 import log_record_pb2
from headway.logs.v1 import log_service_pb2 as pb

_Record = log_record_pb2.LogRecord

_SOURCE_MAX = 64
_TEXT_MAX = 1_000
_METRICS_MAX = 64
_METRIC_NAME_MAX = 128


class Filter(Protocol):
    """Which records, of which attempts."""

    @property
    def query(self) -> list[Any]:
        """What a cursor is bound to, as JSON values."""
        ...

    @property
    def attempt(self) -> int:
        """Of which attempt alone; 0: of all."""
        ...

    def wanted(self, record: _Record) -> _Record | None:
        """The record as the reader gets it, if they do. The one given is not changed."""
        ...


@dataclass(frozen=True, slots=True)
class TailFilter:
    """What TailLogs leaves through."""

    min_level: int
    attempt: int
    source: str
    text: str
    since: tuple[int, int] | None

    @property
    def query(self) -> list[Any]:
        """What a cursor is bound to, as JSON values."""
        return ["TailLogs", self.min_level, self.attempt, self.source, self.text, self.since]

    def wanted(self, record: _Record) -> _Record | None:
        """The record, if it passes."""
        if self.since is not None and _moment(record.time) < self.since:
            return None
        if not record.HasField("line"):
            # A measurement has no level, no source and no text: who asks for one of them does not mean it.
            return None if self.min_level or self.source or self.text else record
        line = record.line
        # A line that states no level counts as INFO.
        passes = (
            (line.level or log_record_pb2.LOG_LEVEL_INFO) >= self.min_level
            and (not self.source or line.source == self.source)
            and self.text in line.text
        )
        return record if passes else None


@dataclass(frozen=True, slots=True)
class ProgressFilter:
    """What StreamProgress leaves through."""

    metrics: frozenset[str]
    from_step: int

    @property
    def query(self) -> list[Any]:
        """What a cursor is bound to, as JSON values."""
        return ["StreamProgress", sorted(self.metrics), self.from_step]

    @property
    def attempt(self) -> int:
        """All of them."""
        return 0

    def wanted(self, record: _Record) -> _Record | None:
        """The measurement with the metrics asked for, if it has any of them."""
        if not record.HasField("progress") or record.progress.step < self.from_step:
            return None
        if not self.metrics:
            return record
        kept = self.metrics.intersection(record.progress.metrics)
        if not kept:
            return None
        part = _Record()
        part.CopyFrom(record)
        for name in set(part.progress.metrics) - kept:
            del part.progress.metrics[name]
        return part


def _moment(time: Timestamp) -> tuple[int, int]:
    """Seconds and nanoseconds, which compare as times do; a host's clock may say what no calendar holds."""
    return time.seconds, time.nanos


def tail_filter(request: pb.TailLogsRequest) -> TailFilter:
    """The filter a request asks for.

    Raises:
        RefusedError: with every field that breaks its limits.
    """
    violations: list[FieldViolation] = []
    if request.min_level not in log_record_pb2.LogLevel.values():
        violations.append(FieldViolation("min_level", f"is {request.min_level}; expected a LogLevel"))
    if request.attempt < 0:
        violations.append(FieldViolation("attempt", f"is {request.attempt}; expected 0 or more"))
    for field, value, most in (("source", request.source, _SOURCE_MAX), ("text", request.text, _TEXT_MAX)):
        if len(value) > most:
            violations.append(FieldViolation(field, f"has {len(value)} characters; expected at most {most:,}"))
    if violations:
        raise invalid_fields(violations)
    since = _moment(request.since) if request.HasField("since") else None
    return TailFilter(request.min_level, request.attempt, request.source, request.text, since)


def progress_filter(request: pb.StreamProgressRequest) -> ProgressFilter:
    """The filter a request asks for.

    Raises:
        RefusedError: with every field that breaks its limits.
    """
    violations: list[FieldViolation] = []
    if len(request.metrics) > _METRICS_MAX:
        violations.append(FieldViolation("metrics", f"holds {len(request.metrics)}; expected at most {_METRICS_MAX}"))
    violations += [
        FieldViolation(f"metrics[{index}]", f"expected 1 to {_METRIC_NAME_MAX} characters")
        for index, name in enumerate(request.metrics)
        if not 1 <= len(name) <= _METRIC_NAME_MAX
    ]
    if request.from_step < 0:
        violations.append(FieldViolation("from_step", f"is {request.from_step}; expected 0 or more"))
    if violations:
        raise invalid_fields(violations)
    return ProgressFilter(frozenset(request.metrics), request.from_step)
