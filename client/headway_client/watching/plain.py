"""How a job looks where nothing can be redrawn: one line for everything that happens."""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict

from headway.jobs.v1 import job_event_pb2 as events
from headway.logs.v1 import log_record_pb2
from headway_client.text import local_time, one_line
from headway_client.watching.render import measurement_parts, phase_summary
from headway_client.watching.view import phase_name, state_name


def event_line(event: events.JobEvent) -> str:
    """One event."""
    detail = MessageToDict(event.detail)
    phase = phase_name(event.phase) if event.phase else ""
    match event.type:
        case events.JOB_EVENT_TYPE_SUBMITTED:
            what = "submitted"
        case events.JOB_EVENT_TYPE_STATE_CHANGED:
            what = f"state {state_name(event.state)}"
        case events.JOB_EVENT_TYPE_PHASE_STARTED:
            what = f"{phase} began"
        case events.JOB_EVENT_TYPE_PHASE_FINISHED:
            what = f"{phase} finished: {phase_summary(phase, detail)}".rstrip(": ")
        case events.JOB_EVENT_TYPE_LEASE_GRANTED:
            what = f"{phase}: lease granted on {detail.get('worker', 'a worker')}, attempt {event.attempt}"
        case events.JOB_EVENT_TYPE_LEASE_ENDED:
            seconds = detail.get("accelerator_seconds", 0)
            what = f"{phase}: lease ended, {detail.get('outcome', '')}, {seconds:.1f} accelerator-seconds"
        case events.JOB_EVENT_TYPE_CHECKPOINT_COMMITTED | events.JOB_EVENT_TYPE_RESUMED:
            verb = "goes on from" if event.type == events.JOB_EVENT_TYPE_RESUMED else "checkpoint at"
            what = f"{verb} step {int(detail.get('step', 0))}"
        case _:
            name = events.JobEventType.Name(event.type).removeprefix("JOB_EVENT_TYPE_")
            what = f"{phase} {name.lower().replace('_', ' ')}".strip()
    return f"{local_time(event.time)}  {one_line(what)}"


def progress_line(record: log_record_pb2.LogRecord) -> str:
    """One measurement."""
    progress = record.progress
    parts = [f"{progress.phase} step {progress.step}/{progress.total_steps}", *measurement_parts(progress.metrics)]
    return f"{local_time(record.time)}  {one_line(', '.join(parts))}"
