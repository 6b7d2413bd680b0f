"""`python -m benchmarks.fuzz --requests N [--seed S]`: hostile requests by the million against a control plane process.

Prints how often each status came. Fails if one of them was INTERNAL or UNKNOWN, which would be a fault of ours, and says which
requests make it come again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from benchmarks.hostile import Hostile
from benchmarks.servers import BASE_MODEL, DATASET, PROJECT, Servers, bearer, own_channel, servers
from control_plane.app import SERVICES
from control_plane.identity.attempt_tokens import AttemptTokens
from control_plane.rpc.policy import POLICY, AttemptUse
from headway.jobs.v1 import job_service_pb2, job_service_pb2_grpc, job_spec_pb2

FAULTS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})
_STREAM_SECONDS = 0.3
# What gRPC's client for Python says itself when it writes to a call whose deadline has just passed; no server sent it.
_OWN_FAULT = "Internal error from Core"
_AT_ONCE = 32
_SHOWN = 20


def methods() -> list[MethodDescriptor]:
    """Every method of the contract."""
    pool = descriptor_pool.Default()
    return [method for name in SERVICES for method in pool.FindServiceByName(name).methods]


@dataclass
class Findings:
    """What came of the requests."""

    codes: Counter[grpc.StatusCode] = field(default_factory=Counter[grpc.StatusCode])
    faults: list[str] = field(default_factory=list[str])
    formless: list[str] = field(default_factory=list[str])
    """Refusals without a google.rpc.Status."""

    def note(self, name: str, body: bytes, code: grpc.StatusCode, details: str, *, formed: bool) -> None:
        """Adds an answer."""
        self.codes[code] += 1
        if code in FAULTS:
            self.faults.append(f"{name}: {details}: {body[:400].hex()}")
        elif code is not grpc.StatusCode.OK and not formed:
            self.formless.append(f"{name}: {code} {details}: {body[:400].hex()}")


async def send(channel: grpc.aio.Channel, method: MethodDescriptor, body: bytes, credential: Any, findings: Findings) -> None:
    """Sends one request, and of an endless answer reads no more than a moment."""
    name = f"{method.containing_service.full_name}/{method.name}"
    streams = method.client_streaming or method.server_streaming
    try:
        if method.client_streaming:
            call: Any = channel.stream_stream(f"/{name}")(iter([body]), metadata=credential, timeout=_STREAM_SECONDS)
        elif method.server_streaming:
            call = channel.unary_stream(f"/{name}")(body, metadata=credential, timeout=_STREAM_SECONDS)
        else:
            call = channel.unary_unary(f"/{name}")(body, metadata=credential)
        if streams:
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        if error.details() == _OWN_FAULT:
            findings.note(name, body, grpc.StatusCode.DEADLINE_EXCEEDED, "", formed=True)
            return
        own_deadline = streams and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        formed = own_deadline or any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())
        findings.note(name, body, error.code(), error.details() or "", formed=formed)
    else:
        findings.note(name, body, grpc.StatusCode.OK, "", formed=True)


def credentials(admin: str, worker: str, attempt: str) -> Mapping[str, Any]:
    """By method, the credential that gets furthest."""
    return {
        name: bearer(attempt if rule.attempt is AttemptUse.WRITES else worker if "WORKER" in rule.roles else admin)
        for name, rule in POLICY.items()
    }


async def fuzz(
    channels: Sequence[grpc.aio.Channel],
    source: Hostile,
    requests: int,
    held: Mapping[str, Any],
    findings: Findings,
    at_once: int = _AT_ONCE,
) -> None:
    """Sends so many requests, several at once."""
    left = requests

    async def sender(number: int) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            method, body = source.next()
            name = f"{method.containing_service.full_name}/{method.name}"
            await send(channels[number % len(channels)], method, body, held[name], findings)

    await asyncio.gather(*(sender(number) for number in range(at_once)))


async def _job(running: Servers) -> str:
    spec = job_spec_pb2.JobSpec(
        fine_tune=job_spec_pb2.FineTuneSpec(
            base_model=BASE_MODEL, dataset=job_spec_pb2.DatasetRef(name=DATASET), output_model="out"
        )
    )
    async with own_channel(running.address) as channel:
        request = job_service_pb2.SubmitJobRequest(request_id=str(uuid.uuid4()), project=PROJECT, spec=spec)
        stub = job_service_pb2_grpc.JobServiceStub(channel)
        return (await stub.SubmitJob(request, metadata=running.metadata)).job.job_id


async def _run(requests: int, seed: int) -> Findings:
    findings = Findings()
    async with servers({"limits": {"calls_per_second": 1e9, "calls_burst": 10**9}}) as running:
        job_id = await _job(running)
        ends_at = datetime.now(UTC) + timedelta(days=7)
        attempt = AttemptTokens(running.secret_key.encode()).issue(job_id, 0, ends_at)
        source = Hostile(methods(), seed, (PROJECT, DATASET, BASE_MODEL, job_id))
        channels = [own_channel(running.address) for _ in range(8)]
        began = time.monotonic()
        done = 0
        while done < requests:
            count = min(20_000, requests - done)
            # No worker's token here: what only workers call is refused for their role, which is an answer too.
            await fuzz(channels, source, count, credentials(running.token, running.token, attempt), findings)
            done += count
            print(f"{done:,} of {requests:,} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        for channel in channels:
            await channel.close()
    return findings


def main() -> None:
    """Sends them, and ends with status 1 if one was answered badly."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    findings = asyncio.run(_run(options.requests, options.seed))
    for code, count in findings.codes.most_common():
        print(f"{count:>10,} {code.name}")
    for line in (findings.faults + findings.formless)[:_SHOWN]:
        print(line)
    sys.exit(1 if findings.faults or findings.formless else 0)


if __name__ == "__main__":
    main()
