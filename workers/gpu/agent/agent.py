"""The agent's life: a phase on one side, its lease, its logs and its checkpoints on the other; whichever ends it first."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine
from typing import Any

import structlog

from control_plane.jobs.states import FailureKind
from control_plane.settings import Settings, require
from headway_client import telemetry
from headway_client.errors import HeadwayError
from workers.control_plane import ControlPlane, fenced_off
from workers.file_cache import FileCache
from workers.gpu.agent.checkpoints import CheckpointUploader, FencedOffError
from workers.gpu.agent.lease import LeaseKeeper
from workers.gpu.agent.logs import LogForwarder
from workers.gpu.agent.phases import Tools, evaluate, train
from workers.gpu.agent.runner import Runner, StoppedError
from workers.gpu.agent.spec import AgentExit, AgentResult, AgentSpec
from workers.programs import ProgramCommand, program_command
from workers.runner.exit_codes import ExitCode, exit_code_of
from workers.storage import IntegrityError, ObjectMissingError, ObjectStore, StorageError
from workers.workflows.contracts import AttemptLoss, JobFailure, LeasedPhase, LossReason

_FLUSH_SECONDS = 10.0
_log = structlog.get_logger()

_EXIT_BY_LOSS = {
    LossReason.PREEMPTED: int(ExitCode.PREEMPTED),
    LossReason.RUNNER_CRASHED: int(AgentExit.RUNNER_CRASHED),
    LossReason.LEASE_LOST: int(AgentExit.LEASE_LOST),
}


async def run(
    spec: AgentSpec, settings: Settings, stop: asyncio.Event, command: ProgramCommand = program_command
) -> AgentResult:
    """Runs the phase to its end, or until this attempt may not go on.

    Args:
        spec: the phase.
        settings: where the servers are.
        stop: set when the runner is to stop at its next step; its last checkpoint is still uploaded.
        command: makes the runner's command.
    """
    control_plane = ControlPlane.of(settings, "the agent")
    store = ObjectStore(require(settings.s3, "s3", "the agent"))
    logs = LogForwarder(control_plane, spec.context.job.job_id, spec.grant.attempt)
    uploader = CheckpointUploader(spec, control_plane, store, logs)
    runner = Runner(logs, uploader.submit, command)
    tools = Tools(
        spec=spec,
        control_plane=control_plane,
        store=store,
        cache=FileCache(spec.cache_dir, store, settings.worker.cache_bytes_max),
        logs=logs,
        runner=runner,
        uploader=uploader,
        telemetry=settings.telemetry,
    )
    try:
        with telemetry.tracer().start_as_current_span(f"agent.{spec.phase.value.lower()}"):
            return await _supervise(tools, LeaseKeeper(control_plane, spec), stop)
    finally:
        await control_plane.close()


async def _supervise(tools: Tools, lease: LeaseKeeper, stop: asyncio.Event) -> AgentResult:
    phase = asyncio.create_task(_guarded(train(tools) if tools.spec.phase is LeasedPhase.TRAIN else evaluate(tools)))
    keeping = asyncio.create_task(lease.keep())
    forwarding = asyncio.create_task(tools.logs.forward())
    uploading = asyncio.create_task(tools.uploader.upload())
    watched: set[asyncio.Task[Any]] = {phase, keeping, forwarding, uploading}
    stopping = asyncio.create_task(_stop_when_asked(tools, stop))
    try:
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        if not phase.done():
            # Fenced off: nothing this attempt does counts any more, and its accelerators may be somebody else's.
            return await _abandon(tools, phase, next(task for task in (keeping, forwarding, uploading) if task.done()))
        result = phase.result()
        if not await tools.logs.flush(_FLUSH_SECONDS):
            _log.warning("log records were not stored in time and are lost")
        return result
    finally:
        for task in (stopping, *watched):
            task.cancel()
        await asyncio.gather(stopping, *watched, return_exceptions=True)


async def _abandon(tools: Tools, phase: asyncio.Task[AgentResult], ended: asyncio.Task[Any]) -> AgentResult:
    tools.runner.kill()
    phase.cancel()
    await asyncio.gather(phase, return_exceptions=True)
    error = ended.exception()
    if error is not None and not isinstance(error, FencedOffError):
        raise error
    message = str(error) if error is not None else str(ended.result())
    _log.warning("the attempt is given up", why=message)
    return _lost(LossReason.LEASE_LOST, message)


async def _guarded(phase: Coroutine[Any, Any, AgentResult]) -> AgentResult:
    """The phase, with its errors as results."""
    try:
        return await phase
    except IntegrityError as error:
        return AgentResult(failure=JobFailure(kind=FailureKind.INTEGRITY, message=str(error)))
    except HeadwayError as error:
        reason = LossReason.LEASE_LOST if fenced_off(error) else LossReason.PLATFORM_UNAVAILABLE
        return _lost(reason, str(error))
    except StoppedError as error:
        return _lost(LossReason.PREEMPTED, str(error))
    except (StorageError, ObjectMissingError) as error:
        return _lost(LossReason.PLATFORM_UNAVAILABLE, str(error))
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        return _lost(
            LossReason.PLATFORM_UNAVAILABLE,
            f"there is no room below worker.scratch_dir on this machine: {error}; make room there, or give it a larger disk",
        )


async def _stop_when_asked(tools: Tools, stop: asyncio.Event) -> None:
    """Passes the request to stop on to the runner, and kills it after its grace."""
    await stop.wait()
    _log.info("asked to stop; the runner is asked to stop at its next step")
    tools.runner.ask_to_stop()
    await asyncio.sleep(tools.spec.stop_grace_seconds)
    tools.runner.kill()


def _lost(reason: LossReason, message: str) -> AgentResult:
    return AgentResult(loss=AttemptLoss(reason=reason, message=message))


def exit_code(result: AgentResult) -> int:
    """The agent's exit code for a result."""
    if result.failure is not None:
        return int(exit_code_of(result.failure.kind))
    if result.loss is not None:
        return _EXIT_BY_LOSS.get(result.loss.reason, int(AgentExit.UNAVAILABLE))
    return int(ExitCode.DONE)
