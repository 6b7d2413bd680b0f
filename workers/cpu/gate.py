"""The GATE phase: hold the scores against the spec's gate."""

from __future__ import annotations

from temporalio import activity

from control_plane.jobs.states import JobPhase
from governance.gate import Evidence, decide
from workers.activities import translated
from workers.control_plane import ControlPlane
from workers.workflows.contracts import GateDecision, GateInput


class GateActivity:
    """The activity `gate` with what it needs."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane

    @activity.defn
    async def gate(self, argument: GateInput) -> GateDecision:
        """Decides, and records the decision."""
        context, scores = argument.context, argument.scores
        with translated(context):
            await self._control_plane.start_phase(context, JobPhase.GATE)
            evidence = Evidence(
                base_loss=scores.base_loss,
                tuned_loss=scores.tuned_loss,
                gain=scores.gain,
                gain_se=scores.gain_se,
                rows=scores.rows,
            )
            decision = decide(evidence, context.job.spec.gate)
            found = GateDecision(passed=decision.passed, explanation=decision.explanation)
            await self._control_plane.finish_phase(context, JobPhase.GATE, found.model_dump())
            return found
