"""Puts a load on a control plane over gRPC and carries it out in place of workers: submits, asks for leases, holds them, ends.

It knows nothing but what the contract tells it: that a job was admitted or a lease granted, it hears from WatchEvents. What has
come up meanwhile goes out together, one call of a kind under way at a time.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from benchmarks.servers import BASE_MODEL, DATASET, Servers, bearer, own_channel
from headway.attempts.v1 import attempt_service_pb2, attempt_service_pb2_grpc
from headway.jobs.v1 import job_event_pb2, job_pb2, job_service_pb2, job_service_pb2_grpc, job_spec_pb2

_BATCH = 1_000
_SUBMITTERS = 8
_STALLED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class LoadJob:
    """A job of the load.

    Attributes:
        due_seconds: after the start, when it is submitted.
        set_name: the set of alike jobs that it is of; it becomes the job's name.
        accelerators: what it holds,
        run_seconds: for so long after its grant was heard of.
        priority: as SubmitJobRequest.priority.
    """

    due_seconds: float
    set_name: str
    accelerators: int
    run_seconds: float
    priority: int


@dataclass(slots=True)
class _Pending:
    """What is to go out with the next call of a kind."""

    items: list[Any] = field(default_factory=list[Any])
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, item: Any) -> None:
        self.items.append(item)
        self.wake.set()

    async def taken(self) -> list[Any]:
        """Waits until there is something, and takes up to a batch of it."""
        await self.wake.wait()
        batch, self.items = self.items[:_BATCH], self.items[_BATCH:]
        if not self.items:
            self.wake.clear()
        return batch


class LoadExecutor:
    """One run of a load."""

    def __init__(self, running: Servers, kind: str, load: dict[str, Sequence[LoadJob]]) -> None:
        """Args:
        running: the servers.
        kind: of accelerator, that all jobs ask for.
        load: by project, in order of time.
        """
        self._running = running
        self._kind = kind
        self._load = load
        self._count = sum(len(jobs) for jobs in load.values())
        self._began = 0.0
        self._jobs: dict[str, LoadJob] = {}
        self._early: dict[str, int] = {}
        self._asking = _Pending()
        self._ending = _Pending()
        self._finished: set[str] = set()
        self._watching = asyncio.Event()
        self._done = asyncio.Event()
        self._heard_at = 0.0

    async def run(self) -> float:
        """Runs all of it; returns the seconds from the first submit until it was heard that the last job ended.

        Raises:
            RuntimeError: something was refused, or nothing happened for a minute.
        """
        address = self._running.address
        async with own_channel(address) as submitting, own_channel(address) as watching, own_channel(address) as working:
            return await self._run(submitting, watching, working)

    async def _run(self, submitting: grpc.aio.Channel, watching: grpc.aio.Channel, working: grpc.aio.Channel) -> float:
        jobs = job_service_pb2_grpc.JobServiceStub(watching)
        watch = jobs.WatchEvents(job_service_pb2.WatchEventsRequest(from_now=True), metadata=self._running.metadata)
        attempts = attempt_service_pb2_grpc.AttemptServiceStub(working)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self._follow(watch))
            await self._watching.wait()
            self._began = time.monotonic()
            tasks = [
                following,
                group.create_task(self._send(self._asking, self._request(attempts))),
                group.create_task(self._send(self._ending, self._finish(attempts))),
                group.create_task(self._guard()),
            ]
            turns = self._turns()
            submitters = [group.create_task(self._submit(submitting, turns)) for _ in range(_SUBMITTERS)]
            await self._done.wait()
            seconds = time.monotonic() - self._began
            for task in (*tasks, *submitters):
                task.cancel()
        return seconds

    def _turns(self) -> Iterator[tuple[str, list[LoadJob]]]:
        """The projects that have jobs left, one after the other and again."""
        left = {project: list(reversed(jobs)) for project, jobs in self._load.items()}
        while left:
            for project in list(left):
                if not left[project]:
                    del left[project]
                else:
                    yield project, left[project]

    async def _submit(self, channel: grpc.aio.Channel, turns: Iterator[tuple[str, list[LoadJob]]]) -> None:
        """Submits what is due of a project, then of the next; never before it is due."""
        stub = job_service_pb2_grpc.JobServiceStub(channel)
        for project, left in turns:
            if not left:
                continue
            wait = left[-1].due_seconds - (time.monotonic() - self._began)
            if wait > 0:
                await asyncio.sleep(wait)
            now = time.monotonic() - self._began
            batch: list[LoadJob] = []
            while left and left[-1].due_seconds <= now and len(batch) < _BATCH:
                batch.append(left.pop())
            if not batch:
                continue
            request = job_service_pb2.BatchSubmitJobsRequest(
                request_id=str(uuid.uuid4()),
                project=project,
                items=[
                    job_service_pb2.BatchItem(name=job.set_name, spec=self._spec(job), priority=job.priority) for job in batch
                ],
            )
            answer = await stub.BatchSubmitJobs(request, metadata=self._running.metadata, timeout=60)
            if answer.accepted_count != len(batch):
                raise RuntimeError(f"only {answer.accepted_count} of {len(batch)} jobs were accepted")
            for result, job in zip(answer.results, batch, strict=True):
                self._jobs[result.job_id] = job
                if result.job_id in self._early:
                    self._ask(result.job_id, self._early.pop(result.job_id))

    def _spec(self, job: LoadJob) -> job_spec_pb2.JobSpec:
        return job_spec_pb2.JobSpec(
            fine_tune=job_spec_pb2.FineTuneSpec(
                base_model=BASE_MODEL,
                dataset=job_spec_pb2.DatasetRef(name=DATASET),
                output_model="out",
                resources=job_spec_pb2.ResourceSpec(
                    accelerators=job.accelerators, accelerator_kind=self._kind, max_run_seconds=3_600
                ),
            )
        )

    async def _follow(self, watch: Any) -> None:
        async for message in watch:
            self._heard_at = time.monotonic()
            self._watching.set()
            for event in message.events:
                self._hear(event)

    def _hear(self, event: job_event_pb2.JobEvent) -> None:
        if event.type == job_event_pb2.JOB_EVENT_TYPE_LEASE_GRANTED:
            job = self._jobs[event.job_id]
            end = attempt_service_pb2.FinishJobRequest(
                job_id=event.job_id, attempt=event.attempt, state=job_pb2.JOB_STATE_SUCCEEDED
            )
            asyncio.get_running_loop().call_later(job.run_seconds, self._ending.add, end)
        elif event.type == job_event_pb2.JOB_EVENT_TYPE_STATE_CHANGED:
            if event.state == job_pb2.JOB_STATE_STARTING:
                if event.job_id in self._jobs:
                    self._ask(event.job_id, event.attempt)
                else:
                    # It was admitted before the answer to its submission came.
                    self._early[event.job_id] = event.attempt
            elif event.state == job_pb2.JOB_STATE_SUCCEEDED:
                self._finished.add(event.job_id)
                if len(self._finished) == self._count:
                    self._done.set()

    def _ask(self, job_id: str, attempt: int) -> None:
        self._asking.add(
            attempt_service_pb2.RequestLeaseRequest(
                lease_id=str(uuid.uuid4()),
                job_id=job_id,
                attempt=attempt,
                phase=job_pb2.JOB_PHASE_TRAIN,
                shape=attempt_service_pb2.Shape(accelerators=self._jobs[job_id].accelerators, accelerator_kind=self._kind),
                max_run_seconds=3_600,
            )
        )

    def _request(self, stub: Any) -> Callable[[list[Any]], Awaitable[Any]]:
        metadata = bearer(self._running.worker_token)
        return lambda requests: stub.BatchRequestLeases(
            attempt_service_pb2.BatchRequestLeasesRequest(requests=requests), metadata=metadata, timeout=60
        )

    def _finish(self, stub: Any) -> Callable[[list[Any]], Awaitable[Any]]:
        metadata = bearer(self._running.worker_token)
        return lambda requests: stub.BatchFinishJobs(
            attempt_service_pb2.BatchFinishJobsRequest(requests=requests), metadata=metadata, timeout=60
        )

    async def _send(self, pending: _Pending, call: Callable[[list[Any]], Awaitable[Any]]) -> None:
        while True:
            answer = await call(await pending.taken())
            refused = [result.status.message for result in answer.results if result.HasField("status")]
            if refused:
                raise RuntimeError(f"{len(refused)} of {len(answer.results)} were refused: {refused[0]}")

    async def _guard(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if time.monotonic() - self._heard_at > _STALLED_SECONDS:
                raise RuntimeError(
                    f"no event for {_STALLED_SECONDS:g} s: of {self._count} jobs {len(self._jobs)} are submitted and"
                    f" {len(self._finished)} ended"
                )
