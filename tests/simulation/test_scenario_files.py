"""Files into models: strict, every fault named with its path, parts replaced by path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scheduler.core.types import Limits, Resource
from scheduler.simulation.cluster import leaves, usable
from scheduler.simulation.running import jobs_of
from scheduler.simulation.scenario import START, Scenario, ScenarioError, load_scenario, names, scenario_of
from tests.simulation.simulated import jobs, scenario


@pytest.mark.parametrize("name", names())
def test_the_scenarios_that_come_with_it_are_valid_and_survive_a_round_trip(name: str) -> None:
    read = load_scenario(name)
    assert read.name == name
    assert scenario_of(json.loads(read.model_dump_json()), "again") == read


def test_the_shapes_of_the_public_loads_are_theirs() -> None:
    totals = {name: load_scenario(name) for name in ("kueue_baseline", "kueue_large_scale", "kueue_topology", "kai_fill")}
    assert [len(list(jobs_of(each))) for each in totals.values()] == [15_000, 50_000, 15_000, 4_000]
    assert [len(leaves(each.tree_values())) for each in totals.values()] == [30, 1_000, 30, 4]
    for name, bound_s in (("kueue_baseline", 66.0), ("kueue_large_scale", 4.0), ("kueue_topology", 66.0)):
        each = totals[name]
        capacity = sum(node.total[0] for node in each.node_values(START))
        held = usable(each.tree_values(), ("units", Resource.ACCELERATORS), capacity)
        work = sum(job.work * job.shape.accelerators for job in jobs_of(each))
        assert work / held / 1e6 == pytest.approx(bound_s, rel=0.02), name


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ({"load": [jobs(run="250")]}, "load[0].run: is '250'; expected a whole number and a unit"),
        ({"load": [jobs(run=250)]}, "load[0].run: is 250; expected a whole number and a unit"),
        ({"load": [jobs(priority="high")]}, "load[0].priority: is 'high'; input should be a valid integer"),
        ({"load": [jobs(count=0)]}, "load[0].count: is 0; input should be greater than or equal to 1"),
        ({"load": [jobs(colour="red")]}, "load[0].colour: is not a field here; remove it"),
        ({"load": [jobs(queues="green")]}, "load[0].queues: 'green' matches no queue"),
        ({"load": [jobs(), jobs()]}, "load: 'work' is there twice"),
        ({"load": [{"name": "work"}]}, "load[0].run: is missing"),
        ({"nodes": [{"name": "node", "pool": "cpus"}]}, "nodes[0].pool: is 'cpus'; expected one of ['gpus']"),
        ({"tree": {"name": "o", "children": [{"name": "red"}, {"name": "red"}]}}, "tree: two nodes have the same path"),
        ({"changes": [{"kind": "flood", "at": "1s"}]}, "changes[0]"),
        ({"changes": [{"kind": "cordon", "at": "1s", "nodes": "rack-*"}]}, "changes[0].nodes: 'rack-*' matches no node"),
        ({"changes": [{"kind": "priority", "at": "1s", "set": "x", "priorities": [1]}]}, "changes[0].set: is 'x'"),
        ({"changes": [{"kind": "budget", "at": "1s", "queue": "x", "budget": {}}]}, "changes[0].queue: is 'x'"),
    ],
)
def test_a_fault_is_named_with_its_path(parts: dict[str, Any], fault: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        scenario(**parts)
    assert f"test: {fault}" in str(refused.value)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ScenarioError) as refused:
        scenario(load=[jobs(count=0, run="soon")], poll="0s")
    assert len(str(refused.value).splitlines()) == 3


def test_what_is_not_there_or_not_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="no such scenario; there are diurnal"):
        load_scenario("nothing")
    (broken := tmp_path / "broken.yaml").write_text("name: [", encoding="utf-8")
    with pytest.raises(ScenarioError, match="is not YAML"):
        load_scenario(str(broken))
    (dated := tmp_path / "dated.yaml").write_text("name: 2026-01-01", encoding="utf-8")
    with pytest.raises(ScenarioError, match="quote it"):
        load_scenario(str(dated))


def test_parts_are_replaced_by_path() -> None:
    read = load_scenario("kueue_baseline", ("seed=7", "load.small.count=3", "nodes.0.accelerators=5", "limits.run_minimum=1s"))
    assert (read.seed, read.load[0].count, read.nodes[0].accelerators) == (7, 3, 5)
    assert read.limits.limits().run_minimum_micros == 1_000_000


@pytest.mark.parametrize("override", ["seed", "load.tiny.count=3", "name.deep.er=1"])
def test_a_path_that_leads_nowhere_is_refused(override: str) -> None:
    with pytest.raises(ScenarioError, match=f"override '{override}'"):
        load_scenario("kueue_baseline", (override,))


def test_limits_left_out_are_those_of_production_but_for_the_window() -> None:
    assert scenario().limits.limits() == Limits(prepare_ahead=1_000_000)


def test_names_of_queues_are_paths_and_numbered_where_there_are_several() -> None:
    assert leaves(load_scenario("kueue_baseline").tree_values())[6:8] == ["cohort-1/queue-0", "cohort-1/queue-1"]


def test_domains_number_nodes_in_a_row() -> None:
    nodes = load_scenario("kueue_topology").node_values(START)
    racks = [dict(nodes[index].labels)["rack"] for index in (0, 63, 64, 639)]
    assert racks == ["rack-0", "rack-0", "rack-1", "rack-9"]


def _arrivals(arrival: dict[str, Any], seed: int = 1) -> list[int]:
    return [job.submitted - START for job in jobs_of(_of_one_set(jobs(count=400, arrival=arrival), seed))]


def _of_one_set(load: dict[str, Any], seed: int) -> Scenario:
    return scenario(load=[load], seed=seed)


def test_arrivals() -> None:
    assert _arrivals({"kind": "at_once"})[-1] == 0
    assert _arrivals({"kind": "every", "interval": "2s"})[:3] == [0, 2_000_000, 4_000_000]
    poisson = _arrivals({"kind": "poisson", "mean_interval": "1m"})
    assert poisson == sorted(poisson)
    assert poisson[-1] == pytest.approx(400 * 60e6, rel=0.15)
    assert poisson == _arrivals({"kind": "poisson", "mean_interval": "1m"})
    assert poisson != _arrivals({"kind": "poisson", "mean_interval": "1m"}, seed=2)


def test_diurnal_arrivals_peak_when_they_should() -> None:
    times = _arrivals({"kind": "diurnal", "mean_interval": "30m", "swing": 0.9, "peak": "14h"})
    hours = [time // 3_600_000_000 % 24 for time in times]
    by_day, by_night = (sum(start <= hour < start + 6 for hour in hours) for start in (11, 0))
    assert by_day > 4 * by_night
    assert times[-1] == pytest.approx(400 * 1_800e6, rel=0.15)


@pytest.mark.parametrize(
    ("ratio", "low", "high", "mean"),
    [
        ({"kind": "fixed", "value": 0.5}, 0.5, 0.5, 0.5),
        ({"kind": "uniform", "low": 0.2, "high": 0.6}, 0.2, 0.6, 0.4),
        ({"kind": "lognormal", "median": 0.4, "sigma": 0.5}, 0.0, 1.0, 0.45),
        ({"kind": "observed", "values": [0.25, 0.75]}, 0.25, 0.75, 0.5),
    ],
)
def test_ratios(ratio: dict[str, Any], low: float, high: float, mean: float) -> None:
    ratios = [job.work / job.declared for job in jobs_of(scenario(load=[jobs(count=500, ratio=ratio)]))]
    assert min(ratios) >= low - 1e-6
    assert max(ratios) <= high + 1e-6
    assert sum(ratios) / len(ratios) == pytest.approx(mean, rel=0.1)


def test_another_set_leaves_the_draws_of_the_first_alone() -> None:
    alone = list(jobs_of(scenario(load=[jobs(count=5, ratio={"kind": "uniform", "low": 0.1, "high": 1.0})])))
    both = scenario(load=[jobs(name="other"), jobs(count=5, ratio={"kind": "uniform", "low": 0.1, "high": 1.0})])
    assert [job.work for job in alone] == [job.work for job in jobs_of(both) if job.set_name == "work"]
