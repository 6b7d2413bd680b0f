"""Rule 11: why what is left waits, each reason with its numbers; rule 12: what the operations did not suffice for."""

from __future__ import annotations

from dataclasses import replace

from rounds import (
    FREE_TO_PREEMPT,
    HIGH,
    LIMITS,
    LOW,
    NOW,
    POOL,
    SECOND,
    job,
    lease,
    names,
    node,
    queue,
    reasons,
    request,
    round_of,
    shape,
    snapshot,
)

from scheduler.core import (
    AdmissionWindow,
    AwaitsPreemption,
    Budget,
    BudgetReached,
    Claim,
    ExceedsMaximum,
    FairShare,
    Fragmented,
    GroupKey,
    Micros,
    NoCapacity,
    NotEvaluated,
    NoWorkflow,
    Preempt,
    PriorityClass,
    Quota,
    QuotaReached,
    Reserved,
    Topology,
    TopologyMode,
    Waiting,
)


def test_too_little_is_free() -> None:
    done = round_of(snapshot(request("r", 4), leases=(lease("z", 5),)))
    assert reasons(done) == {"q": [NoCapacity(4, 3, 8, "h100")]}


def test_a_resource_other_than_accelerators_is_named() -> None:
    done = round_of(
        snapshot(
            request("r", replace(shape(), member=(1, 0, 1_000))), leases=(lease("z", replace(shape(), member=(0, 0, 30))),)
        )
    )
    assert reasons(done) == {"q": [NoCapacity(1_000, 994, 1_024, "h100", "memory_mib")]}


def test_no_pool_of_its_kind_is_there() -> None:
    done = round_of(snapshot(request("r", shape(2, kind="b200"))))
    assert reasons(done) == {"q": [NoCapacity(2, 0, 0, "b200")]}


def test_enough_is_free_but_not_together() -> None:
    nodes = (node("n1"), node("n2"))
    done = round_of(snapshot(request("r", shape(6, 2)), nodes=nodes, leases=(lease("z", 4),)))
    assert reasons(done) == {"q": [Fragmented(requested=2, placeable=1, free=12, kind="h100")]}


def test_enough_is_free_but_not_in_one_rack() -> None:
    nodes = (node("n1", labels=(("rack", "a"),)), node("n2", labels=(("rack", "b"),)), node("n3", labels=(("rack", "b"),)))
    near = shape(8, 2, topology=Topology("rack", TopologyMode.REQUIRED))
    done = round_of(snapshot(request("r", near), nodes=nodes, leases=(lease("z", 1, "n3"),)))
    assert reasons(done) == {"q": [Fragmented(requested=2, placeable=1, free=23, kind="h100")]}


def test_quota_is_reached_where_it_is() -> None:
    tree = (queue("t", Quota(2, borrowing_limit=1)), queue("q", 1, "t"), queue("other", 1, "t"))
    done = round_of(snapshot(request("r", 3), tree=tree, leases=(lease("z", 3, queue="other"),)))
    assert reasons(done) == {"q": [QuotaReached("t", "gpu", "accelerators", requested=3, used=3, nominal=4, maximum=5)]}


def test_what_others_keep_for_themselves_is_quota_and_a_full_cluster_is_not() -> None:
    tree = (queue("keeper", Quota(4, lending_limit=0)), queue("q"))
    done = round_of(snapshot(request("r", 3), tree=tree, leases=(lease("z", 2),)))
    assert reasons(done) == {"q": [QuotaReached("org", "gpu", "accelerators", requested=3, used=2, nominal=4, maximum=4)]}
    done = round_of(snapshot(request("r", 3), tree=tree, leases=(lease("z", 6, queue="keeper"),)))
    assert reasons(done) == {"q": [NoCapacity(3, 2, 8, "h100")]}


def test_a_budget_would_be_overdrawn() -> None:
    tree = (queue("t", budget=Budget(money_left=5)), queue("q", 0, "t"))
    done = round_of(snapshot(request("r", 2, run=3_600), tree=tree, pools=(replace(POOL, price=3),)))
    assert reasons(done) == {"q": [BudgetReached("t", "money", requested=6, left=5)]}
    tree = (queue("q", budget=Budget(accelerator_ms_left=7_199_999)),)
    done = round_of(snapshot(request("r", 2, run=3_600), tree=tree))
    assert reasons(done) == {"q": [BudgetReached("q", "accelerator_ms", requested=7_200_000, left=7_199_999)]}


def test_what_was_free_went_to_another() -> None:
    tree = (queue("a"), queue("b", 4))
    done = round_of(snapshot(request("a", 5, queue="a", waited=9), request("b", 4, queue="b"), tree=tree))
    assert names(done) == ["b"]
    assert reasons(done) == {"a": [FairShare("a", cost=625, ahead_queue="b", ahead_cost=0), NoCapacity(5, 4, 8, "h100")]}


