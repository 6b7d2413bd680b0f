"""What the virtual clock does: rounds, checkpoints, yielding, lost nodes, budgets, past use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scheduler.core.planner import plan
from scheduler.core.snapshot import Snapshot
from scheduler.core.types import Brakes, EndCause, Limits, Micros, Plan, PriorityClass
from scheduler.simulation.ledger import BrakeBuckets, OverdrawnError
from scheduler.simulation.results import Results
from scheduler.simulation.running import run_scenario
from scheduler.simulation.scenario import START
from scheduler.simulation.world import BrokenPlanError
from tests.simulation.simulated import Happened, jobs, scenario

SECOND, MINUTE, HOUR = 1_000_000, 60_000_000, 3_600_000_000


def _run(**parts: Any) -> tuple[Results, Happened]:
    happened = Happened()
    return run_scenario(scenario(**parts), (happened,)), happened


def _starts(happened: Happened, set_name: str) -> list[int]:
    return [now - START for now, lease in happened.leases if lease.job_id.startswith(set_name + ":")]


def test_events_of_one_window_share_a_round() -> None:
    load = [jobs(count=3, arrival={"kind": "every", "interval": "3ms"})]
    _, happened = _run(load=load, round_coalesce_ms=5)
    assert [now - START for now, decided in happened.rounds if decided.grants] == [5_000, 11_000]
    assert [len(decided.grants) for _, decided in happened.rounds if decided.grants] == [2, 1]


def test_a_job_runs_for_its_actual_time_and_then_frees_what_it_held() -> None:
    load = [jobs(count=2, shape={"kind": "h100", "accelerators": 8, "members": 4}, ratio={"kind": "fixed", "value": 0.5})]
    results, happened = _run(load=load)
    assert _starts(happened, "work") == [5_000, 5_000 + HOUR // 2 + 5_000]
    assert results.makespan_s == pytest.approx(3600.01)
    assert results.capacity_use == pytest.approx(1, abs=1e-4)


def test_the_result_is_the_same_again_and_another_with_another_seed() -> None:
    load = [
        jobs(count=40, ratio={"kind": "uniform", "low": 0.1, "high": 1}, arrival={"kind": "poisson", "mean_interval": "5m"})
    ]
    one, again, other = (_run(load=load, seed=seed)[0].comparable() for seed in (1, 1, 2))
    assert one == again
    assert one != other


def _displaced(**checkpoint: Any) -> tuple[Results, Happened]:
    """A low job has run for fifty minutes when an urgent one of its queue comes; the cluster has room for one."""
    whole = {"kind": "h100", "accelerators": 8, "members": 4}
    return _run(
        load=[
            jobs(name="low", shape=whole, priority=100, run="2h", checkpoint=checkpoint),
            jobs(name="urgent", shape=whole, priority=950, run="10m", start="50m"),
        ],
        yield_after="30s",
    )


def test_a_victim_yields_after_the_delay_and_asks_for_what_is_left() -> None:
    _, happened = _displaced(on_demand=True)
    asked = 50 * MINUTE + 5_000
    assert [now - START for now, _ in happened.preempted_at] == [asked]
    assert _starts(happened, "urgent") == [asked + 30 * SECOND + 5_000]
    first, second = [lease for _, lease in happened.leases if lease.job_id.startswith("low")]
    assert second.submitted == first.submitted, "it keeps its place"
    assert second.run_micros == 2 * HOUR - (asked - 5_000)
    assert happened.lost_ms.total() == 0, "it wrote a checkpoint when it was asked"
    assert happened.stops[-1][0] - second.granted == second.run_micros


def test_work_since_the_last_checkpoint_is_lost_and_done_again() -> None:
    results, happened = _displaced(every="15m", on_demand=False)
    ran_ms = (50 * MINUTE + 30 * SECOND) // 1_000
    lost_ms = 32 * (ran_ms - 45 * 60_000)
    assert happened.lost_ms.total() == lost_ms
    assert results.lost_accelerator_hours == pytest.approx(lost_ms / 3_600_000)
    (preemption,) = [each for _, decided in happened.rounds for each in decided.preemptions]
    assert preemption.lost_ms == 32 * 5 * 60_000, "what the scheduler knew when it decided"
    second = happened.leases[-1][1]
    assert second.run_micros == 2 * HOUR - 45 * MINUTE


def test_a_victim_that_is_done_before_it_would_yield_just_ends() -> None:
    whole = {"kind": "h100", "accelerators": 8, "members": 4}
    load = [
        jobs(name="low", shape=whole, priority=100, run="50m"),
        jobs(name="urgent", shape=whole, priority=950, run="10m", start="2990s"),
    ]
    results, happened = _run(load=load, yield_after="30s")
    assert results.preemptions == 1
    assert len(happened.leases) == 2
    assert _starts(happened, "urgent") == [50 * MINUTE + 10_000]


def test_a_lost_node_is_noticed_later_and_its_work_goes_back_to_the_checkpoint() -> None:
    load = [jobs(shape={"kind": "h100", "accelerators": 8}, checkpoint={"every": "10m"})]
    changes = [{"kind": "node_lost", "at": "25m", "nodes": "node-*"}, {"kind": "node_back", "at": "40m", "nodes": "node-0002"}]
    results, happened = _run(load=load, changes=changes, limits={"node_lost": "15s"})
    (noticed, end), *_ = [(now, decided.ends[0]) for now, decided in happened.rounds if decided.ends]
    assert end.cause is EndCause.NODE_LOST
    assert noticed - START == 25 * MINUTE + 15 * SECOND + 1 + 5_000
    second = happened.leases[-1][1]
    assert (second.placement, second.incarnations) == ((("node-0002", 1),), ("1+",))
    assert second.granted - START == 40 * MINUTE + 5_000
    assert second.run_micros == HOUR - 20 * MINUTE
    assert happened.lost_ms.total() == 8 * (5 * 60_000 - 5)
    assert results.finished == 1
    assert [results.shares.usable[index] for index in (0, -1)] == [32.0, 8.0]


def test_a_gang_stops_with_the_first_of_its_nodes() -> None:
    """Of three nodes it loses two, one after the other: its work ends with the first, its lease when that one is missed."""
    load = [jobs(shape={"kind": "h100", "accelerators": 8, "members": 3}, checkpoint={"every": "10m"})]
    changes = [
        {"kind": "node_lost", "at": "25m", "nodes": "node-0001"},
        {"kind": "node_lost", "at": "1510s", "nodes": "node-0000"},
        {"kind": "node_back", "at": "40m", "nodes": "*"},
    ]
    results, happened = _run(load=load, changes=changes, limits={"node_lost": "15s"})
    # The second was granted on the other silent node before that one was missed, and did nothing.
    first, _, last = [lease for _, lease in happened.leases]
    assert {name for name, _ in first.placement} == {"node-0000", "node-0001", "node-0002"}
    assert happened.stops[0][0] - START == 25 * MINUTE + 15 * SECOND + 1 + 5_000
    # It began 5 ms after the start, so its second checkpoint came 5 ms after the twentieth minute.
    assert happened.lost_ms.total() == 24 * (5 * 60_000 - 5)
    assert last.run_micros == HOUR - 20 * MINUTE
    assert results.finished == 1


def test_what_is_granted_on_a_node_that_just_fell_silent_never_starts() -> None:
    """No round can know yet; so the grant is no fault of the plan, and ends with the node, with nothing done or lost."""
    load = [jobs(shape={"kind": "h100", "accelerators": 8}, start="10m", checkpoint={"every": "1s"})]
    changes = [{"kind": "node_lost", "at": "595s", "nodes": "*"}, {"kind": "node_back", "at": "20m", "nodes": "*"}]
    results, happened = _run(load=load, changes=changes, limits={"node_lost": "15s"})
    first, second = [lease for _, lease in happened.leases]
    assert first.granted - START == 10 * MINUTE + 5_000
    assert happened.stops[0][0] - START == 610 * SECOND + 1 + 5_000
    assert happened.lost_ms.total() == 0
    assert (second.granted - START, second.run_micros) == (20 * MINUTE + 5_000, HOUR)
    assert results.finished == 1


def test_a_node_that_returns_before_it_was_missed_ends_what_it_ran() -> None:
    changes = [{"kind": "node_lost", "at": "25m", "nodes": "*"}, {"kind": "node_back", "at": "1505s", "nodes": "*"}]
    results, happened = _run(changes=changes)
    assert [end.cause for _, decided in happened.rounds for end in decided.ends] == [EndCause.NODE_RESTARTED]
    assert results.finished == 1


def test_a_cordoned_node_takes_nothing_new() -> None:
    load = [jobs(), jobs(name="later", start="10m")]
    changes = [
        {"kind": "cordon", "at": "5m", "nodes": "node-*"},
        {"kind": "uncordon", "at": "20m", "nodes": "node-0003"},
    ]
    results, happened = _run(load=load, changes=changes)
    assert _starts(happened, "later") == [20 * MINUTE + 5_000]
    assert happened.leases[-1][1].placement == (("node-0003", 1),)
    assert happened.stops[0][0] - START == HOUR + 5_000, "what ran goes on"
    assert set(results.shares.usable) == {32.0}


def test_a_quota_change_frees_what_waits_for_it() -> None:
    none = {"name": "organisation", "children": [{"name": "red", "quotas": {"gpus": {"accelerators": {"borrowing_limit": 0}}}}]}
    change = {
        "kind": "quota",
        "at": "10m",
        "queue": "red",
        "pool": "gpus",
        "resource": "accelerators",
        "quota": {"nominal": 1, "borrowing_limit": 0},
    }
    results, happened = _run(tree=none, changes=[change], load=[jobs()])
    assert _starts(happened, "work") == [10 * MINUTE + 5_000]
    assert results.sets[0].waits.max_s == pytest.approx(600.005)


def test_a_budget_is_reserved_settled_and_raised() -> None:
    """Jobs declare an hour and take half of it, so half an hour comes back from each."""

    def started(hours: float, *changes: dict[str, Any]) -> tuple[Results, list[int]]:
        budget = {"accelerator_ms_left": int(hours * 3_600_000), "money_left": int(hours * 2_000_000)}
        tree = {"name": "organisation", "children": [{"name": "red", "budget": budget}]}
        pools = [{"name": "gpus", "kind": "h100", "price": 2_000_000}]
        load = [jobs(count=2, ratio={"kind": "fixed", "value": 0.5})]
        results, happened = _run(tree=tree, pools=pools, load=load, changes=list(changes))
        return results, _starts(happened, "work")

    assert started(2.0)[1] == [5_000, 5_000]
    assert started(1.5)[1] == [5_000, 30 * MINUTE + 10_000], "only when the first has given back is there enough for the second"
    short, starts = started(1.25)
    assert starts == [5_000]
    assert (short.finished, short.unfinished, short.waiting_reasons) == (1, 1, {"BUDGET": 1})
    raised = {"kind": "budget", "at": "50m", "queue": "red", "budget": {"accelerator_ms_left": 3_600_000}}
    assert started(1.25, raised)[1] == [5_000, 50 * MINUTE + 5_000]


def test_flapping_changes_requests_queued_jobs_and_leases() -> None:
    load = [jobs(count=40), jobs(name="queued", prepare="5m"), jobs(name="late", start="20m")]
    changes = [{"kind": "priority", "at": "10m", "set": name, "priorities": [950]} for name in ("work", "queued", "late")]
    seen: list[Snapshot] = []

    def looking(snapshot: Snapshot, now: Micros, limits: Limits) -> Plan:
        seen.append(replace(snapshot, leases=snapshot.leases))
        return plan(snapshot, now, limits)

    happened = Happened()
    run_scenario(scenario(load=load, changes=changes, limits={"prepare_ahead": 41}), (happened,), looking)
    before, after = (
        [each for each in seen if len(each.leases) > 30 and any(lease.priority == priority for lease in each.leases)]
        for priority in (500, 950)
    )
    assert before
    assert {lease.priority for lease in after[0].leases} == {950}
    waiting = [decided for _, decided in happened.rounds if decided.waiting_requests]
    classes = [decided.waiting_requests[0].group.priority_class for decided in waiting]
    assert (classes[0], classes[-1]) == (PriorityClass.NORMAL, PriorityClass.URGENT)
    assert {lease.priority for _, lease in happened.leases if lease.job_id.startswith("late")} == {950}


def test_jobs_that_prepare_are_admitted_within_the_window() -> None:
    _, happened = _run(load=[jobs(count=3, prepare="5m")], limits={"prepare_ahead": 2})
    admitted = [(now - START, len(decided.admissions)) for now, decided in happened.rounds if decided.admissions]
    assert admitted == [(5_000, 2), (5_000 + 5 * MINUTE + 5_000 + HOUR + 5_000, 1)]
    assert _starts(happened, "work")[:2] == [10_000 + 5 * MINUTE] * 2


def test_past_use_decays_by_half() -> None:
    trees: dict[int, dict[str, int]] = {}

    def looking(snapshot: Snapshot, now: Micros, limits: Limits) -> Plan:
        trees[now - START] = {node.name: node.past_use for node in snapshot.tree}
        return plan(snapshot, now, limits)

    load = [jobs(), jobs(name="later", start="2h"), jobs(name="more", queues="blue", start="2h")]
    run_scenario(scenario(load=load, past_use_half_life="1h", past_use_every="1m"), (), looking)
    used = trees[2 * HOUR + 5_000]
    # An hour at rate 1 under half-life 1 h leaves (1 - 1/2) / ln 2 hours; an hour later half of that is left.
    assert used["red"] == pytest.approx(0.5 / 0.6931 * 3600 / 2, rel=0.01)
    assert used == {"organisation": used["red"], "red": used["red"], "blue": 0}


def test_waiting_is_polled_because_age_matters_without_events() -> None:
    load = [jobs(shape={"kind": "h100", "accelerators": 8, "members": 4}, count=2)]
    _, happened = _run(load=load, poll="10m")
    idle = [now - START for now, decided in happened.rounds if not decided.grants]
    assert idle[:2] == [5_000 + 10 * MINUTE + 5_000, 5_000 + 2 * (10 * MINUTE + 5_000)]


def test_what_can_never_run_ends_the_simulation() -> None:
    load = [jobs(shape={"kind": "b200", "accelerators": 1})]
    results, _ = _run(load=load)
    assert (results.finished, results.unfinished) == (0, 1)
    too_large, _ = _run(load=[jobs(shape={"kind": "h100", "accelerators": 9})])
    assert too_large.sets[0].refused == 1


def test_it_stops_when_it_is_told_to() -> None:
    results, _ = _run(load=[jobs(count=3, arrival={"kind": "every", "interval": "1h"})], until="90m")
    assert (results.finished, results.unfinished) == (1, 2)


def _moved_to_first(snapshot: Snapshot, now: Micros, limits: Limits) -> Plan:
    decided = plan(snapshot, now, limits)
    moved = tuple(replace(grant, placement=(("node-0000", 1),), incarnations=("1",)) for grant in decided.grants)
    return replace(decided, grants=moved)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ([], "node-0000 is oversubscribed"),
        ([{"kind": "cordon", "at": "0s", "nodes": "node-0000"}], "was granted on .*node-0000"),
        ([{"kind": "node_lost", "at": "0s", "nodes": "node-0000"}], "was granted on .*node-0000"),
        (
            [{"kind": "node_lost", "at": "0s", "nodes": "node-0000"}, {"kind": "node_back", "at": "0s", "nodes": "*"}],
            "was granted on .*node-0000",
        ),
    ],
)
def test_a_plan_that_places_where_it_must_not_is_caught(changes: list[dict[str, Any]], what: str) -> None:
    with pytest.raises(BrokenPlanError, match=what):
        run_scenario(scenario(load=[jobs(count=9, start="1m")], changes=changes), (), _moved_to_first)


def test_a_plan_that_spends_what_is_not_there_is_caught() -> None:
    def generous(snapshot: Snapshot, now: Micros, limits: Limits) -> Plan:
        return plan(replace(snapshot, tree=tuple(replace(node, budget=None) for node in snapshot.tree)), now, limits)

    tree = {"name": "organisation", "children": [{"name": "red", "budget": {"accelerator_ms_left": 3_599_999}}]}
    with pytest.raises(OverdrawnError, match="red has"):
        run_scenario(scenario(tree=tree), (), generous)


def test_a_round_that_could_not_do_all_is_followed_at_once_by_one_that_goes_on() -> None:
    carried: list[int] = []

    def looking(snapshot: Snapshot, now: Micros, limits: Limits) -> Plan:
        carried.append(len(snapshot.carried_over))
        return plan(snapshot, now, limits)

    happened = Happened()
    load = [jobs(name=f"set-{priority}", priority=priority) for priority in (100, 400, 700, 900)]
    run_scenario(scenario(load=load, limits={"operations_max": 2}), (happened,), looking)
    assert [now - START for now, _ in happened.leases] == [5_000] * 4
    assert carried[0] == 0
    assert carried[1] > 0


def test_brakes_bound_preemption() -> None:
    load = [
        jobs(name="low", count=4, shape={"kind": "h100", "accelerators": 8}, priority=100, run="3h"),
        jobs(name="urgent", count=4, shape={"kind": "h100", "accelerators": 8}, priority=950, run="3h", start="5m"),
    ]
    brakes = {"preemptions_per_hour": 2, "waste_accelerator_ms_per_hour": 3_600_000_000}
    _, happened = _run(load=load, brakes=brakes, poll="1m")
    # The bucket is full with two, and then fills with one every half hour, which a poll notices.
    minutes = [(now - START) // MINUTE for now, _ in happened.preempted_at]
    assert minutes[:2] == [5, 5]
    assert minutes[2:] == [pytest.approx(35, abs=1), pytest.approx(65, abs=1)]


def test_brakes_fill_evenly_up_to_an_hour() -> None:
    buckets = BrakeBuckets(60, 3_600, Micros(0))
    buckets.take(60, 3_600)
    assert buckets.brakes(Micros(SECOND - 1)) == Brakes(0, 0)
    assert buckets.brakes(Micros(SECOND)) == Brakes(0, 1)
    assert buckets.brakes(Micros(MINUTE)) == Brakes(1, 60)
    assert buckets.brakes(Micros(9 * HOUR)) == Brakes(60, 3_600)
