from __future__ import annotations

from dataclasses import replace

import pytest

from control_plane.jobs.spec import GateSpec
from governance.gate import Evidence, decide

EVIDENCE = Evidence(base_loss=4.0, tuned_loss=3.0, gain=1.0, gain_se=0.25, rows=80)


@pytest.mark.parametrize(
    ("evidence", "standard_errors", "passed"),
    [
        (EVIDENCE, 2.0, True),
        (EVIDENCE, 4.0, True),
        (EVIDENCE, 4.1, False),
        (replace(EVIDENCE, gain=0.4), 2.0, False),
        (replace(EVIDENCE, gain=-1.0), 0.0, False),
        (replace(EVIDENCE, gain=0.0, gain_se=0.0), 0.0, False),
        (replace(EVIDENCE, gain=0.1, gain_se=0.0), 2.0, True),
        (replace(EVIDENCE, rows=1, gain_se=0.0), 0.0, False),
        (replace(EVIDENCE, gain_se=-0.1), 0.0, False),
        (replace(EVIDENCE, gain=float("nan")), 0.0, False),
        (replace(EVIDENCE, gain=float("inf")), 0.0, False),
        (replace(EVIDENCE, gain_se=float("nan")), 0.0, False),
        (replace(EVIDENCE, tuned_loss=float("nan")), 0.0, False),
    ],
)
def test_decision(evidence: Evidence, standard_errors: float, passed: bool) -> None:
    decision = decide(evidence, GateSpec(min_gain_standard_errors=standard_errors))
    assert decision.passed is passed
    assert decision.explanation.startswith("passed: " if passed else "refused: ")


def test_the_explanation_names_every_number_that_decided() -> None:
    explanation = decide(EVIDENCE, GateSpec(min_gain_standard_errors=2.0)).explanation
    for number in ("4.0000", "3.0000", "80 rows", "1.0000 ± 0.2500", "0.5000", "2 standard errors"):
        assert number in explanation