def test_what_was_too_little_before_did_not_go_to_another() -> None:
    done = round_of(snapshot(request("a", 5, queue="a"), request("b", 4, queue="b"), leases=(lease("z", 4),)))
    assert reasons(done) == {"a": [NoCapacity(5, 0, 8, "h100")]}


def test_what_is_free_is_kept_for_who_has_waited_longer() -> None:
    held = (lease("x", 8, "n1", ran=600, run=3_600), lease("y", 6, "n2", ran=600, run=1_200))
    waiting = (request("gang", shape(8, 2), waited=300), request("long", 1, queue="other", run=9_000, priority=LOW))
    done = round_of(snapshot(*waiting, nodes=(node("n1"), node("n2")), leases=held))
    assert reasons(done) == {
        "q": [NoCapacity(16, 2, 16, "h100")],
        "other": [Reserved("gang", Micros(NOW + 3_000 * SECOND))],
    }


def test_room_is_being_made() -> None:
    tree = (queue("owner", 8), queue("borrower"))
    asked = request("r", 8, queue="owner")
    done = round_of(snapshot(asked, tree=tree, leases=(lease("z", 8, queue="borrower", ran=600),), brakes=FREE_TO_PREEMPT))
    assert done.preemptions == (Preempt("z", "job-z", "r", lost_ms=8 * 600_000),)
    assert done.claims == (Claim("r", (("n1", 1),)),)
    assert reasons(done) == {"owner": [AwaitsPreemption(1)]}


def test_while_room_is_made_for_one_the_next_of_its_line_waits_behind_it() -> None:
    tree = (queue("owner", 8), queue("borrower"))
    asked = [request(f"r{number}", 4, queue="owner", waited=9 - number) for number in range(3)]
    held = [lease(f"z{number}", 4, queue="borrower") for number in range(2)]
    done = round_of(snapshot(*asked, tree=tree, leases=held, brakes=FREE_TO_PREEMPT))
    assert [(each.lease_id, each.request_id) for each in done.preemptions] == [("z0", "r0"), ("z1", "r1")]
    assert done.waiting_requests == (Waiting(GroupKey("owner", PriorityClass.NORMAL, shape(4)), (AwaitsPreemption(1),)),)


def test_no_token_no_preemption() -> None:
    tree = (queue("owner", 8), queue("borrower"))
    done = round_of(snapshot(request("r", 8, queue="owner"), tree=tree, leases=(lease("z", 8, queue="borrower"),)))
    assert done.preemptions == ()
    assert reasons(done) == {"owner": [NoCapacity(8, 0, 8, "h100")]}


def test_jobs_wait_for_a_workflow_for_more_cluster_or_for_the_window() -> None:
    limits = replace(LIMITS, job_types=frozenset({"ft", "hpo"}), prepare_ahead=1)
    jobs = (job("x", job_type="x"), job("big", 9, job_type="ft"), job("a", job_type="ft", waited=9), job("b", job_type="ft"))
    done = round_of(snapshot(jobs=jobs, limits=limits), limits)
    assert reasons(done) == {
        "q": [
            AdmissionWindow(admitted=1, maximum=1),
            NoWorkflow("x", ("ft", "hpo")),
            ExceedsMaximum(9, 8, "h100"),
        ]
    }


def test_what_the_operations_do_not_suffice_for_is_carried_over_and_goes_first() -> None:
    waiting = (request("high", 1, priority=HIGH), request("normal", 2), request("other", 3, queue="other", waited=9))
    limits = replace(LIMITS, operations_max=2)
    first = round_of(snapshot(*waiting), limits)
    assert names(first) == ["high"]
    keys = (GroupKey("other", PriorityClass.NORMAL, shape(3)), GroupKey("q", PriorityClass.NORMAL, shape(2)))
    assert (first.carried_over, first.complete) == (keys, False)
    assert reasons(first) == {"other": [NotEvaluated()], "q": [NotEvaluated()]}
    second = round_of(snapshot(*waiting[1:], request("newer", 2, queue="third", waited=99), carried_over=keys), limits)
    assert names(second) == ["normal"]
    assert GroupKey("third", PriorityClass.NORMAL, shape(2)) in second.carried_over


def test_several_reasons_come_in_order_of_precedence() -> None:
    tree = (queue("q", Quota(2, borrowing_limit=2), budget=Budget(accelerator_ms_left=0)),)
    done = round_of(snapshot(request("r", 3), tree=tree, leases=(lease("z", 3), lease("y", 3, queue="other"))))
    assert [reason.code.value for reason in done.waiting_requests[0].reasons] == ["BUDGET", "QUOTA", "CAPACITY"]
