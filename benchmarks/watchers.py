"""The client process of the stream benchmarks: many watches over a few connections, as `python -m benchmarks.watchers`.

It reads its task, a JSON object, from the command line, opens the streams, prints `ready` when each has brought its first
message, and at the end what it has seen, as JSON. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import grpc

from benchmarks.bare_stream import pipes
from benchmarks.servers import bearer
from headway.jobs.v1 import job_service_pb2

_METHOD = "/headway.jobs.v1.JobService/WatchEvents"
# A reader that never reads fills the window between the two sides first: HTTP/2's own 64 KiB, not what probing makes of it.
_SMALL_WINDOW = [("grpc.http2.lookahead_bytes", 65_536), ("grpc.http2.bdp_probe", 0)]


@dataclass(frozen=True, slots=True)
class Task:
    """What the process does.

    Attributes:
        address: host:port of the server.
        token: the credential.
        streams: how many.
        connections: over how many.
        kind: `lag`: notes when each event came; `count`: reads as many events as fast as it can; `stall`: reads one message.
        events: for `lag` and `count`, events that each stream reads.
        from_now: begins with what comes, and not with what is stored.
        project: what is watched.
    """

    address: str
    token: str
    streams: int
    connections: int
    kind: Literal["lag", "count", "stall"]
    events: int = 0
    from_now: bool = False
    project: str = "bench"


@dataclass(slots=True)
class Seen:
    """What a `lag` task saw: by event, identified by job and sequence, when it came to each stream, in seconds."""

    times: dict[str, list[float]] = field(default_factory=dict[str, list[float]])


@dataclass(slots=True)
class Watchers:
    """The process, from outside."""

    _output: asyncio.StreamReader

    async def finished(self) -> Any:
        """What it printed at its end."""
        return json.loads(await self._output.readline())


@asynccontextmanager
async def watchers(task: Task) -> AsyncGenerator[Watchers]:
    """Runs the process; inside the block all its streams are open."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.watchers", json.dumps(asdict(task))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=64 * 2**20,
    )
    _, output = pipes(process)
    try:
        async with asyncio.timeout(60):
            line = await output.readline()
        if line.strip() != b"ready":
            raise RuntimeError(f"the watchers said {line!r}; expected that they are ready")
        yield Watchers(output)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _main(task: Task) -> None:
    options = [("grpc.use_local_subchannel_pool", 1), *(_SMALL_WINDOW if task.kind == "stall" else [])]
    channels = [grpc.aio.insecure_channel(task.address, options=options) for _ in range(task.connections)]
    request = job_service_pb2.WatchEventsRequest(project=task.project, from_now=task.from_now)
    calls: list[Any] = [
        channels[number % task.connections].unary_stream(
            _METHOD,
            request_serializer=job_service_pb2.WatchEventsRequest.SerializeToString,
            response_deserializer=job_service_pb2.WatchEventsResponse.FromString,
        )(request, metadata=bearer(task.token))
        for number in range(task.streams)
    ]
    first = [await call.read() for call in calls]
    print("ready", flush=True)
    match task.kind:
        case "stall":
            await asyncio.Event().wait()
        case "lag":
            seen = Seen()
            await asyncio.gather(*(_note(call, task.events, seen) for call in calls))
            print(json.dumps(seen.times), flush=True)
        case "count":
            began = time.monotonic()
            already = sum(len(message.events) for message in first)
            counts = [task.events - len(message.events) for message in first]
            await asyncio.gather(*(_count(call, count) for call, count in zip(calls, counts, strict=True)))
            events = task.events * task.streams - already
            print(json.dumps({"events": events, "seconds": time.monotonic() - began}), flush=True)
    for channel in channels:
        await channel.close()


async def _note(call: Any, events: int, seen: Seen) -> None:
    while events > 0:
        message = await call.read()
        now = time.monotonic()
        for event in message.events:
            seen.times.setdefault(f"{event.job_id}/{event.sequence}", []).append(now)
            events -= 1


async def _count(call: Any, events: int) -> None:
    while events > 0:
        events -= len((await call.read()).events)


if __name__ == "__main__":
    asyncio.run(_main(Task(**json.loads(sys.argv[1]))))
