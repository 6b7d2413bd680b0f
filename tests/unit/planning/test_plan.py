"""What a round decides, rule by rule: ends, order, placing, budgets, refusals, claims, admission."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rounds import (
    FREE_TO_PREEMPT,
    GPUS,
    HIGH,
    LIMITS,
    LOW,
    NOW,
    POOL,
    SECOND,
    URGENT,
    granted,
    job,
    lease,
    names,
    node,
    queue,
    request,
    round_of,
    shape,
    snapshot,
)

from scheduler.core import (
    Budget,
    Claim,
    EndCause,
    EndLease,
    ExceedsMaximum,
    GroupKey,
    Lease,
    Limits,
    Micros,
    Node,
    Placement,
    Plan,
    Pool,
    PriorityClass,
    QueueNode,
    Quota,
    Refuse,
    Reservation,
    Topology,
    TopologyMode,
    plan,
)

SPOT = Pool("spot", "h100", spot=True, price=1_000_000)
DEAR = replace(POOL, price=3_000_000)


# 1. Ends


@pytest.mark.parametrize(
    ("held", "nodes", "cause"),
    [
        (lease("z", expires=Micros(NOW - 1)), (node(),), EndCause.EXPIRED),
        (lease("z", expires=NOW), (node(),), None),
        (lease("z", incarnations=("0",), expires=Micros(NOW - 1)), (node(),), EndCause.NODE_RESTARTED),
        (lease("z", incarnations=("0",)), (node(heartbeat=Micros(NOW - 15 * SECOND - 1)),), EndCause.NODE_LOST),
        (lease("z"), (node(heartbeat=Micros(NOW - 15 * SECOND)),), None),
        (lease("z"), (), EndCause.NODE_LOST),
        (lease("z", shape(1, 2), (("n1", 1), ("n2", 1)), incarnations=("0", "1")), (node(),), EndCause.NODE_LOST),
    ],
    ids=["expired", "in time", "restarted", "silent", "just heard", "unknown", "one of two unknown"],
)
def test_a_lease_ends(held: Lease, nodes: tuple[Node, ...], cause: EndCause | None) -> None:
    done = round_of(snapshot(leases=(held,), nodes=nodes))
    assert done.ends == (() if cause is None else (EndLease("z", "job-z", cause),))


def test_silence_while_the_database_was_down_is_not_the_nodes() -> None:
    silent = node(heartbeat=Micros(NOW - 3_600 * SECOND))
    back = round_of(snapshot(leases=(lease("z"),), nodes=(silent,), database_started=Micros(NOW - 15 * SECOND)))
    assert back.ends == ()


def test_what_an_ended_lease_held_is_free_in_the_same_round() -> None:
    done = round_of(snapshot(request("r", 8), leases=(lease("z", 8, expires=Micros(NOW - 1)),)))
    assert granted(done) == [("r", "gpu", (("n1", 1),))]


# 4. Order


def test_classes_are_strict_and_a_line_is_first_in_first_out() -> None:
    done = round_of(
        snapshot(
            request("late", waited=1),
            request("early", waited=2),
            request("low", waited=10**6, priority=LOW),
            request("high", priority=HIGH),
        )
    )
    assert names(done) == ["high", "early", "late", "low"]


def test_within_nominal_comes_before_borrowing_and_then_the_cheapest() -> None:
    tree = (queue("owner", 2), queue("light", 0), queue("heavy", 0, weight=3_000))
    waiting = [request(f"{name}-{number}", queue=name) for name in ("owner", "light", "heavy") for number in range(4)]
    done = round_of(snapshot(*waiting, tree=tree))
    # The owner's two; then whoever is cheapest with one more, in thousandths of the 8 that can be lent: 41, 83 and 125 for
    # heavy, 125 for each of the others. Where costs are equal the line decides, and there the id.
    assert names(done) == ["owner-0", "owner-1", "heavy-0", "heavy-1", "heavy-2", "light-0", "owner-2", "heavy-3"]


def test_fairness_goes_by_team_first() -> None:
    tree = (
        queue("big"),
        queue("small"),
        *(queue(f"big-{number}", 0, "big") for number in range(3)),
        queue("small-0", 0, "small"),
    )
    waiting = [
        request(f"{name}-{number}", queue=name) for name in ("big-0", "big-1", "big-2", "small-0") for number in range(8)
    ]
    done = round_of(snapshot(*waiting, tree=tree))
    assert sorted(name.rsplit("-", 1)[0] for name in names(done)) == ["big-0", "big-0", "big-1", "big-2", *["small-0"] * 4]


def test_past_use_decides_among_equal_costs() -> None:
    tree = (queue("a", past_use=10), queue("b", past_use=5))
    done = round_of(snapshot(request("a", queue="a", waited=100), request("b", queue="b"), tree=tree, nodes=(node("n1", 1),)))
    assert names(done) == ["b"]


def test_a_demoted_queue_is_of_the_lowest_class() -> None:
    tree = (queue("t", demoted=True), queue("a", 8, "t"), queue("b"))
    done = round_of(snapshot(request("a", queue="a", priority=URGENT), request("b", queue="b", priority=LOW), tree=tree))
    assert names(done) == ["b", "a"]


def test_groups_carried_over_go_before_others_of_their_class() -> None:
    first = GroupKey("q", PriorityClass.NORMAL, shape(2))
    waiting = (request("one", 1, waited=9), request("two", 2), request("high", 1, priority=HIGH))
    assert names(round_of(snapshot(*waiting, carried_over=(first,)))) == ["high", "two", "one"]
    assert names(round_of(snapshot(*waiting))) == ["high", "one", "two"]


def test_a_head_that_does_not_fit_blocks_no_other_shape() -> None:
    done = round_of(snapshot(request("big", 8, waited=10), request("small", 1), leases=(lease("z", 4),)))
    assert names(done) == ["small"]


def test_a_blocked_gang_does_not_make_the_rest_of_its_queue_pay_for_it() -> None:
    # b has used nothing. With its gang it would cost most of all; the gang cannot be placed, and its small request goes first.
    tree = (queue("a"), queue("b"))
    waiting = (request("gang", shape(8, 2), queue="b", waited=50), request("b", queue="b"), request("a", queue="a", waited=40))
    done = round_of(snapshot(*waiting, tree=tree, nodes=(node("n1", 8), node("n2", 8)), leases=(lease("z", 7, queue="a"),)))
    assert names(done) == ["b", "a"]


# 5. Placing


def test_members_go_where_it_is_tightest_and_large_holes_stay() -> None:
    nodes = (node("n1"), node("n2"), node("n3"))
    done = round_of(snapshot(request("r", 2), nodes=nodes, leases=(lease("x", 5, "n2"), lease("y", 7, "n3"))))
    assert granted(done) == [("r", "gpu", (("n2", 1),))]


def test_cordoned_silent_and_unlabelled_nodes_are_out() -> None:
    nodes = (
        node("n1", cordoned=True),
        node("n2", heartbeat=Micros(0)),
        node("n3", labels=(("zone", "b"),)),
        node("n4", labels=(("disk", "fast"), ("zone", "a"))),
    )
    done = round_of(snapshot(request("r", shape(1, labels=(("zone", "a"),))), nodes=nodes))
    assert granted(done) == [("r", "gpu", (("n4", 1),))]


def test_a_gang_is_granted_whole_or_not_at_all() -> None:
    nodes = (node("n1", 4), node("n2", 4))
    assert granted(round_of(snapshot(request("r", shape(4, 2)), nodes=nodes))) == [("r", "gpu", (("n1", 1), ("n2", 1)))]
    assert granted(round_of(snapshot(request("r", shape(4, 2)), nodes=nodes, leases=(lease("z"),)))) == []


@pytest.mark.parametrize(
    ("mode", "placement"),
    [
        (TopologyMode.REQUIRED, (("b1", 1), ("b2", 1))),
        (TopologyMode.PREFERRED, (("b1", 1), ("b2", 1))),
        (TopologyMode.BALANCED, (("c1", 1), ("c2", 1))),
    ],
)
def test_a_gang_that_belongs_together_is_in_one_rack(mode: TopologyMode, placement: Placement) -> None:
    racks = {"a1": "a", "b1": "b", "b2": "b", "c1": "c", "c2": "c", "c3": "c"}
    nodes = [node(name, 4, labels=(("rack", rack),)) for name, rack in racks.items()]
    done = round_of(snapshot(request("r", shape(4, 2, topology=Topology("rack", mode))), nodes=nodes))
    assert granted(done) == [("r", "gpu", placement)]


def test_the_cheapest_pool_is_taken_and_spot_only_by_who_takes_it() -> None:
    nodes = (node("n1"), node("s1", pool="spot"))
    both = snapshot(request("any", shape(1, spot=True)), request("firm"), nodes=nodes, pools=(DEAR, SPOT))
    assert granted(round_of(both)) == [("any", "spot", (("s1", 1),)), ("firm", "gpu", (("n1", 1),))]


def test_a_pool_within_nominal_comes_before_a_cheaper_one_borrowed() -> None:
    nodes = (node("n1"), node("s1", pool="spot"))
    tree = (QueueNode("q", "org", quotas={GPUS: Quota(4), ("spot", GPUS[1]): Quota(0)}),)
    done = round_of(snapshot(request("r", shape(1, spot=True)), nodes=nodes, pools=(DEAR, SPOT), tree=tree))
    assert granted(done) == [("r", "gpu", (("n1", 1),))]


def test_the_next_pool_is_tried_where_the_first_has_no_room() -> None:
    nodes = (node("n1"), node("s1", 1, pool="spot"))
    waiting = (request("r1", shape(1, spot=True), waited=1), request("r2", shape(1, spot=True)))
    done = round_of(snapshot(*waiting, nodes=nodes, pools=(DEAR, SPOT)))
    assert granted(done) == [("r1", "spot", (("s1", 1),)), ("r2", "gpu", (("n1", 1),))]


# 5. Budgets


def test_the_longest_run_is_reserved_rounded_up_in_every_budget_on_the_way() -> None:
    # 2 accelerators for half an hour at 3.000001 an hour: 3.000001, in millionths.
    pool = replace(POOL, price=3_000_001)
    tree = (
        queue("t", budget=Budget(money_left=6_000_002)),
        queue("q", 0, "t", budget=Budget(accelerator_ms_left=7_200_000)),
    )
    waiting = [request(f"r{number}", 2, waited=9 - number, run=1_800) for number in range(3)]
    done = round_of(snapshot(*waiting, pools=(pool,), tree=tree))
    assert [(grant.request.request_id, grant.cost) for grant in done.grants] == [("r0", 3_000_001), ("r1", 3_000_001)]


def test_half_a_millionth_is_a_millionth() -> None:
    done = round_of(snapshot(request("r", 1, run=1), pools=(replace(POOL, price=1),)))
    assert [grant.cost for grant in done.grants] == [1]


def test_time_on_machines_without_accelerators_is_not_accelerator_time() -> None:
    cpu = Pool("cpu", "cpu")
    tree = (queue("q", budget=Budget(accelerator_ms_left=0)),)
    machine = node("c1", pool="cpu", total=(1, 8_000, 64))
    assert names(round_of(snapshot(request("r", shape(1, kind="cpu")), nodes=(machine,), pools=(cpu,), tree=tree))) == ["r"]


# 6. Refusals


def test_what_the_cluster_could_never_hold_is_refused_with_the_numbers() -> None:
    one, gang = request("one", 9), request("gang", shape(8, 3))
    nodes = (node("n1", cordoned=True), node("n2", heartbeat=Micros(0)))
    done = round_of(snapshot(one, gang, nodes=nodes))
    assert done.refusals == (
        Refuse(gang, ExceedsMaximum(24, 16, "h100", "accelerators", "cluster")),
        Refuse(one, ExceedsMaximum(9, 8, "h100", "accelerators", "cluster")),
    )
    assert done.waiting_requests == ()


def test_what_no_quota_allows_is_refused_and_a_quota_of_nothing_is_waited_out() -> None:
    asked = request("r", 6)
    team = queue("t", Quota(0, borrowing_limit=1))
    limited = round_of(snapshot(asked, tree=(team, queue("q", Quota(4, borrowing_limit=9), "t"))))
    assert limited.refusals == (Refuse(asked, ExceedsMaximum(6, 5, "h100", "accelerators", "t")),)
    paused = round_of(snapshot(asked, tree=(queue("q", Quota(0, borrowing_limit=0)),)))
    assert (paused.refusals, names(paused)) == ((), [])


def test_nothing_is_refused_before_anything_of_its_kind_is_known() -> None:
    assert round_of(snapshot(request("r", shape(1, kind="b200")))).refusals == ()
    assert round_of(snapshot(request("r", 9), nodes=())).refusals == ()


# 7. Claims


def test_a_claim_is_granted_where_it_is_when_its_victims_are_gone() -> None:
    claiming = request("r", 8, claim=(("n2", 1),))
    done = round_of(snapshot(claiming, nodes=(node("n1"), node("n2")), brakes=FREE_TO_PREEMPT))
    assert granted(done) == [("r", "gpu", (("n2", 1),))]
    assert done.claims == ()


def test_a_claim_waits_for_its_victims_and_nobody_else_gets_what_it_claims() -> None:
    claiming = request("r", 8, claim=(("n1", 1),))
    done = round_of(snapshot(claiming, request("small", 2), leases=(lease("z", 4, preempted_for="r"),)))
    assert done == Plan(waiting_requests=done.waiting_requests)
    assert [type(reason).__name__ for waiting in done.waiting_requests for reason in waiting.reasons] == [
        "NoCapacity",
        "AwaitsPreemption",
    ]


def test_a_claim_that_nothing_comes_of_is_dissolved_and_its_request_competes() -> None:
    gone = request("gone", 8, claim=(("lost", 1),), waited=1)
    taken = request("taken", 8, claim=(("n1", 1),))
    done = round_of(snapshot(gone, taken, nodes=(node("n1"), node("n2")), leases=(lease("z", 1),)))
    assert granted(done) == [("gone", "gpu", (("n2", 1),))]
    assert done.claims == (Claim("taken", ()),)


# 8. Reservation and backfill


def test_room_is_kept_for_the_first_that_was_blocked_for_long_and_filled_in_beside_it() -> None:
    held = (lease("x", 8, "n1", ran=600, run=3_600), lease("y", 6, "n2", ran=600, run=1_200))
    waiting = (
        request("gang", shape(8, 2), waited=300),
        request("long", 1, waited=200, run=9_000),
        request("short", 1, waited=100, run=1_800),
    )
    done = round_of(snapshot(*waiting, nodes=(node("n1"), node("n2")), leases=held))
    starts = Micros(NOW + 3_000 * SECOND)
    assert done.reservations == (Reservation("gang", "gpu", starts, (("n1", 1), ("n2", 1))),)
    # "long" is the head of its line, and would still run when the gang starts.
    assert names(done) == []
    done = round_of(
        snapshot(*(each for each in waiting if each.request_id != "long"), nodes=(node("n1"), node("n2")), leases=held)
    )
    assert granted(done) == [("short", "gpu", (("n2", 1),))]


def test_nothing_is_kept_for_who_has_not_waited_or_is_of_the_lowest_class() -> None:
    young = request("gang", shape(8, 2), waited=59)
    scavenger = request("gang", shape(8, 2), waited=600, priority=0)
    nodes, held = (node("n1"), node("n2")), (lease("x", 8, "n1"),)
    assert round_of(snapshot(young, nodes=nodes, leases=held)).reservations == ()
    assert round_of(snapshot(scavenger, nodes=nodes, leases=held)).reservations == ()


# 10. Admission


def test_the_best_of_each_queue_are_admitted_while_its_window_has_room() -> None:
    jobs = (
        job("late", 2),
        job("early", 1, waited=9),
        job("high", 1, priority=HIGH),
        job("other", queue="other"),
        job("full", queue="full"),
    )
    done = round_of(snapshot(jobs=jobs, admitted={"full": 2, "other": 1}))
    assert [each.job_id for each in done.admissions] == ["other", "high", "early"]


def test_what_has_no_workflow_or_exceeds_the_maximum_takes_no_place_in_the_window() -> None:
    jobs = (job("x", job_type="x", waited=9), job("big", 9, job_type="ft", waited=8), job("ok", job_type="ft"))
    limits = replace(LIMITS, job_types=frozenset({"ft"}), prepare_ahead=1)
    done = round_of(snapshot(jobs=jobs, limits=limits), limits)
    assert [each.job_id for each in done.admissions] == ["ok"]


# The round as a whole


def test_backlogs_in_another_order_than_the_limits_ask_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the backlog of requests is in order of aging_micros=60000000; expected .* 7"):
        plan(snapshot(), NOW, Limits(aging_micros=7))


def test_an_empty_snapshot_gives_an_empty_plan() -> None:
    assert round_of(snapshot(nodes=(), pools=())) == Plan()
