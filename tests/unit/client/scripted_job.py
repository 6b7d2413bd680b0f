"""A control plane that plays one job from a script: its events, its measurements, its log, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from headway.jobs.v1 import job_event_pb2 as events
from headway.jobs.v1 import job_pb2, job_service_pb2_grpc, job_spec_pb2
from headway.jobs.v1 import job_service_pb2 as jobs
from headway.logs.v1 import log_record_pb2, log_service_pb2_grpc
from headway.logs.v1 import log_service_pb2 as logs
from tests.unit.client.servicers import PartialJobServicer

JOB_ID = "2f1c8a52-5b0e-4f7e-9d0a-6a1f0c9f8e11"
START = 1_790_000_000.0

RESULT: dict[str, Any] = {
    "prepare": {"train_rows": 811, "eval_rows": 81, "train_tokens": 24310, "eval_tokens": 2403, "duplicate_rows": 152},
    "train": {"final_loss": 3.02, "steps": 10, "tokens_per_second": 212.0},
    "evaluate": {
        "base_loss": 4.468,
        "base_loss_se": 0.142,
        "tuned_loss": 3.021,
        "tuned_loss_se": 0.11,
        "gain": 1.447,
        "gain_se": 0.214,
        "rows": 81,
        "samples": [{"prompt": "Are you sentient?", "before": "As an AI\x1b[2J, I", "after": "Sort of."}],
    },
    "gate": {"passed": True, "explanation": "the gain is 6.8 standard errors; expected at least 2"},
    "package": {"manifest_uri": "s3://headway/m", "manifest_sha256": "ab" * 32},
    "register": {"model": "support-assistant", "version": 1, "mlflow_version": "1", "alias": "dev"},
}
_LEASED = ("train", "evaluate")
STEPS = 10


def at(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round((START + seconds) * 1e9))
    return stamp


def structure(content: dict[str, Any]) -> Struct:
    return ParseDict(content, Struct())


def script() -> list[events.JobEvent | log_record_pb2.LogRecord]:
    """Everything that happens, in order, a second apart."""
    told: list[events.JobEvent | log_record_pb2.LogRecord] = []
    sequence = 0

    def event(kind: events.JobEventType.ValueType, **fields: Any) -> None:
        nonlocal sequence
        sequence += 1
        state = fields.pop("state", job_pb2.JOB_STATE_RUNNING)
        told.append(events.JobEvent(job_id=JOB_ID, sequence=sequence, type=kind, state=state, time=at(len(told)), **fields))

    event(events.JOB_EVENT_TYPE_SUBMITTED, state=job_pb2.JOB_STATE_QUEUED)
    event(events.JOB_EVENT_TYPE_STATE_CHANGED, state=job_pb2.JOB_STATE_STARTING)
    event(events.JOB_EVENT_TYPE_STATE_CHANGED)
    for phase, detail in RESULT.items():
        number = job_pb2.JobPhase.Value(f"JOB_PHASE_{phase.upper()}")
        if phase in _LEASED:
            event(events.JOB_EVENT_TYPE_LEASE_REQUESTED, phase=number)
            event(events.JOB_EVENT_TYPE_LEASE_GRANTED, phase=number, attempt=1, detail=structure({"worker": "machine"}))
        event(events.JOB_EVENT_TYPE_PHASE_STARTED, phase=number)
        if phase == "train":
            began = len(told)
            told.extend(_measured(step, began) for step in range(1, STEPS + 1))
            event(events.JOB_EVENT_TYPE_CHECKPOINT_COMMITTED, phase=number, detail=structure({"step": STEPS}))
        event(events.JOB_EVENT_TYPE_PHASE_FINISHED, phase=number, detail=structure(detail))
        if phase in _LEASED:
            ended = structure({"outcome": "completed", "accelerator_seconds": 12.5})
            event(events.JOB_EVENT_TYPE_LEASE_ENDED, phase=number, attempt=1, detail=ended)
    event(events.JOB_EVENT_TYPE_STATE_CHANGED, state=job_pb2.JOB_STATE_SUCCEEDED)
    return told


def _measured(step: int, offset: int) -> log_record_pb2.LogRecord:
    metrics = {"loss": 4.5 - 0.15 * step, "tokens_per_second": 200.0 + step}
    progress = log_record_pb2.Progress(step=step, total_steps=STEPS, metrics=metrics, phase="train")
    return log_record_pb2.LogRecord(sequence=step, time=at(offset + step), progress=progress, attempt=1)


class ScriptedJob(PartialJobServicer, log_service_pb2_grpc.LogServiceServicer):
    """Plays `script()`; the job then ends as `final`."""

    def __init__(self, final: job_pb2.Job | None = None) -> None:
        self.submitted: list[jobs.SubmitJobRequest] = []
        self.traceparents: list[str] = []
        self._script = script()
        self._told = 0
        self._more = asyncio.Condition()
        spec = job_spec_pb2.FineTuneSpec(base_model="smollm2-135m-instruct", output_model="support-assistant")
        self.job = job_pb2.Job(
            job_id=JOB_ID,
            project="demo",
            name="support-assistant",
            spec=job_spec_pb2.JobSpec(fine_tune=spec),
            state=job_pb2.JOB_STATE_QUEUED,
            waiting_reason="2 jobs of higher priority are ahead",
            priority=500,
            create_time=at(0),
            trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        )
        self._final = final or job_pb2.Job(
            state=job_pb2.JOB_STATE_SUCCEEDED,
            phase=job_pb2.JOB_PHASE_REGISTER,
            attempt=1,
            result=structure(RESULT),
            accelerator_seconds={"cpu": 25.0},
            end_time=at(len(self._script)),
        )

    def register(self, server: aio.Server) -> None:
        job_service_pb2_grpc.add_JobServiceServicer_to_server(self, server)
        log_service_pb2_grpc.add_LogServiceServicer_to_server(self, server)

    async def play(self, entries: int | None = None) -> None:
        """Tells the next entries of the script, by default all that are left."""
        async with self._more:
            self._told = len(self._script) if entries is None else self._told + entries
            if self._told == len(self._script):
                self.job.MergeFrom(self._final)
                self.job.waiting_reason = ""
            self._more.notify_all()

    async def _tell(self, kind: type[Any], start: str) -> AsyncIterator[tuple[Any, int, bool]]:
        position = int(start or 0)
        while position < len(self._script):
            async with self._more:
                await self._more.wait_for(lambda: self._told > position)  # noqa: B023  awaited before position moves
            entry = self._script[position]
            position += 1
            yield entry if isinstance(entry, kind) else None, position, position == len(self._script)

    async def SubmitJob(  # noqa: N802  the generated name
        self, request: jobs.SubmitJobRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.SubmitJobResponse:
        self.submitted.append(request)
        self.traceparents.append(str(dict(context.invocation_metadata() or ()).get("traceparent", "")))
        return jobs.SubmitJobResponse(job=self.job)

    async def GetJob(  # noqa: N802  the generated name
        self, request: jobs.GetJobRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.GetJobResponse:
        return jobs.GetJobResponse(job=self.job)

    async def ListJobs(  # noqa: N802  the generated name
        self, request: jobs.ListJobsRequest, context: aio.ServicerContext[Any, Any]
    ) -> jobs.ListJobsResponse:
        return jobs.ListJobsResponse(jobs=[self.job])

    async def WatchEvents(  # noqa: N802  the generated name
        self, request: jobs.WatchEventsRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[jobs.WatchEventsResponse]:
        async for entry, position, last in self._tell(events.JobEvent, request.start_cursor):
            batch = [entry] if entry is not None else []
            yield jobs.WatchEventsResponse(events=batch, cursor=str(position), end_of_stream=last)

    async def StreamProgress(  # noqa: N802  the generated name
        self, request: logs.StreamProgressRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[logs.StreamProgressResponse]:
        async for entry, position, last in self._tell(log_record_pb2.LogRecord, request.start_cursor):
            batch = [entry] if entry is not None else []
            yield logs.StreamProgressResponse(records=batch, cursor=str(position), end_of_stream=last)

    async def TailLogs(  # noqa: N802  the generated name
        self, request: logs.TailLogsRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[logs.TailLogsResponse]:
        line = log_record_pb2.LogLine(level=log_record_pb2.LOG_LEVEL_INFO, text="loading\x1b[31m\nmodel", source="runner")
        yield logs.TailLogsResponse(records=[log_record_pb2.LogRecord(sequence=1, time=at(1), line=line, attempt=1)])
        async for entry, position, last in self._tell(log_record_pb2.LogRecord, request.start_cursor):
            batch = [entry] if entry is not None else []
            yield logs.TailLogsResponse(records=batch, cursor=str(position), end_of_stream=last)

    CancelJob = AppendLogs = None  # type: ignore[assignment]  # the script asks for neither
