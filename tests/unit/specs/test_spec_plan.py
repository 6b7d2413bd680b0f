"""What a job would do and cost: phases, leases, tokens and money as intervals of whole numbers, and what they rest on."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from spec_cases import SPECS, message
from test_spec_wire import specs

from control_plane.jobs.planning import DataFacts, Interval, JobPlan, PriceList, plan, to_proto
from control_plane.jobs.spec import JobSpec
from control_plane.jobs.spec_wire import spec_from_proto
from control_plane.jobs.workflows import RUN_TYPES
from headway.jobs.v1 import job_spec_pb2, plan_pb2

PRICES = PriceList("EUR", {"cpu": 36_000, "h200": 3_600_000})
CPU, GPU = plan_pb2.PHASE_QUEUE_CPU, plan_pb2.PHASE_QUEUE_GPU


def parsed(**content: Any) -> JobSpec:
    return spec_from_proto(json_format.ParseDict(content, job_spec_pb2.JobSpec()))


def fine_tune(**more: Any) -> dict[str, Any]:
    return {"base_model": "base", "dataset": {"name": "rows", "eval_fraction": 0.1}, "output_model": "out", **more}


def names(planned: JobPlan) -> list[str]:
    return [f"{phase.name}*" if phase.lease is not None else phase.name for phase in planned.phases]


PHASES = {
    "fine_tune": ["prepare", "train*", "evaluate*", "gate", "package", "register"],
    "hpo": ["prepare", "train*", "evaluate*", "gate", "package", "register"],
    "retrain": ["prepare", "train*", "evaluate*", "gate", "package", "register"],
    "rlhf by preference": ["prepare", "warm_up*", "preference*", "evaluate*", "gate", "package", "register"],
    "rlhf by policy": ["prepare", "warm_up*", "reward_model*", "policy*", "evaluate*", "gate", "package", "register"],
    "rlhf by registered reward": ["prepare", "warm_up*", "policy*", "evaluate*", "gate", "package", "register"],
    "evaluation of a version": ["prepare", "evaluate*", "report"],
}


@pytest.mark.parametrize("name", PHASES)
def test_phases_in_order_and_only_those_with_a_lease_on_gpu_workers(name: str) -> None:
    planned = plan(spec_from_proto(message(name)), {}, None)
    assert names(planned) == PHASES[name]
    assert all((phase.queue == "gpu") == (phase.lease is not None) for phase in planned.phases)


def test_a_fine_tune_in_numbers() -> None:
    resources = {"accelerators": 2, "accelerator_kind": "h200", "max_run_seconds": 600}
    training = {"steps": 30, "micro_batch_size": 10, "gradient_accumulation": 2, "max_tokens": 96}
    spec = parsed(fine_tune=fine_tune(training=training, resources=resources))
    planned = plan(spec, {"rows": DataFacts(rows=500, tokens=10_000)}, PRICES)
    # 450 of 500 rows are trained on, 600 sequences pass: once, and a third.
    assert planned.tokens is not None
    assert planned.tokens.per_pass == 9_000
    assert planned.tokens.trained == Interval(9_000 + 150, 9_000 + 9_000)
    assert planned.tokens.passes_thousandths == Interval(1_333, 1_334)
    assert planned.steps == 30
    # Two leases of two accelerators for ten minutes at most, at a thousandth of a euro for each accelerator-second.
    assert planned.accelerator_seconds == Interval(4, 2_400)
    assert planned.cost is not None
    assert planned.cost.micros == Interval(4_000, 2_400_000)
    assert planned.warnings == ()
    assert any("3,600,000 millionths of EUR" in line for line in planned.assumptions)


def test_whole_passes_are_counted_exactly() -> None:
    spec = parsed(fine_tune=fine_tune(training={"steps": 90, "micro_batch_size": 10}))
    planned = plan(spec, {"rows": DataFacts(rows=500, tokens=10_000)}, None)
    assert planned.tokens is not None
    assert planned.tokens.trained == Interval(18_000, 18_000)
    assert planned.tokens.passes_thousandths == Interval(2_000, 2_000)


def test_what_is_not_known_is_absent_and_said() -> None:
    planned = plan(parsed(fine_tune=fine_tune()), {}, None)
    assert planned.tokens is None
    assert planned.cost is None
    assert "tokens: not known; dataset rows has not been counted yet" in planned.assumptions
    assert "cost: not known; there is no price list" in planned.assumptions
    sent = to_proto(planned)
    assert not sent.HasField("tokens")
    assert not sent.HasField("cost")
    kind = {"resources": {"accelerator_kind": "b300"}}
    assert "cost: not known; the price list has no b300" in plan(parsed(fine_tune=fine_tune(**kind)), {}, PRICES).assumptions
    empty = PriceList("EUR", {})
    assert "cost: not known; the price list is empty" in plan(parsed(fine_tune=fine_tune()), {}, empty).assumptions


def test_any_kind_costs_from_the_cheapest_to_the_dearest() -> None:
    planned = plan(parsed(fine_tune=fine_tune(resources={"max_run_seconds": 100})), {}, PRICES)
    assert planned.cost is not None
    assert planned.cost.micros == Interval(2 * 10, 200 * 1_000)


def test_too_few_steps_to_see_all_rows_is_a_warning() -> None:
    spec = parsed(fine_tune=fine_tune(training={"steps": 10, "micro_batch_size": 9}))
    planned = plan(spec, {"rows": DataFacts(rows=1_000, tokens=10_000)}, None)
    assert planned.warnings == ("training ends before it has seen all rows once: it sees 10 % of them; raise steps to see all",)


def test_a_search_is_bounded_by_whichever_limit_is_least() -> None:
    search: dict[str, Any] = {
        "trial": fine_tune(resources={"max_run_seconds": 100}),
        "search_space": {"lora.rank": {"choices": {"numbers": [4, 8]}}},
        "max_trials": 20,
        "max_parallel_trials": 5,
        "max_run_seconds": 10_000,
    }
    assert plan(parsed(hpo=search), {}, None).accelerator_seconds.high == 20 * 2 * 100
    assert plan(parsed(hpo={**search, "max_run_seconds": 300}), {}, None).accelerator_seconds.high == 5 * 300
    assert plan(parsed(hpo={**search, "max_accelerator_seconds": 700}), {}, None).accelerator_seconds.high == 700
    train = plan(parsed(hpo=search), {}, None).phases[1].lease
    assert train is not None
    assert (train.leases, train.at_once, train.steps) == (20, 5, 10)
    grid = plan(parsed(hpo={**search, "sampler": "SAMPLER_GRID"}), {}, None).phases[1].lease
    assert grid is not None
    assert (grid.leases, grid.at_once) == (2, 2)
    varied = {**search, "search_space": {"training.micro_batch_size": {"choices": {"numbers": [4, 8]}}}}
    facts = {"rows": DataFacts(100, 1_000)}
    assert plan(parsed(hpo=varied), facts, None).tokens is None
    searched = plan(parsed(hpo=search), facts, None).tokens
    assert searched is not None
    assert searched.trained.low == 0


def test_a_retraining_is_planned_for_one_period_and_never_beyond_its_budget() -> None:
    retrain: dict[str, Any] = {
        "fine_tune": fine_tune(resources={"max_run_seconds": 100, "accelerator_kind": "h200"}),
        "triggers": {"new_data": {}},
        "min_interval_seconds": 3_600,
        "max_runs_per_period": 50,
        "period_seconds": 36_001,
        "budget": {"max_accelerator_seconds": 100_000},
    }
    planned = plan(parsed(retrain=retrain), {"rows": DataFacts(10, 100)}, PRICES)
    assert planned.accelerator_seconds == Interval(0, 11 * 200)
    assert planned.tokens is None
    small = {**retrain, "budget": {"max_accelerator_seconds": 500, "max_cost_micros": 1_000}}
    bounded = plan(parsed(retrain=small), {}, PRICES)
    assert bounded.accelerator_seconds.high == 500
    assert bounded.cost is not None
    assert bounded.cost.micros == Interval(0, 1_000)


def test_types_without_a_workflow_are_told_so() -> None:
    for name in SPECS:
        spec = spec_from_proto(message(name))
        told = [line for line in plan(spec, {}, None).warnings if "no workflow in this deployment runs" in line]
        assert bool(told) == (spec.type not in RUN_TYPES)


@pytest.mark.parametrize("micros", [-1, 10**9 + 1, 2**63])
def test_prices_have_limits(micros: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 1,000,000,000"):
        PriceList("EUR", {"h200": micros})


def test_the_largest_legal_jobs_can_be_planned() -> None:
    training = {"steps": 10**6, "micro_batch_size": 1_024, "gradient_accumulation": 1_024, "max_tokens": 131_072}
    resources = {"accelerators": 4_096, "max_run_seconds": 2_592_000}
    trial = fine_tune(training=training, resources=resources)
    search = {"trial": trial, "search_space": {"lora.rank": {"choices": {"numbers": [4]}}}, "max_trials": 10_000}
    budget = {"max_accelerator_seconds": 10**12, "max_cost_micros": 0}
    retrain = {"fine_tune": trial, "triggers": {"new_data": {}}, "max_runs_per_period": 1_000, "min_interval_seconds": 60}
    dear = PriceList("EUR", {"h200": 10**9})
    widest = {"max_parallel_trials": 1_000, "max_run_seconds": 7_776_000, "max_accelerator_seconds": 10**12}
    for content in ({"hpo": {**search, **widest}}, {"retrain": {**retrain, "budget": budget}}):
        planned = plan(parsed(**content), {"rows": DataFacts(1, 10**15)}, dear)
        assert to_proto(planned).accelerator_seconds.high == 10**12
        assert planned.tokens is None
    unbounded = {**retrain, "budget": {"max_cost_micros": 10**15}}
    bounded = plan(parsed(retrain=unbounded), {}, dear)
    assert bounded.accelerator_seconds.high == 1_000 * 2 * 4_096 * 2_592_000
    assert to_proto(bounded).cost.micros.high == 10**15


@given(specs(), st.integers(0, 10**12), st.integers(1, 10**14), st.integers(0, 10**9))
def test_whatever_is_legal_can_be_planned_within_64_bits(spec: JobSpec, rows: int, tokens: int, price: int) -> None:
    facts = {name: DataFacts(rows, tokens) for name in ("length", "x1")}
    kinds = {lease.accelerator_kind for phase in plan(spec, {}, None).phases if (lease := phase.lease) is not None}
    planned = plan(spec, facts, PriceList("EUR", dict.fromkeys(kinds, price)))
    sent = to_proto(planned)
    assert plan_pb2.JobPlan.FromString(sent.SerializeToString()) == sent
    assert 0 <= planned.accelerator_seconds.low <= planned.accelerator_seconds.high
    assert planned.cost is None or 0 <= planned.cost.micros.low <= planned.cost.micros.high
    assert planned.tokens is None or 0 <= planned.tokens.trained.low <= planned.tokens.trained.high
    assert len(sent.assumptions) <= 32
    assert {phase.queue for phase in sent.phases} == {CPU, GPU}
