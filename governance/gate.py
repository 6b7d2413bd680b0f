"""The gate between evaluation and registration: evidence and policy in, a decision with its numbers out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from control_plane.jobs.spec import GateSpec


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured on the held-out rows, in nats per target token."""

    base_loss: float
    tuned_loss: float
    gain: float
    """Mean over rows of base loss minus tuned loss."""
    gain_se: float
    """Standard error of that paired mean."""
    rows: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the tuned model may be registered, and a sentence with every number that decided it."""

    passed: bool
    explanation: str


def decide(evidence: Evidence, policy: GateSpec) -> Decision:
    """Passes a model whose gain is positive and at least the policy's number of standard errors.

    Without a usable standard error (fewer than two rows, or a number that is not finite) nothing passes: a gate that cannot
    tell must not let through.
    """
    numbers = (evidence.base_loss, evidence.tuned_loss, evidence.gain, evidence.gain_se)
    if evidence.rows < 2 or evidence.gain_se < 0 or not all(map(math.isfinite, numbers)):
        return Decision(
            passed=False,
            explanation=(
                f"refused: {evidence.rows} held-out rows, gain {evidence.gain}, standard error {evidence.gain_se}; expected at "
                "least 2 rows and finite numbers"
            ),
        )
    needed = policy.min_gain_standard_errors * evidence.gain_se
    passed = evidence.gain > 0 and evidence.gain >= needed
    return Decision(
        passed=passed,
        explanation=(
            f"{'passed' if passed else 'refused'}: held-out loss {evidence.base_loss:.4f} before, {evidence.tuned_loss:.4f} "
            f"after, over {evidence.rows} rows; gain {evidence.gain:.4f} ± {evidence.gain_se:.4f}, needed more than 0 and at "
            f"least {needed:.4f} ({policy.min_gain_standard_errors:g} standard errors)"
        ),
    )
