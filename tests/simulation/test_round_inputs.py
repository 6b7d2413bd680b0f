"""What a round was decided on, as bytes and back, is decided the same: with gangs, topologies, spot, quotas and preemption."""

from __future__ import annotations

import pytest

from scheduler.core.planner import plan
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import Limits, Micros, Plan
from scheduler.inputs import InputsError, decode, encode
from scheduler.record import decisions_json
from scheduler.simulation.running import run_scenario
from scheduler.simulation.scenario import load_scenario
from tests.simulation.simulated import SMALL


@pytest.mark.parametrize("name", ["flapping_priorities", "gang_reclaim", "hpo_storm", "kueue_topology", "spot_loss"])
def test_a_round_comes_out_the_same_from_its_inputs(name: str) -> None:
    rounds = 0

    def twice(snapshot: Snapshot, now: Micros, limits: Limits) -> Plan:
        nonlocal rounds
        rounds += 1
        decided, again = plan(snapshot, now, limits), plan(*decode(encode(snapshot, now, limits)))
        assert (again, decisions_json(again)) == (decided, decisions_json(decided))
        return decided

    run_scenario(load_scenario(name, SMALL[name]), (), twice)
    assert rounds > 10


@pytest.mark.parametrize("data", [b"", b"no zstd", b"\x28\xb5\x2f\xfd\x00"])
def test_what_is_no_inputs_is_refused(data: bytes) -> None:
    with pytest.raises(InputsError):
        decode(data)
