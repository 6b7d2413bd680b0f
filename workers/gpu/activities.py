"""The phases that hold a lease. Each is run by an agent in a process of its own; the activity only supervises it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from temporalio import activity
from temporalio.exceptions import ApplicationError

from control_plane.jobs.states import JobPhase
from control_plane.settings import WorkerSettings
from headway_client import telemetry
from workers.activities import WorkerStopsError, attempt_lost, heartbeating, supervise, translated, verdict
from workers.child import spawn
from workers.control_plane import ControlPlane
from workers.gpu.agent.pipes import LinePipe
from workers.gpu.agent.spec import RESULT_NAME, AgentResult, AgentSpec
from workers.gpu.devices import Devices
from workers.programs import describe_exit
from workers.scratch import Scratch
from workers.workflows.contracts import EvaluateInput, LeasedPhase, LossReason, Scores, TrainedModel, TrainInput

_LAST_WORDS_MAX = 1_000
AGENT_MARGIN_SECONDS = 30.0
"""What the agent has beyond the runner's grace: for its last checkpoint and its last log records."""


class LeasedActivities:
    """The activities `train` and `evaluate` with what they need."""

    def __init__(self, control_plane: ControlPlane, scratch: Scratch, devices: Devices, settings: WorkerSettings) -> None:
        self._control_plane = control_plane
        self._scratch = scratch
        self._devices = devices
        self._settings = settings

    @activity.defn
    async def train(self, argument: TrainInput) -> TrainedModel:
        """Trains under a lease; goes on from the job's newest good checkpoint."""
        with translated(argument.context), self._scratch.workdir("train") as workdir:
            async with heartbeating():
                await self._control_plane.start_phase(argument.context, JobPhase.TRAIN)
                result = await self._supervised(self._spec(LeasedPhase.TRAIN, argument, workdir))
                trained = result.trained
                if trained is None:
                    raise _error(result)
                # With what was stored, here and below: it is kept for as long as the job's record names it.
                await self._control_plane.finish_phase(argument.context, JobPhase.TRAIN, trained.model_dump())
                return trained

    @activity.defn
    async def evaluate(self, argument: EvaluateInput) -> Scores:
        """Scores base and tuned model under a lease."""
        with translated(argument.context), self._scratch.workdir("evaluate") as workdir:
            async with heartbeating():
                await self._control_plane.start_phase(argument.context, JobPhase.EVALUATE)
                spec = self._spec(LeasedPhase.EVALUATE, argument, workdir, trained=argument.trained)
                result = await self._supervised(spec)
                scores = result.scores
                if scores is None:
                    raise _error(result)
                found = scores.model_dump(mode="json")
                await self._control_plane.finish_phase(argument.context, JobPhase.EVALUATE, found)
                return scores

    def _spec(self, phase: LeasedPhase, argument: TrainInput | EvaluateInput, workdir: Path, **extra: Any) -> AgentSpec:
        return AgentSpec(
            phase=phase,
            context=argument.context,
            grant=argument.grant,
            prepared=argument.prepared,
            run_seconds_left=argument.run_seconds_left,
            workdir=workdir,
            cache_dir=self._scratch.cache_dir,
            threads=self._settings.runner_threads or os.cpu_count() or 1,
            stop_grace_seconds=self._settings.stop_grace_seconds,
            trace_parent=telemetry.traceparent(),
            **extra,
        )

    async def _supervised(self, spec: AgentSpec) -> AgentResult:
        """What the agent left; raises if it left nothing, or if the worker or the job is to stop."""
        async with self._devices.held(spec.grant.accelerators) as shown:
            spec_path = spec.workdir / "agent_spec.json"
            spec_path.write_text(spec.model_copy(update={"runner_environment": shown}).model_dump_json(indent=1))
            stderr = LinePipe()
            echoing = asyncio.create_task(_echoed(stderr))
            try:
                agent = await spawn(
                    [sys.executable, "-m", "workers.gpu.agent", str(spec_path)],
                    stderr=stderr.write_end,
                    # Longer than the runner's own guardian takes, which is at it at the same time.
                    orphan_grace_seconds=0.5,
                )
            finally:
                stderr.close_write_end()
            try:
                code = await supervise(agent, spec.stop_grace_seconds + AGENT_MARGIN_SECONDS)
            except WorkerStopsError as error:
                raise attempt_lost(LossReason.PREEMPTED, str(error)) from error
            finally:
                # Nothing of its tree is left, so its pipe has ended.
                last_words = await echoing
        try:
            return AgentResult.model_validate_json((spec.workdir / RESULT_NAME).read_bytes())
        except (FileNotFoundError, ValidationError) as error:
            said = f": {last_words}" if last_words else ""
            raise attempt_lost(LossReason.AGENT_LOST, f"the agent ended with {describe_exit(code)}{said}") from error


async def _echoed(pipe: LinePipe) -> str:
    """Passes on what an agent says to this process's standard error; returns its last line, or a part of it."""
    last = ""
    async for line in pipe.lines():
        text = line.decode(errors="replace").rstrip()
        sys.stderr.write(f"{text}\n")
        last = text or last
    return last[:_LAST_WORDS_MAX]


def _error(result: AgentResult) -> ApplicationError:
    if result.failure is not None:
        return verdict(result.failure)
    if result.loss is not None:
        return attempt_lost(result.loss.reason, result.loss.message)
    return attempt_lost(LossReason.AGENT_LOST, "the agent left a result of another phase")
