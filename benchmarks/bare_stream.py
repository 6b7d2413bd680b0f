"""The ceiling of the stream benchmarks: a server process that sends the same messages and does nothing else.

No credential, no database, no interceptor: grpc.aio as it comes, as `python -m benchmarks.bare_stream`. Every line on its
standard input makes one message, which is sent to every stream.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from headway.jobs.v1 import job_event_pb2, job_pb2, job_service_pb2

_JOB = str(uuid.UUID(int=7))


@dataclass(frozen=True, slots=True)
class Task:
    """What the process does.

    Attributes:
        port: where it listens, on the loopback address.
        events: in a message.
        messages: that every stream gets at once; after them those that are asked for.
    """

    port: int
    events: int
    messages: int


@dataclass(slots=True)
class BareServer:
    """The process, from outside."""

    address: str
    _input: asyncio.StreamWriter
    _output: asyncio.StreamReader

    async def started(self) -> None:
        """Waits until it serves."""
        await self._output.readline()

    async def send(self) -> tuple[str, float]:
        """Makes it send one message to every stream; returns which event, and when."""
        self._input.write(b"\n")
        name, sent_at = json.loads(await self._output.readline())
        return name, sent_at


@asynccontextmanager
async def bare_server(task: Task) -> AsyncGenerator[BareServer]:
    """Serves inside the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.bare_stream", json.dumps(asdict(task))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        server = BareServer(f"127.0.0.1:{task.port}", *pipes(process))
        await server.started()
        yield server
    finally:
        process.kill()
        await process.wait()


def pipes(process: asyncio.subprocess.Process) -> tuple[asyncio.StreamWriter, asyncio.StreamReader]:
    """Standard input and output of a process that was started with both as pipes."""
    if process.stdin is None or process.stdout is None:
        raise ValueError("the process has no pipes; start it with stdin and stdout as PIPE")
    return process.stdin, process.stdout


class _Source:
    """The messages for all streams, and what wakes them for the next."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.next: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, message: bytes) -> None:
        self.messages.append(message)
        done, self.next = self.next, asyncio.get_running_loop().create_future()
        done.set_result(None)


def _message(first: int, events: int) -> bytes:
    return job_service_pb2.WatchEventsResponse(
        events=[
            job_event_pb2.JobEvent(
                job_id=_JOB,
                project="bench",
                sequence=first + number,
                type=job_event_pb2.JOB_EVENT_TYPE_RESUMED,
                state=job_pb2.JOB_STATE_RUNNING,
                time=Timestamp(seconds=1_790_000_000, nanos=123_456_000),
            )
            for number in range(events)
        ],
        cursor="x" * 32,
    ).SerializeToString()


async def _main(task: Task) -> None:
    source = _Source()
    backlog = _message(1, task.events)

    async def watch(request: bytes, context: Any) -> AsyncIterator[bytes]:
        del request, context
        position = len(source.messages)
        yield b""
        for _ in range(task.messages):
            yield backlog
        while True:
            while position == len(source.messages):
                # Shielded: one stream that ends must not end the others' waiting.
                await asyncio.shield(source.next)
            position += 1
            yield source.messages[position - 1]

    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(watch)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("headway.jobs.v1.JobService", {"WatchEvents": handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{task.port}")
    await server.start()
    print("ready", flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    sequence = 0
    while await reader.readline():
        sequence += task.events
        sent_at = time.monotonic()
        source.send(_message(sequence - task.events + 1, task.events))
        print(json.dumps([f"{_JOB}/{sequence}", sent_at]), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(Task(**json.loads(sys.argv[1]))))
