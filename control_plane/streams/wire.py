"""Messages put together from bytes: an event is serialised once, however many watchers get it.

A protobuf message is the concatenation of its fields, so that a WatchEventsResponse is made by joining framed events and a
framed cursor. The chain lets bytes that a servicer yields pass as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from control_plane.rpc import convert
from headway.jobs.v1 import job_event_pb2, job_pb2, job_service_pb2

_TYPES = {name.removeprefix("JOB_EVENT_TYPE_"): number for name, number in job_event_pb2.JobEventType.items()}
_STATES = {name.removeprefix("JOB_STATE_"): number for name, number in job_pb2.JobState.items()}
_PHASES = {name.removeprefix("JOB_PHASE_"): number for name, number in job_pb2.JobPhase.items()}

_LENGTH_DELIMITED = 2


def _tag(field: str) -> bytes:
    """The tag before a field of WatchEventsResponse that has a length."""
    number = job_service_pb2.WatchEventsResponse.DESCRIPTOR.fields_by_name[field].number
    return bytes([number << 3 | _LENGTH_DELIMITED])


_EVENT_TAG, _CURSOR_TAG = _tag("events"), _tag("cursor")
_END_OF_STREAM = job_service_pb2.WatchEventsResponse(end_of_stream=True).SerializeToString()


def event_to_proto(row: Mapping[Any, Any]) -> job_event_pb2.JobEvent:
    """A row of `job_events` for the wire."""
    event = job_event_pb2.JobEvent(
        job_id=row["job_id"],
        project=row["project"],
        sequence=row["sequence"],
        type=_TYPES[row["type"]],
        state=_STATES[row["state"]],
        attempt=row["attempt"],
        detail=convert.struct(row["detail"]),
        time=convert.timestamp(row["created_at"]),
    )
    if row["phase"] is not None:
        event.phase = _PHASES[row["phase"]]
    return event


def event_frame(row: Mapping[Any, Any]) -> bytes:
    """A row of `job_events` as a field `events` of a WatchEventsResponse."""
    return _framed(_EVENT_TAG, event_to_proto(row).SerializeToString())


def watch_message(frames: Iterable[bytes], cursor: str, *, last: bool) -> bytes:
    """A serialised WatchEventsResponse."""
    return b"".join((*frames, _framed(_CURSOR_TAG, cursor.encode()), _END_OF_STREAM if last else b""))


def _framed(tag: bytes, content: bytes) -> bytes:
    length, varint = len(content), bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return tag + varint + content
